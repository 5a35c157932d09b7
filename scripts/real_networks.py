"""Trained networks of others, whole: converted by the command, streamed through a real worker, held against their own answers.

    pip install -e . --group dev
    python -m scripts.real_networks DIR [AUDIO.npy]

DIR has a folder for each network, with the file out of its package and `reference.npz`, which its own package computed:

    g2p_en/       weights.npz (the wheel's checkpoint20.npz); enc_ids, enc_h, dec_ids, dec_h0, dec_h, dec_logits; and
                  words.json with graphemes, phonemes and what the package's predict() says of some words
    silero_vad/   silero_vad_16k_sequence.onnx, silero_vad.onnx; x, h, c, prob of its LSTM, and prob_onnx, h_onnx, c_onnx of its
                  OnnxWrapper on AUDIO.npy: the sounds of alsa-utils 1.2.8 (Front_Center, Front_Left, Front_Right,
                  Rear_Center, Noise, Rear_Left, Rear_Right, Side_Left, Side_Right), each as float32 / 32768 through
                  scipy.signal.resample_poly(x, 1, 3), one behind the other
    ao_gait_gru/  gru_model.keras; raw, h, y

The last result is in docs/convert.md.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.process.converting import G2P_DECODER, apart, convert, softmax, stream

G2P_ENCODER = {
    "name": "g2p encoder",
    "ignore": ["dec_*", "fc_*"],
    "layers": [
        {"kind": "embedding", "weight": "enc_emb"},
        {"weight_ih": "enc_w_ih", "weight_hh": "enc_w_hh", "bias_ih": "enc_b_ih", "bias_hh": "enc_b_hh"},
    ],
}


def report(name: str, steps: int, **differences: float) -> None:
    print(f"{name}: {steps} steps; " + ", ".join(f"{what} {value:.2g}" for what, value in differences.items()), flush=True)


def g2p(folder: Path, work: Path) -> None:
    with np.load(folder / "reference.npz") as file:
        r = dict(file)
    encoder = convert(folder / "weights.npz", work / "encoder.safetensors", G2P_ENCODER)
    states, outputs = stream(encoder, work / "encoder.safetensors", r["enc_ids"].tolist())
    report("g2p_en encoder", len(states), h=apart(states, r["enc_h"]), y=apart(outputs, r["enc_h"]))
    decoder = convert(folder / "weights.npz", work / "decoder.safetensors", G2P_DECODER)
    states, probs = stream(decoder, work / "decoder.safetensors", r["dec_ids"].tolist(), r["dec_h0"])
    report("g2p_en decoder", len(states), h=apart(states, r["dec_h"]), p=apart(probs, softmax(r["dec_logits"])))
    words = json.loads((folder / "words.json").read_text())
    right = sum(spell(encoder, decoder, words, word) == phonemes for word, phonemes in words["predict"].items())
    print(f"g2p_en: {right} of {len(words['predict'])} words as the package says them")


def spell(encoder, decoder, words: dict, word: str) -> list[str]:
    """Encode the word, hand the state over, and take the likeliest phoneme until the end."""
    ids = [words["graphemes"].index(letter) if letter in words["graphemes"] else 1 for letter in word] + [2]
    a, x, said = encoder.run(ids), 2, []
    while len(said) < 20:
        a, y = decoder.step(a, x)
        x = int(y.argmax())
        if x == 3:
            break
        said.append(words["phonemes"][x])
    return said


def silero(folder: Path, work: Path, audio: Path | None) -> None:
    with np.load(folder / "reference.npz") as file:
        r = dict(file)
    chain = {"name": "silero_vad, recurrent part", "start": "/Transpose_output_0"}
    model = convert(folder / "silero_vad_16k_sequence.onnx", work / "silero.safetensors", chain)
    states, prob = stream(model, work / "silero.safetensors", list(r["x"]))
    h, c = states[:, :128], states[:, 128:]
    report("silero_vad chain", len(states), h=apart(h, r["h"]), c=apart(c, r["c"]), prob=apart(prob[:, 0], r["prob"]))
    model = convert(
        folder / "silero_vad.onnx", work / "silero.onnx", {"constants": {"sr": 16000}, "size": 576, "name": "silero_vad"}
    )
    if audio is None:
        print("silero_vad graph: left out, for there is no AUDIO.npy")
        return
    padded = np.concatenate([np.zeros(64, np.float32), np.load(audio)])  # 64 samples of the frame before, 512 new ones
    frames = [padded[512 * t : 512 * t + 576] for t in range(len(r["prob_onnx"]))]
    states, prob = stream(model, work / "silero.onnx", frames)
    h, c = states[:, :128], states[:, 128:]
    report(
        "silero_vad graph",
        len(states),
        h=apart(h, r["h_onnx"]),
        c=apart(c, r["c_onnx"]),
        prob=apart(prob[:, 0], r["prob_onnx"]),
    )


def gait(folder: Path, work: Path) -> None:
    with np.load(folder / "reference.npz") as file:
        r = dict(file)
    model = convert(folder / "gru_model.keras", work / "gait.safetensors", {"name": "ao_gait_gru"})
    states, y = stream(model, work / "gait.safetensors", list(r["raw"]))
    report("ao_gait_gru", len(states), h=apart(states[:, -16:], r["h"]), y=apart(y, r["y"]))


if __name__ == "__main__":
    folder, audio = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as work:
        g2p(folder / "g2p_en", Path(work))
        silero(folder / "silero_vad", Path(work), audio)
        gait(folder / "ao_gait_gru", Path(work))
