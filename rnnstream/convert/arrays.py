"""Files that hold arrays by name: .npz, .safetensors, and what torch.save wrote. Nothing in them is run."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from rnnstream.convert.hints import Hints
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]
MOST_EXPANSION = 1000  # times that an .npz file may grow when it is unpacked: beyond what deflate can do with numbers
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")  # of checkpoints that hold more


def arrays(path: Path, said: Hints) -> tuple[dict[str, Array], list[str]]:
    """The arrays in a file by name, but for those that --spec says to leave out; and notes about what was passed over.

    Raises:
        ModelError: it cannot be read, or holds something else than weights.
    """
    suffix, notes = path.suffix.lower(), list[str]()
    if suffix == ".npz":
        found = _npz(path)
    elif suffix == ".safetensors":
        found = _safetensors(path)
    else:
        found, notes = _torch(path)
    found = _without_ignored(found, said)
    for name, array in found.items():
        whole = array.dtype.kind in "iu" and name.endswith("num_batches_tracked")
        if array.dtype.kind != "f" and not whole:
            raise ModelError(f"The tensor {name} is of {array.dtype}; weights are floating point numbers.")
        if not array.size or (not array.ndim and not whole):
            raise ModelError(f"The tensor {name} has the shape {list(array.shape)}; no layer of a chain has such a one.")
    widened = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in found.items()}
    return widened, notes  # halves of a bias are added up, which float16 has not the digits for


def _npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as members:  # np.load would take other files too
            size = sum(member.file_size for member in members.infolist())
        if size > MOST_EXPANSION * path.stat().st_size:
            raise ValueError(f"its {path.stat().st_size:,} bytes would become {size:,}")
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file}
    except Exception as problem:  # of a damaged file NumPy and zipfile raise a dozen kinds; pickled objects are a ValueError
        raise ModelError(f"it cannot be read as an .npz file of plain arrays: {_first_line(problem)}.") from None


def _safetensors(path: Path) -> dict[str, Array]:
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if kind == "BF16":
                    found[name] = _bfloat16(path, name)
                elif kind.startswith("F8"):
                    raise ModelError(f"The tensor {name} is {kind}, which is not read here; convert it to float32 first.")
                else:
                    found[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as problem:
        raise ModelError(f"it cannot be read as a safetensors file: {problem}.") from None
    return found


def _bfloat16(path: Path, name: str) -> Array:
    """A tensor of bfloat16, the upper half of a float32, widened; the format: huggingface.co/docs/safetensors."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[name]
    first, last = entry["data_offsets"]
    halves = np.frombuffer(data[start + first : start + last], "<u2")
    return (halves.astype("<u4") << 16).view("<f4").reshape(entry["shape"])


def _torch(path: Path) -> tuple[dict[str, Array], list[str]]:
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            "PyTorch's own files are read by PyTorch: pip install 'rnnstream[torch]'. Without it, save the state_dict as "
            "safetensors: safetensors.torch.save_file(model.state_dict(), ...)."
        )
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as members:
            if any("/code/" in name for name in members.namelist()):
                raise ModelError("it is a TorchScript program, which is served from Python: TorchStep in docs/step-models.md.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpickling, zip, runtime errors: torch raises many kinds
        raise ModelError(
            f"it holds more than tensors, or is damaged; nothing in it was run ({_first_line(problem)}). Save the weights "
            "alone: torch.save(model.state_dict(), ...)."
        ) from None
    notes = []
    if isinstance(found, dict):
        inner = [key for key in NESTED if isinstance(found.get(key), dict)]
        if inner and not any(isinstance(value, torch.Tensor) for value in found.values()):
            others = sorted(str(key) for key in found if key != inner[0])
            found = found[inner[0]]
            notes.append(
                f"the file is a checkpoint; its {inner[0]!r} was read" + (f", not {', '.join(others)}." if others else ".")
            )
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        keys = f" (it has {', '.join(map(str, list(found)[:8]))})" if isinstance(found, dict) else ""
        raise ModelError(
            f"it is no state_dict, a table of tensors by name{keys}: torch.save(model.state_dict(), ...) writes one."
        )
    return {str(name): _numpy(str(name), tensor) for name, tensor in found.items()}, notes


def _numpy(name: str, tensor: Any) -> Array:
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.dtype not in plain:
        raise ModelError(f"The tensor {name} is {tensor.dtype} {tensor.layout}; plain floating point numbers are read here.")
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def _without_ignored(arrays: dict[str, Array], said: Hints) -> dict[str, Array]:
    """The arrays that --spec does not say to leave out.

    Raises:
        ModelError: a pattern of `ignore` names none.
    """
    there = some(sorted(arrays))
    for pattern in said.ignore:
        if not fnmatch.filter(arrays, pattern):
            raise ModelError(f"`ignore` has {pattern!r:.60}, and no tensor is called so; these are there: {there}.")
    return {name: array for name, array in arrays.items() if not any(fnmatch.fnmatchcase(name, p) for p in said.ignore)}


def some(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
