"""Telling somebody of each attempt, in the server's own words, with all that came back. Innermost: as it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio
from msgspec.structs import replace

from cord_trio.call import NO_MEMBERS, Call, InputRequired
from cord_trio.errors import CallError
from cord_trio.protocol.jsonrpc import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Raw

    from cord_trio.call import Handler, Layer, Outcome

MAX_EVENTS: Final = 1000
"""Progress and log notifications of one call that are told of; further ones only reach the caller."""

MAX_PARKED: Final = 1024
"""Calls that wait for answers of which it is known what they ask."""

Own: TypeAlias = "Callable[[Call], tuple[str | None, Mapping[str, Raw]]]"
"""What the server is asked: its own name for what a call is about, and the parameters. May raise as the call would."""


class Taken(msgspec.Struct, frozen=True):
    """One attempt, and how it ended.

    Attributes:
        source: that was asked.
        prefix: of the URIs in the outcome.
        method: such as `tools/call`.
        name: the server's own, None if the method is about nothing that has one.
        params: that the server got.
        outcome: or what was raised.
        events: with the seconds after which each came.
        seconds: that all of it took.

    """

    source: str
    prefix: str
    method: str
    name: str | None
    params: Mapping[str, Raw]
    outcome: Outcome | BaseException
    events: tuple[tuple[float, str, Raw], ...] = ()
    seconds: float = 0.0

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        parts = [*self.params.values(), *(event[2] for event in self.events)]
        if not isinstance(self.outcome, BaseException):
            parts += [getattr(self.outcome, member, NOTHING) for member in ("result", "data")]
        return 200 + sum(len(bytes(part)) for part in parts)


def as_called(call: Call) -> tuple[str | None, Mapping[str, Raw]]:
    """For a source whose names go out unchanged."""
    return call.name, call.params


def record(
    keep: Callable[[Taken], None],
    source: str,
    *,
    own: Own = as_called,
    prefix: str = "",
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """Each attempt is told to `keep`, which must not block or raise. The call is never held up for it.

    Args:
        keep: such as the `keep` of a `Recorder`.
        source: whose calls they are.
        own: what the server is asked by a call.
        prefix: of the URIs that it exports.
        clock: Trio's time.

    """
    parked: dict[str, tuple[str, str | None, Mapping[str, Raw]]] = {}

    def asks(call: Call) -> tuple[str, str | None, Mapping[str, Raw]]:
        if not call.park:
            return call.method, *own(call)
        # An answer to a question: for the server it is part of the call that waits.
        method, name, params = parked.pop(call.park, (call.method, call.name, NO_MEMBERS))
        return method, name, {**params, **call.params}

    def layer(handler: Handler) -> Handler:
        async def recorded(call: Call) -> Outcome:
            try:
                method, name, params = asks(call)
            except CallError:
                return await handler(call)  # which says so itself
            began = clock()
            events: list[tuple[float, str, Raw]] = []
            heard = call.events
            if heard is not None:  # else the server would be asked for what nobody wants

                def tell(kind: str, about: Raw, /) -> None:
                    if len(events) < MAX_EVENTS:
                        events.append((clock() - began, kind, about))
                    heard(kind, about)

                call = replace(call, events=tell)

            def told(outcome: Outcome | BaseException) -> None:
                keep(Taken(source, prefix, method, name, params, outcome, tuple(events), clock() - began))

            try:
                outcome = await handler(call)
            except BaseException as exc:
                told(exc)
                raise
            if type(outcome) is InputRequired and outcome.park:
                if len(parked) >= MAX_PARKED:
                    del parked[next(iter(parked))]
                parked[outcome.park] = method, name, params
            told(outcome)
            return outcome

        return recorded

    return layer
