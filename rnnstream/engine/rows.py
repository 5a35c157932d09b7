"""Sessions by row, moved in batches of at most one token each.

A token is computed first and committed afterwards, so that whatever fails in between has changed nothing.

    B rows of a batch    S numbers of a state    F features    V outputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.engine.moves import Moves, Peek
from rnnstream.engine.own_rows import OwnRows
from rnnstream.engine.table import Table
from rnnstream.errors import BadRequest
from rnnstream.model.network import Network, Played
from rnnstream.model.outcomes import TOP, most_likely, most_likely_of_one, surprisals, top
from rnnstream.model.step import StepModel
from rnnstream.names import Name, owner_of
from rnnstream.prediction import Prediction

Array = npt.NDArray[Any]

_ONE = np.array(1, np.int64)  # NumPy takes 1 us longer over a number of Python's
OUTPUT_BYTES = 32 << 20  # of outputs at a time: a wave of thousands of rows with a large vocabulary would fill the memory


class Rows:
    """A model and the table of its sessions; what is asked of it is asked by row.

    Args:
        model: anything with the step-model interface.
        table: of sessions with states of this model.

    Attributes:
        moves_one: whether there are `compute_one` and `predict_one`.
    """

    def __init__(self, model: StepModel, table: Table) -> None:
        self.model = model
        self.table = table
        one = model.for_one() if model.output.kind == "categorical" else None
        self.moves_one = one is not None
        self._one: Any = one or model
        self._many = model.for_many() if isinstance(model, Network) else model
        self._most_outputs = max(1, OUTPUT_BYTES // (model.output.size * model.dtype.itemsize))

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

    def parts(self, rows: int) -> list[slice]:
        """Slices of so many rows, for whose outputs there is room at a time: one, unless the outputs are many."""
        most = self._most_outputs
        if 0 < rows <= most:
            return [slice(0, rows)]
        return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]

    def compute(self, rows: Sequence[int], tokens: Sequence[Any]) -> Moves:
        """One token for each of these open rows, each row at most once; nothing is changed. Runs under `one_thread`."""
        index = np.array(rows, np.intp)
        return self._advance(index, self.table.states.take(index, axis=0), self.table.t[index], tokens)

    def compute_one(self, row: int, token: Any) -> Array | None:
        """A token for one open row; nothing is changed. Runs under `one_thread`.

        As `compute` for a batch of one, with the same bits in half the time, where `moves_one` is true.

        Returns:
            The new state [S]. None if it would not be finite.
        """
        state, _ = self._one.advance(self.table.states[row], token)
        return state if math.isfinite(state.dot(state)) else None  # as below

    def predict_one(self, row: int, token: Any) -> tuple[Array, int, float] | None:
        """`compute_one`, and the most likely next token and its probability."""
        one, state = self._one, self.table.states[row]
        if isinstance(one, Played) and one.predict is not None:  # all of it in one
            return one.predict(state, token)
        new, features = one.advance(state, token)
        return (new, *most_likely_of_one(one.head(features))) if math.isfinite(new.dot(new)) else None

    def commit_one(self, row: int, state: Array, t: int, now: float) -> None:
        """Make a state that was computed count, as the session's step t."""
        self.table.states[row], self.table.t[row], self.table.moved_at[row] = state, t, now

    def compute_on(self, row: int, tokens: Sequence[Any]) -> Moves | None:
        """Tokens for one open row, one after the other; nothing is changed. Runs under `one_thread`.

        Returns:
            The moves, all of this row, of which the last one is to be committed. None if a state would not be finite.
        """
        index, found = np.array([row], np.intp), []
        if self.moves_one:
            state = self.table.states[row]
            for token in tokens:
                found.append(self._one.advance(state, token))
                state = found[-1][0]
            states, features = (np.stack(arrays) for arrays in zip(*found, strict=True))
        else:
            state = self.table.states.take(index, axis=0)
            for token in tokens:
                found.append(self.model.advance(state, self.model.input.batch([token])))
                state = found[-1][0]
            states, features = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if not math.isfinite(np.vdot(states, states)):  # as below
            return None
        return Moves(index.repeat(len(tokens)), self.table.t[row] + np.arange(1, len(tokens) + 1), states, features, None)

    def _advance(self, index: Array, before: Array, ts: Array, tokens: Sequence[Any]) -> Moves:
        states, features = self._many.advance(before, self.model.input.batch(tokens))
        if states.shape != before.shape or states.dtype != before.dtype:
            raise TypeError(f"advance gave states of shape {states.shape} and {states.dtype} for {len(index)} rows")
        good: Array | None = None
        # Not finite if any number is not (or if the squares overflow): a quick look for the usual case.
        if not math.isfinite(np.vdot(states, states)):
            finite: Array = np.asarray(np.isfinite(states).all(axis=1))
            good = finite if not finite.all() else None
        return Moves(index, ts + _ONE, states, features, good)

    def commit(self, moves: Moves, now: float) -> None:
        """Make the moves count: those whose state is finite."""
        rows, states, ts = moves.rows, moves.states, moves.ts
        if moves.good is not None:
            rows, states, ts = rows[moves.good], states[moves.good], ts[moves.good]
        if len(rows) == 1:  # by number, not by an array of numbers: 1 us less
            row = rows.item()
            self.table.states[row], self.table.t[row], self.table.moved_at[row] = states[0], ts[0], now
            return
        self.table.states[rows] = states
        self.table.t[rows] = ts
        self.table.moved_at[rows] = now

    def likely(self, features: Array) -> tuple[Array, Array]:  # [B, F] -> [B], [B]
        """The id of the most likely next token of each row, lowest id first among equals, and its probability.

        Runs under `one_thread`.
        """
        many = self._many
        return many.likely(features) if isinstance(many, Played) and many.likely else most_likely(many.head(features))

    def predictions(self, moves: Moves, wants: Sequence[str | int]) -> list[Prediction]:
        """What each of the moves gives; `opened` and `surprisal` are left to the caller. Runs under `one_thread`."""
        ts = moves.ts.tolist()
        if self.model.output.kind == "categorical" and wants.count("argmax") == len(ts):
            return self._likely(ts, moves.features)
        found = [Prediction(t) for t in ts]
        heads = [place for place, want in enumerate(wants) if want != "none"]
        for part in self.parts(len(heads)):
            places = heads[part]
            self._predict([found[place] for place in places], moves.features[places], [wants[place] for place in places])
        return found

    def _likely(self, ts: list[int], features: Array) -> list[Prediction]:
        """The predictions where all want the most likely token and nothing else, the usual case."""
        found: list[Prediction] = []
        vocabulary = self.model.output.vocabulary
        for part in self.parts(len(ts)):
            ids, ps = self.likely(features[part])
            y = ids.tolist()
            found += map(Prediction, ts[part], y, ps.tolist(), [vocabulary[id] for id in y] if vocabulary else repeat(None))
        return found

    def _predict(self, found: list[Prediction], features: Array, wants: list[str | int]) -> None:
        """Fill in predictions from their features, for wants that need the head."""
        output = self.model.output
        logits = self._many.head(features)
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
        return self._score(self.table.states.take(rows, axis=0), tokens)

    def _score(self, states: Array, tokens: Sequence[Any]) -> list[float]:
        features = self.model.features(states)
        assert features is not None  # `check_want` has seen to it
        ids, scores = np.array(tokens, np.intp), []
        for part in self.parts(len(ids)):
            scores += surprisals(self._many.head(features[part]), ids[part]).tolist()
        return scores

    def foresee(self, peeks: Sequence[Peek]) -> None:
        """The next token of each of these, their sessions staying as they are. Runs under `one_thread`.

        A peek whose state would not be finite is done, and says so.
        """
        tokens = [peek.tokens[len(peek.found)] for peek in peeks]
        before = np.stack([peek.state for peek in peeks])
        moves = self._advance(np.arange(len(peeks)), before, np.array([peek.t for peek in peeks]), tokens)
        predictions = self.predictions(moves, [peek.want for peek in peeks])
        scored = [place for place, peek in enumerate(peeks) if peek.surprisal]
        if scored:
            scores = self._score(before[scored], [tokens[place] for place in scored])
            for place, score in zip(scored, scores, strict=True):
                predictions[place].surprisal = score
        for place, (peek, prediction) in enumerate(zip(peeks, predictions, strict=True)):
            if moves.good is not None and not moves.good[place]:
                peek.spoiled = True
                continue
            peek.state, peek.t = moves.states[place].copy(), prediction.t
            peek.found.append(prediction)

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
            "producers": {producer: mine.last for producer, mine in (table.producers[row] or {}).items()},
            "norm": norm,
        }

    def page(
        self, prefix: str, after: int, limit: int, scan: int, owner: str | None = None
    ) -> tuple[list[Name], int | None, int]:
        """Names of open sessions, in no given order.

        Args:
            prefix: only names that begin so.
            after: 0, or the cursor that the page before gave.
            limit: most names.
            scan: most rows to look at.
            owner: only sessions of this key, and neither the cursors nor the number of pages tell of others; "": only what is
                nobody's; None: all.

        Returns:
            The names; the cursor for the next page, None at the end; how many rows were looked at.
        """
        table = self.table
        names: list[Name] = []
        own = table.rows_of.get(owner, OwnRows()) if owner else None
        start, stop = (after, len(table.names)) if own is None else (own.behind(after), len(own))
        end, cursor = max(start, min(stop, start + scan)), after
        mixed = owner == "" and len(table.rows_of) > 0
        for at in range(start, end):
            # The cursor behind a row: its number and 1; of a key's own rows the place, which does not count those of others.
            cursor, row = (at + 1, at) if own is None else own.at(at)
            name = table.names[row] if row >= 0 else None
            if name is None or not table.live[row] or (mixed and owner_of(name)) or not str(name).startswith(prefix):
                continue
            names.append(name)
            if len(names) == limit and at + 1 < stop:
                return names, cursor, at + 1 - start
        return names, cursor if end < stop else None, end - start

    def rehearse(self) -> None:
        """A real step that no session sees: it raises what a step would raise. Runs under `one_thread`."""
        source = self.model.input
        _, features = self._many.advance(self.model.initial_state()[np.newaxis], source.batch([source.sample()]))
        self._many.head(features)

    def check(self) -> None:
        """Assert what always holds between calls."""
        self.table.check()
