"""Sessions by row, moved in batches of at most one token each.

A token is computed first and committed afterwards, so that whatever fails in between has changed nothing.

    B rows of a batch    S numbers of a state    F features    V outputs
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.engine.table import Table
from rnnstream.errors import BadRequest, Conflict, NotFinite, RequestError, UnknownSession
from rnnstream.model.outcomes import TOP, most_likely, surprisals, top
from rnnstream.model.step import StepModel
from rnnstream.prediction import Prediction

Array = npt.NDArray[Any]

OUTPUT_BYTES = 32 << 20  # of outputs at a time: a wave of thousands of rows with a large vocabulary would fill the memory


@dataclass(slots=True)
class Moves:
    """One token for each of some rows, computed but not yet committed.

    Attributes:
        rows: [B] the rows, each once.
        ts: [B] the step count that each will have.
        states: [B, S] the new states.
        features: [B, F] for `StepModel.head`.
        good: [B] bool, which of the new states are finite; None where all are.
    """

    rows: Array
    ts: Array
    states: Array
    features: Array
    good: Array | None

    def behind(self, place: int) -> Moves:
        """The moves from this place on."""
        good = None if self.good is None else self.good[place:]
        return Moves(self.rows[place:], self.ts[place:], self.states[place:], self.features[place:], good)


class Rows:
    """A model and the table of its sessions; what is asked of it is asked by row.

    Args:
        model: anything with the step-model interface.
        max_sessions: most sessions at a time.
    """

    def __init__(self, model: StepModel, *, max_sessions: int) -> None:
        self.model = model
        self.table = Table(model.initial_state(), max_sessions=max_sessions)

    def check_want(self, want: str | int, surprisal: bool) -> None:
        """Hold what a request wants against what the model can give.

        Raises:
            BadRequest: with `field`.
        """
        kind = self.model.output.kind
        if want not in ("argmax", "none", "probs", "logits") and (type(want) is not int or not 1 <= want <= TOP):
            raise BadRequest(
                f'want is {want!r:.60}; it is "argmax", "none", "probs", "logits" or an int from 1 to {TOP}.', field="want"
            )
        if isinstance(want, int) and kind != "categorical":
            raise BadRequest(
                f"want is {want}; the {want} most likely are there for a categorical head, not {kind}.", field="want"
            )
        if want == "probs" and kind == "linear":
            raise BadRequest('want is "probs"; a linear head has no probabilities, "argmax" gives its y.', field="want")
        if surprisal and not self.model.surprisal:
            raise BadRequest("surprisal is true; this model does not predict its own next token.", field="surprisal")

    def admit(self, row: int, t: int | None, now: float) -> bool:
        """Judge a token's turn: existence, then `t` (numbering belongs before both). Opens a new session.

        Returns:
            Whether the session was opened by this.

        Raises:
            UnknownSession: it was closed.
            Conflict: `t` is not its next step; a session never seen would have had step 1.
        """
        live = self.table.live[row]
        self.known(row)
        self.expect(row, t)
        if not live:
            self.table.open(row, now)
        return not live

    def expect(self, row: int, t: int | None) -> None:
        """Hold a request's precondition: it is to be the session's step t. A session that is not open has had none.

        Raises:
            Conflict: the session's next step has another number.
        """
        if t is None:
            return
        at = int(self.table.t[row]) if self.table.live[row] else 0
        if t != at + 1:
            raise Conflict(f"{self.table.names[row]}: t is {t}, but its next step is {at + 1}.", field="t", t=at)

    def parts(self, rows: int) -> Iterator[slice]:
        """Slices of so many rows, for whose outputs there is room at a time: one, unless the outputs are many."""
        most = max(1, OUTPUT_BYTES // (self.model.output.size * self.model.dtype.itemsize))
        for start in range(0, rows, most):
            yield slice(start, min(start + most, rows))

    def compute(self, rows: Sequence[int], tokens: Sequence[Any]) -> Moves:
        """One token for each of these open rows, each row at most once; nothing is changed. Runs under `one_thread`."""
        table = self.table
        index = np.array(rows, np.intp)
        states, features = self.model.advance(table.states.take(index, axis=0), self.model.input.batch(tokens))
        if states.shape != (len(index), self.model.state_size) or states.dtype != table.states.dtype:
            raise TypeError(f"advance gave states of shape {states.shape} and {states.dtype} for {len(index)} rows")
        good: Array | None = None
        # Not finite if any number is not (or if the sum overflows): a quick look for the usual case.
        if not math.isfinite(np.add.reduce(states, axis=None)):
            finite: Array = np.asarray(np.isfinite(states).all(axis=1))
            good = finite if not finite.all() else None
        return Moves(index, table.t.take(index) + 1, states, features, good)

    def commit(self, moves: Moves, now: float) -> None:
        """Make the moves count: those whose state is finite."""
        rows, states, ts = moves.rows, moves.states, moves.ts
        if moves.good is not None:
            rows, states, ts = rows[moves.good], states[moves.good], ts[moves.good]
        self.table.states[rows] = states
        self.table.t[rows] = ts
        self.table.moved_at[rows] = now

    def predictions(self, moves: Moves, wants: Sequence[str | int]) -> list[Prediction]:
        """What each of the moves gives; `opened` and `surprisal` are left to the caller. Runs under `one_thread`."""
        found = [Prediction(t) for t in moves.ts.tolist()]
        heads = [place for place, want in enumerate(wants) if want != "none"]
        for part in self.parts(len(heads)):
            places = heads[part]
            self._predict([found[place] for place in places], moves.features[places], [wants[place] for place in places])
        return found

    def _predict(self, found: list[Prediction], features: Array, wants: list[str | int]) -> None:
        """Fill in predictions from their features, for wants that need the head."""
        output = self.model.output
        logits = self.model.head(features)
        categorical = output.kind == "categorical"
        ids, ps = (array.tolist() for array in most_likely(logits)) if categorical else ([], [])
        some_probs = any(isinstance(want, int) or want == "probs" for want in wants)
        y = output.g2(logits) if some_probs or not categorical else logits
        for i, (prediction, want) in enumerate(zip(found, wants, strict=True)):
            if categorical:
                prediction.y, prediction.p = ids[i], ps[i]
                prediction.label = output.vocabulary[ids[i]] if output.vocabulary else None
            else:
                prediction.y = y[i].astype("<f4")
            if want == "probs":
                prediction.probs = y[i].astype("<f4")
            elif want == "logits":
                prediction.logits = logits[i].astype("<f4")
            elif isinstance(want, int):
                prediction.top = top(y[i], want)

    def scores(self, rows: Sequence[int], tokens: Sequence[Any]) -> list[float]:
        """Surprisal of each token by the states as they are, in nats. Runs under `one_thread`."""
        features = self.model.features(self.table.states.take(rows, axis=0))
        assert features is not None  # `check_want` has seen to it
        ids, scores = np.array(tokens, np.intp), []
        for part in self.parts(len(ids)):
            scores += surprisals(self.model.head(features[part]), ids[part]).tolist()
        return scores

    def row_info(self, row: int, now: float) -> dict[str, Any]:
        """What `info` says of an open row."""
        table = self.table
        state = table.states[row].astype(np.float64)
        largest = float(np.abs(state).max(initial=0.0))  # squares of a large state would overflow
        norm = largest * float(np.sqrt(((state / largest) ** 2).sum())) if largest else 0.0
        return {
            "t": int(table.t[row]),
            "age_s": now - float(table.opened_at[row]),
            "idle_s": now - float(table.moved_at[row]),
            "producers": {},
            "norm": norm,
        }

    def page(self, prefix: str, after: int, limit: int, scan: int) -> tuple[list[str], int | None, int]:
        """Names of open sessions, in no given order.

        Args:
            prefix: only names that begin so.
            after: 0, or the cursor that the page before gave.
            limit: most names.
            scan: most rows to look at.

        Returns:
            The names; the cursor for the next page, None at the end; how many rows were looked at.
        """
        names: list[str] = []
        end = min(len(self.table.names), after + scan)
        for row in range(after, end):
            name = self.table.names[row]
            if name is not None and self.table.live[row] and name.startswith(prefix):
                names.append(name)
                if len(names) == limit:
                    end = row + 1
                    break
        return names, end if end < len(self.table.names) else None, max(0, end - after)

    def rehearse(self) -> None:
        """A real step that no session sees: it raises what a step would raise. Runs under `one_thread`."""
        source = self.model.input
        _, features = self.model.advance(self.model.initial_state()[np.newaxis], source.batch([source.sample()]))
        self.model.head(features)

    def unknown(self, session: str) -> UnknownSession:
        """The error for a session that is not open: never, or closed."""
        why = "closed" if self.table.was_closed(session) else "never"
        told = "was closed; reset opens it again" if why == "closed" else "is not open, and not among the names closed of late"
        return UnknownSession(f"The session {session} {told}.", why=why)

    def not_finite(self, row: int) -> RequestError:
        """The error for a token that would have spoiled the state of its row."""
        return NotFinite(
            f"{self.table.names[row]}: this token would make the state NaN or infinite; "
            f"the session stays at t={int(self.table.t[row])}."
        )

    def known(self, row: int) -> None:
        """Judge existence: a step opens a name that was never open, but not one that was closed.

        Raises:
            UnknownSession: it was closed.
        """
        name = self.table.names[row]
        assert name is not None
        if not self.table.live[row] and self.table.was_closed(name):
            raise self.unknown(name)

    def check(self) -> None:
        """Assert what always holds between calls."""
        self.table.check()
