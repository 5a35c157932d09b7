"""Train the model that ships with rnnstream: a vanilla tanh RNN over folk tunes in ABC notation.

    pip install -e . --group train
    python scripts/train_tunes.py

The corpus is the two ABC collections inside the PyPI package music21 (O'Neill's *Music of Ireland*, 1903, and
*Ryan's Mammoth Collection*, 1883). Each tune becomes a small header (R:, M:, L:, K:), its music and a blank line;
the network reads a newline first, from a state of zeros, and from then on predicts every character of the tune.

Tunes are split by title: 10 % test, 5 % validation, the rest for training. `--tune` trains without the validation
tunes and scores those; without it the validation tunes join the training ones and the test tunes are scored, once.
`--baselines` trains nothing: it scores n-grams and xz on the same split.
"""

import argparse
import hashlib
import lzma
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import music21
import numpy as np
import torch
from rich.progress import track
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rnnstream
from rnnstream.reference import Model

COLLECTIONS = ("oneills1850", "ryansMammoth")
HEADER = "RMLK"  # the fields kept, in the order in which the network reads them; K: has to be last
RARE = 10  # a character found in fewer training tunes than this is left out, with the tunes that hold it
OPENING = 16  # so many notes in common, and a held-out tune may be a training tune under another title
EXAMPLES = {  # three test tunes to ship with the model
    "HASTE TO THE WEDDING -- JIG": "haste-to-the-wedding",
    "Lady Mary Ramsay": "lady-mary-ramsay",
    "The Handsome Plowboy": "the-handsome-plowboy",
}
HIDDEN, LANES, DECAY, AVERAGE = 256, 64, 0.01, 0.999
OUTPUT = Path(__file__).resolve().parents[1] / "rnnstream" / "data"


@dataclass(frozen=True)
class Tune:
    """One tune: its title as printed, the collection it comes from and its text as the network reads it."""

    title: str
    collection: str
    text: str

    @property
    def key(self) -> str:
        """The title without article, dance or setting, so that the variants of a tune share it."""
        key = re.sub(r"--.*|\(.*?\)|\b(no|set|setting|version)\b\.? *\d+|'s\b|s'(?!\w)", " ", self.title.lower())
        key = re.sub(r"^\W*(the|a|an)\b|, *(the|a|an)\W*$", " ", key)
        key = re.sub(r"\b(hornpipe|reel|(slip *)?jig|strathspey|clog|(highland )?fling)\W*$", " ", key)
        return re.sub(r"[^a-z0-9]", "", key)

    @property
    def melody(self) -> str:
        """The letters of its notes alone: two tunes that share them are one tune, however they were transcribed."""
        music = "".join(line for line in self.text.split("\n") if not re.match("[A-Z]:[^|:]", line))
        return re.sub(r"\{[^}]*\}|[^A-Ga-g]", "", music)

    @property
    def split(self) -> str:
        """Which split the tune stands in, by a hash of its title alone."""
        bucket = int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % 20
        return {0: "test", 1: "test", 2: "validation"}.get(bucket, "train")


def clean(block: str) -> tuple[str, str]:
    """Title and cleaned text of one raw tune; the text is empty where there is no key or no music."""
    title, fields, body = "", {}, []
    for raw in block.split("\n"):
        line = re.sub(r"%.*|\\\s*$", "", raw)
        field = re.match(r"([A-Za-z]):(?![|:])\s*(.*)", line)
        if field and "K" in fields:
            if field[1] in "MLK" and field[2].strip():  # a change of metre, unit or key within the tune
                body.append(f"{field[1]}:{field[2].strip()}")
        elif field:
            name, value = field[1], " ".join(field[2].split())
            title = title or (value if name == "T" else "")
            if name in HEADER and value:
                fields[name] = value.lower().replace("slipjig", "slip jig") if name == "R" else value
        elif "K" in fields:
            line = re.sub(r'"[^"]*"|![^!]*!', "", line)  # fingerings, dynamics and other words over the stave
            body.append(" ".join(line.split()))
    body = [line for line in body if line]
    if "K" not in fields or not any(re.search("[A-Ga-g]", line) for line in body):
        return title, ""
    return title, "\n".join([f"{name}:{fields[name]}" for name in HEADER if name in fields] + body) + "\n\n"


def read_corpus() -> list[Tune]:
    """The tunes of the two collections in the order of their files, the first transcription of each."""
    tunes: dict[str, Tune] = {}
    for collection in COLLECTIONS:
        for path in sorted((Path(music21.__file__).parent / "corpus" / collection).glob("*.abc")):
            for block in re.split(r"^(?=X:)", path.read_text("utf-8-sig"), flags=re.M):
                title, text = clean(block)
                if text and text.isascii():
                    tune = Tune(title, collection, text)
                    tunes.setdefault(tune.melody, tune)
    return list(tunes.values())


def split_corpus(tunes: list[Tune]) -> tuple[dict[str, list[Tune]], list[str]]:
    """The tunes of each split, and the vocabulary sorted by code point."""
    holders = Counter(char for tune in tunes if tune.split == "train" for char in set(tune.text))
    vocabulary = sorted(char for char, count in holders.items() if count >= RARE)
    splits: dict[str, list[Tune]] = {"train": [], "validation": [], "test": []}
    for tune in tunes:
        if set(tune.text) <= set(vocabulary):
            splits[tune.split].append(tune)
    return splits, vocabulary


class Network(nn.Module):
    """One-hot characters, a tanh recurrence, a softmax."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.waa = nn.Parameter(nn.init.orthogonal_(torch.empty(HIDDEN, HIDDEN)))
        self.wax = nn.Parameter(torch.randn(HIDDEN, size) * 0.1)
        self.wya = nn.Parameter(torch.randn(size, HIDDEN) / HIDDEN**0.5)
        self.ba = nn.Parameter(torch.zeros(HIDDEN))
        self.by = nn.Parameter(torch.zeros(size))
        self.dropout = dropout

    def forward(self, x: Tensor, keep: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T, B, V] and last state [B, H] for characters [T, B]; a state is zeroed where keep [T, B, 1] is 0."""
        states = []
        for z, kept in zip(F.embedding(x, self.wax.t()) + self.ba, keep, strict=True):
            a = torch.tanh(torch.addmm(z, a * kept, self.waa.t()))
            states.append(a)
        return F.linear(F.dropout(torch.stack(states), self.dropout, self.training), self.wya, self.by), a


def encode(tune: Tune, index: dict[str, int]) -> np.ndarray:
    """Rows: characters read (a newline, then all but the last), characters to predict, 0 at the start else 1."""
    y = np.array([index[char] for char in tune.text])
    x = np.concatenate([[index["\n"]], y[:-1]])
    return np.stack([x, y, np.arange(len(y)) > 0])


def windows(tunes: list[np.ndarray], lanes: int, length: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Windows [3, length, lanes] without end; each lane reads one tune after another from a shuffled deck."""
    deck: list[int] = []
    buffers = [np.empty((3, 0), int)] * lanes
    while True:
        for lane, buffer in enumerate(buffers):
            parts, have = [buffer], buffer.shape[1]
            while have < length:
                deck = deck or list(rng.permutation(len(tunes)))
                parts.append(tunes[deck.pop()])
                have += parts[-1].shape[1]
            buffers[lane] = np.concatenate(parts, axis=1)
        yield torch.from_numpy(np.stack([buffer[:, :length] for buffer in buffers], axis=2))
        buffers = [buffer[:, length:] for buffer in buffers]


def train(network: Network, tunes: list[np.ndarray], truncate: int, args: argparse.Namespace) -> None:
    """Adam with a cosine decay; the network ends with the exponential moving average of its weights."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.steps)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    stream = windows(tunes, LANES, truncate, np.random.default_rng(args.seed))
    a, running = torch.zeros(LANES, HIDDEN), 0.0
    network.train()
    for step in track(range(1, args.steps + 1), "training"):
        x, y, keep = next(stream)
        logits, last = network(x, keep[..., None].float(), a)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        a = last.detach()
        running += (loss.item() / math.log(2) - running) / min(step, 200)
        if step % 500 == 0:
            print(f"step {step}: {running:.4f} bits per character, with dropout", flush=True)
    network.load_state_dict(average.module.state_dict())


@torch.no_grad()
def bits(network: Network, tunes: list[np.ndarray]) -> float:
    """Bits per character over all characters of whole tunes, each read from a state of zeros."""
    network.eval()
    total, tunes = 0.0, sorted(tunes, key=lambda tune: tune.shape[1])
    for start in range(0, len(tunes), 64):
        group = tunes[start : start + 64]
        length = group[-1].shape[1]
        pairs = np.zeros((2, length, len(group)), int)
        pairs[1] = -1  # not scored: after the end of the tune
        for lane, tune in enumerate(group):
            pairs[:, : tune.shape[1], lane] = tune[:2]
        x, y = torch.from_numpy(pairs)
        logits, _ = network(x, torch.ones(length, len(group), 1), torch.zeros(len(group), HIDDEN))
        total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum").item()
    return total / math.log(2) / sum(tune.shape[1] for tune in tunes)


def save(network: Network, vocabulary: list[str], path: Path) -> None:
    """Write the model file."""
    size = len(vocabulary)
    specification = {
        "format": 1,
        "name": "tunes",
        "input": {"kind": "token", "size": size, "vocabulary": vocabulary},
        "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": HIDDEN}, {"kind": "dense", "size": size}],
        "head": "categorical",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    rnnstream.save(path, specification, {name: tensor.detach().numpy() for name, tensor in network.named_parameters()})


def oracle_bits(oracle: Model, path: Path, tunes: list[np.ndarray]) -> float:
    """Bits per character of the saved file in float64, by the plain definition of the network."""
    for name, tensor in load_file(path).items():
        setattr(oracle, name, tensor.astype(np.float64))
    total = 0.0
    for x, y, _ in tunes:
        layers = oracle.forward_propagation(x)
        total -= sum(math.log2(layer.y[char]) for layer, char in zip(layers, y, strict=True))
    return total / sum(tune.shape[1] for tune in tunes)


def ngram_bits(train_text: list[str], test_text: list[str], size: int, order: int) -> float:
    """Bits per character of an interpolated Kneser-Ney n-gram, each tune after a run of newlines."""
    counts: list[dict[str, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]  # by length of the context
    for text in train_text:
        padded = "\n" * (order - 1) + text
        for i in range(order - 1, len(padded)):
            counts[-1][padded[i - order + 1 : i]][padded[i]] += 1
    for shorter, longer in reversed(list(pairwise(counts))):
        for context, seen in longer.items():
            shorter[context[1:]].update(seen.keys())  # in how many longer contexts, not how often
    discounts = []
    for level in counts:
        times = Counter(count for seen in level.values() for count in seen.values())
        discounts.append(times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5)
    total = 0.0
    for text in test_text:
        padded = "\n" * (order - 1) + text
        for i in range(order - 1, len(padded)):
            p = 1 / size
            for n, (level, discount) in enumerate(zip(counts, discounts, strict=True)):
                if (seen := level.get(padded[i - n : i])) is None:
                    break
                p = (max(seen[padded[i]] - discount, 0) + discount * len(seen) * p) / seen.total()
            total -= math.log2(p)
    return total / sum(map(len, test_text))


def xz_bits(train_text: list[str], test_text: list[str]) -> float:
    """Bits per character that the held-out text adds to an xz of the training text."""

    def size(text: str) -> int:
        return len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))

    seen, unseen = "".join(train_text), "".join(test_text)
    return (size(seen + unseen) - size(seen)) * 8 / len(unseen)


def main() -> None:
    """Read the corpus, then train, score and save; or score the baselines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="keep the validation tunes out of training and score them")
    parser.add_argument("--baselines", action="store_true", help="score n-grams and xz instead of training")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    splits, vocabulary = split_corpus(read_corpus())
    for name, tunes in splits.items():
        print(f"{name}: {len(tunes)} tunes, {sum(len(tune.text) for tune in tunes)} characters")
    print(f"vocabulary of {len(vocabulary)}: {''.join(vocabulary)!r}")
    held_out = "validation" if args.tune else "test"
    seen = splits["train"] + ([] if args.tune else splits["validation"])

    if args.baselines:
        texts = [tune.text for tune in seen], [tune.text for tune in splits[held_out]]
        for order in (*range(1, 9), 12, 16, 20, 24):
            print(f"{order}-gram: {ngram_bits(*texts, len(vocabulary), order):.4f} bits per character of {held_out}")
        print(f"xz: {xz_bits(*texts):.4f} bits per character of {held_out}")
        return

    index = {char: i for i, char in enumerate(vocabulary)}
    reading, unread = ([encode(tune, index) for tune in tunes] for tunes in (seen, splits[held_out]))
    oracle = Model(len(vocabulary), hidden_dim=HIDDEN, bptt_truncate=96)
    network = Network(len(vocabulary), args.dropout)
    began = time.monotonic()
    train(network, reading, oracle.bptt_truncate, args)
    print(f"trained in {time.monotonic() - began:.0f} s")
    print(f"train: {bits(network, reading):.4f} bits per character")
    print(f"{held_out}: {bits(network, unread):.4f} bits per character")
    heard = {tune.melody[:OPENING] for tune in seen}
    fresh = [x for x, tune in zip(unread, splits[held_out], strict=True) if tune.melody[:OPENING] not in heard]
    print(f"the {len(fresh)} of {len(unread)} that open like no training tune: {bits(network, fresh):.4f}")
    path = args.output / "tunes.safetensors"
    save(network, vocabulary, path)
    few = unread[:5]
    print(f"{held_out}, the first 5: {bits(network, few):.6f}, and {oracle_bits(oracle, path, few):.6f} in float64")
    (args.output / "tunes").mkdir(exist_ok=True)
    for tune in splits["test"]:
        if tune.title in EXAMPLES:
            (args.output / "tunes" / f"{EXAMPLES[tune.title]}.abc").write_text(tune.text)


if __name__ == "__main__":
    main()
