from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from rnnstream import Input, Output, StepModel
from rnnstream.engine import selftest as measure
from rnnstream.model.network import Network
from rnnstream.model.tiles import Product, Tile

from .conftest import lines, run


class Leaky(StepModel):
    """A model whose rows depend on how many others there are, or on the row before, as a batched product's may."""

    name, digest, exact, numerics, layers = "leaky", "0" * 64, False, "none", ["leak"]
    dtype, state_size = np.dtype(np.float32), 3
    input, output = Input("token", 5), Output("linear", 3)

    def __init__(self, leak: str) -> None:
        self.leak = leak

    def initial_state(self) -> Any:
        return np.zeros(3, np.float32)

    def advance(self, states: Any, inputs: Any) -> Any:
        new = states * np.float32(0.5) + inputs[:, np.newaxis].astype(np.float32)
        if self.leak == "size":
            new[len(states) > 8 :, 0] += np.float32(1e-6) * (len(states) > 8)
        if self.leak == "nan":
            new[1:] += np.where(np.isfinite(states[:-1]), 0, np.float32(1))
        return new, new

    def head(self, features: Any) -> Any:
        return features.copy()


honest, by_size, by_nan = Leaky(""), Leaky("size"), Leaky("nan")


@pytest.mark.parametrize("name", ["letters", "ids", "rows"])
def test_the_evidence_as_json(files: dict[str, str], models: Any, name: str) -> None:
    found = lines(run("selftest", files[name], "--json"))
    model = models[name]
    machine, result = found[0], found[-1]
    assert (machine["check"], machine["digest"], machine["kernels"]) == ("machine", model.digest, model.numerics)
    assert machine["blas_threads_in_steps"] in (0, 1)
    assert result == {"check": "result", "passed": True}
    products = {line["name"]: line for line in found if line["check"] == "product"}
    assert {name: (tuple(line["shape"]), tuple(line["tile"])) for name, line in products.items()} == {
        name: (product.shape, (product.tile.rows, product.tile.columns)) for name, product in model.products.items()
    }
    assert all({"tile": line["tile"], "exact": True} in line["tried"] for line in products.values())
    companies = [line for line in found if line["check"] == "company"]
    assert [(line["sessions"], line["largest_batch"]) for line in companies] == [
        (1, 1), (2, 2), (7, 7), (8, 8), (9, 9), (64, 64), (64, 128)
    ]  # fmt: skip
    assert [line["tokens"] for line in companies] == [32 * line["sessions"] for line in companies]
    assert not any(line["different"] for line in companies)


def test_the_evidence_for_people(files: dict[str, str]) -> None:
    result = run("selftest", files["letters"])
    assert (result.exit_code, result.stderr) == (0, "")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["64", "each", "other", "2048", "64", "0", "PASS"] in shown
    assert ["64", "NaN,", "infinite", "and", "huge", "states", "2048", "128", "0", "PASS"] in shown
    assert shown[-1] == ["PASS"]


def test_a_row_that_depends_on_the_size_of_the_batch_is_found() -> None:
    found = [measure.company(by_size, sessions) for sessions in (1, 8, 9, 64)]
    assert [company.passed for company in found] == [True, True, False, False]
    assert measure.company(honest, 64).different == 0
    # Each of the 9 last states differs, and each output from the first one of a full batch on.
    assert found[2].different > 9


def test_a_row_that_depends_on_a_neighbour_that_is_nan_is_found() -> None:
    assert measure.company(by_nan, 8).passed
    wild = measure.wild_company(by_nan, 8)
    assert wild is not None
    assert not wild.passed
    calm = measure.wild_company(honest, 8)
    assert calm is not None
    assert calm.passed


def test_blas_threads_are_counted_in_another_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def threadpool_info() -> list[dict[str, Any]]:
        main = threading.current_thread() is threading.main_thread()
        return [{"user_api": "blas", "num_threads": 2 if main else 3}, {"user_api": "openmp", "num_threads": 8}]

    monkeypatch.setattr(measure, "threadpool_info", threadpool_info)
    assert measure.blas_threads() == (2, 3)
    monkeypatch.setattr(measure, "threadpool_info", list)
    assert measure.blas_threads() == (0, 0)


def test_blas_on_two_threads_fails(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "blas_threads", lambda: (2, 2))
    result = run("selftest", files["letters"])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "FAIL")
    assert "BLAS on one thread in steps, whichever thread makes them: FAIL" in result.stdout


def test_a_tile_that_is_not_the_first_exact_one_is_found() -> None:
    product = Product(np.ones((7, 12), np.float32), Tile(3, 7))
    assert not measure.look_at("w", product, "<f4").passed
    product = Product(np.ones((7, 12), np.float32))
    assert measure.look_at("w", product, "<f4").passed


@pytest.mark.parametrize("attribute", ["honest", "by_size", "by_nan"])
def test_the_status_says_whether_a_bit_differs(attribute: str) -> None:
    result = run("selftest", f"{__name__}:{attribute}")
    passed = attribute == "honest"
    assert result.exit_code == (0 if passed else 1)
    assert result.stdout.endswith("\nPASS\n" if passed else "\nFAIL\n")


def test_a_large_model_gets_fewer_tokens(models: Any) -> None:
    assert measure.length(models["letters"]) == measure.MOST_TOKENS
    large = object.__new__(Network)
    product = object.__new__(Product)
    product.shape = (8192, 2048)
    large._chain = [type("layer", (), {"products": {"waa": product}})()]
    assert measure.length(large) == 3
