"""docs/protocol.md says what the code does: its examples byte for byte, its tables against the code's."""

import io
import re

import msgpack
import pytest

from rnnstream import load
from rnnstream.engine import snapshot
from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import JUDGEMENTS
from rnnstream.errors import RequestError
from rnnstream.store.interface import Opened
from rnnstream.store.memory import MemoryStore
from rnnstream.wire.replies import decode
from rnnstream.wire.requests import COMMON, OPS
from rnnstream.worker.keeper import Keeper
from tests.worker_example import BLOCK, PAGE, ask, example_core, shown

TEXT = PAGE.read_text()
BLOCKS = BLOCK.findall(TEXT)
NUMBERING = "## 3. Numbering: how a token counts once"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    part = TEXT.split(f"\n{heading}\n", 1)[1]
    table = re.search(r"\n((?:\|.*\n)+)", part)
    assert table
    lines = table.group(1).splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def keys(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_example_is_what_the_worker_answers_byte_for_byte():
    core = example_core()
    assert len(BLOCKS) >= 15
    for title, request_json, request_hex, reply_json, reply_hex in BLOCKS:
        request, reply = bytes.fromhex(request_hex), bytes.fromhex(reply_hex)
        assert shown(request) == request_json, title
        assert ask(core, request) == reply, title
        assert shown(reply) == reply_json, title


def test_every_operation_has_an_example():
    asked = {item.get("op", "step") for block in BLOCKS[:-1] for item in msgpack.Unpacker(io.BytesIO(bytes.fromhex(block[2])))}
    assert asked == set(OPS)


def test_the_table_of_numbers_is_the_codes():
    assert {(n, reply): outcome for n, reply, outcome in rows(NUMBERING)} == {
        (f"{n}", reply): outcome for (n, reply), outcome in JUDGEMENTS.items()
    }


def test_the_layout_of_a_snapshot_is_the_codes():
    told = [(offset, size, what.split(":")[0]) for offset, size, what in rows("## 4. Snapshots")]
    lines = snapshot.__doc__.split("::\n\n")[1].split("\n\nThe checksum")[0].splitlines()[1:]
    listed = [(offset, size.replace(".", ""), what) for offset, size, what in (line.split(None, 2) for line in lines)]
    assert [row[:2] for row in told] == [(offset.replace("end", ""), size) for offset, size, _ in listed]


def test_the_table_of_operations_is_the_codes():
    assert {op.strip("`"): keys(takes) for op, takes, _ in rows("## 2. Requests and replies")} == {
        op: set(takes) for op, takes in OPS.items()
    }


def test_the_table_of_request_keys_names_each_key_once():
    listed = [row[0].strip("`") for row in rows("### Keys of requests")]
    assert sorted(listed) == sorted({*COMMON, *(key for takes in OPS.values() for key in takes)})


def test_the_table_of_limits_is_what_hello_says():
    listed = [row[0].strip("`") for row in rows("### Limits")]
    assert sorted(listed) == sorted(decode(ask(example_core(), msgpack.packb({"op": "hello"})))[0]["limits"])


def test_the_table_of_errors_is_the_tree_of_exceptions():
    assert sorted(row[0].strip("`") for row in rows("### Errors")) == sorted(RequestError.by_code)


@pytest.mark.parametrize(("heading", "path"), [("### Keys of replies", ()), ("### The model in hello", ("model",))])
def test_every_key_of_the_examples_replies_is_in_the_tables(heading, path):
    listed = {key for row in rows(heading) for key in keys(row[0])}
    extras = {"field", "why", "limit", "retry_after_ms", "expected", "last"}  # of errors: in their own table
    found = set()
    for block in BLOCKS:
        for reply in msgpack.Unpacker(io.BytesIO(bytes.fromhex(block[4]))):
            for key in path:
                reply = reply.get(key, {})
            found |= set(reply)
    assert found - extras <= listed
    assert listed - found <= {"next", "owners", "store"}


def test_the_table_of_the_store_is_what_hello_and_stats_say():
    keeper = Keeper(Engine(load()), MemoryStore(), Opened("other kernels", sessions=0), max_resident=1)
    listed = {(key, row[1].strip("`")) for row in rows("### The store in hello and stats") for key in keys(row[0])}
    assert listed == {(key, "hello") for key in keeper.hello()} | {(key, "stats") for key in keeper.stats()}
