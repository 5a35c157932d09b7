"""Model files: what is saved comes back bit for bit; what is no model file is refused with a sentence, never another error."""

import json
import pickle
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import save_file

from rnnstream.errors import ModelError
from rnnstream.loading import load
from rnnstream.model.file import KEY, load_file, save
from rnnstream.model.network import Network

from .nets import VARIANTS, dense, onehot, rnn, token_spec, tokens, weights
from .others import Average

SPEC = token_spec(onehot(), rnn(4), dense(3), size=3, name="small")


@pytest.fixture
def path(tmp_path):
    """A small model file."""
    save(tmp_path / "small.safetensors", SPEC, weights(SPEC))
    return tmp_path / "small.safetensors"


def raw(path, header, data=b""):
    """A safetensors file by hand."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refused(path):
    with pytest.raises(ModelError) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_it_is_the_same(tmp_path, name, dtype):
    spec = VARIANTS[name] | {"dtype": dtype, "name": "Ünïcode \U0001f600"}
    if spec["input"]["kind"] == "token":
        spec["input"] = spec["input"] | {"vocabulary": [f"«{i}»\n\0" for i in range(spec["input"]["size"])]}
    w = {key: np.asfortranarray(tensor) for key, tensor in weights(spec, seed=4).items()}
    before = Network(spec, w)
    save(tmp_path / "model", spec, w)
    after = load(tmp_path / "model")
    given = tokens(before, 10)
    assert after.spec == before.spec
    assert after.digest == before.digest
    assert after.name == before.name
    assert after.forward(given).tobytes() == before.forward(given).tobytes()
    assert after.initial_state().tobytes() == before.initial_state().tobytes()
    assert after.input == before.input
    save(tmp_path / "again", after.spec, w)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


def test_nothing_is_written_when_it_could_not_be_read_back(tmp_path):
    path = tmp_path / "model"
    for spec, w in [
        (SPEC | {"head": "none"}, weights(SPEC)),
        (SPEC, {}),
        (SPEC, weights(SPEC | {"dtype": "float64"})),
        (SPEC, weights(SPEC) | {"by": np.full(3, np.nan, np.float32)}),
    ]:
        with pytest.raises(ModelError):
            save(path, spec, w)
        assert not path.exists()


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "model", SPEC, weights(SPEC))


def test_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"^There is no file .*nothing\.safetensors\.$"):
        load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"{}", bytes(8), bytes(100), b"\xff" * 100, b"PK\3\4" + bytes(100), pickle.dumps({"a": 1}), b"hello " * 50],
    ids=["empty", "byte", "json", "zeros", "more zeros", "ones", "zip", "pickle", "text"],
)
def test_not_a_safetensors_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert refused(path).startswith((" cannot be read as a safetensors file: ", f" has no metadata key {KEY!r}"))


def test_a_folder(tmp_path):
    assert refused(tmp_path).startswith(" cannot be read as a safetensors file: ")


def test_truncated_anywhere(path):
    content = path.read_bytes()
    for length in [*range(0, len(content), 5), len(content) - 1]:
        path.write_bytes(content[:length])
        assert "cannot be read as a safetensors file" in refused(path)
    path.write_bytes(content + b"\0")
    assert "cannot be read as a safetensors file" in refused(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"Rnnstream": "{}"}])
def test_without_the_metadata(tmp_path, metadata):
    save_file(weights(SPEC), tmp_path / "file", metadata)
    assert refused(tmp_path / "file") == f" has no metadata key {KEY!r}: it is not an rnnstream model file."


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", '{"format": 1,}', "1" * 5000, "[" * 100_000, '"\\ud8"', "\0"])
def test_metadata_that_is_not_json(tmp_path, text):
    save_file(weights(SPEC), tmp_path / "file", {KEY: text})
    sentence = refused(tmp_path / "file")
    assert "not JSON" in sentence or "nested too deeply" in sentence


@pytest.mark.parametrize("text", ["[]", "null", "NaN", '"text"', "1e999", '{"format": 2}', '{"format": 1, "name": "\\ud800"}'])
def test_json_that_is_no_specification(tmp_path, text):
    save_file(weights(SPEC), tmp_path / "file", {KEY: text})
    refused(tmp_path / "file")


def test_format_2(tmp_path):
    save_file(weights(SPEC), tmp_path / "file", {KEY: json.dumps(SPEC | {"format": 2})})
    assert refused(tmp_path / "file") == ": format is 2; this version of rnnstream reads format 1."


def test_tensors_that_do_not_fit(tmp_path):
    w = weights(SPEC)
    for changed, part in [
        ({name: w[name] for name in w if name != "ba"}, "The tensor ba [4] is missing."),
        (w | {"extra": w["ba"]}, "The tensor extra is not asked for;"),
        (w | {"ba": w["by"]}, "The tensor ba is float32 [3]; by the specification float32 [4]."),
        (w | {"ba": w["ba"].astype(np.float16)}, "The tensor ba is float16 [4]; by the specification float32 [4]."),
        (w | {"ba": w["ba"] * np.float32(np.inf)}, "The tensor ba holds NaN or infinity."),
    ]:
        save_file(changed, tmp_path / "file", {KEY: json.dumps(SPEC)})
        assert part in refused(tmp_path / "file")


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F16", 2), ("I64", 8), ("BOOL", 1)])
def test_dtypes_that_numpy_may_not_have(tmp_path, dtype, size):
    header = {"__metadata__": {KEY: json.dumps(SPEC)}, "by": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}
    refused(raw(tmp_path / "file", header, bytes(3 * size)))


def test_an_enormous_size_that_the_file_does_not_have(tmp_path):
    spec = token_spec(onehot(), rnn(1 << 24), dense(1 << 24), size=1 << 24)
    save_file(weights(SPEC), tmp_path / "file", {KEY: json.dumps(spec)})
    assert "by the specification float32" in refused(tmp_path / "file")


def test_three_hundred_damaged_files(path):
    """A flipped bit in a weight cannot be seen; everything else is refused, and nothing but ModelError is ever raised."""
    content, rng, loaded, refusals = path.read_bytes(), np.random.default_rng(0), 0, []
    digest = load_file(path).digest
    header = 8 + int.from_bytes(content[:8], "little")
    for round_ in range(300):
        damaged = bytearray(content)
        place = int(rng.integers(0, header if round_ % 3 else len(content)))
        damaged[place] ^= int(rng.integers(1, 256))
        if round_ % 10 == 0:
            del damaged[int(rng.integers(0, len(content))) :]
        path.write_bytes(damaged)
        try:
            model = load_file(path)
        except ModelError as problem:
            refusals.append(str(problem))
        else:
            loaded += 1
            assert model.digest != digest or place < header  # white space or the order of keys may differ
            assert model.forward([0, 1, 2]).shape == (3, 3)
    assert 5 < loaded < 150
    assert all(str(path) in sentence for sentence in refusals)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module with step models in many forms; its name."""
    (tmp_path / "plugin_for_tests.py").write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(tmp_path)!r})
            from rnnstream.model.step import StepModel
            Average = sys.modules["{Average.__module__}"].Average
            model = Average()
            def factory():
                return Average()
            number = 5
            def wrong():
                return object()
            class Half(Average):
                def __init__(self):
                    super().__init__()
                    del self.digest, self.exact
            class Duck:
                def __init__(self):
                    self.inner = Average()
                def __getattr__(self, name):
                    return getattr(self.__dict__["inner"], name)
            duck = Duck()
            """
        )
    )
    (tmp_path / "broken_for_tests.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "plugin_for_tests"
    sys.modules.pop("plugin_for_tests", None)


def test_an_object_by_its_name(plugin):
    model = load(f"{plugin}:model")
    assert model is sys.modules[plugin].model
    assert load(f"{plugin}:factory") is not model
    assert load(f"{plugin}:Average").step(np.zeros(2), [8, 16])[1].tolist() == [3, 1]
    assert load(f"{plugin}:duck") is sys.modules[plugin].duck


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no_such_module:model", "no_such_module:model: the module cannot be imported: No module named 'no_such_module'."),
        ("no.such.module:model", "no.such.module:model: the module cannot be imported: No module named 'no'."),
        (
            "broken_for_tests:model",
            "broken_for_tests:model: the module cannot be imported: No module named 'nothing_of_that_name'.",
        ),
        ("plugin_for_tests:nothing", "plugin_for_tests:nothing: the module has no 'nothing'."),
        ("plugin_for_tests:number", "plugin_for_tests:number is no step model: it lacks "),
        ("plugin_for_tests:wrong", "plugin_for_tests:wrong is no step model: it lacks "),
        ("plugin_for_tests:Half", "plugin_for_tests:Half is no step model: it lacks digest, exact; see rnnstream.StepModel."),
        ("plugin_for_tests:", "There is no file plugin_for_tests:."),
        (":model", "There is no file :model."),
        ("a/b:model", "There is no file a/b:model."),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_names_that_are_none(source, sentence):
    with pytest.raises(ModelError) as caught:
        load(source)
    assert str(caught.value).startswith(sentence)


def test_a_file_with_a_colon_in_its_name(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    path.rename("small:model")
    assert load("small:model").name == "small"


def test_nothing_in_a_file_is_run(tmp_path):
    """A pickle that would leave a trace is refused as it stands."""

    class Trace:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    (tmp_path / "file").write_bytes(pickle.dumps(Trace()))
    refused(tmp_path / "file")
    assert not (tmp_path / "trace").exists()
