"""Write tests/golden/onnx.npz: ONNX graphs and what ONNX Runtime answers, in float32; and the recurrent part of silero-vad.

    pip install -e . --group frameworks
    python scripts/golden_onnx.py
    python scripts/golden_onnx.py --silero silero_vad-6.2.3-py3-none-any.whl speech.wav

Shapes: D inputs, H hidden units, L layers, T steps, B rows, V tokens, E numbers an embedding. Keys are `{case}/{name}`:

    file      the .onnx file, as bytes
    xs        the inputs: [B, T] ids or [T, B, D]; of PyTorch's exports as their `batch_first` has it
    output    [T, B, V] probabilities, or [T, B, H] of the last layer; of PyTorch's exports [T, B, V] logits, or [B, V]
    h, c      [L, B, H] the last states; c only for an LSTM

Cases are `{rnn_tanh, rnn_relu, gru_after, gru_before, lstm}_{1, 2, 3}_{token, dense}`, put together node by node: a token case
has an embedding in front and a matrix, a bias and a softmax behind. Those that begin with `torch_` were exported by PyTorch, in
its older way (script) and its newer one (dynamo). States begin at zero. Weights and inputs are drawn by NumPy in float64 and
rounded, so that their mantissas are full.

With --silero, from the wheel of that package and a recording (16 kHz, mono, 16 bits): tests/golden/silero_vad_lstm.onnx, the
nodes of its graph behind the encoder, and silero_vad_lstm.npz, its first 60 steps: `x` [T, 128] of the encoder, the states `h`
and `c` [T, 128], and `prob` [T], by the package's TorchScript model.
"""

import io
import sys
import tempfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
D, H, T, B, V, E = 5, 7, 12, 2, 6, 3
CELLS = {
    "rnn_tanh": ("RNN", 1, {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", 1, {"activations": ["Relu"]}),
    "gru_after": ("GRU", 3, {"linear_before_reset": 1}),
    "gru_before": ("GRU", 3, {"linear_before_reset": 0}),
    "lstm": ("LSTM", 4, {}),
}
STEPS = 60  # of silero-vad: speech and pauses


def draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.uniform(-scale, scale, shape).astype(np.float32)


def graph(rng: np.random.Generator, cell: str, layers: int, token: bool) -> onnx.ModelProto:
    """The graph of one case, with random weights."""
    op, gates, attributes = CELLS[cell]
    nodes, weights = [], {}
    x, size = "x", D
    if token:
        weights |= {"table": draw(rng, V, E)}
        nodes += [
            helper.make_node("Gather", ["table", "x"], ["rows"]),
            helper.make_node("Transpose", ["rows"], ["in"], perm=[1, 0, 2]),
        ]
        x, size = "in", E
    weights["one"] = np.array([1])
    for layer in range(layers):
        names = [f"{name}{layer}" for name in "WRB"]
        scale = 0.5 if cell == "rnn_relu" else 1.0  # a relu that feeds itself grows without bound
        shapes = [(1, gates * H, size), (1, gates * H, H), (1, 2 * gates * H)]
        weights |= {name: draw(rng, *shape, scale=scale) for name, shape in zip(names, shapes, strict=True)}
        outputs = [f"Y{layer}", f"h{layer}", f"c{layer}"][: 3 if op == "LSTM" else 2]
        nodes.append(helper.make_node(op, [x, *names], outputs, name=f"cell {layer}", hidden_size=H, **attributes))
        nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "one"], [f"y{layer}"]))
        x, size = f"y{layer}", H
    if token:
        weights |= {"out.w": draw(rng, H, V), "out.b": draw(rng, V)}
        nodes.append(helper.make_node("MatMul", [x, "out.w"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "out.b"], ["logits"]))
        nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=-1))
    else:
        nodes.append(helper.make_node("Identity", [x], ["y"]))
    ends = ["h", "c"] if op == "LSTM" else ["h"]
    nodes += [helper.make_node("Concat", [f"{end}{layer}" for layer in range(layers)], [end], axis=0) for end in ends]
    shape = ["rows", "steps"] if token else ["steps", "rows", D]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["steps", "rows", V if token else H])]
    outputs += [helper.make_tensor_value_info(end, TensorProto.FLOAT, [layers, "rows", H]) for end in ends]
    whole = helper.make_graph(
        nodes,
        f"{cell}_{layers}",
        [helper.make_tensor_value_info("x", TensorProto.INT64 if token else TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a graph by their names, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def made_case(rng: np.random.Generator, cell: str, layers: int, token: bool) -> dict[str, np.ndarray]:
    model = graph(rng, cell, layers, token).SerializeToString()
    xs = rng.integers(0, V, (B, T)) if token else draw(rng, T, B, D)
    found = answers(model, {"x": xs})
    found["output"] = found.pop("y")
    return {"file": np.frombuffer(model, np.uint8), "xs": xs, **found}


class Network(nn.Module):
    """Perhaps an embedding, a stack of cells, and a linear layer."""

    def __init__(self, cell: type[nn.RNNBase], layers: int, *, token: bool, first: bool, last: bool) -> None:
        super().__init__()
        self.emb = nn.Embedding(V, E) if token else None
        self.rnn = cell(E if token else D, H, layers, batch_first=first)
        self.fc = nn.Linear(H, V)
        self.first, self.last = first, last

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None, c: torch.Tensor | None = None):
        """The logits, and the last states if the first ones were given."""
        x = x if self.emb is None else self.emb(x)
        y, states = self.rnn(x) if h is None else self.rnn(x, h if c is None else (h, c))
        if self.last:
            y = y[:, -1] if self.first else y[-1]
        y = self.fc(y)
        return y if h is None else (y, *states) if c is not None else (y, states)


EXPORTS = {  # cell, layers, dynamo, free shapes, and what the network has
    "torch_gru_2_script_states": (nn.GRU, 2, False, True, {"token": False, "first": True, "last": False}),
    "torch_lstm_2_script": (nn.LSTM, 2, False, True, {"token": True, "first": False, "last": False}),
    "torch_rnn_2_script_fixed": (nn.RNN, 2, False, False, {"token": False, "first": True, "last": False}),
    "torch_lstm_1_script_last": (nn.LSTM, 1, False, True, {"token": True, "first": True, "last": True}),
    "torch_lstm_2_dynamo_states": (nn.LSTM, 2, True, True, {"token": False, "first": False, "last": False}),
    "torch_gru_2_dynamo": (nn.GRU, 2, True, True, {"token": False, "first": True, "last": False}),
    "torch_gru_1_dynamo_fixed": (nn.GRU, 1, True, False, {"token": True, "first": False, "last": False}),
    "torch_lstm_1_dynamo_fixed_states": (nn.LSTM, 1, True, False, {"token": False, "first": True, "last": False}),
}


@torch.no_grad()
def torch_case(rng: np.random.Generator, case: str) -> dict[str, np.ndarray]:
    """An export of PyTorch, whose own outputs have to be those of ONNX Runtime."""
    cell, layers, dynamo, free, keys = EXPORTS[case]
    module = Network(cell, layers, **keys).eval()
    for parameter in module.parameters():
        parameter.copy_(torch.from_numpy(draw(rng, *parameter.shape)))
    first, states = keys["first"], case.endswith("states")
    shape = (B, T) if first else (T, B)
    xs = rng.integers(0, V, shape) if keys["token"] else draw(rng, *shape, D)
    given = [torch.from_numpy(xs)] + [torch.zeros(layers, B, H)] * (states * (2 if cell is nn.LSTM else 1))
    given = [tensor.clone() for tensor in given]
    names, ends = ["x", "h0", "c0"][: len(given)], ["y", "h", "c"][: len(given)]
    sizes = [{0: "rows", 1: "steps"} if first else {0: "steps", 1: "rows"}] + [{1: "rows"}] * (len(given) - 1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "exported.onnx"
        if dynamo:
            dims = {"rows": torch.export.Dim("rows"), "steps": torch.export.Dim.AUTO}
            shapes = tuple({axis: dims[name] for axis, name in size.items()} for size in sizes) if free else None
            torch.onnx.export(
                module, tuple(given), path, input_names=names, output_names=ends, dynamic_shapes=shapes, external_data=False
            )
        else:
            axes = dict(zip(names, sizes, strict=True)) if free else None
            torch.onnx.export(module, tuple(given), path, input_names=names, output_names=ends, dynamic_axes=axes, dynamo=False)
        model = onnx.load(path)
    for node in [*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph]:
        del node.metadata_props[:]  # with the paths of this machine in them
        node.doc_string = ""
    file = model.SerializeToString()
    found = answers(file, dict(zip(names, (tensor.numpy() for tensor in given), strict=True)))
    output = found.pop("y")
    theirs = module(*given)
    assert np.abs(output - (theirs[0] if states else theirs).numpy()).max() < 1e-5, case
    if first and not keys["last"]:
        output = output.swapaxes(0, 1)
    return {"file": np.frombuffer(file, np.uint8), "xs": xs, "output": output, **found}


def silero(wheel: str, recording: str) -> None:
    """The recurrent part of silero-vad, and its first steps over a recording."""
    with zipfile.ZipFile(wheel) as file:
        whole = onnx.load_model_from_string(file.read("silero_vad/data/silero_vad_16k_sequence.onnx"))
        jit = torch.jit.load(io.BytesIO(file.read("silero_vad/data/silero_vad.jit")))._model
    start, names = "/Transpose_output_0", {"/Transpose_output_0": "x", "speech_probs": "prob"}
    part = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(whole)).extract_model(
        [start, "h", "c"], ["speech_probs", "hn", "cn"]
    )
    for node in part.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    free = {"x": ["steps", "rows", 128], "prob": ["steps x rows"]} | {key: [1, "rows", 128] for key in ["h", "c", "hn", "cn"]}
    for values, kept in ((part.graph.input, ("x", "h", "c")), (part.graph.output, ("prob", "hn", "cn"))):
        del values[:]
        values.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, free[name]) for name in kept)
    del part.graph.value_info[:]
    onnx.checker.check_model(part, full_check=True)
    onnx.save(part, GOLDEN / "silero_vad_lstm.onnx")

    with wave.open(recording) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        samples = np.frombuffer(file.readframes(512 * STEPS), "<i2").astype(np.float32) / 32768
    audio = torch.from_numpy(np.concatenate([np.zeros(64, np.float32), samples]))
    state, rows = torch.zeros(0), []
    with torch.no_grad():
        for step in range(STEPS):
            x = jit.encoder(jit.run_extractors(audio[512 * step : 512 * step + 576][None]))
            y, state = jit.decoder(x, state)
            rows.append([x.reshape(-1).numpy(), state[0, 0].numpy(), state[1, 0].numpy(), y.reshape(()).numpy()])
    arrays = {name: np.array(row) for name, row in zip(("x", "h", "c", "prob"), zip(*rows, strict=True), strict=True)}
    np.savez_compressed(GOLDEN / "silero_vad_lstm.npz", **arrays)
    for name in ("silero_vad_lstm.onnx", "silero_vad_lstm.npz"):
        print(f"{name}: {(GOLDEN / name).stat().st_size} bytes")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--silero"]:
        silero(*sys.argv[2:])
        return
    rng = np.random.default_rng(1)
    cases = {
        f"{cell}_{layers}_{'token' if token else 'dense'}": made_case(rng, cell, layers, token)
        for cell in CELLS
        for layers in (1, 2, 3)
        for token in (True, False)
    }
    cases |= {case: torch_case(rng, case) for case in EXPORTS}
    arrays = {f"{case}/{name}": array for case, found in cases.items() for name, array in found.items()}
    np.savez_compressed(GOLDEN / "onnx.npz", **arrays)
    for key, array in arrays.items():
        print(f"{key:45} {array.dtype!s:8} {array.shape}")
    print(
        f"onnx.npz: {len(cases)} cases, {(GOLDEN / 'onnx.npz').stat().st_size} bytes, by onnxruntime {onnxruntime.__version__}"
    )


if __name__ == "__main__":
    main()
