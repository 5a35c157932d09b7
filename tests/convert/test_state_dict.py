"""What a file of arrays does not say: what is guessed, what is asked for, and what is refused, with its sentence."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import rnnstream
from rnnstream.convert import convert
from rnnstream.errors import ModelError
from rnnstream.model.file import save
from rnnstream.model.spec import parse

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32):
    return RNG.uniform(-1, 1, shape).astype(dtype)


def cell(gates, k, h, name="rnn", layers=1, cell=False):
    found = {}
    for layer in range(layers):
        end = "" if cell else f"_l{layer}"
        found |= {
            f"{name}.weight_ih{end}": draw(gates * h, k if layer == 0 else h),
            f"{name}.weight_hh{end}": draw(gates * h, h),
            f"{name}.bias_ih{end}": draw(gates * h),
            f"{name}.bias_hh{end}": draw(gates * h),
        }
    return found


def linear(k, n, name="fc"):
    return {f"{name}.weight": draw(n, k), f"{name}.bias": draw(n)}


EMB = {"emb.weight": draw(11, 5)}


def kinds(tensors, directory, spec=None, suffix="npz"):
    """The layers that these tensors become."""
    return [(layer.kind, layer.inputs, layer.outputs) for layer in converted(tensors, directory, spec, suffix).spec.layers]


def converted(tensors, directory, spec=None, suffix="npz"):
    path = directory / f"given.{suffix}"
    if suffix == "npz":
        np.savez(path, **tensors)
    else:
        save_file(tensors, path)
    return convert(path, spec)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_the_only_order_that_fits_is_taken_and_told(tmp_path, suffix):
    tensors = linear(7, 11) | cell(3, 5, 7, layers=2) | EMB
    expected = [("embedding", 11, 5), ("gru", 5, 7), ("gru", 7, 7), ("dense", 7, 11)]
    assert kinds(tensors, tmp_path, suffix=suffix) == expected
    notes = converted(tensors, tmp_path, suffix=suffix).notes
    assert 'embedding "emb" 11 -> 5, gru "rnn" 5 -> 7, linear "fc" 7 -> 11' in notes[0]
    assert "the head is taken to be categorical" in notes[1]


def test_a_list_of_cells_whose_sizes_have_one_order(tmp_path):
    tensors = cell(4, 6, 6, "cells.1", cell=True) | cell(4, 5, 6, "cells.0", cell=True)
    found = converted(tensors, tmp_path)
    assert found.tensors["waa1"].tobytes() == tensors["cells.0.weight_hh"].tobytes()
    assert found.tensors["waa2"].tobytes() == tensors["cells.1.weight_hh"].tobytes()


def test_without_biases_they_are_zero(tmp_path):
    tensors = {name: tensor for name, tensor in cell(3, 5, 7).items() if "bias" not in name}
    found = converted(tensors, tmp_path)
    assert not found.tensors["ba1"].any()
    assert not found.tensors["bh1"].any()


def test_a_matrix_without_a_bias_is_an_embedding_where_only_that_fits(tmp_path):
    table, other = {"table.weight": draw(11, 5)}, {"out.weight": draw(9, 7)}
    assert kinds(table | cell(3, 5, 7) | other, tmp_path) == [("embedding", 11, 5), ("gru", 5, 7), ("dense", 7, 9)]
    with pytest.raises(ModelError, match=r"matrix\.weight \[9, 5\] has no bias and may be an embedding or a linear layer"):
        kinds({"matrix.weight": draw(9, 5)} | cell(3, 5, 5), tmp_path)


def test_doubles_stay_doubles_and_halves_become_floats(tmp_path):
    tensors = cell(3, 5, 7)
    assert converted({name: tensor.astype(float) for name, tensor in tensors.items()}, tmp_path).spec.dtype == "float64"
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    found = converted(halves, tmp_path)
    assert found.spec.dtype == "float32"
    assert (found.tensors["waa1"] == halves["rnn.weight_hh_l0"]).all()


def test_one_hot_ids_for_a_network_of_vectors(tmp_path):
    spec = {"input": "token", "vocabulary": list("abcde"), "layers": [{"from": "rnn"}, {"from": "fc"}]}
    found = converted(cell(3, 5, 7) | linear(7, 5), tmp_path, spec)
    assert [layer.kind for layer in found.spec.layers] == ["onehot", "gru", "dense"]
    assert found.spec.head == "categorical"
    assert found.spec.vocabulary == tuple("abcde")


def test_tensors_by_their_own_names(tmp_path):
    tensors = {"E": draw(11, 5), "Wi": draw(28, 5), "Wh": draw(28, 7), "bi": draw(28), "bh": draw(28), "other": draw(3)}
    layers = [
        {"kind": "embedding", "weight": "E"},
        {"weight_ih": "Wi", "weight_hh": "Wh", "bias_ih": "bi", "bias_hh": "bh"},
    ]
    assert kinds(tensors, tmp_path, {"layers": layers, "ignore": ["oth*"]}) == [("embedding", 11, 5), ("lstm", 5, 7)]
    with pytest.raises(ModelError, match="Nothing uses the tensors other"):
        kinds(tensors, tmp_path, {"layers": layers})


@pytest.mark.parametrize("written", ["toml", "json"])
def test_a_spec_from_a_file(tmp_path, written):
    spec = tmp_path / f"spec.{written}"
    layers = '[{from = "rnn", activation = "relu"}, {from = "fc"}, {activation = "sigmoid"}]'
    spec.write_text(
        f'name = "n"\nlayers = {layers}\n'
        if written == "toml"
        else json.dumps(
            {"name": "n", "layers": [{"from": "rnn", "activation": "relu"}, {"from": "fc"}, {"activation": "sigmoid"}]}
        )
    )
    found = converted(cell(1, 5, 7) | linear(7, 2), tmp_path, spec)
    assert (found.spec.name, found.spec.head, found.spec.layers[0].keys["activation"]) == ("n", "bernoulli", "relu")
    assert set(found.tensors) == {"waa", "wax", "ba", "wya", "by"}


ASKED = {
    "is a vanilla RNN, and the file does not say whether its nonlinearity is tanh or relu": cell(1, 5, 7),
    r'how its parts follow one another, nor what stands between them: gru "a" 6 -> 6; gru "b" 6 -> 6\..*'
    r'layers = \[\{from = "a"\}, \{from = "b"\}\]': cell(3, 6, 6, "a") | cell(3, 6, 6, "b"),
    r'nor what stands between them: linear "pre" 3 -> 5': linear(3, 5, "pre") | cell(3, 5, 7) | linear(7, 2),
    r'nor what stands between them: linear "fc" 7 -> 2': linear(7, 2),
    # a linear layer that also fits in front, cells that may stand side by side, an encoder and a decoder
    r'nor what stands between them: lstm "rnn" 6 -> 6; linear "fc" 6 -> 6': cell(4, 6, 6) | linear(6, 6),
    r'nor what stands between them: gru "rnn" 5 -> 7; linear "fc" 7 -> 5': cell(3, 5, 7) | linear(7, 5),
    r'nor what stands between them: gru "rnn1" 6 -> 6; gru "rnn2" 6 -> 6': cell(3, 6, 6, "rnn1") | cell(3, 6, 6, "rnn2"),
    r'nor what stands between them: lstm "enc" 4 -> 6; lstm "dec" 6 -> 6': cell(4, 4, 6, "enc") | cell(4, 6, 6, "dec"),
    r"norm has only a vector of weights: a layer normalisation, or something else": cell(3, 5, 7) | {"norm.weight": draw(7)},
}


@pytest.mark.parametrize("sentence", ASKED)
def test_what_is_asked_for(tmp_path, sentence):
    with pytest.raises(ModelError, match=sentence):
        converted(ASKED[sentence], tmp_path)


REFUSED = {
    r"rnn is bidirectional \(rnn\.weight_ih_l0_reverse\): it reads the future": cell(3, 5, 7)
    | {"rnn.weight_ih_l0_reverse": draw(21, 5)},
    r"rnn is an LSTM with projections \(proj_size, rnn\.weight_hr_l0\)": cell(4, 5, 7) | {"rnn.weight_hr_l0": draw(3, 7)},
    r"The tensor attention\.query \[3\] belongs to no module": cell(3, 5, 7) | {"attention.query": draw(3)},
    r"rnn layer 1: the tensor weight_ih is missing": {
        name: tensor for name, tensor in cell(3, 5, 7, layers=2).items() if name != "rnn.weight_ih_l1"
    },
    r"rnn: the tensor bias_hh is missing": {name: t for name, t in cell(3, 5, 7).items() if name != "rnn.bias_hh_l0"},
    r"The module fc has bias and no weight": cell(3, 5, 7) | {"fc.bias": draw(3)},
    r"weight_hh_l0 is \[14, 7\]; a cell's is": {"rnn.weight_ih_l0": draw(14, 5), "rnn.weight_hh_l0": draw(14, 7)},
    r"whose matrices are \[20, 5\] on the input and \[21, 7\]|has the shape \[20, 5\]; it has to hold 3 blocks": cell(3, 5, 7)
    | {"rnn.weight_ih_l0": draw(20, 5)},
    r"the bias has the shape \[41\]; the layer takes 21 numbers, or twice as many": cell(3, 5, 7)
    | {"rnn.bias_ih_l0": draw(20)},
    "there is no tensor in it": {},
    r"rnn has weight_ih twice: as a cell, and as a stack": cell(3, 5, 7) | cell(3, 5, 7, cell=True),
    r"rnn is a cell with the tensor bias, which PyTorch's cells do not have": cell(3, 5, 7) | {"rnn.bias": draw(21)},
    r"rnn: the tensor weight_ih is missing": {"rnn.weight_hh_l0": draw(21, 7)},
    r"rnn\.weight_hh_l0 has the shape \[0, 0\]": cell(3, 5, 7) | {"rnn.weight_hh_l0": draw(0, 0)},
    r"fc\.weight has the shape \[\]": cell(3, 5, 7) | {"fc.weight": np.float32(1)},
    "is of complex64": cell(3, 5, 7) | {"fc.weight": draw(3, 7).astype(np.complex64)},
    "is of <U3": cell(3, 5, 7) | {"fc.weight": np.array(["abc"])},
    "NaN or infinity": cell(3, 5, 7) | {"rnn.bias_ih_l0": np.full(21, np.nan, np.float32)},
    r"The tensor rnn\.bias_ih_l0 is of int64; weights are floating point numbers": cell(3, 5, 7)
    | {"rnn.bias_ih_l0": np.zeros(21, int)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_is_refused(tmp_path, sentence):
    with pytest.raises(ModelError, match=sentence) as caught:
        converted(REFUSED[sentence], tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


CONV = {"conv.weight": draw(6, 5, 3), "conv.bias": draw(6)}
SPECS = {
    r"conv is a convolution over 3 tokens, and the file does not say whether it looks ahead": [
        {"from": "conv"},
        {"from": "rnn"},
    ],
    r"there is no module 'con'; these are there: conv, rnn": [{"from": "con"}, {"from": "rnn"}],
    r"Nothing uses the tensors conv\.weight, conv\.bias": [{"from": "rnn"}],
    r"layers\[1\] is gru and says 'activation'; that takes no keys": [{"from": "conv"}, {"from": "rnn", "activation": "relu"}],
    r"layers\[0\] names a module with `from`, and tensors one by one": [{"from": "conv", "weight": "conv.weight"}],
    r"layers\[0\]: there is no tensor 'no\.weight'": [{"weight": "no.weight"}],
    r"layers\[0\]\.kind is 'attention'; it is one of rnn, gru": [{"from": "conv", "kind": "attention"}],
    r"layers\[0\] says neither `from`, nor tensors": [{"window": 3}],
    r"layers\[1\] is pool and does not say 'pool'": [{"from": "conv"}, {"kind": "pool", "window": 2}],
    r"layers\[1\] is residual and does not say 'residual'": [{"from": "conv"}, {"kind": "residual"}],
    r"layers\[1\] says neither `from`": [{"from": "conv"}, {"kind": "gru"}],
    r"layers\[0\] says that conv is activation; by its tensors \(weight, bias\) it is conv": [
        {"from": "conv", "kind": "activation", "activation": "relu"}
    ],
    r"layers\[0\] says that rnn is lstm; by its tensors .* it is gru": [{"from": "rnn", "kind": "lstm"}],
    r"`layers` in --spec is empty": [],
    r"layers\[1\] has the unknown key 'activate'": [{"from": "conv"}, {"activate": "relu"}],
    r"layers\[0\]\.dilation is '2'; it is a int": [{"from": "conv", "causal": True, "dilation": "2"}],
    r"The activation 'gelu' is not known here; these are: tanh": [
        {"from": "conv", "causal": True, "activation": "gelu"},
        {"from": "rnn"},
    ],
    r"adds the output of 'x'; these are there: 'input', 'conv', 'rnn'": [
        {"from": "conv", "causal": True},
        {"residual": "x"},
        {"from": "rnn"},
    ],
    r"layers\[0\] has no tensors; the first layer does": [
        {"activation": "relu"},
        {"from": "conv", "causal": True},
        {"from": "rnn"},
    ],
}


@pytest.mark.parametrize("sentence", SPECS)
def test_specs_that_are_refused(tmp_path, sentence):
    with pytest.raises(ModelError, match=sentence):
        converted(CONV | cell(3, 6, 7), tmp_path, {"layers": SPECS[sentence]})


def test_other_keys_of_a_spec_that_are_refused(tmp_path):
    for spec, sentence in (
        ({"heads": "linear"}, "has the unknown key 'heads'"),
        ({"head": "softmax"}, "head is 'softmax'; it is one of categorical, bernoulli, linear"),
        ({"layers": "rnn"}, "layers is 'rnn'; it is a list of layers"),
        ({"ignore": ["nothing*"]}, r"`ignore` has 'nothing\*', and no tensor is called so"),
        ({"start": "x"}, "are for ONNX graphs"),
        ({"size": 5}, "are for ONNX graphs"),
        (
            {"input": "dense", "layers": [{"from": "emb"}, {"from": "rnn"}]},
            "`input` says dense, and the first layer is an embedding",
        ),
        (tmp_path / "no.toml", "There is no file"),
    ):
        with pytest.raises(ModelError, match=sentence):
            converted(EMB | cell(3, 5, 7), tmp_path, spec)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ModelError, match=r"bad\.toml is not TOML"):
        converted(cell(3, 5, 7), tmp_path, tmp_path / "bad.toml")


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "evil.npz", waa=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelError, match=r"it cannot be read as an \.npz file of plain arrays"):
        convert(tmp_path / "evil.npz")


@pytest.mark.parametrize("name", ["no.npz", "text.txt", "damaged.npz", "damaged.safetensors"])
def test_files_that_cannot_be_read(tmp_path, name):
    if not name.startswith("no"):
        (tmp_path / name).write_bytes(b"PK\3\4 this is nothing")
    with pytest.raises(ModelError, match=r"There is no file|what can be read ends with|cannot be read as"):
        convert(tmp_path / name)


def test_what_is_no_zip_or_would_be_enormous(tmp_path):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, draw(3))
    np.savez_compressed(tmp_path / "bomb.npz", waa=np.zeros((3000, 3000)))
    for name, sentence in (("one", "not a zip file"), ("bomb", r"its [\d,]+ bytes would become 72,000")):
        with pytest.raises(ModelError, match=rf"cannot be read as an \.npz file of plain arrays: .*{sentence}"):
            convert(tmp_path / f"{name}.npz")


def test_a_model_file_is_none_of_another_framework(tmp_path):
    found = converted(cell(3, 5, 7), tmp_path)
    save(tmp_path / "ours.safetensors", found.spec, found.tensors)
    with pytest.raises(ModelError, match="it is a model file of rnnstream already"):
        convert(tmp_path / "ours.safetensors")


def test_an_identity_behind_a_layer_is_nothing(tmp_path):
    layers = [{"from": "rnn"}, {"from": "fc", "activation": "identity"}, {"residual": "fc"}]
    found = converted(cell(3, 5, 7) | linear(7, 7), tmp_path, {"layers": layers})
    assert [layer.kind for layer in found.spec.layers] == ["gru", "dense", "residual"]
    assert not any("last activation" in note for note in found.notes)


def test_upper_case_suffixes(tmp_path):
    converted(cell(3, 5, 7), tmp_path)
    (tmp_path / "given.npz").rename(tmp_path / "GIVEN.NPZ")
    assert rnnstream.load(tmp_path / "GIVEN.NPZ").state_size == 7


def article(h=4, v=6, columns=True, **more):
    shape = (lambda n: (n, 1)) if columns else (lambda n: (n,))
    tensors = {"waa": draw(h, h), "wax": draw(h, v), "wya": draw(v, h), "ba": draw(*shape(h)), "by": draw(*shape(v))}
    return {name: tensor.astype(float) for name, tensor in (tensors | more).items()}


@pytest.mark.parametrize("columns", [True, False])
def test_the_equations_names(tmp_path, columns):
    tensors = article(columns=columns)
    found = converted(tensors, tmp_path)
    assert (
        found.spec.json
        == parse(
            {
                "format": 1,
                "name": "given",
                "dtype": "float64",
                "input": {"kind": "token", "size": 6},
                "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 4}, {"kind": "dense", "size": 6}],
                "head": "categorical",
            }
        ).json
    )
    a = np.zeros(4)
    for x, y in zip([3, 0, 5, 3], found.network().forward([3, 0, 5, 3]), strict=True):
        a = np.tanh(tensors["waa"] @ a + tensors["wax"][:, x] + tensors["ba"].ravel())
        e = np.exp(tensors["wya"] @ a + tensors["by"].ravel())
        np.testing.assert_allclose(y, e / e.sum(), rtol=1e-12)
    assert len(found.notes) == 3


def test_the_equations_with_a_spec(tmp_path):
    spec = {"input": "dense", "head": "linear", "layers": [{"kind": "rnn", "activation": "relu"}]}
    tensors = article()
    found = converted(tensors, tmp_path, spec)
    assert not found.notes
    x = draw(6)
    y = found.network().forward([x])[0]
    a = np.maximum(tensors["wax"] @ x + tensors["ba"].ravel(), 0)
    np.testing.assert_allclose(y, tensors["wya"] @ a + tensors["by"].ravel(), rtol=1e-12)


def test_the_equations_refused(tmp_path):
    for tensors, sentence in (
        ({name: tensor for name, tensor in article().items() if name != "wya"}, "There is by without wya"),
        (article(ba=draw(2, 2)), r"The tensor ba is float64 \[2, 2\]"),
        (article(bz=draw(3)), "There is an array bz beside waa, wax, ba, wya, by"),
        ({name: tensor for name, tensor in article().items() if name != "by"}, "The array by is missing"),
        (article(waa=draw(4, 5)), r"waa is \[4, 5\] and wax is \[4, 6\]"),
        (article(wya=draw(6, 5)), r"The tensor wya is float64 \[6, 5\]; by the specification float64 \[6, 4\]"),
    ):
        with pytest.raises(ModelError, match=sentence):
            converted(tensors, tmp_path)


def test_halves_are_added_up_as_floats(tmp_path):
    tensors = {name: tensor.astype(np.float16) for name, tensor in cell(4, 5, 7).items()}
    tensors["rnn.bias_ih_l0"][:] = 40000
    tensors["rnn.bias_hh_l0"][:] = 30000
    assert (converted(tensors, tmp_path).tensors["ba1"] == 70000).all()


def test_the_line_to_fill_in_counts_as_people_do(tmp_path):
    tensors = dict(item for number in range(12) for item in cell(3, 4, 4, f"cells.{number}", cell=True).items())
    with pytest.raises(ModelError) as caught:
        converted(tensors, tmp_path, suffix="safetensors")
    line = str(caught.value).partition("layers = ")[2]
    assert line == "[" + ", ".join(f'{{from = "cells.{number}"}}' for number in range(12)) + "]"


def test_what_a_convolution_does_not_tell_is_noted(tmp_path):
    found = converted(CONV | cell(3, 6, 7), tmp_path, {"layers": [{"from": "conv", "causal": True}, {"from": "rnn"}]})
    assert "conv is taken to have stride 1, one group, and dilation 1, which its tensors do not tell." in found.notes


def test_batch_normalisation_without_weights(tmp_path):
    statistics = {
        "norm.running_mean": draw(7),
        "norm.running_var": np.abs(draw(7)) + 1,
        "norm.num_batches_tracked": np.array(3),
    }
    layers = [{"from": "rnn"}, {"from": "norm"}]
    found = converted(cell(3, 5, 7) | statistics, tmp_path, {"layers": layers})
    np.testing.assert_allclose(found.tensors["s2"], 1 / np.sqrt(statistics["norm.running_var"] + 1e-5), rtol=1e-6)
    with pytest.raises(ModelError, match=r'batchnorm "norm" 7 -> 7'):
        converted(cell(3, 5, 7) | statistics, tmp_path)
