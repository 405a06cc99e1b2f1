"""Not asking twice: answers are kept where that is allowed, and equal calls that are under way at once are one.

What may be kept, and who may see it, the server says of each resource (MCP 2026-07-28, caching); of tools nobody says
it, so the operator must, and the tool must be known to only read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Complete, Error
from cord_trio.cell import Cell
from cord_trio.errors import CallError, DeadlineExceeded, Malformed
from cord_trio.protocol.jsonrpc import members, object_of
from cord_trio.protocol.tools import cache_hints
from cord_trio.trace import BAGGAGE, TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, EventSink, Handler, Layer, Outcome
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters

ENTRIES: Final = 1024
"""Answers of one source that are kept at most."""

SIZE: Final = 16 * 1024 * 1024
"""Bytes of the answers of one source that are kept at most."""

READ: Final = "resources/read"

Key: TypeAlias = tuple[object, ...]
"""What decides an answer: method, name, arguments, what else is relayed; and the principal, or None."""

TRACING: Final = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})
"""Members of `_meta` that are another in each call, and that no answer depends on."""


class Cache:
    """The answers of one source, those used last.

    Invariants: there are at most `entries` of them, with at most `size` bytes; none is given out that has expired,
    or to another principal unless the server said that anybody may see it.

    Args:
        entries: answers that are kept.
        size: bytes of all of them.
        version: of what the source has; nothing is given out that is older.
        counters: counts what was let go of for want of room.
        clock: Trio's time.

    Attributes:
        bytes: of all answers that are kept.
        flights: calls that are under way.

    """

    def __init__(
        self,
        *,
        entries: int = ENTRIES,
        size: int = SIZE,
        version: Callable[[], object] = lambda: None,
        counters: Counters,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.bytes = 0
        self._most = entries
        self._size = size
        self._counters = counters
        self._clock = clock
        self._version = version
        self._seen: object = None
        self._kept: OrderedDict[Key, tuple[Complete, float]] = OrderedDict()
        self.flights: dict[Key, Flight] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Complete | None:
        """The answer that is kept under `key`, if it is still good, with what is left of its life."""
        version = self._version()
        if version is not self._seen:
            self._seen = version
            self.forget()
        found = self._kept.get(key)
        if found is None:
            return None
        outcome, until = found
        left = until - self._clock()
        if left <= 0:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return _aged(outcome, left) if key[0] == READ else outcome

    def keep(self, key: Key, outcome: Complete, seconds: float) -> None:
        """Keep an answer for `seconds`."""
        self._drop(key)
        size = len(bytes(outcome.result))
        if size > self._size or seconds <= 0:
            return
        kept = Complete(outcome.result.copy())  # else it would hold on to all that was read with it
        self._kept[key] = (kept, self._clock() + seconds)
        self.bytes += size
        while len(self._kept) > self._most or self.bytes > self._size:
            self._drop(next(iter(self._kept)))
            self._counters.add("cache.evicted")

    def forget(self) -> None:
        """Keep nothing of what was answered up to now, nor what is being answered."""
        self._kept.clear()
        self.bytes = 0
        for flight in self.flights.values():
            flight.stale = True

    def _drop(self, key: Key) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.bytes -= len(bytes(found[0].result))


class Flight:
    """A call that is under way, and those that wait for its answer.

    Attributes:
        waiting: they, the longest first, with their deadlines; each gets an outcome, or None: then it makes the
            call itself.
        sinks: who hears of its progress.
        stale: whether what it asks for has changed since.

    """

    __slots__ = ("sinks", "stale", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Cell[Outcome | None], float] = {}
        self.sinks: list[EventSink] = []
        self.stale = False

    def tell(self, method: str, params: Raw) -> None:
        """Pass a notification on to all of them."""
        for sink in tuple(self.sinks):
            sink(method, params)


def cache(
    kept: Cache,
    *,
    seconds: float,
    reads: Callable[[Call], bool],
    fails: Callable[[Raw], bool],
    timer: Timer,
    counters: Counters,
) -> Layer:
    """Calls that only read get the answer that is kept, or wait for an equal call of theirs that is under way.

    Whoever waits shares the answer, and also the error, unless that may be for want of time: then those that have more
    of it do not share it. The one that has most makes the call again, as it does where the first was cancelled.

    Args:
        kept: the answers of the source.
        seconds: for which those of tools are kept, and those of resources at most; 0 for not at all.
        reads: whether a call only reads.
        fails: whether a tool's result says that it failed; such a one is not kept.
        timer: ends the waits whose call's deadline passes.
        counters: counts hits, misses and shared calls.

    """

    def life(call: Call, result: Raw) -> tuple[float, bool]:
        """For how many seconds an answer may be kept, and whether everybody may see it."""
        if call.method == "tools/call":
            return (0.0 if fails(result) else seconds), False
        try:
            milliseconds, scope = cache_hints(members(result))
        except Malformed:
            return 0.0, False
        return min(seconds, milliseconds / 1000), scope == "public"

    def layer(handler: Handler) -> Handler:
        async def joined(call: Call, flight: Flight) -> Outcome | None:
            """The outcome of an equal call; None if we are to make it."""
            counters.add("cache.shared")
            cell = Cell["Outcome | None"]()
            flight.waiting[cell] = call.deadline
            if call.events is not None:
                flight.sinks.append(call.events)
            if call.deadline != math.inf:
                late = DeadlineExceeded(f"{call.name}: an equal call was still under way")
                timer.add(cell, call.deadline, partial(_expire, flight, cell, late))
            try:
                return await cell.wait(partial(_leave, flight, cell))
            finally:
                timer.discard(cell)
                if call.events is not None:
                    flight.sinks.remove(call.events)

        async def led(call: Call, key: Key, flight: Flight) -> Outcome:
            """Make the call, for us and for those who wait."""
            kept.flights[key] = flight
            if call.events is not None:
                flight.sinks.append(call.events)
            shared: Outcome | CallError | None = None
            flight.stale = False
            try:
                outcome = await handler(replace(call, events=flight.tell))
                if isinstance(outcome, Complete | Error):  # a question, or a task, is for one alone
                    shared = outcome
                if type(outcome) is Complete and not flight.stale:
                    lasts, public = life(call, outcome.result)
                    kept.keep((*key[:-1], None if public else call.principal), outcome, lasts)
                return outcome
            except CallError as exc:
                shared = exc
                raise
            finally:
                if call.events is not None:
                    flight.sinks.remove(call.events)
                _land(kept, key, flight, shared, call.deadline)

        async def cached(call: Call) -> Outcome:
            common = (
                call.method, call.name, tuple(sorted((name, bytes(value)) for name, value in call.params.items())),
                tuple(sorted((name, bytes(value)) for name, value in call.meta.items() if name not in TRACING)),
                call.capabilities, call.log_level, call.revision,
            )  # fmt: skip
            key = (*common, call.principal)
            found = kept.get(key) or kept.get((*common, None))
            if found is not None:
                counters.add("cache.hit")
                await trio.lowlevel.checkpoint()
                return found
            flight = kept.flights.get(key)
            if flight is not None and not flight.stale:
                outcome = await joined(call, flight)
                if outcome is not None:
                    return outcome
            else:
                flight = Flight()
            counters.add("cache.miss")
            return await led(call, key, flight)

        def asked(call: Call) -> Awaitable[Outcome]:
            if call.park or "requestState" in call.params or "inputResponses" in call.params or not reads(call):
                return handler(call)
            return cached(call)

        return asked

    return layer


@trio.lowlevel.enable_ki_protection
def _land(kept: Cache, key: Key, flight: Flight, shared: Outcome | CallError | None, deadline: float) -> None:
    """Tell those who wait; without anything to share the one that has most time makes the call.

    An error that does not come from the server itself, such as that nothing more can be tried, may be for want of time:
    it is not shared with who has time beyond `deadline`.
    """
    waiting = flight.waiting
    if isinstance(shared, CallError):
        told = math.inf if shared.executed == "yes" else deadline
        for cell in [cell for cell, until in waiting.items() if until <= told]:
            del waiting[cell]
            cell.fail(_again(shared))
        shared = None
    if shared is None and waiting:
        last = max(waiting, key=waiting.__getitem__)
        del waiting[last]
        last.settle(None)
        return
    if kept.flights.get(key) is flight:
        del kept.flights[key]
    while waiting:
        cell, _ = waiting.popitem()
        cell.settle(shared)


def _aged(outcome: Complete, left: float) -> Complete:
    """An answer whose `ttlMs` says what is left of it."""
    parts: dict[str, Raw | bytes] = {**members(outcome.result)}
    return Complete(Raw(object_of({**parts, "ttlMs": b"%d" % (left * 1000)})))


def _leave(flight: Flight, cell: Cell[Outcome | None]) -> None:
    flight.waiting.pop(cell, None)


def _expire(flight: Flight, cell: Cell[Outcome | None], late: DeadlineExceeded) -> None:
    _leave(flight, cell)
    cell.fail(late)


def _again(error: CallError) -> CallError:
    """The same error for another waiter: what is raised twice would grow one traceback out of two."""
    fresh = type(error).__new__(type(error), *error.args)
    fresh.args = error.args
    fresh.__dict__.update(error.__dict__)
    return fresh
