"""What sessions should remember when they are in a store."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from rnnstream.model.step import StepModel

from .driving import Reply
from .oracle import ABOUT, Oracle, Refused

REPLIES = 5  # kept for a producer
Item = dict[str, Any]


class Memory(Oracle):
    """What sessions remember through crashes: all that was acknowledged; what of it expires; and how often a reply may come."""

    def __init__(self, model: StepModel, idle_s: float | None) -> None:
        super().__init__(model, replies=REPLIES)
        self.idle_s, self.now, self.flaky = idle_s, 0.0, False
        self.moved_at: dict[str, float] = {}
        self.expired: set[str] = set()
        self.tokens: dict[str, list[Any] | None] = {}  # since a<0>; None where that is not known
        # Acknowledged by a repeat, which nobody keeps: such a reply may be back after the session was away.
        self.either: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)

    def expect(self, item: Item, reply: Reply, alone: bool) -> Reply:
        if item.get("op") not in ABOUT:
            for name in {item["session"], item.get("to", item["session"])}:
                if self.due(name) and not (self.flaky and self.lives(name, item, reply)):
                    self.end(name)
                    self.expired.add(name)
        return super().expect(item, reply, alone)

    def due(self, name: str) -> bool:
        return self.idle_s is not None and name in self.ts and self.now - self.moved_at[name] > self.idle_s

    def lives(self, name: str, item: Item, reply: Reply) -> bool:
        """Whether a session has not expired although it is due: while the store fails, nothing does."""
        if name == item.get("to"):
            return "to" not in reply
        refused = reply.get("error") == "bad_state" and item["op"] == "open"  # else it would exist
        new = refused or "opened" in reply or (reply.get("field") == "n" and reply["t"] != self.ts[name])
        return not new and reply.get("why") != "expired"

    def end(self, name: str) -> None:
        del self.ts[name], self.states[name]
        self.closed.add(name)

    def identity(self, op: str, item: Item) -> Any:
        op, x, *more = super().identity(op, item)
        return op, x.tobytes() if isinstance(x, np.ndarray) else x, *more

    def judge(self, name: str, op: str, item: Item) -> Reply | None:
        who, n = (name, item["producer"]), item["n"]
        if n in self.either[who] and n not in self.kept[who] and self.reply.get("error") != "stale":
            self.kept[who] = {n: self.either[who].pop(n)} | self.kept[who]
        return super().judge(name, op, item)

    def acknowledge(self, name: str, item: Item, alone: bool) -> None:
        who, n = (name, item["producer"]), item["n"]
        before, repeat = self.kept.get(who, {}), n in self.kept.get(who, {})
        super().acknowledge(name, item, alone)
        if repeat:
            self.either[who] |= {n: found for n, found in before.items() if n not in self.kept[who]}
            return
        ack = min(item.get("ack", n - 1 if alone else 0), n - 1)
        self.either[who] = {earlier: kept for earlier, kept in self.either[who].items() if earlier > max(ack, n - REPLIES)}

    def failed(self, item: Item, alone: bool) -> None:
        """A request got `store_error`: it has changed nothing, but perhaps told which replies have come."""
        who, n = (item["session"], item["producer"]), item["n"]
        ack = min(item.get("ack", n - 1 if alone else 0), n - 1)
        kept = self.kept.get(who, {})
        dropped = {earlier for earlier in kept if earlier <= ack and earlier < self.last[who]}
        self.either[who] |= {earlier: kept.pop(earlier) for earlier in dropped}

    def carry_out(self, op: str, name: str, item: Item, reply: Reply) -> Reply:
        try:
            answer = super().carry_out(op, name, item, reply)
        except Refused as refused:
            if refused.reply.get("why") == "closed" and name in self.expired:
                refused.reply["why"] = "expired"
            raise
        if op == "step":
            self.moved_at[name] = self.now
            before = self.tokens.get(name, []) if self.ts[name] > 1 else []
            self.tokens[name] = None if before is None else [*before, self.model.input.token(item["x"])]
        elif op == "fork":
            self.tokens[item["to"]] = self.tokens[name]
        elif op in ("open", "reset", "restore"):
            self.tokens[name] = None if "state" in item else []
        return answer

    def place(self, name: str, state: Any, t: int) -> None:
        super().place(name, state, t)
        self.moved_at[name] = self.now
        self.expired.discard(name)
