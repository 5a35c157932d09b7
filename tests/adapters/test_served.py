"""The adapters behind a real worker, and in its store."""

import importlib.util
import signal

import numpy as np
import pytest

import rnnstream
from tests.process.place import placed
from tests.worker_process import serving

from . import served

XS = np.random.default_rng(0).normal(0, 1, (60, served.K)).astype(np.float32)
IDS = np.random.default_rng(0).integers(0, served.V, 60).tolist()
TORCH = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")


@pytest.mark.parametrize(
    "name", ["onnx_alone", "onnx_together", *(pytest.param(name, marks=TORCH) for name in ("torch_alone", "torch_together"))]
)
def test_what_is_streamed_is_the_whole_sequence(name, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    model = getattr(served, name)()
    xs, want = IDS if model.input.kind == "token" else XS, "probs" if model.output.kind == "categorical" else "argmax"
    exact = name.endswith("alone")
    with serving(f"tests.adapters.served:{name}") as (address, _), rnnstream.Client(address) as client:
        said = client.hello()["model"]
        assert (said["exact"], said["digest"]) == (exact, model.digest)
        assert said["numerics"] == model.numerics or name == "torch_together"  # which depends on the process's threads
        streams = [client.session(f"s{i}").stream(xs[i:], want=want) for i in range(4)]  # side by side: batches of several rows
        found = list(zip(*streams, strict=False))
        for i in range(4):
            ys = np.array([row[i].probs if want == "probs" else row[i].y for row in found])
            whole = model.forward(xs[i : i + len(ys)]).astype("<f4")
            assert len(ys) >= 57
            if exact:
                assert ys.tobytes() == whole.tobytes()
            np.testing.assert_allclose(ys, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["onnx_alone", "onnx_together"])
def test_what_was_acknowledged_is_there_after_a_kill(tmp_path, name):
    model = getattr(served, name)()
    xs = IDS if model.input.kind == "token" else XS
    with placed(f"tests.adapters.served:{name}", tmp_path) as place:
        place.start()
        place.ready()
        with rnnstream.Client(place.address) as client:
            sessions = [client.session(f"s{i}") for i in range(5)]
            for i, session in enumerate(sessions):
                session.feed(xs[i : i + 20])
            before = [session.snapshot() for session in sessions]
            place.end(signal.SIGKILL)
            place.start()
            place.ready()
            assert [session.snapshot() for session in sessions] == before
            for i, session in enumerate(sessions):
                assert session.info()["t"] == 20
                y = session.step(xs[i + 20], want="probs" if model.output.kind == "categorical" else "argmax")
                whole = model.forward(xs[i : i + 21])[-1]
                np.testing.assert_allclose(y.y if y.probs is None else y.probs, whole, rtol=1e-5, atol=1e-6)
            place.end(signal.SIGTERM)
