"""The layers hold: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rnnstream

PACKAGE = Path(rnnstream.__file__).parent
INNERMOST = {"errors", "prediction", "names"}
MAY_IMPORT = {
    "errors": set(),
    "prediction": set(),
    "names": set(),
    "keys": {"errors"},
    "reference": set(),
    "model": {"errors"},
    "convert": {"errors", "model"},
    "adapters": {"errors", "model", "convert"},
    "loading": {"errors", "model", "convert", "adapters"},
    "testing": {"errors", "model"},
    "wire": {"errors", "names"},
    "engine": INNERMOST | {"model"},
    "store": {"errors", "names"},
    "worker": INNERMOST | {"keys", "model", "wire", "engine", "store"},
    "client": INNERMOST | {"keys", "wire"},
}


def imports(path: Path) -> set[str]:
    """The parts of rnnstream that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module or ""] if node.module != "rnnstream" else [f"rnnstream.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("rnnstream.")}
        assert "rnnstream" not in names, f"{path}: imports the whole package"
    return found


def files(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part):
    assert files(part)
    for path in files(part):
        assert imports(path) - {part} <= MAY_IMPORT[part], path


def test_every_part_is_listed():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__", "cli"} == set(MAY_IMPORT)


@pytest.mark.parametrize("part", [part for part in MAY_IMPORT if part not in ("worker", "client")])
def test_only_the_edges_know_of_sockets(part):
    for path in files(part):
        names = {
            alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names
        }
        # a lock of the process; a lock that others may hold; the arithmetic of CURVE
        allowed = {"blas.py": {"threading"}, "sqlite.py": {"time"}, "keys.py": {"zmq"}}
        assert not names & {"zmq", "socket", "time", "threading", "asyncio"} - allowed.get(path.name, set())


def test_only_the_command_line_prints_or_exits():
    for part in MAY_IMPORT:
        for path in files(part):
            called = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not called & {"print", "exit", "quit"}, path


def test_the_public_names_are_sorted_and_there():
    assert rnnstream.__all__ == sorted(rnnstream.__all__)
    assert all(hasattr(rnnstream, name) for name in rnnstream.__all__)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_the_package_is_imported_without_what_takes_long():
    late = ("asyncio", "zmq.auth", "rnnstream.worker", "rnnstream.client.aio")
    assert fresh(f"import sys, rnnstream; print([name for name in {late} if name in sys.modules])") == "[]"


def test_all_public_names_can_be_had_and_are_listed():
    assert fresh("from rnnstream import *; print(AsyncClient.__name__, AsyncSession.__name__)") == "AsyncClient AsyncSession"
    code = "print([name for name in rnnstream.__all__ if name not in dir(rnnstream) or not hasattr(rnnstream, name)])"
    assert fresh(f"import rnnstream; {code}") == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'Nobody'"):
        rnnstream.Nobody  # noqa: B018


def test_every_error_of_the_tree_is_public_and_in_its_docstring():
    import rnnstream.errors as errors

    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.RnnstreamError)
    }
    assert classes <= set(rnnstream.__all__)
    assert all(f"{name} " in errors.__doc__ or f"{name}\n" in errors.__doc__ for name in classes)
