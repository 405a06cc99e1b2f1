"""The layers of one source, in their order. Stacks are built once: when a source is configured, or first called."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio import layers
from cord_trio.call import stack
from cord_trio.config import Http, ToolSettings
from cord_trio.errors import SourceDown
from cord_trio.link import SHARED
from cord_trio.protocol.mcp import ToolResult
from cord_trio.replicas import Replicas

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from msgspec import Raw

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.config import Quota, Source
    from cord_trio.layers.record import Own
    from cord_trio.protocol.tools import Annotations
    from cord_trio.registry import Registry
    from cord_trio.replicas import Kept
    from cord_trio.surroundings import Surroundings

MOST_TOOLS: Final = 10_000
"""Tools of one source whose stacks are kept before those that it does not list any more are let go of."""


@attrs.frozen
class Ends:
    """What lies below the layers of one source.

    Attributes:
        send: takes a call that all layers have let through.
        resume: takes the answer to a call that waits for it.
        probe: sees whether the source answers what has no effects; raises as a call does.
        annotations: of the tool with an exported name; None if there is no such tool.
        own_name: what the server calls the tool with an exported name; None if there is no such tool.
        version: of what the source lists: another value as soon as that may be different.
        may_hedge: whether two servers of the source could answer a call now; None if it has one.
        own: what the source is asked by a call, in its own words.

    """

    send: Handler
    resume: Handler
    probe: Callable[[], Awaitable[object]]
    annotations: Callable[[str], Annotations | None]
    own_name: Callable[[str], str | None]
    version: Callable[[], object]
    may_hedge: Callable[[Call], bool] | None
    own: Own


def ends_of(link: Kept, registry: Registry, send: Handler, resume: Handler, own: Own) -> Ends:
    """What lies below the layers of the source that `link` keeps."""
    source = link.name

    def annotations(public: str) -> Annotations | None:
        route = registry.snapshot.tools.get(public)
        return None if route is None else route.tool.annotations

    def own_name(public: str) -> str | None:
        route = registry.snapshot.tools.get(public)
        return None if route is None or route.source != source else route.tool.name

    async def probe() -> None:
        client = link.sessions.get(SHARED)
        if client is None:
            raise SourceDown(source, link.reason or f"it is still {link.state}", link.next_try)
        await client.probe()

    may_hedge = link.may_hedge if isinstance(link, Replicas) else None
    return Ends(
        send, resume, probe, annotations, own_name, lambda: registry.snapshot.sources.get(source), may_hedge,
        own,
    )  # fmt: skip


@attrs.frozen
class Stacked:
    """A source behind its layers.

    Attributes:
        call: takes its calls.
        resume: takes answers to those of its calls that wait.
        slots: for its calls.
        breaker: its circuit, if it has one.
        waits: wherever its calls wait.
        cache: its answers, if some may be kept.

    """

    call: Handler
    resume: Handler
    slots: layers.Slots
    breaker: layers.Breaker | None
    waits: layers.Waits
    cache: layers.Cache | None


def _fails(result: Raw) -> bool:
    return ToolResult(result).is_error


class _Builder:
    """Builds the stacks of one source: of the source, and of those of its tools that have settings of their own.

    All of them share the source's slots, rate, circuit and budget of retries.
    """

    def __init__(self, source: Source, ends: Ends, around: Surroundings, waits: layers.Waits) -> None:
        self.source = source
        self._ends = ends
        self._around = around
        # The run's own clock, without the calls that lead to it from `trio.current_time`.
        self._clock = clock = trio.lowlevel.current_clock().current_time
        counters, name = around.counters, source.name
        self.waits = waits
        self.slots, self._retries = waits.slots, waits.budget
        self._held = layers.Times()
        self.breaker: layers.Breaker | None = None
        self._shared: list[Layer] = []
        """Around each attempt of whatever it calls."""
        self._of_tools: dict[str, tuple[list[layers.Slots], list[layers.Meter]]] = {}
        if source.breaker is not None:
            self.breaker = layers.Breaker(
                source.breaker, probe=ends.probe, rng=around.rng, counters=counters, name=name, clock=clock
            )
            self._shared.append(layers.breaker(self.breaker))
        self._record = [] if around.recorder is None else [around.recorder.layer(source, ends.own)]
        self._traces = [layers.trace(watch(name)) for watch in around.watches]
        self._policy: list[Layer] = []
        if source.rules or source.read_only:
            self._policy.append(self._denying())
        self._budgets = [] if source.budget is None else [self._budget(source.budget, name)]
        self.cache: layers.Cache | None = None
        if source.cache is not None or any(each.cache is not None for each in source.tool.values()):
            bounds = around.bounds
            self.cache = layers.Cache(
                entries=bounds.cache_entries, size=bounds.cache_bytes, version=ends.version, counters=counters,
                clock=clock,
            )  # fmt: skip
        self._limited = self._limit(self.slots, name)
        self._limits = [self._limited]
        self._meter: layers.Meter | None = None
        if source.rate is not None or isinstance(source, Http):  # only HTTP has words for a pause
            per_second = math.inf if source.rate is None else source.rate
            self._meter = self._metered(per_second, source.burst, name)
            self._limits = [layers.rate(self._meter, timer=around.timer, counters=counters, name=name), self._limited]
        self._plainly = list(self._limits)
        """All that nearly every source has around each attempt."""
        if source.adaptive:
            self._limits.append(layers.adapt(self.slots, most=source.slots, counters=counters, clock=clock))
        if source.shed:
            self._limits.append(layers.timed(self._held, clock=clock))

    def whole(self, own: ToolSettings, public: str = "") -> Handler:
        """The stack for what has the settings `own` beside those of the source."""
        source, counters, clock = self.source, self._around.counters, self._clock
        before = len(self.waits.own), len(self.waits.meters)
        ours: list[Layer] = [*self._traces, *self._around.layers, *source.layers, *own.layers, *self._policy]
        once: list[Layer] = []
        """Around all attempts of a call."""
        if own.budget is not None:
            once.append(self._budget(own.budget, public))
        once += self._budgets
        seconds = source.cache if own.cache is None else own.cache
        if seconds is not None and self.cache is not None:
            once.append(self._cache(self.cache, seconds))
        if source.shed:
            once.append(
                layers.shed(self.slots, self._held, most=source.queue, counters=counters, name=source.name, clock=clock)
            )
        each: list[Layer] = []
        """Around each attempt."""
        retries = source.retries if own.retries is None else own.retries
        if retries and source.hedge and self._ends.may_hedge is not None:
            each.append(self._hedge(self._ends.may_hedge, said=own.repeatable))
        each += self._shared
        if own.rate is not None:
            each.append(self._rate(own.rate, own.burst, public))
        if own.slots is not None:
            each.append(self._limit(own.slots, public))
        each += self._limits
        ours += self._attempts(own, retries + 1, once, each)
        attempt = source.attempt if own.attempt is None else own.attempt
        if attempt is not None:
            ours.append(layers.attempt(attempt, clock=clock))
        if source.tell_deadline:
            ours.append(layers.tell_deadline())
        ours += self._record
        if public:
            self._of_tools[public] = self.waits.own[before[0] :], self.waits.meters[before[1] :]
        return stack(self._ends.send, *ours)

    def _attempts(self, own: ToolSettings, attempts: int, once: list[Layer], each: list[Layer]) -> list[Layer]:
        """The deadline, and in it the attempts, with what lies around all of them and around each."""
        if attempts == 1:
            return [self._deadline(own.deadline), *once, *each]
        around, clock = self._around, self._clock
        after = layers.retries(
            attempts, budget=self._retries, rng=around.rng, trusted=self.source.trust,
            annotations=self._ends.annotations, safe=own.repeatable, clock=clock, timer=around.timer,
            counters=around.counters,
        )  # fmt: skip
        usual = len(self._plainly)
        if once or each[:usual] != self._plainly:
            retry = layers.attempts_of(after, budget=self._retries, clock=clock)
            return [self._deadline(own.deadline), *once, retry, *each]
        plain = layers.plain(
            self._seconds(own.deadline), longest=around.bounds.call_longest, budget=self._retries, after=after,
            limits=self._plainly, slots=self.slots, meter=self._meter, clock=clock,
        )  # fmt: skip
        return [plain, *each[usual:]]

    def forget(self, tools: Iterable[str]) -> set[str]:
        """Let go of what single tools have of their own, and none of whose calls waits; returns which those are."""
        found: set[str] = set()
        gone: set[object] = set()
        for public in tools:
            own, meters = self._of_tools.get(public, ((), ()))
            if not (any(slots.taken or slots.queue for slots in own) or any(meter.waiting for meter in meters)):
                self._of_tools.pop(public, None)
                found.add(public)
                gone.update(own, meters)
        self.waits.own[:] = [slots for slots in self.waits.own if slots not in gone]
        self.waits.meters[:] = [meter for meter in self.waits.meters if meter not in gone]
        return found

    def resumed(self) -> Handler:
        """The stack for answers to calls that wait: they are never made anew, so nothing is retried."""
        limit = self._limit(self.slots, self.source.name)
        users = (*self._around.layers, *self.source.layers)
        return stack(self._ends.resume, *self._traces, *users, self._deadline(None), limit, *self._record)

    def _hedge(self, may: Callable[[Call], bool], *, said: bool) -> Layer:
        twice = layers.repeatable(trusted=self.source.trust, annotations=self._ends.annotations, said=said)
        return layers.hedge(
            may=lambda call: twice(call) and may(call), budget=self._retries, counters=self._around.counters,
            clock=self._clock,
        )  # fmt: skip

    def _denying(self) -> Layer:
        source, around = self.source, self._around
        rules = layers.Policy(
            source.rules, read_only=source.read_only, name=source.name, own_name=self._ends.own_name,
            own=self._ends.own, annotations=self._ends.annotations, trusted=source.trust,
        )  # fmt: skip
        return layers.policy(
            rules, approve=around.approve, sealer=around.sealer, seconds=source.approval, counters=around.counters,
            clock=self._clock,
        )  # fmt: skip

    def _budget(self, quota: Quota, name: str) -> Layer:
        calls = math.inf if quota.calls is None else quota.calls
        size = math.inf if quota.bytes is None else quota.bytes
        counters = self._around.counters
        return layers.budget(
            layers.Allowance(calls, size, every=quota.every, counters=counters, name=name, clock=self._clock)
        )

    def _cache(self, kept: layers.Cache, seconds: float) -> Layer:
        around, ends = self._around, self._ends
        return layers.cache(
            kept, seconds=seconds, timer=around.timer, counters=around.counters, fails=_fails,
            reads=layers.only_reads(trusted=self.source.trust, annotations=ends.annotations),
        )  # fmt: skip

    def _limit(self, slots: int | layers.Slots, name: str) -> Layer:
        timer, counters = self._around.timer, self._around.counters
        if isinstance(slots, int):
            slots = layers.Slots(slots, timer=timer, counters=counters, name=name)
            self.waits.own.append(slots)
        return layers.limit(slots, timer=timer, counters=counters, name=name)

    def _rate(self, per_second: float, burst: int | None, name: str) -> Layer:
        timer, counters = self._around.timer, self._around.counters
        return layers.rate(self._metered(per_second, burst, name), timer=timer, counters=counters, name=name)

    def _metered(self, per_second: float, burst: int | None, name: str) -> layers.Meter:
        timer, counters = self._around.timer, self._around.counters
        meter = layers.Meter(per_second, burst, timer=timer, counters=counters, name=name, clock=self._clock)
        self.waits.meters.append(meter)
        return meter

    def _deadline(self, own: float | None) -> Layer:
        return layers.deadline(self._seconds(own), longest=self._around.bounds.call_longest, clock=self._clock)

    def _seconds(self, own: float | None) -> float:
        return self.source.deadline if own is None else own


def stacked(source: Source, ends: Ends, around: Surroundings) -> Stacked:
    """The layers that `source` is configured with. One that is off is not there."""
    return _stacked(source, ends, around, _waits(source, around))


def stacked_when_called(
    source: Source,
    ends: Callable[[], Ends],
    around: Surroundings,
    calls: dict[str, Handler],
    answers: dict[str, Handler],
) -> Stacked:
    """The same, built by the first call, which then has them in `calls` and `answers` in place of what was there.

    They take 5 KB, and of many sources most are called by nobody. Those of which somebody is told, or that somebody
    makes, are built at once.
    """
    told = around.layers or around.watches or around.recorder or source.breaker or source.cache
    if told or source.layers or source.tool:
        return stacked(source, ends(), around)
    waits = _waits(source, around)
    later = _Later(partial(_stacked_later, source, ends, around, waits), source.name, calls, answers)
    return Stacked(later.call, later.resume, waits.slots, None, waits, None)


class _Later:
    """Stacks that are not built yet."""

    __slots__ = ("_answers", "_behind", "_build", "_calls", "_name")

    def __init__(
        self, build: Callable[[], Stacked], name: str, calls: dict[str, Handler], answers: dict[str, Handler]
    ) -> None:
        self._build = build
        self._behind: Stacked | None = None
        self._name, self._calls, self._answers = name, calls, answers

    def call(self, call: Call) -> Awaitable[Outcome]:
        return self._built().call(call)

    def resume(self, call: Call) -> Awaitable[Outcome]:
        return self._built().resume(call)

    def _built(self) -> Stacked:
        if self._behind is None:
            self._behind = self._build()
            if self._calls.get(self._name) == self.call:  # else another source has the name by now
                self._calls[self._name], self._answers[self._name] = self._behind.call, self._behind.resume
        return self._behind


def _stacked_later(source: Source, ends: Callable[[], Ends], around: Surroundings, waits: layers.Waits) -> Stacked:
    return _stacked(source, ends(), around, waits)


def _waits(source: Source, around: Surroundings) -> layers.Waits:
    clock = trio.lowlevel.current_clock().current_time
    slots = layers.Slots(
        source.slots, waiting=source.queue, timer=around.timer, counters=around.counters, name=source.name
    )
    return layers.Waits(slots, layers.RetryBudget(clock=clock))


def _stacked(source: Source, ends: Ends, around: Surroundings, waits: layers.Waits) -> Stacked:
    build = _Builder(source, ends, around, waits)
    plain = build.whole(ToolSettings())
    call = plain if not source.tool else _by_tool(source, build, plain, ends)
    return Stacked(call, build.resumed(), build.slots, build.breaker, build.waits, build.cache)


def _by_tool(source: Source, build: _Builder, plain: Handler, ends: Ends) -> Handler:
    """The stack of each tool, made when it is first called, and kept for as long as it is listed."""
    known: dict[str, Handler] = {}
    room = MOST_TOOLS

    def make_room() -> None:
        """A server may rotate its tools' names for ever."""
        nonlocal room
        for public in build.forget([each for each in known if ends.own_name(each) is None]):
            del known[public]
        room = max(MOST_TOOLS, 2 * len(known))

    def choose(call: Call) -> Awaitable[Outcome]:
        public = call.name or ""
        if call.method != "tools/call":
            return plain(call)
        handler = known.get(public)
        if handler is None:
            name = ends.own_name(public)
            settings = None if name is None else source.settings_of(name)
            handler = plain if settings is None else build.whole(settings, public)
            if name is not None:
                if len(known) >= room:
                    make_room()
                known[public] = handler
        return handler(call)

    return choose
