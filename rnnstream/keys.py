"""Key files: who may connect to a worker, and how a client knows that it is the right one.

Each worker and each user has a pair of keys of CURVE, in two files of the format of `zmq.auth`: NAME.key, which is public, and
NAME.key_secret, which holds both and is for its owner alone. Files come from other people, so they are read with suspicion: all
that is not exactly as it should be is a `BadKey`. No sentence shows what stands in a file, for that may be a secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from pathlib import Path
from typing import TypeAlias

import zmq
from zmq.utils import z85

from rnnstream.errors import BadKey

KeyPath: TypeAlias = str | os.PathLike[str]

FILE_BYTES = 4096  # of a key file: a pair takes 400, and other tools write notes beside it; what is larger is something else
KEY_CHARACTERS = 40  # 32 bytes in Z85
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # it is this process that cannot read now, whatever the file
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # a pipe or a terminal is opened at once, and then found to be no file
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

_PUBLIC = """\
#   A public key of rnnstream (CURVE, ZeroMQ). It is no secret.
#   A user's goes into the folder that the worker has as --allow; a worker's goes to its users, as --server-key.
#   Whoever gets it must be sure from whom it comes.

metadata
curve
    public-key = "{public}"
"""
_SECRET = """\
#   A SECRET key of rnnstream (CURVE, ZeroMQ). Give it to nobody, and leave it readable by its owner alone.
#   A user connects with it, by --key; a worker runs with it, by serve --server-key.

metadata
curve
    public-key = "{public}"
    secret-key = "{secret}"
"""


def write_pair(name: KeyPath) -> tuple[Path, Path]:
    """Make a pair of keys and write it to NAME.key and NAME.key_secret; both are on the disk when this returns.

    The secret file is its owner's alone from the first moment, whatever the umask is. Where one of the two cannot be
    written, neither is left behind.

    Args:
        name: the path of both files without their endings.

    Returns:
        The paths of the public and the secret file.

    Raises:
        BadKey: one of the files is there already, or cannot be written.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    public_path, secret_path = Path(f"{os.fspath(name)}.key"), Path(f"{os.fspath(name)}.key_secret")
    written: list[Path] = []
    try:
        for path, mode, text in (
            (secret_path, 0o600, _SECRET.format(public=public, secret=secret)),
            (public_path, 0o644, _PUBLIC.format(public=public)),
        ):
            descriptor = os.open(path, _WRITE, mode)
            written.append(path)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
        _sync(public_path.parent)
    except BaseException as problem:
        for made in written:
            with contextlib.suppress(OSError):
                made.unlink()
        if isinstance(problem, FileExistsError):
            raise BadKey(f"{path} is there already, and a key is never written over; choose another name.") from None
        if isinstance(problem, OSError):
            raise BadKey(f"{path} cannot be written: {problem.strerror}.") from None
        raise
    return public_path, secret_path


def _sync(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_key(text: str) -> bool:
    """Whether this can be a key: 32 bytes in Z85."""
    try:
        return len(text) == KEY_CHARACTERS and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):  # not ASCII; a character that Z85 does not have; five that go beyond 32 bits
        return False


def read_public(path: KeyPath) -> str:
    """The public key in a key file, in Z85; a public file or a secret one, of which the secret is not looked at.

    Raises:
        BadKey: there is none that could be used.
    """
    return _read(path)[1]["public-key"]


def read_pair(path: KeyPath) -> tuple[str, str]:
    """The public and the secret key in a secret file, in Z85.

    Raises:
        BadKey: it cannot be used: a public file, one that others may read or write, or keys that are no pair.
    """
    status, keys = _read(path)
    if "secret-key" not in keys:
        raise BadKey(f"{path} has no secret-key: it is a public key file. Give the secret one of the pair (.key_secret).")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise BadKey(f"{path} holds a secret key, and its mode {mode:04o} lets others at it; chmod 600 {path}")
    public, secret = keys["public-key"], keys["secret-key"]
    if zmq.curve_public(secret.encode()).decode() != public:
        raise BadKey(f"{path} has a public-key and a secret-key that do not belong together; make a new pair.")
    return public, secret


def read_directory(path: KeyPath) -> tuple[dict[str, Path], list[str]]:
    """All public keys in the files NAME.key of a directory.

    Other files are passed over, and so are names that begin with a dot. Whoever can write to the directory, or to a file in it,
    can admit himself. So both have to belong to root or to the user of this process, and nobody else may write to them: not
    their group either, for who is in a group is decided elsewhere, and by others.

    Args:
        path: of the directory.

    Returns:
        The file of each key, the first by name where several have the same one; and a sentence for each file that is not used,
        among them all that hold a secret key. O(files).

    Raises:
        BadKey: the directory cannot be read, or not now, or others may write to it. Which keys there are is not known then.
    """
    directory = Path(path)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if why := _open_to_others(os.fstat(descriptor)):
                raise BadKey(f"Whoever can write to {directory} can admit himself, and {why} {directory}")
            return _read_all(directory, descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise BadKey(f"The keys in {directory} cannot be read: {problem.strerror}.") from None


def _read_all(directory: Path, descriptor: int) -> tuple[dict[str, Path], list[str]]:
    keys: dict[str, Path] = {}
    problems = []
    for name in sorted(os.listdir(descriptor)):
        if name.startswith(".") or not name.endswith((".key", ".key_secret")):
            continue
        path = directory / name
        try:
            keys.setdefault(_admitted(path, descriptor), path)
        except BadKey as problem:
            problems.append(str(problem))
        except OSError as problem:
            if problem.errno in _EXHAUSTED:
                raise
            problems.append(str(_unreadable(path, problem)))
    return keys, problems


def _admitted(path: Path, directory: int) -> str:
    """The public key in a file of an open directory."""
    if path.suffix == ".key_secret":
        raise _misplaced(path)
    status, keys = _load(path, directory)
    if "secret-key" in keys:
        raise _misplaced(path)
    if why := _open_to_others(status):
        raise BadKey(f"Whoever can write to {path} can admit himself, and {why} {path}")
    return keys["public-key"]


def _misplaced(path: Path) -> BadKey:
    told = f"A secret key lies in {path.parent}, which is for public keys only: {path.name} is not used."
    return BadKey(f"{told} Take it away; if others could read it, its owner needs a new pair.")


def _open_to_others(status: os.stat_result) -> str:
    """Why others could write there, and what to do: a clause that ends with a command for the path. "" if they cannot."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user (uid {status.st_uid}); chown {os.geteuid()}"
    if status.st_mode & 0o022:
        return f"its mode {stat.S_IMODE(status.st_mode):04o} lets others do so; chmod go-w"
    return ""


def _read(path: KeyPath) -> tuple[os.stat_result, dict[str, str]]:
    """What a key file is, and the keys in it by their field: a public-key always, a secret-key perhaps."""
    try:
        return _load(path)
    except OSError as problem:
        if is_key(str(path)):  # it may be the secret one: not to be seen in a log
            raise BadKey("Where the path of a key file should be, there is a key itself; give the path of its file.") from None
        raise _unreadable(path, problem) from None


def _unreadable(path: KeyPath, problem: OSError) -> BadKey:
    return BadKey(f"The key file {path} cannot be read: {problem.strerror}.")


def _load(path: KeyPath, directory: int | None = None) -> tuple[os.stat_result, dict[str, str]]:
    """As `_read`, but with OSError; `directory` is a descriptor of the file's, if that is open."""
    descriptor = os.open(path if directory is None else os.path.basename(path), _READ, dir_fd=directory)
    try:
        status = os.fstat(descriptor)  # of what was opened: the path may lead elsewhere by now
        if not stat.S_ISREG(status.st_mode):
            raise BadKey(f"{path} is no regular file; give the path of a key file.")
        data = os.read(descriptor, FILE_BYTES + 1) if status.st_size <= FILE_BYTES else b""
    finally:
        os.close(descriptor)
    if max(status.st_size, len(data)) > FILE_BYTES:
        raise BadKey(f"{path} is no key file: it has more than {FILE_BYTES:,} bytes.")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BadKey(f"{path} is no key file: it is not UTF-8 text.") from None
    return status, _parse(path, text)


def _parse(path: KeyPath, text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for line in text.split("\n"):  # as zmq.auth does: splitlines knows ends of lines that no other reader of the format does
        field, _, value = line.partition("=")
        field = field.strip()
        if field not in ("public-key", "secret-key"):
            continue
        if field in keys:
            raise BadKey(f"{path} has more than one {field}; a key file has one pair.")
        keys[field] = value.strip(" \t\r'\"")
        if not is_key(keys[field]):
            raise BadKey(
                f"{path} has a {field} that is none: it is {KEY_CHARACTERS} characters of Z85, which stand for 32 bytes."
            )
    if "public-key" not in keys:
        raise BadKey(f"{path} is no key file: it has no public-key. rnnstream keygen makes key files.")
    return keys
