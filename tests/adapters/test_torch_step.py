"""PyTorch modules of one step as step models; they run where PyTorch is installed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rnnstream import Input, ModelError, Output
from rnnstream.testing import check_step_model

torch = pytest.importorskip("torch")

from rnnstream.adapters import TorchStep  # noqa: E402

K, H, V = 3, 8, 5
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
XS = np.random.default_rng(0).normal(0, 1, (20, K)).astype(np.float32)
IDS = np.random.default_rng(0).integers(0, V, 20).tolist()


class Gru(torch.nn.Module):
    """Two layers of torch.nn.GRU over one token."""

    def __init__(self, ids=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(V, K) if ids else torch.nn.Identity()
        self.gru, self.out = torch.nn.GRU(K, H, 2), torch.nn.Linear(H, V)

    def forward(self, x, h):
        y, h = self.gru(self.embedding(x)[None], h)
        return self.out(y[0]), h


class Lstm(torch.nn.Module):
    """torch.nn.LSTMCell, its state a dict of a tuple."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.out, self.drop = torch.nn.LSTMCell(K, H), torch.nn.Linear(H, V), torch.nn.Dropout(0.5)

    def forward(self, x, state):
        h, c = self.cell(x, state["cell"])
        return self.drop(self.out(h)), {"cell": (h, c), "count": state["count"] + 1}


def gru(ids=False, module=None, size=V, **more):
    kind = Input("token", V) if ids else Input("dense", K)
    start = torch.full((2, 1, H), 0.25)
    return TorchStep(module or Gru(ids), input=kind, output=Output("categorical", size), state=start, batch_axis=1, **more)


def lstm(**more):
    state = {"count": torch.zeros(1, 1), "cell": (torch.zeros(1, H), torch.ones(1, H))}
    return TorchStep(Lstm(), input=Input("dense", K), output=Output("bernoulli", V), state=state, **more)


def traced(gains):
    """A module with a tensor in its code that is no parameter."""

    outside = torch.tensor(gains)

    class Loud(torch.nn.Module):
        def forward(self, x, h):
            h = x * outside + h
            return h, h

    module = torch.jit.trace(Loud(), (torch.zeros(1, K), torch.zeros(1, K)))
    return TorchStep(module, input=Input("dense", K), output=Output("linear", K), state=torch.zeros(1, K))


@pytest.mark.parametrize("ids", [False, True])
def test_a_gru_is_the_whole_sequence(ids):
    model, module, xs = gru(ids, name="gru"), Gru(ids).eval(), IDS if ids else XS
    check_step_model(model, make=lambda: gru(ids))
    with torch.inference_mode():
        y, h = module.gru(module.embedding(torch.tensor(xs)), torch.full((2, H), 0.25))
        y = torch.softmax(module.out(y), -1)
    np.testing.assert_allclose(model.forward(xs), y.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.run(xs), h.numpy().ravel(), rtol=1e-5, atol=1e-6)
    assert (model.exact, model.state_size, model.dtype, model.name) == (True, 2 * H, np.float32, "gru")
    assert model.layers == ["Gru in PyTorch, each row alone", "state [2, 1, 8]", "categorical head"]


def test_a_state_of_several_tensors():
    model, module = lstm(), Lstm().eval()
    check_step_model(model)
    h, c = torch.zeros(1, H), torch.ones(1, H)
    with torch.inference_mode():
        for x in XS:
            h, c = module.cell(torch.tensor(x)[None], (h, c))
        y = torch.sigmoid(module.out(h))
    np.testing.assert_allclose(model.forward(XS)[-1], y[0].numpy(), rtol=1e-5, atol=1e-6)
    last = model.run(XS)
    np.testing.assert_allclose(last, np.concatenate([h[0].numpy(), c[0].numpy(), [20]]), rtol=1e-5, atol=1e-6)
    assert model.initial_state().tolist() == [0] * H + [1] * H + [0]
    assert model.layers[1:-1] == ["state [1, 8]", "state [1, 8]", "state [1, 1]"]


def test_rows_together():
    for alone, together in ((gru(), gru(batch=True)), (lstm(), lstm(batch=True))):
        check_step_model(together)
        assert (alone.exact, together.exact) == (True, False)
        np.testing.assert_allclose(together.forward(XS), alone.forward(XS), rtol=1e-5, atol=1e-6)
        assert alone.digest != together.digest
        assert together.layers[0].endswith("in PyTorch, rows together")


def test_float64_is_kept():
    module = Gru().double()
    model = TorchStep(
        module, input=Input("dense", K), output=Output("linear", V), state=torch.zeros(2, 1, H).double(), batch_axis=1
    )
    check_step_model(model)
    y = module.out(module.gru(torch.tensor(XS).double(), None)[0]).detach().numpy()
    np.testing.assert_allclose(model.forward(XS), y, rtol=1e-12)
    assert model.dtype == np.float64


def test_a_script_module():
    model, plain = gru(module=torch.jit.script(Gru())), gru()
    check_step_model(model)
    np.testing.assert_allclose(model.forward(XS), plain.forward(XS), rtol=1e-5, atol=1e-6)
    assert model.exact
    assert gru(module=torch.jit.script(Gru())).digest == model.digest

    class Other(Gru):
        def forward(self, x, h):
            y, h = self.gru(self.embedding(x)[None], h)
            return self.out(y[0]) + 1, h

    assert gru(module=torch.jit.script(Other())).digest != model.digest
    assert traced([1.0, 2.0, 3.0]).digest == traced([1.0, 2.0, 3.0]).digest != traced([1.0, 2.0, 4.0]).digest


def test_the_digest_tells_models_apart():
    moved = Gru()
    with torch.no_grad():
        moved.out.bias[0] += 1e-3
    other_start = TorchStep(
        Gru(), input=Input("dense", K), output=Output("categorical", V), state=torch.zeros(2, 1, H), batch_axis=1
    )
    assert other_start.digest != gru().digest
    digests = [gru().digest, gru(module=moved).digest, gru(ids=True).digest, gru(batch=True).digest, lstm().digest]
    assert len(set(digests)) == 5
    assert gru().digest == digests[0]
    assert gru(digest="mine").digest == "mine"


class Gained(torch.nn.Module):
    """A buffer that is not persistent, a plain attribute, and a method beside `forward`."""

    def __init__(self, buffer=1.0, gain=1.0):
        super().__init__()
        self.register_buffer("buffer", torch.tensor(buffer), persistent=False)
        self.gain = gain

    def louder(self, x):
        return x * self.gain * self.buffer

    def forward(self, x, h):
        h = self.louder(x) + h
        return h, h


class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = torch.jit.script(inner)

    def forward(self, x, h):
        return self.inner(x, h)


def adding(module, **more):
    return TorchStep(module, input=Input("dense", K), output=Output("linear", K), state=torch.zeros(1, K), **more)


def test_the_digest_sees_buffers_that_are_not_persistent():
    assert adding(Gained()).digest == adding(Gained()).digest != adding(Gained(buffer=2.0)).digest


@pytest.mark.parametrize("made", [torch.jit.script, Wrapped], ids=["whole", "part"])
def test_the_digest_sees_the_attributes_and_methods_of_a_script_module(made):
    plain = adding(made(Gained()))
    assert adding(made(Gained())).digest == plain.digest
    assert adding(made(Gained(gain=2.0))).digest != plain.digest
    assert adding(made(Gained(buffer=2.0))).digest != plain.digest

    class Quieter(Gained):
        def louder(self, x):
            return x * self.gain * self.buffer - 1

    Quieter.__name__, Quieter.__qualname__ = Gained.__name__, Gained.__qualname__
    assert adding(made(Quieter())).digest != plain.digest


def test_the_digest_does_not_see_what_was_scripted_before():
    def traced(first, second):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(K, K), first, torch.nn.Linear(K, K), second)

        class Adding(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = layers

            def forward(self, x, h):
                h = self.layers(x) + h
                return h, h

        return adding(torch.jit.trace(Adding(), (torch.zeros(1, K), torch.zeros(1, K)))).digest

    tanh, relu = torch.nn.Tanh(), torch.nn.ReLU()
    assert traced(tanh, relu) == traced(tanh, relu) != traced(relu, tanh)


def test_the_digest_is_the_same_in_every_process():
    script = (
        f"import warnings; warnings.simplefilter('ignore'); from {__name__} import *; "  # a type has its module in its name
        "torch.jit.script(Gained()); print(gru(module=torch.jit.script(Gru())).digest)"
    )
    root = str(Path(__file__).parents[__name__.count(".")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": root},
    )
    assert done.stdout == gru(module=torch.jit.script(Gru())).digest + "\n"


class Addressed(Gained):
    def extra_repr(self):
        return f"by {object()}"


def test_an_address_is_no_part_of_a_digest():
    with pytest.raises(ModelError, match=r"has an address of memory in it, .* pass a `digest` of your own\.$"):
        adding(Addressed())
    assert adding(Addressed(), digest="mine").digest == "mine"


def test_torch_is_held_to_one_thread_in_every_thread():
    model, bits = gru(), []
    assert f"torch {torch.__version__} " in model.numerics
    assert ", 1 thread " in model.numerics

    def run():
        torch.set_num_threads(2)
        bits.append(model.forward(XS).tobytes())
        assert torch.get_num_threads() == 1

    for start in (threading.Thread(target=run), threading.Thread(target=run)):
        start.start()
        start.join()
    run()
    assert bits == [bits[0]] * 3


class Remembering(Gru):
    """Keeps its state."""

    def forward(self, x, h):
        self.kept = getattr(self, "kept", 0) + 1
        return super().forward(x, h + self.kept)


class Noisy(Gru):
    def forward(self, x, h):
        y, h = super().forward(x, h)
        return y + torch.rand(V), h


class Mixing(Gru):
    def forward(self, x, h):
        y, h = super().forward(x, h)
        return y + y.mean(0), h


class Halving(Gru):
    def forward(self, x, h):
        y, h = super().forward(x, h)
        return y, h[:1]


class Sole(Gru):
    def forward(self, x, h):
        return super().forward(x, h)[0]


class Integers(Gru):
    def forward(self, x, h):
        y, h = super().forward(x, h)
        return y.long(), h


class Extra(Gru):
    def get_extra_state(self):
        return {"more": 1}

    def set_extra_state(self, state):
        pass


class Writing(Gru):
    """Writes its new state into the old one's memory, which is a copy."""

    def forward(self, x, h):
        y, new = super().forward(x, h)
        h.copy_(new)
        return y, h


def test_a_module_that_writes_into_its_arguments_does_no_harm():
    model = gru(module=Writing())
    check_step_model(model)
    assert model.forward(XS).tobytes() == gru().forward(XS).tobytes()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: gru(module=Remembering()), "something in it is random or keeps a state of its own"),
        (lambda: gru(module=Noisy()), "something in it is random or keeps a state of its own"),
        (lambda: gru(module=Mixing(), batch=True), "the rows of a batch are mixed up or see one another"),
        (
            lambda: gru(module=Halving()),
            "The state was float32 [2, 1, 8] and came back as float32 [1, 1, 8]; it keeps its form.",
        ),
        (lambda: gru(module=Sole()), "A first step failed: ValueError: "),
        (lambda: gru(module=Integers()), "The module gave torch.int64; outputs are floating point numbers."),
        (lambda: gru(module=Extra()), "_extra_state of the module's state_dict is no plain tensor; pass a `digest`"),
        (lambda: gru(size=6), "The module gave an output [1, 5] for one row; by `output` it is [1, 6]."),
        (lambda: gru(module=Gru().to("meta")), "The module is on meta; TorchStep runs it on the CPU: pass module.cpu()."),
        (
            lambda: made(torch.zeros(2, 1, H)),
            "There is a tensor [2, 1, 8] in the state; it is given for one row, so its axis 0",
        ),
        (lambda: made(torch.zeros(1, H).half()), "There is a tensor of torch.float16 in the state; a state is float32 or"),
        (lambda: made((torch.zeros(1, H), 0)), "There is a int in the state; it is made of tensors, tuples, lists and dicts."),
        (lambda: made(()), "The state has no tensor in it."),
    ],
)
def test_refused(make, sentence):
    with pytest.raises(ModelError) as caught:
        make()
    assert sentence in str(caught.value)


def made(state):
    return TorchStep(Gru(), input=Input("dense", K), output=Output("linear", V), state=state)
