from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth

from rnnstream.errors import BadKey
from rnnstream.keys import FILE_BYTES, is_key, read_directory, read_pair, read_public, write_pair

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
OTHER, _ = (key.decode() for key in zmq.curve_keypair())


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def pair(public: str = PUBLIC, secret: str = SECRET) -> str:
    return f'metadata\ncurve\n    public-key = "{public}"\n    secret-key = "{secret}"\n'


def put(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def told(path: Path, text: str | bytes, mode: int = 0o600) -> str:
    """What is said of a secret file with this in it."""
    with pytest.raises(BadKey) as caught:
        read_pair(put(path, text, mode))
    return str(caught.value)


def test_a_pair_is_what_zmq_reads(tmp_path: Path) -> None:
    public, secret = write_pair(tmp_path / "alice")
    assert (public, secret) == (tmp_path / "alice.key", tmp_path / "alice.key_secret")
    keys = read_pair(secret)
    assert read_public(public) == read_public(secret) == keys[0]
    assert zmq.auth.load_certificate(secret) == (keys[0].encode(), keys[1].encode())
    assert zmq.auth.load_certificate(public) == (keys[0].encode(), None)
    assert zmq.curve_public(keys[1].encode()).decode() == keys[0]
    assert keys[1] not in public.read_text()
    assert write_pair(str(tmp_path / "bob"))[0].read_text() != public.read_text()


def test_what_zmq_writes_is_read(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "alice", {"name": "Ålice", "public-keys": "one"})
    os.chmod(secret, 0o600)
    assert (read_public(public), *read_pair(secret)) == (
        zmq.auth.load_certificate(public)[0].decode(),
        *(key.decode() for key in zmq.auth.load_certificate(secret) if key),
    )


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o177])
def test_a_secret_is_its_owners_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    opened, modes = os.open, {}

    def open(path: Path, flags: int, mode: int = 0o777, **keys: int) -> int:
        descriptor = opened(path, flags, mode, **keys)
        modes[Path(path).suffix] = os.fstat(descriptor).st_mode & 0o777
        return descriptor

    os.umask(mask)
    monkeypatch.setattr(os, "open", open)
    _, secret = write_pair(tmp_path / "alice")
    assert (modes[".key_secret"], modes[".key"]) == (0o600, 0o644 & ~mask)
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_pair_is_on_the_disk_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def noting(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_size > 0))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    public, secret = write_pair(tmp_path / "alice")
    assert [path for path, full in synced if full or path == tmp_path] == [secret, public, tmp_path]


@pytest.mark.parametrize("there", ["alice.key", "alice.key_secret"])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_nothing_is_written_over(tmp_path: Path, there: str, kind: str) -> None:
    path = tmp_path / there
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    with pytest.raises(BadKey, match=f"{path} is there already, and a key is never written over; choose another name"):
        write_pair(tmp_path / "alice")
    assert os.listdir(tmp_path) == [there], "no half of a pair, and nothing where a link leads"
    assert kind != "file" or path.read_text() == "mine"


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_pair_that_cannot_be_kept_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    fsync, left = os.fsync, [None] * good

    def full(descriptor: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadKey, match=r"alice\.key\S* cannot be written: No space left on device\."):
        write_pair(tmp_path / "alice")
    assert os.listdir(tmp_path) == []


def test_a_pair_without_a_place(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match=r"none/alice\.key_secret cannot be written: No such file or directory\."):
        write_pair(tmp_path / "none" / "alice")


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o644, 0o777])
def test_a_secret_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "alice.key_secret"
    assert told(path, pair(), mode) == (
        f"{path} holds a secret key, and its mode {mode:04o} lets others at it; chmod 600 {path}"
    )
    path.chmod(0o400)
    assert read_pair(path) == (PUBLIC, SECRET)


def test_a_public_file_is_no_secret_one(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    assert told(path, f"public-key = {PUBLIC}", 0o644) == (
        f"{path} has no secret-key: it is a public key file. Give the secret one of the pair (.key_secret)."
    )
    assert read_public(path) == PUBLIC, "quotes may be left out, as zmq has it"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no key file: it has no public-key. rnnstream keygen makes key files."),
        (f"secret-key = {SECRET}", "is no key file: it has no public-key"),
        (f"# public-key = {PUBLIC}", "is no key file: it has no public-key"),
        (f"# \u2028public-key = {PUBLIC}", "is no key file: it has no public-key"),
        (pair() + "\udcff", "is no key file: it is not UTF-8 text"),
        (pair() + f"public-key = {OTHER}", "has more than one public-key; a key file has one pair"),
        (pair() + f"secret-key = {SECRET}", "has more than one secret-key"),
        (pair(PUBLIC[:-1]), "has a public-key that is none: it is 40 characters of Z85, which stand for 32 bytes"),
        (pair(PUBLIC, SECRET + "0"), "has a secret-key that is none"),
        (pair(PUBLIC, SECRET[:-1] + "~"), "has a secret-key that is none"),
        (pair(PUBLIC, SECRET[:-1] + "é"), "has a secret-key that is none"),
        (pair("#" * 40), "has a public-key that is none"),
        (pair(""), "has a public-key that is none"),
        (pair(OTHER), "has a public-key and a secret-key that do not belong together; make a new pair"),
        (pair() + " " * FILE_BYTES, "is no key file: it has more than 4,096 bytes"),
    ],
    ids=itertools.count(),  # the texts hold keys, which are others in each process that runs these tests
)
def test_what_is_no_pair_is_refused_and_not_shown(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "alice.key_secret"
    found = told(path, text.encode("utf-8", "surrogateescape"))
    assert found.startswith(f"{path} {sentence}")
    assert not [part for part in (PUBLIC, OTHER, SECRET) if part[:30] in found]


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    text = pair()
    assert read_pair(put(tmp_path / "alice.key_secret", text + "#" * (FILE_BYTES - len(text)))) == (PUBLIC, SECRET)


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "alice.key", pair())
    os.truncate(path, 1 << 40)
    monkeypatch.delattr(os, "read")
    with pytest.raises(BadKey, match="more than 4,096 bytes"):
        read_public(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key")
    (tmp_path / "folder.key").mkdir()
    (tmp_path / "link.key").symlink_to(tmp_path / "pipe.key")
    for path in (*tmp_path.iterdir(), Path("/dev/null")):
        for read in (read_public, read_pair):
            with pytest.raises(BadKey, match=f"{path} is no regular file; give the path of a key file"):
                read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match=f"The key file {tmp_path}/none cannot be read: No such file or directory"):
        read_public(tmp_path / "none")


def test_a_key_in_the_place_of_a_path_is_not_shown() -> None:
    for read in (read_public, read_pair):
        with pytest.raises(BadKey, match="there is a key itself; give the path of its file") as caught:
            read(SECRET)
        assert SECRET not in str(caught.value)


def test_keys() -> None:
    assert is_key(PUBLIC)
    assert is_key("0" * 40)
    assert not any(map(is_key, ("", "0" * 39, "0" * 41, "0" * 45, "#" * 40, "é" * 40, "0" * 39 + "~", "0" * 39 + "\n")))


@pytest.fixture
def allow(tmp_path: Path) -> Path:
    """A directory with the key of alice."""
    folder = tmp_path / "allow"
    folder.mkdir()
    put(folder / "alice.key", f"public-key = {PUBLIC}", 0o644)
    return folder


ALICE = {PUBLIC: "alice.key"}


def names(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What is in a directory of keys, with the names of files instead of their paths."""
    keys, problems = read_directory(folder)
    assert all(path.parent == folder for path in keys.values())
    return {key: path.name for key, path in keys.items()}, problems


def test_the_keys_in_a_directory(allow: Path) -> None:
    bob = write_pair(allow.parent / "bob")[0]
    assert names(allow) == (ALICE, [])
    bob.rename(allow / "bob.key")
    put(allow / "README", "nothing")
    put(allow / ".hidden.key", "nothing")
    put(allow / "carol.key~", "nothing")
    put(allow / "also alice.key", f"public-key = {PUBLIC}", 0o600)
    assert names(allow) == ({PUBLIC: "alice.key", read_public(allow / "bob.key"): "bob.key"}, [])
    (allow / "alice.key").unlink()
    assert names(allow)[0][PUBLIC] == "also alice.key"


def test_a_bad_file_takes_no_other_away(allow: Path) -> None:
    put(allow / "a.key", b"\xff")
    put(allow / "b.key", "#" * 5000)
    put(allow / "c.key", f"public-key = {OTHER[:-1]}")
    (allow / "d.key").mkdir()
    os.mkfifo(allow / "e.key")
    (allow / "f.key").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(allow / "g.key"))
    keys, problems = names(allow)
    assert keys == ALICE
    assert problems == [
        f"{allow}/a.key is no key file: it is not UTF-8 text.",
        f"{allow}/b.key is no key file: it has more than 4,096 bytes.",
        f"{allow}/c.key has a public-key that is none: it is 40 characters of Z85, which stand for 32 bytes.",
        f"{allow}/d.key is no regular file; give the path of a key file.",
        f"{allow}/e.key is no regular file; give the path of a key file.",
        f"The key file {allow}/f.key cannot be read: No such file or directory.",
        f"The key file {allow}/g.key cannot be read: No such device or address.",
    ]


def test_a_secret_key_has_no_place_in_a_directory(allow: Path) -> None:
    _, secret = write_pair(allow / "bob")
    put(allow / "carol.key", pair(), 0o600)
    put(allow / "dave.key_secret", "not even a key")
    (allow / "alice.key").rename(allow / "zoe.key")
    keys, problems = names(allow)
    assert keys == {PUBLIC: "zoe.key", read_public(secret): "bob.key"}
    assert problems == [
        f"A secret key lies in {allow}, which is for public keys only: {name} is not used. "
        "Take it away; if others could read it, its owner needs a new pair."
        for name in ("bob.key_secret", "carol.key", "dave.key_secret")
    ]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(allow: Path, mode: int) -> None:
    allow.chmod(mode)
    told = f"Whoever can write to {allow} can admit himself, and its mode {mode:04o} lets others do so; chmod go-w {allow}"
    with pytest.raises(BadKey) as caught:
        read_directory(allow)
    assert str(caught.value) == told


def test_a_file_that_others_can_write_to_is_not_used(allow: Path) -> None:
    path = put(allow / "bob.key", f"public-key = {OTHER}", 0o664)
    told = f"Whoever can write to {path} can admit himself, and its mode 0664 lets others do so; chmod go-w {path}"
    assert names(allow) == (ALICE, [told])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_is_not_trusted(allow: Path) -> None:
    path = put(allow / "bob.key", f"public-key = {OTHER}", 0o644)
    os.chown(path, 12345, 0)
    why = "it belongs to another user (uid 12345); chown 0"
    assert names(allow) == (ALICE, [f"Whoever can write to {path} can admit himself, and {why} {path}"])
    os.chown(allow, 12345, 0)
    with pytest.raises(BadKey) as caught:
        read_directory(allow)
    assert str(caught.value) == f"Whoever can write to {allow} can admit himself, and {why} {allow}"


def test_a_directory_that_is_none(allow: Path) -> None:
    for path, why in ((allow / "none", "No such file or directory"), (allow / "alice.key", "Not a directory")):
        with pytest.raises(BadKey, match=rf"The keys in {path} cannot be read: {why}\."):
            read_directory(path)


def test_a_process_that_can_open_no_more_does_not_take_all_keys_for_gone(allow: Path) -> None:
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # the directory can be opened, and nothing in it
    try:
        with pytest.raises(BadKey, match=rf"The keys in {allow} cannot be read: Too many open files\."):
            read_directory(allow)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert names(allow) == (ALICE, [])


def test_nor_does_one_that_can_open_no_more_in_the_midst_of_it(allow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody else's connections take what was free."""
    opened = os.open

    def open(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", open)
    with pytest.raises(BadKey, match="Too many open files"):
        read_directory(allow)


def test_nothing_stays_open(allow: Path) -> None:
    put(allow / "bob.key", "nothing")
    (allow / "folder.key").mkdir()
    before = os.listdir("/proc/self/fd")
    read_directory(allow)
    write_pair(allow / "carol")
    for path in (allow / "alice.key", allow / "folder.key"):
        with pytest.raises(BadKey):
            read_pair(path)
    assert os.listdir("/proc/self/fd") == before
