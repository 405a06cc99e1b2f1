"""The values that every room speaks: a call, how it ended, and the functions that carry it.

The inner language is the modern shape of MCP (2026-07-28): one request of any method goes down as a
frozen `Call`, and comes back as one `Outcome`, or as a `CallError` that says what is known. They are msgspec
structs, since one is made for each call and each layer that changes it: a third of what attrs costs.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from msgspec import Raw

NO_MEMBERS: Mapping[str, Raw] = {}
"""No members; shared, so never to be changed."""

LOCAL = "local"
"""The principal of whoever runs this process, or reaches it over stdio or loopback."""


class EventSink(Protocol):
    """Where progress and log notifications of one call go. Must not block and must not raise."""

    def __call__(self, method: str, params: Raw, /) -> None:
        """Take one notification that belongs to the call, such as `notifications/progress`."""


class Call(msgspec.Struct, frozen=True):
    """One request of any method, on its way to whoever answers it.

    Attributes:
        method: such as `tools/call`.
        name: what the method is about, in the exported form: a tool's or prompt's name, a resource's URI.
        params: the other members of `params`, each as its own JSON bytes; without `name`/`uri` and `_meta`.
        meta: the members of `_meta` that are relayed, without those that belong to one hop.
        principal: who calls.
        deadline: Trio time by which the call ends, infinite if nobody said.
        events: where its progress and log notifications go; None if nobody listens.
        capabilities: what the caller can answer when asked (MCP `ClientCapabilities`), as JSON bytes.
        attempt: 1 for the first try, then counted up by retries.
        patience: seconds by which progress of the server moves the deadline on; 0 for a deadline that stays.
        latest: Trio time that progress moves it to at most.
        log_level: asks for the log notifications of this call, from this level on; None if nobody wants them.
        park: the token of a parked call that this one answers; its `params` then hold `inputResponses` alone.
        revision: the protocol revision that the caller itself speaks, empty if none. A server of both eras is best
            met in the caller's: what it asks for in the middle of a call may exist in one of them alone.
        trace: the `traceparent` of whoever makes the call (W3C Trace Context), empty for none; `tracestate` and
            `baggage` are in `meta`.
        apart: where attempts of it went that are under way at once, one list for all of them: of several like servers
            each takes another. None where there is one attempt at a time.
        spent: seconds of the time that it has which passed before its source was known.

    """

    method: str
    name: str | None = None
    params: Mapping[str, Raw] = NO_MEMBERS
    meta: Mapping[str, Raw] = NO_MEMBERS
    principal: str = LOCAL
    deadline: float = math.inf
    events: EventSink | None = None
    capabilities: bytes = b"{}"
    attempt: int = 1
    patience: float = 0.0
    latest: float = math.inf
    log_level: str | None = None
    park: str = ""
    revision: str = ""
    trace: str = ""
    apart: list[object] | None = None
    spent: float = 0.0


class Complete(msgspec.Struct, frozen=True):
    """The call ran; `result` is the peer's result object, unparsed, without hop-local members."""

    result: Raw


class InputRequired(msgspec.Struct, frozen=True):
    """The peer needs answers first (MCP 2026-07-28, input required).

    Attributes:
        result: the whole object, unparsed; with the peer's own `requestState`, if it gave one.
        park: the token under which the call goes on waiting, if it does; then the retry must carry it.

    """

    result: Raw
    park: str = ""


class Task(msgspec.Struct, frozen=True):
    """The peer goes on in the background (tasks extension). `result` is the whole object, unparsed."""

    result: Raw


class Error(msgspec.Struct, frozen=True):
    """The peer answered with a JSON-RPC error. `data` is JSON bytes, empty if there was none."""

    code: int
    message: str
    data: bytes = b""


Outcome: TypeAlias = Complete | InputRequired | Task | Error
Handler: TypeAlias = Callable[[Call], Awaitable[Outcome]]
Layer: TypeAlias = Callable[[Handler], Handler]


def stack(handler: Handler, *layers: Layer) -> Handler:
    """`handler` wrapped by `layers`, the first of which is outermost."""
    for layer in reversed(layers):
        handler = layer(handler)
    return handler
