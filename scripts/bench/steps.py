"""What one step of the network costs through the engine, beside ONNX Runtime and PyTorch.

python -m scripts.bench.steps
OPENBLAS_CORETYPE=Haswell python -m scripts.bench.steps --cells rnn --json steps.json

One-hot ids, one recurrent layer, a dense layer over as many ids; random weights, float32. In µs of processor time for a token,
medians of short blocks in which all take turns; one thread for each. What is in a figure:

* engine: `Engine.step` with want "argmax": tokens checked, sessions looked up, states gathered, the step, its states looked
  at for NaN, the head, the most likely id and its p, states written back, a `Prediction` for each.
* none: the same with want "none": without the head.
* network: states and ids to new states and logits, and no more: what the others do. Played from tapes where the engine does it.
* calls: the same by NumPy's calls.
* free: as calls, but with plain products of the whole batch: a row's last bits depend on its batch.
* ORT products: a graph of MatMul, Tanh and Sigmoid in ONNX Runtime; the column of an id is gathered.
* ORT operator, torch cell: RNN, GRU or LSTM of theirs, on one-hot vectors; up to a vocabulary of 1,000.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rnnstream.engine.engine import Engine
from rnnstream.model.blas import kernels
from rnnstream.model.network import Network
from rnnstream.model.spec import parse
from rnnstream.model.tiles import Tile
from scripts.bench.contenders import CELLS, Weights, steps
from scripts.bench.report import table, write_json

BLOCK_S = 0.003  # of one contender: short, so that whatever disturbs the machine meets all alike
BLOCKS = 25


def networks(cell: str, hidden: int, size: int, rows: int) -> tuple[Network, Network, Weights]:
    """A network, its twin with free products of `rows` rows, and the weights of both."""
    layers = [{"kind": "onehot"}, {"kind": cell, "size": hidden}, {"kind": "dense", "size": size}]
    spec = parse({"format": 1, "input": {"kind": "token", "size": size}, "layers": layers, "head": "categorical"})
    rng = np.random.default_rng(0)
    tensors = {
        name: ((rng.random(shape, np.float32) - 0.5) * (2 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in spec.shapes.items()
    }
    names = spec.layers[1].tensors
    if "bh" in names:  # a bias that not all of them have
        tensors[names["bh"]][:] = 0
    exact, free = Network(spec, tensors, measure=False), Network(spec, tensors, measure=False)
    for product in free.products.values():
        w = np.concatenate([panel for panel, _ in product.panels], axis=1).T
        product.__init__(w, Tile(rows, len(w)))  # type: ignore[misc]
    return exact, free, Weights(*(tensors[names[name]] for name in ("wax", "waa", "ba")), tensors["wya"], tensors["by"])


def contenders(cell: str, hidden: int, size: int, rows: int) -> dict[str, Callable[[], Any]]:
    """One step of so many rows, by name. What they give has been compared."""
    exact, free, weights = networks(cell, hidden, size, rows)
    engine = Engine(exact, max_sessions=rows)
    names, ids = [f"session-{i}" for i in range(rows)], np.arange(rows, dtype=np.int64) * 7 % size
    for shift in range(3):  # into states of full mantissa
        engine.step([(name, (int(id) + shift) % size) for name, id in zip(names, ids, strict=True)])
    states = np.stack([engine.state(name) for name in names])

    def through(network: Network) -> Callable[[], Any]:
        def step() -> Any:
            new, features = network.advance(states, ids)
            return new, network.head(features)

        return step

    pairs = list(zip(names, ids.tolist(), strict=True))
    found = {
        "engine": lambda: engine.step(pairs),
        "none": lambda: engine.step(pairs, want="none"),
        "network": through(exact.for_many()),
        "calls": through(exact),
        "free": through(free),
    } | steps(cell, weights, states, ids)
    logits = found["network"]()[-1]
    for name, step in found.items():
        if name not in ("engine", "none"):
            assert np.abs(np.asarray(step()[-1]) - logits).max() < 1e-4, name
    return found


def measure(found: dict[str, Callable[[], Any]], rows: int, blocks: int) -> dict[str, float]:
    """µs of processor time a token; and how the engine and the network compare, block by block, with the rest."""
    clock, calls = time.process_time, {}
    for name, step in found.items():
        step()
        start = clock()
        step()
        calls[name] = max(1, min(1000, int(BLOCK_S / max(clock() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(blocks):
        for name, step in found.items():
            for _ in range(3):  # what another has pushed out of the cache comes back
                step()
            start = clock()
            for _ in range(calls[name]):
                step()
            times[name].append((clock() - start) / calls[name] / rows * 1e6)
    figures = {name: statistics.median(some) for name, some in times.items()}

    def ratio(one: str, other: str) -> float:
        return statistics.median(x / y for x, y in zip(times[one], times[other], strict=True))

    figures["exact / free"] = ratio("calls", "free")
    for other in ("ORT products", "ORT operator", "torch cell"):
        if other in found:
            figures[f"network / {other}"] = ratio("network", other)
            figures[f"engine / {other}"] = ratio("engine", other)
    return figures


def main() -> None:
    """Print a table of the figures and one of their ratios."""
    parser = argparse.ArgumentParser(description="What one step costs through the engine, beside ONNX Runtime and PyTorch.")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--hidden", nargs="+", type=int, default=[100, 256, 1024])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[100])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for size in args.vocabulary:
            for cell in args.cells:
                for hidden in args.hidden:
                    for rows in args.rows:
                        case = {"cell": cell, "hidden": hidden, "vocabulary": size, "rows": rows}
                        found.append(case | measure(contenders(cell, hidden, size, rows), rows, args.blocks))
    case = ["cell", "hidden", "vocabulary", "rows"]
    columns = list(dict.fromkeys(key for row in found for key in row if key not in case))
    plain, ratios = ([key for key in columns if ("/" in key) == wanted] for wanted in (False, True))
    table(f"µs a token, {kernels()}", found, [*case, *plain])
    table("ratios", found, [*case, *ratios])
    write_json(args.json, found)


if __name__ == "__main__":
    main()
