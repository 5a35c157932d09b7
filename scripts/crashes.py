"""Kills a worker with a store under eight producers, takes its power away, and kills a store at each of its operations.

The tests do the same in small: tests/process/test_crashes.py.

python -m scripts.crashes
python -m scripts.crashes --seed 7 --kills 1000 --only "as it is"
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.process import changes, disk, power
from tests.process.crashes import VARIANTS, run
from tests.process.faults import PRODUCERS, ROOT

FIRST = "as it is"
FEWER = 4  # times fewer kills for the other variants
WITHIN_S = 120
DEATHS = {"killed": ("process", False), "loss of power": ("power", True), "loss of power, not kept": ("process", True)}


def operations(directory: Path, library: Path, durability: str, with_power: bool, seed: int) -> dict:
    """A store is killed at each operation: what tests.process.operations prints."""
    store, shadow = directory / "store" / "a.db", directory / "shadow"
    for made in (store.parent, shadow):
        made.mkdir(parents=True)
    environment = disk.environment(library, store, shadow=shadow if with_power else None)
    command = [sys.executable, "-m", "tests.process.operations", durability, "1", str(seed)]
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _told(lost: list[power.Lost]) -> str:
    tokens = f"{sum(one.lost for one in lost):,} of {sum(one.acknowledged for one in lost):,} tokens were lost"
    return f"{tokens}, some at {sum(one.lost > 0 for one in lost)} of them"


def _changed(told: Counter[str]) -> str:
    counted = {op: count for op, count in sorted(told.items()) if ":" not in op and op != "again"}
    return (
        f"{counted} counted once, {told['again']} of them answered again; {sum(told.values()) - sum(counted.values())} errors"
    )


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="of the first variant; the others have a quarter (default 200)")
    parser.add_argument("--losses", type=int, default=20, help="of power (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of tokens and kills (default 1)")
    parser.add_argument("--only", choices=VARIANTS, help="this variant alone, with all the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        library = disk.build(Path(made))
        if library is None:
            sys.exit("There is no C compiler.")
        print(f"{PRODUCERS} producers; nothing lost, nothing counted twice, all bits right:")
        print(f"  {'':29}  kills  at start   acknowledged   sessions  again  replayed at starts         s")
        for number, (name, variant) in enumerate(VARIANTS.items()):
            if args.only not in (None, name):
                continue
            kills = args.kills if name in (FIRST, args.only) else args.losses if variant.power else args.kills // FEWER
            directory = Path(made) / f"variant-{number}"
            directory.mkdir()
            report = run(directory, name, kills, args.seed, library=library, within_s=WITHIN_S)
            print(
                f"  {name:29} {report.kills:6} {report.starting:9} {report.acknowledged:14,} {report.sessions:10} "
                f"{report.repeats:6} {sum(report.replayed):11,} at {len(report.replayed):4} {report.seconds:8.0f}",
                flush=True,
            )
        if args.only:
            return
        for number, (name, variant) in enumerate(changes.VARIANTS.items()):
            directory = Path(made) / f"changes-{number}"
            directory.mkdir()
            told = changes.walk(directory, variant, args.kills // FEWER, args.seed, library=library).told
            print(
                f"all that changes a session, {args.kills // FEWER} kills at an operation, {name}: {_changed(told)}", flush=True
            )
        lost = power.lose(Path(made), args.losses, args.seed, library=library, durability="process")
        print(f"{args.losses} losses of power without --durability power: the store was whole each time, and {_told(lost)}")
        for number, (name, (durability, with_power)) in enumerate(DEATHS.items()):
            told = operations(Path(made) / f"operations-{number}", library, durability, with_power, args.seed)
            print(f"a store at each operation, {name}: {sum(told['deaths'].values())} deaths, {told['lost']} writes lost")


if __name__ == "__main__":
    main()
