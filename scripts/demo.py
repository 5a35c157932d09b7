"""The main job of rnnstream, live: `scripts/demo` sets everything up and runs this.

A worker process serves the network that ships with the package. Three producer processes stream a tune each into it, character
by character, at the same time; one of them resets its session in the middle and starts over. Then the network improvises a tune
from its own samples. At the end every prediction that came back is compared, bit for bit, with the whole sequence run at once.
"""

import argparse
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import rnnstream

TUNES = ("haste-to-the-wedding", "lady-mary-ramsay", "the-handsome-plowboy")
RESET = {"lady-mary-ramsay": 100}  # after so many characters this producer resets its session and starts over
PACE_S = 0.02  # between two characters of a producer: somebody is typing
HEADER = "\nR:jig\nM:6/8\nL:1/8\nK:D\n"  # what the improvisation begins with; the network reads a newline before each tune
TEMPERATURE, LONGEST = 0.7, 400
WIDTH, HEIGHT = 62, 16  # of a producer's panel; fewer lines where the terminal has not the room
COLOURS = ((1, "green"), (2, "yellow"), (4, "dark_orange"), (math.inf, "red"))  # up to so many bits


@dataclass
class Heard:
    """One character sent, and what came back for it."""

    session: str
    x: str
    t: int
    bits: float  # surprisal
    expected: str  # the most likely character before this one came, with its probability; "?" for the first
    probs: bytes  # float32


@dataclass
class Stream:
    """What went through a session from one start to the next."""

    session: str
    heard: list[Heard] = field(default_factory=list)


def listen(session: rnnstream.Session, xs: Iterator[str]) -> Iterator[Heard]:
    """Stream characters, each as it comes, and say what the network made of it."""
    expected, sent = "?", []

    def noting() -> Iterator[str]:
        for x in xs:
            sent.append(x)
            yield x

    for prediction in session.stream(noting(), want="probs", surprisal=True):
        bits = prediction.surprisal / math.log(2)
        yield Heard(session.name, sent[-1], prediction.t, bits, expected, prediction.probs.tobytes())
        expected = f"{prediction.label!r} {prediction.p:.0%}"


def produce(address: str, name: str, events: multiprocessing.Queue) -> None:
    """A producer process: streams one tune, and puts what it hears on the queue; None at its end."""
    text = "\n" + tune(name)

    def typed(text: str) -> Iterator[str]:
        for x in text:
            time.sleep(PACE_S)
            yield x

    with rnnstream.Client(address) as client:
        session = client.session(name)
        if name in RESET:
            for heard in listen(session, typed(text[: RESET[name]])):
                events.put(heard)
            session.reset()
            events.put(name)
        for heard in listen(session, typed(text)):
            events.put(heard)
    events.put(None)


def tune(name: str) -> str:
    """The text of a tune that ships with the model."""
    return (Path(rnnstream.__file__).parent / "data" / "tunes" / f"{name}.abc").read_text()


class Screen:
    """Shows what is heard: panels that grow on a terminal, plain lines in a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.texts = {name: Text() for name in TUNES}
        self.notes = {name: Text("waiting") for name in TUNES}

    @contextmanager
    def live(self) -> Iterator[None]:
        """While producers are heard."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._panels(), console=self.console, refresh_per_second=20) as live:
            self.update = lambda: live.update(self._panels())
            yield

    def update(self) -> None:
        """Draw again."""

    def hear(self, heard: Heard) -> None:
        """One character of a producer."""
        colour = next(colour for most, colour in COLOURS if heard.bits <= most)
        bar = ("█" * int(heard.bits) + "▏▎▍▌▋▊▉█"[int(heard.bits % 1 * 8)])[:10]
        line = f"t={heard.t:<4} sent {heard.x!r:5} expected {heard.expected:10} {heard.bits:5.2f} bits "
        if self.console.is_terminal:
            self.texts[heard.session].append(heard.x, colour)
            self.notes[heard.session] = Text(line).append(bar, colour)
            self.update()
        else:
            print(f"{heard.session:22} {line}{bar}")

    def reset(self, name: str) -> None:
        """A session starts over."""
        if self.console.is_terminal:
            self.texts[name].append("\n--- reset: the session starts over ---\n", "bold reverse")
            self.update()
        else:
            print(f"{name:22} reset: the session starts over")

    def _panels(self) -> Columns:
        across = max(1, self.console.width // WIDTH)
        height = min(HEIGHT, max(5, (self.console.height - 1) // -(-len(TUNES) // across)))
        panels = []
        for name in TUNES:
            lines = self.texts[name].wrap(self.console, WIDTH - 4)[-(height - 3) :]
            body = Text("\n").join([*lines, *[Text()] * (height - 3 - len(lines)), self.notes[name]])
            panels.append(Panel(body, title=f"producer of {name}", width=min(WIDTH, self.console.width), height=height))
        return Columns(panels)


def hear_all(screen: Screen, address: str) -> list[Stream]:
    """Start the producers and listen to all of them until they are done."""
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    producers = [context.Process(target=produce, args=(address, name, events), daemon=True) for name in TUNES]
    for producer in producers:
        producer.start()
    running = {name: Stream(name) for name in TUNES}
    streams = list(running.values())
    left = len(producers)
    with screen.live():
        while left:
            try:
                event = events.get(timeout=10)
            except queue.Empty:
                raise SystemExit("A producer has not been heard for 10 s; what it printed stands above.") from None
            if event is None:
                left -= 1
            elif isinstance(event, str):
                screen.reset(event)
                running[event] = Stream(event)
                streams.append(running[event])
            else:
                running[event.session].heard.append(event)
                screen.hear(event)
    for producer in producers:
        producer.join()
    return streams


def improvise(screen: Screen, address: str, seed: int, path: Path) -> Stream:
    """Let the network go on from a header by its own samples, and write the tune to a file."""
    rng = np.random.default_rng(seed)
    vocabulary = rnnstream.load().input.vocabulary
    stream = Stream("improvisation")
    screen.console.print(f"\nThe network improvises (seed {seed}):", style="bold")

    def samples() -> Iterator[str]:
        text = ""
        while not (len(text) > len(HEADER) and text.endswith("\n\n")) and len(text) < LONGEST:
            if len(text) < len(HEADER):
                text += HEADER[len(text)]
            else:
                p = np.frombuffer(stream.heard[-1].probs, "<f4").astype(float) ** (1 / TEMPERATURE)
                text += vocabulary[rng.choice(len(p), p=p / p.sum())]
            yield text[-1]

    with rnnstream.Client(address) as client:
        for heard in listen(client.session(stream.session), samples()):
            stream.heard.append(heard)
            colour = next(colour for most, colour in COLOURS if heard.bits <= most)
            screen.console.print(Text(heard.x, colour if screen.console.is_terminal else ""), end="")
    music = "".join(heard.x for heard in stream.heard).strip()
    path.write_text(f"X:1\nT:Improvisation {seed}\n{music}\n")
    screen.console.print(f"\nWritten to {path}: any ABC player reads it.\n")
    return stream


def prove(console: Console, streams: list[Stream]) -> bool:
    """Compare the bits of every prediction with the whole sequence run at once."""
    model = rnnstream.load()
    table = Table(title="Streamed predictions against model.forward over the whole sequence")
    for column in ("session", "tokens", "numbers", "differ", ""):
        table.add_column(column, justify="left" if column in ("session", "") else "right", no_wrap=True)
    differing = 0
    for stream in streams:
        expected = model.forward([heard.x for heard in stream.heard]).astype("<f4")
        differ = sum(heard.probs != y.tobytes() for heard, y in zip(stream.heard, expected, strict=True))
        verdict = "DIFFERENT" if differ else "the same bits"
        table.add_row(stream.session, f"{len(stream.heard):,}", f"{expected.size:,}", f"{differ}", verdict)
        differing += differ
    console.print(table)
    console.print(f"kernels: {model.numerics}")
    return not differing


def main() -> int:
    """Run the demonstration; 0 when all bits agree, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the improvisation (default 1)")
    parser.add_argument("--out", type=Path, default=Path("improvised.abc"), help="file for the improvised tune")
    args = parser.parse_args()
    console = Console(highlight=False)
    worker = subprocess.Popen(
        [sys.executable, "-m", "rnnstream", "serve", "--bind", "tcp://127.0.0.1:*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = worker.stdout.readline().split()
        if not ready:
            raise SystemExit(f"The worker did not start:\n{worker.stderr.read()}")
        console.print(f"A worker (process {worker.pid}) serves the tunes network at {ready[1]}.\n")
        screen = Screen(console)
        streams = hear_all(screen, ready[1])
        streams.append(improvise(screen, ready[1], args.seed, args.out))
    finally:
        worker.terminate()
        worker.communicate()
    return 0 if prove(console, streams) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except BrokenPipeError:  # whoever read the lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
