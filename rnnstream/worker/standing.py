"""What a key may do here: how much it may have, and, if it is an administrator's, what it may do to the sessions of others.

On a worker without keys nobody is anybody: the key is "", all sessions are nobody's, and what is bounded here is only how much
of a connection is unanswered.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from rnnstream.errors import BadRequest, Denied, RequestError
from rnnstream.names import Owned
from rnnstream.wire.requests import Request
from rnnstream.worker.order import Order
from rnnstream.worker.quotas import Quotas, Rates
from rnnstream.worker.refusals import busy

log = logging.getLogger("rnnstream.worker")

CONNECTION_BYTES = 16 << 20  # of replies that wait, for one connection or one key, so that it does not stop the reading for all


class Standing:
    """Judges what comes by whom it comes from.

    Args:
        quotas: of each key.
        is_admin: whether a key is an administrator's.
        order: knows how much of each key is unanswered.
    """

    def __init__(self, quotas: Quotas, is_admin: Callable[[str], bool], order: Order) -> None:
        self._quotas, self._is_admin, self._order = quotas, is_admin, order
        self.rates = Rates(quotas.rate) if quotas.rate is not None else None
        self._chosen_id = Denied(
            "This connection has a routing id that was chosen or is another's; leave ZMQ_ROUTING_ID unset, and connect again."
        )
        told = f"replies that wait behind unanswered requests may take {CONNECTION_BYTES:,} bytes, and take more"
        self._connection_busy = busy(f"Of a connection, {told}")
        self._key_busy = busy(f"Of a key, {told}")
        self._quota_busy = busy(f"{quotas.waiting} requests of a key may wait, and with this body's there would be more")

    def refusal(self, user: str | None, now: float) -> RequestError | None:
        """Why a body is not even looked at, if it is not: its connection is to be served nothing, or its key sends too much."""
        if user is None:
            return self._chosen_id
        wait_s = self.rates.spend(user, now) if self.rates is not None else 0.0
        if not wait_s:
            return None
        why = f"A key may send {self._quotas.rate:g} requests a second, and this one has sent more"
        return busy(why, math.ceil(1000 * wait_s + 0.001))  # a microsecond more, for times are rounded

    def count(self, owner: str, requests: int, held_bytes: int) -> RequestError | None:
        """Count a body of so many requests. Why it is not let in, if it is not: too much waits; where nothing does, any is.

        Args:
            owner: the key that it came from.
            requests: in it.
            held_bytes: of replies that wait already, of this connection or key.
        """
        if self.rates is not None and owner:
            self.rates.owe(owner, requests - 1)
        if held_bytes > CONNECTION_BYTES:
            return self._key_busy if owner else self._connection_busy
        if owner and 0 < self._order.requests_of(owner) > self._quotas.waiting - requests:
            return self._quota_busy
        return None

    def confined(self, owner: str) -> str:
        """The key, if it learns nothing of others; "" if everything may be told."""
        return "" if not owner or self._is_admin(owner) else owner

    def claim(self, request: Request, user: str) -> None:
        """Make a request's names those of its user, or for an administrator of the owner that it names.

        Raises:
            Denied: it names another's, and its user is no administrator.
            BadRequest: it names another's, and has a number.
        """
        if request.owner is None and not request.all:
            request.owner = user
        elif not (user and self._is_admin(user)):
            key = "all" if request.all else "owner"
            if not user:
                raise Denied(f"{request.op} has {key}; this worker knows no keys, and all sessions are everybody's.")
            raise Denied(f"{request.op} has {key}; only an administrator's key may ask for the sessions of others.")
        elif request.producer is not None:
            raise BadRequest(
                f"{request.op} has owner and producer; the numbers in a session of somebody else are its owner's.",
                field="producer",
            )
        elif request.op != "sessions":
            log.info("administrator %s: %s %s of %s", user, request.op, request.session, request.owner or "nobody")
        if request.owner:
            request.session = Owned(request.owner, str(request.session))
            request.to = Owned(request.owner, str(request.to)) if request.to else ""
