"""Write tests/golden/ao_gait_gru.keras and .npz: a trained network of others, and what Keras answers for real samples.

    pip install -e . --group frameworks h5py
    pip download --no-deps ao-compensation-model==0.1.6 && unzip ao_compensation_model-0.1.6-py3-none-any.whl -d ao
    KERAS_BACKEND=torch python scripts/golden_ao_gait.py ao/ao_compensation_model

The model file is the package's own, without the state of its optimizer. `raw` [T, 2] are samples of its test data, angle and
velocity of a hip, scaled as its scaler does; `h` [T, 16] and `y` [T, 2] are the GRU's states and the outputs, by Keras.
See tests/golden/CREDITS.md.
"""

import csv
import io
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
FIRST, T = 1000, 250  # samples of the test data
FACTOR, OFFSET = (1.6539636, 0.47858274), (-0.35018987, 0.01923674)  # of Hip_x and Hip_vel, by the package's scaler


def without_optimizer(source: Path, target: Path) -> None:
    """Copy a .keras file, except for what its training would go on from."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in ("metadata.json", "config.json"):
            new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
        data = io.BytesIO()
        with h5py.File(io.BytesIO(old.read("model.weights.h5"))) as file, h5py.File(data, "w") as copy:
            for name in file:
                if name != "optimizer":
                    file.copy(name, copy)
        new.writestr(zipfile.ZipInfo("model.weights.h5"), data.getvalue(), zipfile.ZIP_DEFLATED)


def main() -> None:
    package, target = Path(sys.argv[1]), GOLDEN / "ao_gait_gru.keras"
    without_optimizer(package / "model" / "2026_04_21_17_02_0.0713" / "gru_model.keras", target)
    with (package / "dataset" / "test" / "test.csv").open() as file:
        rows = [(float(row["Hip_x"]), float(row["Hip_vel"])) for row in csv.DictReader(file, delimiter=";")]
    raw = (np.array(rows[FIRST : FIRST + T]) * FACTOR + OFFSET).astype(np.float32)
    model = keras.saving.load_model(target, compile=False)
    z, outputs = raw[np.newaxis], {}
    for layer in model.layers[1:]:  # one by one: the model as a whole takes 128 sequences of 200 samples
        z = outputs[layer.name] = layer(z)
    h, y = (keras.ops.convert_to_numpy(outputs[name])[0] for name in ("gru", model.layers[-1].name))
    np.savez_compressed(GOLDEN / "ao_gait_gru.npz", raw=raw, h=h, y=y)
    for path in (target, GOLDEN / "ao_gait_gru.npz"):
        print(f"{path.name}: {path.stat().st_size:,} bytes, by Keras {keras.__version__}")


if __name__ == "__main__":
    main()
