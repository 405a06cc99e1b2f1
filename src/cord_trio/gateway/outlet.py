"""One HTTP request's way back to its client: a JSON body, or an event stream that the first event opens.

The stream is opened late, so that an early error still has its own status (MCP 2026-07-28, transports).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from cord_trio.gateway.steps import OK
from cord_trio.protocol.framing import SSE_COMMENT, encode_sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.counters import Counters
    from cord_trio.gateway.steps import Reply
    from cord_trio.gateway.trail import Trail
    from cord_trio.transports.http1_server import Response

Fields: TypeAlias = tuple[tuple[str, str], ...]

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_BOTH: Final = frozenset({"*/*", f"{JSON}, {EVENTS}", f"{EVENTS}, {JSON}", f"{JSON},{EVENTS}"})
"""What nearly every client sends."""

JSON_FIELDS: Final[Fields] = (("Content-Type", JSON),)
EVENT_FIELDS: Final[Fields] = (
    ("Content-Type", EVENTS),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)


def accepted(accept: str | None) -> tuple[bool, bool]:
    """Whether a client takes JSON, and whether it takes an event stream. It takes both unless it says otherwise."""
    if not accept or accept in _BOTH:
        return True, True
    json = events = False
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        if any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters):
            continue
        json = json or media in ("*/*", "application/*", JSON)
        events = events or media in ("*/*", "text/*", EVENTS)
    return json, events


class Outlet:
    """Invariants: one answer at most, and nothing after it; writing to a client that has left does nothing.

    Attributes:
        events: whether the client takes an event stream.
        done: whether the answer was given.
        opened: whether it has become an event stream.
        trail: what is kept of it for a client whose connection breaks; None if nothing is.
        make_trail: makes the trail once this becomes an event stream, which few do; None if nothing is to be kept.

    """

    __slots__ = (
        "_common",
        "_counters",
        "_json",
        "_moved",
        "_response",
        "done",
        "events",
        "make_trail",
        "opened",
        "trail",
    )

    def __init__(
        self, response: Response, counters: Counters, common: Fields = (), *, json: bool = True, events: bool = True
    ) -> None:
        self._response = response
        self._counters = counters
        self._common = common
        self._json = json
        self.opened = False
        self.events = events
        self.done = False
        self.trail: Trail | None = None
        self.make_trail: Callable[[Outlet], Trail | None] | None = None
        self._moved: trio.Event | None = None  # made when somebody waits, which is rare

    def open(self, since: int | None = None) -> None:
        """Begin the event stream, if it has not begun; with the events after number `since`, if one is given."""
        if self.opened:
            return
        self.opened = True
        self._response.start(OK, (*EVENT_FIELDS, *self._common))
        if self.trail is None and self.make_trail is not None:
            self.trail = self.make_trail(self)
        if self.trail is None:
            return
        for event in [self.trail.begin()] if since is None else self.trail.since(since) or ():
            self._response.write(event)

    @property
    def resumable(self) -> bool:
        """Whether the client can ask for what it misses."""
        return self.trail is not None and self.trail.begun

    def resume(self, response: Response, common: Fields, since: int) -> bool:
        """Go on with `response`, after the event of that number. False, and nothing done, if that is not kept."""
        events = None if self.trail is None else self.trail.since(since)
        if events is None:
            return False
        if not self._response.ended:
            self._response.end()  # a connection that broke unnoticed, mostly
        self._response, self._common = response, common
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()
        response.start(OK, (*EVENT_FIELDS, *common))
        for event in events:
            response.write(event)
        if self.done:
            response.end()
        return True

    async def wait_over(self) -> None:
        """Return once the answer was given, or another response has taken over."""
        if self.done:
            await trio.lowlevel.checkpoint()
        else:
            if self._moved is None:
                self._moved = trio.Event()
            await self._moved.wait()

    def _write(self, message: bytes) -> None:
        self._response.write(encode_sse(message) if self.trail is None else self.trail.add(message))

    def tell(self, message: bytes) -> None:
        """Send one notification, unless the client is behind with reading."""
        if self.done or not self.events:
            return
        self.open()
        if self._response.congested:
            self._counters.add("gateway.notices_dropped")
        else:
            self._write(message)

    def ask(self, message: bytes) -> None:
        """Send one request of ours, or withdraw one: never dropped, since somebody waits for it."""
        if not self.done and self.events:
            self.open()
            self._write(message)

    async def wait_room(self) -> None:
        """Return once the client reads, or is gone."""
        await self._response.wait_uncongested()

    def answer(self, reply: Reply, *fields: tuple[str, str]) -> None:
        """Give the answer, and end."""
        if self.done:
            return
        message = reply.message
        if not (self.opened or self._json) and message is not None and reply.status == OK:
            self.open()
        self.done = True
        if self._moved is not None:
            self._moved.set()
        if self.opened:
            if message is not None:
                self._write(message)
            self._response.end()
        elif message is None:
            self._response.send(reply.status, (*self._common, *fields))
        elif fields or self._common:
            self._response.send(reply.status, (*JSON_FIELDS, *self._common, *fields), message)
        else:
            self._response.send(reply.status, JSON_FIELDS, message)

    def close(self) -> None:
        """End the stream without an answer."""
        if not self.done:
            self.done = True
            self.open()
            self._response.end()

    def beat(self) -> None:
        """Show proxies that this is alive."""
        if self.done or not self.events or self._response.gone:
            return
        self.open()
        if not self._response.congested:
            self._response.write(SSE_COMMENT)
