"""Functional models of Keras that are no chain, and the sentences: a file that Keras saved, with one call in it changed."""

import numpy as np
import pytest

from tests.convert.keras_files import changed, entry, refused, settings


def call(model, kind, number=0):
    """The call of a layer of a functional model."""
    return entry(model, kind, number)["inbound_nodes"][0]


def _two_inputs(model):
    model["config"]["input_layers"] = [["input_layer", 0, 0], ["input_layer", 0, 0]]


def _two_outputs(model):
    model["config"]["output_layers"] = [["gru", 0, 0], ["lstm", 0, 0]]


def _twice(model):
    entry(model, "GRU")["inbound_nodes"] *= 2


def _state(model):
    call(model, "LSTM")["args"][0]["config"]["keras_history"][2] = 1


def _first_state(model):
    call(model, "LSTM")["kwargs"]["initial_state"] = call(model, "GRU")["args"][0]


def _training(model):
    call(model, "Dropout")["kwargs"]["training"] = True


def _branch(model):
    call(model, "Add", 1)["args"][0][0]["config"]["keras_history"][0] = "input_layer"


def _three(model):
    inputs = call(model, "Add")["args"][0]
    inputs.append(inputs[0])


def _branches(model):
    """The second sum adds two things neither of which is in front of the other: a second way from the first GRU."""
    call(model, "Dense")["args"][0]["config"]["keras_history"][0] = "gru"


def _circle(model):
    call(model, "GRU")["args"][0]["config"]["keras_history"][0] = "dense"


def _constant(model):
    call(model, "Add")["args"][0][0] = 2.0


FUNCTIONAL = {
    _two_inputs: "The model has 2 inputs; a stream has one.",
    _two_outputs: "The model has 2 outputs; a stream has one.",
    _twice: "The layer gru (GRU) is used at 2 places; a layer of a chain has one.",
    _state: "The layer lstm (LSTM) takes output 1 of add, a state; only the output itself can be followed.",
    _first_state: "The layer lstm (LSTM) is called with initial_state = something; only its input can be followed,",
    _training: "The layer dropout (Dropout) is called with training = True; only its input can be followed, in inference.",
    _three: "The layer add (Add) adds 3 outputs; a residual sum has two.",
    _branches: "is on a branch of its own, which is no residual sum and leads to no output.",
    _circle: "has an input that does not come from the input of the model.",
    _constant: "The layer add (Add) takes 2.0 beside the outputs of layers.",
}


@pytest.mark.parametrize("edit", FUNCTIONAL)
def test_functional_models_that_are_no_chain(edit, tmp_path):
    assert FUNCTIONAL[edit] in refused(changed(tmp_path, "residual.keras", edit))


def test_a_sum_of_two_branches(tmp_path):
    def edit(model):  # dense from gru, dropout from gru, and the sum of the two
        call(model, "Dense")["args"][0]["config"]["keras_history"][0] = "gru"
        call(model, "Add", 1)["args"][0][0]["config"]["keras_history"][0] = "dropout"

    assert "The layer add_1 (Add) adds two branches, dropout and dense; a residual sum adds what comes out of" in refused(
        changed(tmp_path, "residual.keras", edit)
    )


def test_a_sum_over_a_layer_that_gives_only_its_last_output(tmp_path):
    path = changed(tmp_path, "residual.keras", settings("LSTM", return_sequences=False))
    assert "The layer add_1 (Add) adds gru, of which Keras has the whole sequence there, or a padded one." in refused(path)


def test_a_sum_of_two_sizes(tmp_path):
    def edit(model):
        entry(model, "LSTM")["config"]["units"] = 2
        entry(model, "Dense")["config"]["units"] = 2

    def weights(file):
        for name, shape in {
            "lstm/cell/vars/0": (3, 8),
            "lstm/cell/vars/1": (2, 8),
            "lstm/cell/vars/2": (8,),
            "dense/vars/0": (2, 2),
            "dense/vars/1": (2,),
        }.items():
            del file[f"layers/{name}"]
            file[f"layers/{name}"] = np.ones(shape, np.float32)

    assert "The layer add_1 (Add) adds the 3 numbers of gru to 2." in refused(
        changed(tmp_path, "residual.keras", edit, weights)
    )
