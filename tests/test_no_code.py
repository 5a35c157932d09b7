"""Nothing that is loaded can run code, and no message names a file: the package's syntax trees hold no call that could."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rnnstream

PACKAGE = Path(rnnstream.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules whose loaders, or whole purpose, is to run what they are given.
RUNNING = {
    *("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "yaml", "ruamel"),
    *("code", "codeop", "runpy", "imp", "subprocess", "pty"),
}
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
RUNNING_CALLS = {  # by their last two names
    *(f"os.{name}" for name in ("system", "popen", "startfile", "posix_spawn", "posix_spawnp")),
    *("jit.load", "hub.load", "package.PackageImporter", "config.enable_unsafe_deserialization"),
    *(f"builtins.{name}" for name in BUILTINS),
}
IMPORTS_BY_NAME = {"loading.py"}  # "module:attribute", as a user has typed it

# Parts that are handed messages: what they open, no message may name.
MESSAGES = ("wire", "engine", "worker", "client", "model", "prediction.py", "names.py")
OPENS = {
    *("open", "Path", "safe_open", "save_file", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir"),
    *(f"os.{name}" for name in ("open", "remove", "unlink", "rename", "replace", "mkdir", "makedirs", "symlink", "link")),
    *(f"np.{name}" for name in ("load", "save", "savez", "fromfile", "memmap", "genfromtxt", "loadtxt", "savetxt")),
    *("io.open", "codecs.open", "shutil.copyfile", "shutil.copy", "shutil.move", "shutil.rmtree", "sqlite3.connect"),
}
MAY_OPEN = {
    "model/file.py": {"Path", "safe_open", "write_bytes"},  # the model file that a user names
    "model/blas.py": {"Path"},  # takes the name of a loaded library apart
    "worker/access.py": {"Path"},  # the keys that the operator names
    "worker/guard.py": {"os.open"},  # the null device
}


def dotted(node: ast.expr) -> str:
    """The name that is called: `np.load`, `open`, or "" behind something else than names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a keyword is given; None without it."""
    values = [given.value for given in call.keywords if given.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def faults(tree: ast.AST, *, may_import: bool = False) -> Iterator[str]:
    """What in a file could run code that it was given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in RUNNING)
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        last, ending = called.rpartition(".")[2], ".".join(called.split(".")[-2:])
        if (
            ending in RUNNING_CALLS
            or ending.startswith(("os.exec", "os.spawn"))
            or (last == "import_module" and not may_import)
        ):
            yield called
        elif ending in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not False:
            yield f"{called} without allow_pickle=False"
        elif ending == "torch.load" and keyword(node, "weights_only") is not True:
            yield f"{called} without weights_only=True"
        elif last in ("load_model", "deserialize_keras_object") and keyword(node, "safe_mode") is False:
            yield f"{called} with safe_mode=False"


def opened(tree: ast.AST) -> set[str]:
    """The calls in a file that could open one: of functions, and of methods that only paths have."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            ending, last = ".".join(called.split(".")[-2:]), called.rpartition(".")[2]
            found |= {ending} & OPENS | ({last} & OPENS - {"open"})  # `open` is a method of tables and links too
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_can_run_what_it_is_given(path: Path) -> None:
    may_import = path.relative_to(PACKAGE).as_posix() in IMPORTS_BY_NAME
    assert list(faults(ast.parse(path.read_text()), may_import=may_import)) == []


@pytest.mark.parametrize("part", MESSAGES)
def test_what_is_handed_messages_opens_nothing(part: str) -> None:
    paths = [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py"))
    assert paths
    for path in paths:
        allowed = MAY_OPEN.get(path.relative_to(PACKAGE).as_posix(), set())
        assert opened(ast.parse(path.read_text())) <= allowed, path


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("import yaml", "imports yaml"),
        ("eval(text)", "eval"),
        ("run = exec", "exec"),
        ("builtins.eval(text)", "builtins.eval"),
        ("np.load(path)", "np.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=trusted)", "np.load without allow_pickle=False"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.jit.load(path)", "torch.jit.load"),
        ("keras.models.load_model(path, safe_mode=False)", "keras.models.load_model with safe_mode=False"),
        ("keras.config.enable_unsafe_deserialization()", "keras.config.enable_unsafe_deserialization"),
        ("importlib.import_module(name)", "importlib.import_module"),
        ("os.system(line)", "os.system"),
        ("os.execv(path, line)", "os.execv"),
    ],
)
def test_such_a_call_is_found(line: str, fault: str) -> None:
    assert list(faults(ast.parse(line))) == [fault]


@pytest.mark.parametrize(
    "line", ["np.load(path, allow_pickle=False)", "torch.load(path, weights_only=True)", "re.compile(text)", "module.eval()"]
)
def test_its_harmless_relatives_are_not(line: str) -> None:
    assert list(faults(ast.parse(line))) == []


def test_what_opens_a_file_is_found() -> None:
    lines = "open(path); os.open(path, 0); pathlib.Path(path).read_bytes(); np.fromfile(path); self.table.open(row, now)"
    assert opened(ast.parse(lines)) == {"open", "os.open", "Path", "read_bytes", "np.fromfile"}
    assert opened(ast.parse("self.table.open(row, now); engine.open(name); calls.remove(call)")) == set()
