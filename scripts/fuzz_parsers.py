"""Hands changed bytes to a parser, and sees each taken, or refused with its sentence, in bounded time and memory.

With atheris (`pip install atheris`) it looks for bytes that reach new lines of code; without, it goes by dice alone. What is
promised is in tests/fuzzing/targets.py. The tests do the same in small: tests/fuzzing/test_parsers.py.

python -m scripts.fuzz_parsers decode
python -m scripts.fuzz_parsers model --minutes 10 --findings found
python -m scripts.fuzz_parsers model --input found/crash-1234
"""

import argparse
import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["rnnstream"]) if atheris else contextlib.nullcontext():
    from tests.fuzzing.targets import TARGETS

from tests.fuzzing.mutations import WORDS, Mutations
from tests.fuzzing.seeds import good

# Seconds of the processor and bytes of memory that an input may take. The most that a model file may ask for without a tensor
# takes 4 s and 60 MB; of the others none is larger than `MOST_BYTES`, of which Python makes eighty times as much at worst.
BOUNDS = dict.fromkeys(TARGETS, (1.0, 16 << 20)) | {"model": (10.0, 256 << 20)}
MOST_BYTES = 20_000  # of an input


class Run:
    """Hands inputs to a target, and measures each.

    Args:
        target: its name.
    """

    def __init__(self, target: str) -> None:
        self._target, (self._most_s, self._most_bytes) = TARGETS[target], BOUNDS[target]
        self.inputs, self.longest_s, self.began = 0, 0.0, time.monotonic()

    def take(self, data: bytes) -> None:
        """Hand over an input.

        Raises:
            AssertionError: a promise is broken, by whatever comes out of the target, too.
        """
        self.inputs += 1
        size, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        self._target(data)
        took_s = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) * 1024
        self.longest_s = max(self.longest_s, took_s)
        assert took_s < self._most_s, f"it took {took_s:.1f} s"
        assert grown < self._most_bytes, f"it took {grown:,} bytes"

    def tell(self) -> None:
        """Say what was seen."""
        seconds = time.monotonic() - self.began
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"{self.inputs:,} inputs in {seconds:.0f} s, the longest {self.longest_s:.2f} s; the process took at most "
            f"{largest:,} bytes",
            flush=True,
        )


def by_coverage(target: str, seconds: float, seed: int, findings: Path, directory: Path) -> None:
    """Have atheris look for inputs, with its files in a directory; does not come back."""
    seeds, corpus, words = good(target), directory / "corpus", directory / "words"
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / f"{number:03}").write_bytes(data)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS[target]))
    run = Run(target)

    def take(data: bytes) -> None:
        if time.monotonic() - run.began > seconds:
            run.tell()
            os._exit(0)  # as atheris does, which tells less
        run.take(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, most)
        return Mutations(target, chance, seeds).changed(bytes(data))[:most]

    options = [
        f"-dict={words}",
        f"-artifact_prefix={findings}/",
        f"-max_len={MOST_BYTES}",
        f"-seed={seed}",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options], take, custom_mutator=change)
    atheris.Fuzz()


def by_dice(target: str, seconds: float, seed: int, findings: Path) -> None:
    """Make changed inputs, one after the other."""
    seeds, chance, run = good(target), random.Random(seed), Run(target)
    mutations = Mutations(target, chance, seeds)
    while time.monotonic() - run.began < seconds:
        data = mutations.changed(chance.choice(seeds))[:MOST_BYTES]
        try:
            run.take(data)
        except BaseException:
            (findings / f"found-{run.inputs}").write_bytes(data)
            raise
    run.tell()


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of what is changed (default 1)")
    parser.add_argument(
        "--findings", type=Path, default=Path(tempfile.gettempdir()), help="where an input goes that finds something"
    )
    parser.add_argument("--input", type=Path, help="hand over this file, once")
    args = parser.parse_args()
    if args.input:
        print(TARGETS[args.target](args.input.read_bytes()) or "taken")
        return
    args.findings.mkdir(exist_ok=True)
    seconds = args.minutes * 60
    if not atheris:
        print("atheris is not installed: by dice alone")
        by_dice(args.target, seconds, args.seed, args.findings)
        return
    with tempfile.TemporaryDirectory() as directory:
        child = os.fork()  # for atheris ends the process, and the folder is to go
        if not child:
            by_coverage(args.target, seconds, args.seed, args.findings, Path(directory))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(status)


if __name__ == "__main__":
    main()
