"""Write tests/golden/g2p_en_part.npz: a part of a trained network of others, and what PyTorch answers for it.

    pip install -e . --group frameworks
    pip download --no-deps g2p-en==2.1.0 && unzip g2p_en-2.1.0-py3-none-any.whl g2p_en/checkpoint20.npz
    python scripts/golden_g2p.py g2p_en/checkpoint20.npz

The part is the first 64 of the decoder's 256 units: the matching rows and columns of its embedding, its GRU and its linear
layer, so that the file stays small. The arrays keep the names of the checkpoint; `ids` [T] are random phonemes, `h` [T, 64] and
`logits` [T, 74] are what PyTorch has for them. See tests/golden/CREDITS.md.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "g2p_en_part.npz"
H, T = 64, 120


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        whole = {name: file[name] for name in file if name.startswith(("dec_", "fc_"))}
    size = len(whole["dec_w_hh"]) // 3
    rows = np.concatenate([np.arange(H) + gate * size for gate in range(3)])
    part = {
        "dec_emb": whole["dec_emb"][:, :H],
        "dec_w_ih": whole["dec_w_ih"][rows, :H],
        "dec_w_hh": whole["dec_w_hh"][rows, :H],
        "dec_b_ih": whole["dec_b_ih"][rows],
        "dec_b_hh": whole["dec_b_hh"][rows],
        "fc_w": whole["fc_w"][:, :H],
        "fc_b": whole["fc_b"],
    }
    gru = nn.GRU(H, H)
    names = {"weight_ih_l0": "dec_w_ih", "weight_hh_l0": "dec_w_hh", "bias_ih_l0": "dec_b_ih", "bias_hh_l0": "dec_b_hh"}
    gru.load_state_dict({name: torch.from_numpy(part[ours]) for name, ours in names.items()})
    ids = np.random.default_rng(0).integers(2, len(part["dec_emb"]), T)
    h = gru(torch.from_numpy(part["dec_emb"][ids]))[0]
    logits = nn.functional.linear(h, torch.from_numpy(part["fc_w"]), torch.from_numpy(part["fc_b"]))
    np.savez(OUTPUT, **part, ids=ids, h=h.numpy(), logits=logits.numpy())
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes, by PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
