"""Files of Keras that are damaged, incomplete or made to do harm: what comes out is a sentence, or the model as it was."""

import contextlib
import json
import zipfile

import h5py
import numpy as np
import pytest

from rnnstream.convert import convert
from rnnstream.errors import ModelError
from tests.convert.keras_files import changed, converted_digest, refused, written, zipped


def test_weights_that_are_missing_or_too_many(tmp_path):
    def missing(file):
        del file["layers/gru/cell/vars/1"]

    def more(file):
        file["layers/gru/vars/0"] = np.ones(3, np.float32)

    def quantised(file):
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = np.ones((5, 2), np.int8)

    key = "gru_after_1_dense.keras"
    assert "The layer gru (GRU) has no recurrent_kernel in the file." in refused(changed(tmp_path, key, weights=missing))
    assert "It holds weights that none of its layers has: layers/gru/vars/0." in refused(changed(tmp_path, key, weights=more))
    assert "The array layers/dense/vars/0 is of int8; weights are floating point numbers." in refused(
        changed(tmp_path, key, weights=quantised)
    )


def test_weights_that_are_missing_or_too_many_in_the_older_form(tmp_path):
    gru = "model_weights/gru"

    def missing(file):
        file[gru].attrs["weight_names"] = file[gru].attrs["weight_names"][:2]

    def lost(file):
        del file[f"{gru}/{file[gru].attrs['weight_names'][2]}"]

    def exchanged(file):
        file[gru].attrs["weight_names"] = file[gru].attrs["weight_names"][::-1]

    def more(file):
        file["model_weights/top_level_model_weights/own"] = np.ones(3, np.float32)

    key, has = "gru_after_2_token.h5", "by its settings kernel, recurrent_kernel, bias."
    assert has in refused(changed(tmp_path, key, weights=missing))
    assert has in refused(changed(tmp_path, key, weights=exchanged))
    assert "gru_cell/bias in the file." in refused(changed(tmp_path, key, weights=lost))
    assert "It holds weights that none of its layers has: top_level_model_weights/own." in refused(
        changed(tmp_path, key, weights=more)
    )


def test_a_long_list_of_names_is_in_pieces(tmp_path):
    def pieces(file):
        attributes = file["model_weights/gru"].attrs
        names = list(attributes["weight_names"])
        del attributes["weight_names"]
        attributes["weight_names0"], attributes["weight_names1"] = names[:2], names[2:]

    key = "gru_after_2_token.h5"
    assert converted_digest(changed(tmp_path, key, weights=pieces)) == converted_digest(written(tmp_path, key))


def test_state_of_a_training_is_passed_over(tmp_path):
    def training(file):
        for name in ("optimizer/vars/0", "metrics/mean/vars/0", "layers/dropout/seed_generator/vars/0"):
            file[name] = np.ones(3, np.uint32)

    key = "gait_max.keras"
    assert converted_digest(changed(tmp_path, key, weights=training)) == converted_digest(written(tmp_path, key))


def test_numbers_that_are_not_in_the_file(tmp_path):
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file["w"] = np.ones((4, 5), np.float32)

    def huge(file):
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (1 << 20, 1 << 20), np.float32)  # never written: takes no space

    def external(file):
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (5, 2), np.float32, external=[(outside, 0, 40)])

    def virtual(file):
        layout = h5py.VirtualLayout((5, 2), np.float32)
        layout[0] = h5py.VirtualSource(outside, "w", (4, 5))[0, :2]
        del file["layers/dense/vars/0"]
        file.create_virtual_dataset("layers/dense/vars/0", layout)

    def link(file):
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink(outside, "w")

    for weights in (huge, external, virtual):
        path = changed(tmp_path, "lstm_1_dense.keras", weights=weights)
        assert "The array layers/dense/vars/0 " in refused(path)
        assert refused(path).endswith("is not in the file itself.")
    assert "The layer dense (Dense) has no kernel in the file." in refused(
        changed(tmp_path, "lstm_1_dense.keras", weights=link)
    )


def test_files_without_a_model(tmp_path):
    def weights_only(file):
        del file.attrs["model_config"]

    assert refused(changed(tmp_path, "lstm_2_token.h5", weights=weights_only)).endswith(
        "it holds weights without the model that they belong to; save the whole model: model.save('model.keras')."
    )
    (tmp_path / "folder.keras").mkdir()
    assert "it is a folder, as TensorFlow saves a model; save it as one file" in refused(tmp_path / "folder.keras")
    (tmp_path / "text.keras").write_text("no zip")
    assert "it is neither a .keras file nor HDF5, or it is damaged" in refused(tmp_path / "text.keras")


@pytest.mark.parametrize("member", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_member_that_is_missing(member, tmp_path):
    with zipfile.ZipFile(written(tmp_path, "lstm_1_dense.keras")) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != member}
    assert f"there is no {member} in it; a file of model.save('model.keras') has one." in refused(
        zipped(tmp_path / "less.keras", members)
    )


def test_a_member_that_would_grow_without_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("metadata.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
        with archive.open("config.json", "w") as member:
            member.write(bytes(1 << 20))
    path = tmp_path / "bomb.keras"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2") + 24  # the size of the last member in the directory, which is made larger
    data[at : at + 4] = (400 << 20).to_bytes(4, "little")
    path.write_bytes(data)
    assert "its config.json would be 419,430,400 bytes when unpacked." in refused(path)


@pytest.mark.parametrize("key", ["lstm_2_token.keras", "lstm_2_token.h5"])
def test_files_that_are_cut_off_or_overwritten(key, tmp_path):
    data = written(tmp_path, key).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged{key[key.rindex('.') :]}"
    for end in rng.integers(0, len(data), 20):
        path.write_bytes(data[:end])
        assert str(path) in refused(path)
    read = 0
    for start in rng.integers(0, len(data) - 64, 20):
        path.write_bytes(data[:start] + rng.bytes(64) + data[start + 64 :])
        with contextlib.suppress(ModelError):
            convert(path)
            read += 1  # what was overwritten meant nothing, or was a number
    assert read < 20


@pytest.mark.parametrize("version", ["1.2.2", "4.0.0", "next"])
def test_other_versions(version, tmp_path):
    path = changed(tmp_path, "lstm_2_token.h5", weights=lambda file: file.attrs.update(keras_version=version))
    assert f"it was written by Keras {version}; files of Keras 2 and 3 can be read. Save it with one of those." in refused(path)


@pytest.mark.parametrize(
    "config", ["[]", "3", '{"class_name": "Sequential"}', '{"class_name": "Sequential", "config": 3}', "{", "[" * 100_000]
)
def test_configurations_that_are_none(config, tmp_path):
    with zipfile.ZipFile(written(tmp_path, "lstm_1_dense.keras")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = zipped(tmp_path / "other.keras", members | {"config.json": config.encode()})
    assert "its configuration is not as Keras writes it (" in refused(path)


def test_every_setting_that_is_taken_away_or_of_another_type(tmp_path):
    """Whatever stands in a configuration, what comes out is a model or a sentence."""
    places = []

    def walk(value, place):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if "initializer" not in str(key):
                places.append((*place, key))
                walk(inner, places[-1])

    def edit(model):
        spoiled.append(json.dumps(model))
        inner = model
        for key in place[:-1]:
            inner = inner[key]
        if new is None and isinstance(inner, dict):
            del inner[place[-1]]
        else:
            inner[place[-1]] = new

    spoiled: list[str] = []
    changed(tmp_path, "nested.keras", lambda model: walk(model, ()))
    rng = np.random.default_rng(1)
    for at in rng.permutation(len(places))[:40]:
        place, new = places[at], [None, 7, "seven", [], {}][rng.integers(5)]
        with contextlib.suppress(ModelError):
            convert(changed(tmp_path, "nested.keras", edit))
    assert len(spoiled) == 40
