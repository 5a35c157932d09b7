from __future__ import annotations

import json
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

    name, digest, numerics, layers = "leaky", "0" * 64, "none", ["leak"]
    dtype, state_size = np.dtype(np.float32), 3
    input, output = Input("token", 5), Output("linear", 3)

    def __init__(self, leak: str, exact: bool = True) -> None:
        self.leak, self.exact = leak, exact

    def initial_state(self) -> Any:
        return np.zeros(3, np.float32)

    def advance(self, states: Any, inputs: Any) -> Any:
        new = states * np.float32(0.5) + inputs[:, np.newaxis].astype(np.float32)
        if self.leak == "size":
            new[len(states) > 8 :, 0] += np.float32(1e-6) * (len(states) > 8)
        if self.leak == "much":
            new[:, 0] += np.float32(1e-3) * (len(states) > 8)
        if self.leak == "nan":
            new[1:] += np.where(np.isfinite(states[:-1]), 0, np.float32(1))
        return new, new

    def head(self, features: Any) -> Any:
        return features.copy()


honest, by_size, by_nan = Leaky(""), Leaky("size"), Leaky("nan")
near, far, far_by_nan = Leaky("size", exact=False), Leaky("much", exact=False), Leaky("nan", exact=False)


@pytest.mark.parametrize("name", ["letters", "ids", "rows"])
def test_the_evidence_as_json(files: dict[str, str], models: Any, name: str) -> None:
    found = lines(run("selftest", files[name], "--json"))
    model = models[name]
    machine, result = found[0], found[-1]
    assert (machine["check"], machine["digest"], machine["kernels"]) == ("machine", model.digest, model.numerics)
    assert machine["promise"] == "bits"
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
    assert not any(line["different"] or line["largest_difference"] or line["tolerance"] for line in companies)


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


def test_a_model_that_promises_a_tolerance_is_held_to_it() -> None:
    result = run("selftest", f"{__name__}:near")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "PASS")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["promise", "a", "tolerance,", "not", "bits"] in shown
    title = "Tokens in company against each session alone, within 0.0001: this model promises a tolerance, not bits"
    assert title in result.stdout.splitlines()
    assert ["8", "each", "other", "256", "8", "0", "PASS"] in shown
    row = next(line for line in shown if line[:1] == ["9"])
    assert 1e-7 < float(row[-2]) < 1e-5  # of 1e-6 that leak in each batch of 9
    for attribute, culprit in (("far", 9), ("far_by_nan", 64)):
        result = run("selftest", f"{__name__}:{attribute}", "--json")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert (result.exit_code, found[0]["promise"]) == (1, "a tolerance, not bits")
        failed = [line for line in found if line["check"] == "company" and not line["passed"]]
        assert (failed[0]["sessions"], failed[0]["tolerance"]) == (culprit, 1e-4)
        assert failed[0]["largest_difference"] > 1e-4
    assert measure.company(near, 9).different > 9


def test_a_network_always_promises_bits(models: Any) -> None:
    network = Network(models["letters"].spec, {name: np.zeros(s, "f4") for name, s in models["letters"].spec.shapes.items()})
    network.exact = False  # as on a machine whose kernels are not
    assert measure.tolerance(network) == 0


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
    product = object.__new__(Product)
    product.shape = (8192, 2048)
    large = object.__new__(type("Large", (Network,), {"products": {"waa": product}}))
    assert measure.length(large) == 3
