"""One call under way to one incarnation of a node, and what is known of it. Pure but for the stream it listens to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from cord_trio.errors import DeadlineExceeded
from cord_trio.mesh.frames import Request
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh_errors import OwnerLost

if TYPE_CHECKING:
    import trio
    from msgspec import Raw

    from cord_trio.call import Call
    from cord_trio.errors import Executed
    from cord_trio.mesh.peers import Peer
    from cord_trio.nats.client import Stream

SILENCE: Final = 1.0
"""Seconds without a word after which the owner is asked whether it has the call."""

QUIET: Final = 1.6
"""Seconds without a word after which one is asked that has said before that it runs: it says so every second."""

GRACE: Final = 3.0
"""Seconds for which a call is offered again where nobody listens: an incarnation that stands may be connecting."""

RETURN: Final = 6.0
"""Seconds for which it is, since our own connection was made again: others may have lost theirs too, and pause for up
to `nats.line.BACKOFF` between two attempts."""

PATIENCE: Final = 2.0 * LEASE
"""Seconds without a word after which a call is lost. Its owner remembers it for twice as long."""


class Flight:
    """What is known of one call.

    Attributes:
        name: what it is about.
        peer: who was asked first.
        node: who has it.
        epoch: which incarnation.
        subject: what is published to that.
        request: as it was offered first.
        large: its params, where they go in parts.
        result: what came of it, where that came in parts.
        events: where its notifications go.
        deadline: Trio time by which it returns.
        began: Trio time of the first offer.
        heard: Trio time of the last word of its owner, at first `began`.
        asked: Trio time of the last ping.
        spoken: whether its owner has said anything to the last offer.
        offers: how often it was, or may have been, sent.
        maybe: whether an offer before the last one may have arrived.
        pending: whether the last one may have.
        may_go_on: whether there is another node to try.
        nobody_since: Trio time since which nobody listens; infinite if somebody may.
        stream: its answers, while it is offered.
        pausing: scope of the pause that it is in.
        renewed: how often it was signed anew.
        handed: whether one that had it handed it on.
        settled: whether its end is known, so that nobody needs to be told to stop.

    """

    # What is so at first; few calls change more than two of these.
    large = b""
    result: Raw | None = None
    spoken = maybe = pending = settled = handed = False
    offers = renewed = 0
    nobody_since = math.inf
    stream: Stream | None = None
    pausing: trio.CancelScope | None = None
    _pinged = _late = False
    _over = ""

    def __init__(
        self, name: str, peer: Peer, node: str, subject: str, request: Request, call: Call, now: float,
        *, may_go_on: bool,
    ) -> None:  # fmt: skip
        self.name = name
        self.node = node
        self.peer = peer
        self.epoch = peer.epoch
        self.subject = subject
        self.request = request
        self.events = call.events
        self.deadline = call.deadline
        self.began = self.heard = self.asked = now
        self.may_go_on = may_go_on

    @property
    def executed(self) -> Executed:
        """What is known of whether it ran, as long as there is no answer."""
        return "unknown" if self.maybe or self.pending else "no"

    @property
    def before_this(self) -> Executed:
        """What is known of whether it ran, once the last offer was refused."""
        return "unknown" if self.maybe else "no"

    def again(self, now: float) -> Request:
        """The request with what is left of its deadline."""
        request = self.request
        if self.handed:
            return Request("ping", request.id)  # what was handed on is not what we asked for first
        if not self.offers:
            return request
        ttl = None if request.ttl is None else max(0, request.ttl - int((now - self.began) * 1000))
        return replace(request, ttl=ttl, settled=())

    def offered(self, stream: Stream, now: float) -> None:
        """It was sent; its answers come in `stream`."""
        self.offers += 1
        self.stream = stream
        self.pending = True
        self.spoken = self._pinged = False
        self.asked = now
        if self._over:
            self.end(self._over)

    def repeated(self) -> None:
        """It is sent once more, for the same stream."""
        self.offers += 1
        self.maybe = True

    def ping(self, now: float) -> Request:
        """What asks its owner for it."""
        self.asked = now
        self._pinged = True
        return Request("ping", self.request.id)

    def heard_at(self, now: float) -> None:
        """Its owner said something."""
        self.heard = now
        self.spoken = True
        self.peer.absent = self.peer.absent and self.handed  # then it is another that is heard
        self.nobody_since = math.inf

    def nobody(self, now: float) -> None:
        """Nobody listened to it; or, if it was sent a while before, to a ping."""
        self.pending = False
        if self.spoken or self._pinged:
            self.maybe = True
        if self.nobody_since == math.inf:
            self.nobody_since = now

    def lost(self, executed: Executed) -> None:
        """The connection was lost, or what came on it."""
        self.pending = False
        if executed != "no":
            self.maybe = True

    def moved(self, node: str, epoch: str) -> None:
        """Another node has it, after the one before ran a part of it."""
        self.node, self.epoch = node, epoch
        self.handed = self.maybe = True

    def end(self, reason: str) -> None:
        """The incarnation that has it is no more."""
        self._over = reason
        if self.stream is not None:
            self.stream.fail(OwnerLost(self.node, self.epoch, reason))
        elif self.pausing is not None:
            self.pausing.cancel(reason)

    def late(self) -> None:
        """Its deadline passed."""
        self._late = True
        if self.stream is not None:
            self.stream.fail(self._too_late())
        elif self.pausing is not None:
            self.pausing.cancel("its deadline passed")

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self.name} on node {self.node}", self.executed)

    def check(self) -> None:
        """Raise `OwnerLost` if its incarnation is no more, or `DeadlineExceeded`."""
        if self._late:
            raise self._too_late()
        if self._over:
            raise OwnerLost(self.node, self.epoch, self._over, self.executed)
