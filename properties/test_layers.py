"""Layers under searched schedules: permits return to zero, bounds hold, nothing unsafe is sent twice."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome, stack
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CallFailed, ConnectionLost, DeadlineExceeded, Overloaded, Refused, SourceDown
from cord_trio.layers import (
    Allowance,
    Breaker,
    Cache,
    RetryBudget,
    Slots,
    Times,
    adapt,
    attempt,
    breaker,
    budget,
    cache,
    deadline,
    hedge,
    limit,
    rate,
    retry,
    shed,
)
from cord_trio.protocol.mcp import Annotations
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Handler, Layer

DONE = Complete(Raw(b"{}"))


@attrs.frozen
class Ask:
    """One call: when it comes, how long it runs, its deadline from then, when it is cancelled, whether it fails."""

    at: float
    runs: float
    within: float
    patience: float
    fails: bool


ASKS = st.lists(
    st.builds(
        Ask,
        at=st.sampled_from([0, 0, 0, 1, 2]),
        runs=st.sampled_from([0, 1, 2]),
        within=st.sampled_from([math.inf, math.inf, 0, 1, 2]),
        patience=st.sampled_from([math.inf, math.inf, 0, 0.5, 1.5]),
        fails=st.booleans(),
    ),
    min_size=2,
    max_size=10,
)


def play(
    asks: list[Ask],
    rng: Random,
    build: Callable[[Timer, Handler], Handler],
    handler: Handler,
    at_rest: Callable[[], None],
    ended: Callable[[set[int]], None] = lambda _: None,
) -> list[list[str]]:
    """How each of `asks` ended under the schedule of `rng`. Anything that hangs is an error.

    `ended` is called as soon as one has, with those that are under way.
    """
    endings: list[list[str]] = [[] for _ in asks]
    under_way: set[int] = set()

    async def ask(layered: Handler, number: int) -> None:
        plan = asks[number]
        await trio.sleep(plan.at)
        under_way.add(number)
        with trio.move_on_after(plan.patience) as scope:
            call = Call("tools/call", str(number), deadline=trio.current_time() + plan.within)
            try:
                await layered(call)
                endings[number].append("answered")
            except (CallError, ValueError) as exc:
                endings[number].append(type(exc).__name__)
        if scope.cancelled_caught:
            endings[number].append("cancelled")
        under_way.remove(number)
        ended(under_way)

    async def main() -> None:
        timer = Timer()
        layered = build(timer, handler)
        with trio.fail_after(10_000):
            async with trio.open_nursery() as background:
                await background.start(timer.run)
                async with trio.open_nursery() as callers:
                    for number in range(len(asks)):
                        callers.start_soon(ask, layered, number)
                await wait_all_tasks_blocked()
                at_rest()
                assert len(timer) == 0
                background.cancel_scope.cancel("the program is over")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert all(len(ending) == 1 for ending in endings)
    return endings


@proves(8, 28, "layers.rest", "layers.shed")
@given(ASKS, st.integers(1, 3), st.integers(0, 4), schedules())
def test_slots_are_never_exceeded_and_never_lost(asks: list[Ask], size: int, waiting: int, rng: Random) -> None:
    inside: set[str | None] = set()
    gates: list[Slots] = []
    started: list[str | None] = []

    async def handler(call: Call) -> Outcome:
        inside.add(call.name)
        started.append(call.name)
        assert len(inside) <= size
        assert gates[0].taken >= len(inside)
        assert gates[0].waiting <= waiting
        try:
            await trio.sleep(asks[int(call.name or "")].runs)
            if asks[int(call.name or "")].fails:
                raise ValueError("mine")
        finally:
            inside.remove(call.name)
        return DONE

    def build(timer: Timer, handler: Handler) -> Handler:
        gates.append(Slots(size, waiting=waiting, timer=timer, counters=Counters(), name="web"))
        return limit(gates[0], timer=timer, counters=Counters(), name="web")(handler)

    def at_rest() -> None:
        assert (gates[0].taken, gates[0].waiting) == (0, 0)

    def ended(under_way: set[int]) -> None:
        assert gates[0].taken + gates[0].waiting <= len(under_way)  # 28: also of a cancelled one, at once

    endings = play(asks, rng, build, handler, at_rest, ended)
    for number, (ending,) in enumerate(endings):
        if ending in ("Overloaded", "DeadlineExceeded"):
            assert str(number) not in started


@given(st.integers(1, 8), schedules())
def test_slots_are_given_in_the_order_they_were_asked_for(count: int, rng: Random) -> None:
    asked: list[int] = []
    given_: list[int] = []

    async def main() -> None:
        gate = Slots(1, timer=Timer(), counters=Counters(), name="web")

        async def one(number: int) -> None:
            asked.append(number)
            if gate.taken < gate.size:
                gate.taken += 1
            else:
                await gate.wait(math.inf)
            given_.append(number)
            await trio.lowlevel.checkpoint()
            gate.release()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)

    with scheduled(rng):
        trio.run(main)
    assert given_ == asked


@given(ASKS, st.sampled_from([0.5, 1.0, 4.0]), st.integers(1, 3), st.sampled_from([None, 3.0]), schedules())
def test_no_window_sees_more_calls_than_the_rate_allows(
    asks: list[Ask], per_second: float, burst: int, pause: float | None, rng: Random
) -> None:
    times: list[float] = []
    pauses: list[tuple[float, float]] = []

    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        now = trio.current_time()
        assert now <= call.deadline
        assert not any(begun < now < until - 1e-6 for begun, until in pauses)
        times.append(now)
        if asks[int(call.name or "")].fails and pause is not None:
            pauses.append((now, now + pause))
            raise Refused("busy", retry_after=pause)
        return DONE

    def build(timer: Timer, handler: Handler) -> Handler:
        return rate(per_second, burst, timer=timer, counters=Counters(), name="web")(handler)

    endings = play(asks, rng, build, handler, lambda: None)
    for first, begun in enumerate(times):
        for count, ended in enumerate(times[first:], 1):
            assert count <= burst + (ended - begun) * per_second + 1e-6
    if pause is None:
        assert all(ending in ("answered", "Overloaded", "TooLate", "cancelled") for (ending,) in endings)


@given(st.lists(st.sampled_from([0, 0, 0.5, 1]), min_size=2, max_size=8), st.integers(1, 2), schedules())
def test_calls_go_in_the_order_in_which_they_came(arrivals: list[float], burst: int, rng: Random) -> None:
    came: list[str | None] = []
    went: list[str | None] = []

    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        went.append(call.name)
        return DONE

    def build(timer: Timer, handler: Handler) -> Handler:
        metered = rate(2, burst, timer=timer, counters=Counters(), name="web")(handler)

        def noted(call: Call) -> Awaitable[Outcome]:
            came.append(call.name)
            return metered(call)

        return noted

    play([Ask(at, 0, math.inf, math.inf, False) for at in arrivals], rng, build, handler, lambda: None)
    assert went == came


FAILURES: dict[str, Callable[[], Exception]] = {
    "not written": lambda: ConnectionLost("before", "no"),
    "lost": lambda: ConnectionLost("after"),
    "refused": lambda: Refused("busy"),
    "told to wait": lambda: Refused("busy", retry_after=1.5),
    "attempt timed out": lambda: DeadlineExceeded("attempt"),
    "full": lambda: Overloaded("web.waiting", 1),
    "answered": lambda: CallFailed(-32603, "no"),
}
SAFE = {"not written", "refused", "told to wait", "full"}
METHODS = st.sampled_from(["tools/call", "tools/list", "resources/read", "logging/setLevel"])
HINTS = st.builds(Annotations, read_only_hint=st.booleans(), idempotent_hint=st.booleans()) | st.none()


@proves("layers.attempts", "layers.once")
@given(
    st.lists(st.sampled_from(sorted(FAILURES)), max_size=6),
    METHODS,
    HINTS,
    st.booleans(),
    st.integers(1, 4),
    st.sampled_from([math.inf, 1.0, 0.1, 0.0]),
    st.integers(0, 3),
)
def test_a_call_that_may_have_run_is_repeated_only_where_that_is_safe(
    failures: list[str],
    method: str,
    hints: Annotations | None,
    trusted: bool,
    most: int,
    within: float,
    reserve: int,
) -> None:
    attempts: list[int] = []
    endings: list[str] = []
    safe = method in ("tools/list", "resources/read") or bool(
        method == "tools/call" and trusted and hints and (hints.read_only_hint or hints.idempotent_hint)
    )
    raised: list[CallError] = []

    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        assert call.attempt == 1 or trio.current_time() < call.deadline
        attempts.append(call.attempt)
        ending = failures[len(attempts) - 1] if len(attempts) <= len(failures) else "done"
        endings.append(ending)
        if ending != "done":
            raise FAILURES[ending]()
        return DONE

    async def main() -> None:
        timer = Timer()
        budget = RetryBudget(reserve=reserve, ratio=0)
        layer = retry(
            most,
            budget=budget,
            rng=Random(0),
            timer=timer,
            counters=Counters(),
            trusted=trusted,
            annotations=lambda _: hints,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(timer.run)
            try:
                await layer(handler)(Call(method, "web__get", deadline=trio.current_time() + within))
            except CallError as exc:
                raised.append(exc)
            assert len(timer) == 0
            nursery.cancel_scope.cancel("the program is over")

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) <= min(most, reserve + 1)
    for ending in endings[:-1]:
        assert ending in SAFE or (safe and ending != "answered")
    assert bool(raised) == (endings[-1] != "done")
    if raised and not SAFE.issuperset(endings):
        assert raised[0].executed != "no"


@proves(45)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, 2.0, 11.0]), st.booleans()), max_size=60), st.sampled_from([0.1, 0.5])
)
def test_retries_stay_within_the_budget_in_every_window(steps: list[tuple[float, bool]], ratio: float) -> None:
    now = 0.0
    budget = RetryBudget(reserve=3, ratio=ratio, window=10, clock=lambda: now)
    first: list[float] = []
    again: list[float] = []
    for pause, retries in steps:
        now += pause
        if retries:
            if budget.withdraw():
                again.append(now)
        else:
            budget.deposit()
            first.append(now)
    for end in again:
        retried = sum(end - 9 < moment <= end for moment in again)
        called = sum(end - 10 < moment <= end for moment in first)
        assert retried <= 3 + ratio * called + 1e-9


ENDS = st.lists(st.sampled_from(["answered", "refused", "lost", "not written"]), min_size=10, max_size=10)


def standard(gate: Slots, account: Allowance, reserve: int, timer: Timer, counters: Counters) -> list[Layer]:
    """All layers around one source, the outermost first."""
    return [
        deadline(20),
        budget(account),
        shed(gate, Times(), most=2, counters=counters, name="web"),
        retry(budget=RetryBudget(reserve=reserve, ratio=0.2), rng=Random(0), timer=timer, counters=counters),
        rate(5, timer=timer, counters=counters, name="web"),
        limit(gate, timer=timer, counters=counters, name="web"),
        adapt(gate, most=2, counters=counters),
        attempt(100),
    ]


@proves(1, 45, "layers.rest", "layers.attempts", "layers.once", "layers.shed")
@given(ASKS, ENDS, st.integers(0, 3), schedules())
def test_all_layers_together_end_every_call_once_and_leave_nothing(
    asks: list[Ask], ends: list[str], reserve: int, rng: Random
) -> None:
    gates: list[Slots] = []
    accounts: list[Allowance] = []
    inside = 0
    starts: dict[int, list[str]] = {number: [] for number in range(len(asks))}

    async def handler(call: Call) -> Outcome:
        nonlocal inside
        number = int(call.name or "")
        plan = asks[number]
        assert trio.current_time() <= call.deadline
        end = ends[(number + call.attempt) % len(ends)] if plan.fails else "answered"
        starts[number].append(end)
        assert len(starts[number]) <= call.attempt  # one that was shed did not come here
        inside += 1
        assert inside <= 2
        try:
            await trio.sleep(plan.runs)
        finally:
            inside -= 1
        match end:
            case "refused":
                raise Refused("busy", retry_after=0.5)
            case "lost" | "not written":
                raise ConnectionLost(end, "unknown" if end == "lost" else "no")
        return DONE

    def build(timer: Timer, handler: Handler) -> Handler:
        counters = Counters()
        gates.append(Slots(2, waiting=3, timer=timer, counters=counters, name="web"))
        accounts.append(Allowance(every=1000, counters=counters, name="web"))
        return stack(handler, *standard(gates[0], accounts[0], reserve, timer, counters))

    def at_rest() -> None:
        account = accounts[0]
        assert (gates[0].taken, gates[0].waiting, account.reserved_calls, account.reserved_bytes) == (0, 0, 0, 0)
        assert account.spent_calls <= len(asks)

    def ended(under_way: set[int]) -> None:
        assert gates[0].taken + gates[0].waiting <= len(under_way)

    endings = play(asks, rng, build, handler, at_rest, ended)
    for number, (ending,) in enumerate(endings):
        attempts = starts[number]
        assert len(attempts) <= 3
        assert "lost" not in attempts[:-1], "one that may have run was sent again"
        assert ending not in ("answered", "cancelled") or "answered" not in attempts[:-1]
        if ending == "Overloaded":
            assert "answered" not in attempts
    again = sum(max(0, len(attempts) - 1) for attempts in starts.values())
    if all(plan.at == 0 and plan.runs == 0 for plan in asks):  # then all is over within one window
        assert again <= reserve + 0.2 * len(asks)  # 45


@proves("layers.pass")
@given(ASKS, ENDS, st.integers(0, 8), schedules())
def test_a_layer_that_passes_on_changes_no_outcome(asks: list[Ask], ends: list[str], place: int, rng: Random) -> None:
    """Wherever it is put among the others."""

    async def handler(call: Call) -> Outcome:
        plan = asks[int(call.name or "")]
        await trio.sleep(plan.runs)
        match ends[(int(call.name or "") + call.attempt) % len(ends)] if plan.fails else "answered":
            case "refused":
                raise Refused("busy", retry_after=0.5)
            case "lost":
                raise ConnectionLost("lost")
            case "not written":
                raise ConnectionLost("not written", "no")
        return DONE

    def through(handler: Handler) -> Handler:
        def passed(call: Call) -> Awaitable[Outcome]:
            return handler(call)

        return passed

    def build(timer: Timer, handler: Handler, *, place: int | None = None) -> Handler:
        gate = Slots(2, waiting=3, timer=timer, counters=Counters(), name="web")
        every = standard(gate, Allowance(every=1000, counters=Counters(), name="web"), 2, timer, Counters())
        if place is not None:
            every.insert(place % (len(every) + 1), through)
        return stack(handler, *every)

    seed = rng.randrange(1000)
    plain = play(asks, Random(seed), build, handler, lambda: None)
    assert play(asks, Random(seed), partial(build, place=place), handler, lambda: None) == plain


SECONDS = st.sampled_from([0.0, 1.0, 5.0, 60.0, math.inf])


@proves(6)
@given(st.floats(0, 100), SECONDS, SECONDS, SECONDS)
def test_6_a_deadline_is_never_later_than_it_was_nor_is_the_latest_that_progress_may_move_it_to(
    now: float, inherited: float, seconds: float, longest: float
) -> None:
    seen: list[Call] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        seen.append(call)
        return DONE

    call = Call("tools/call", "x", deadline=now + inherited, latest=now + inherited)
    trio.run(deadline(seconds, longest=longest, clock=lambda: now)(handler), call)
    [got] = seen
    assert got.deadline == now + min(inherited, seconds)
    assert got.latest <= call.latest
    if got.patience:
        assert got.latest <= now + longest


@proves(45, "layers.breaker")
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 9.0, 40.0]), st.sampled_from([0, 1, 2]), st.booleans()), max_size=20),
    st.integers(1, 3), st.sampled_from([math.inf, 0.5, 1.5]), schedules(),
)  # fmt: skip
def test_invariant_45_an_open_source_sees_no_call_but_the_probe(
    plan: list[tuple[float, int, bool]], failures: int, patience: float, rng: Random
) -> None:
    """Calls come, some are given up, and the source is sick or well from one moment to the next."""
    sick = False
    probing = 0
    states: list[str] = []
    circuit: Breaker

    def note() -> None:
        if not states or states[-1] != circuit.state:
            states.append(circuit.state)

    async def probe() -> None:
        nonlocal probing
        note()
        assert circuit.state == "half-open"
        probing += 1
        assert probing == 1
        try:
            await trio.sleep(1)
            if sick:
                raise ConnectionLost("probe")
        finally:
            probing -= 1

    async def handler(call: Call) -> Outcome:
        note()
        assert circuit.state == "closed"
        await trio.sleep(1)
        if sick:
            raise ConnectionLost("gone")
        return DONE

    async def ask(layered: Handler) -> None:
        with trio.move_on_after(patience):
            try:
                await layered(Call("tools/call"))
            except (ConnectionLost, SourceDown):
                pass
        note()

    async def main() -> None:
        nonlocal sick, circuit
        circuit = Breaker(failures, probe=probe, rng=Random(0), counters=Counters(), name="x", seconds=5.0)
        layered = breaker(circuit)(handler)
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for pause, calls, turns in plan:
                    await trio.sleep(pause)
                    sick = sick is not turns
                    note()
                    for _ in range(calls):
                        nursery.start_soon(ask, layered)
        note()

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    legal = {("closed", "open"), ("open", "half-open"), ("half-open", "open"), ("half-open", "closed")}
    assert set(pairwise(states)) <= legal
    assert circuit.state != "half-open"


@proves("layers.limit", "layers.rest", "layers.shed")
@given(ASKS, st.lists(st.sampled_from(["busy", "late", "lost", "unsent"]), min_size=3, max_size=3), schedules())
def test_slots_that_adapt_stay_in_bounds_and_fall_only_after_a_sign_of_overload(
    asks: list[Ask], failures: list[str], rng: Random
) -> None:
    gates: list[Slots] = []
    counters = Counters()
    signs = inside = 0
    started: set[str | None] = set()

    async def handler(call: Call) -> Outcome:
        nonlocal signs, inside
        number = int(call.name or "")
        started.add(call.name)
        inside += 1
        assert inside <= 4
        try:
            await trio.sleep(asks[number].runs)
        finally:
            inside -= 1
        if not asks[number].fails:
            return DONE
        match failures[number % 3]:
            case "busy":
                signs += 1
                raise Refused("busy")
            case "late":
                signs += 1
                raise DeadlineExceeded("attempt")
            case "lost":
                raise ConnectionLost("gone")
        raise DeadlineExceeded("queue", "no")

    def build(timer: Timer, handler: Handler) -> Handler:
        gate = Slots(2, timer=timer, counters=counters, name="web")
        gates.append(gate)
        return stack(
            handler,
            shed(gate, Times(), most=3, counters=counters, name="web"),
            limit(gate, timer=timer, counters=counters, name="web"),
            adapt(gate, most=4, counters=counters),
        )

    def at_rest() -> None:
        assert (gates[0].taken, gates[0].waiting) == (0, 0)

    def ended(under_way: set[int]) -> None:
        assert 1 <= gates[0].size <= 4
        assert counters["adapt.fewer"] <= signs
        assert gates[0].size >= 2 - counters["adapt.fewer"] * 2
        assert gates[0].waiting == 0 or gates[0].taken >= gates[0].size  # nobody waits while one is free
        if not signs:
            assert gates[0].size >= 2

    endings = play(asks, rng, build, handler, at_rest, ended)
    for number, (ending,) in enumerate(endings):
        if ending == "Overloaded":
            assert str(number) not in started


@proves("layers.rest")
@given(
    ASKS, st.integers(0, 6), st.lists(st.sampled_from(["no", "unknown", "yes"]), min_size=2, max_size=2), schedules()
)
def test_what_may_have_run_is_spent_once_within_the_budget_and_nothing_stays_reserved(
    asks: list[Ask], most: int, ran: list[str], rng: Random
) -> None:
    accounts: list[Allowance] = []
    spent = 0

    async def handler(call: Call) -> Outcome:
        nonlocal spent
        number = int(call.name or "")
        account = accounts[0]
        assert account.spent_calls + account.reserved_calls <= most
        executed = ran[number % 2] if asks[number].fails else "yes"
        costs = 1
        try:
            await trio.sleep(asks[number].runs)
            costs = int(executed != "no")
        finally:
            spent += costs
        if asks[number].fails:
            raise CallError("failed", executed)  # type: ignore[arg-type]  # one of the three
        return DONE

    def build(timer: Timer, handler: Handler) -> Handler:
        accounts.append(Allowance(most, every=1000, counters=Counters(), name="web"))
        return budget(accounts[0])(handler)

    def at_rest() -> None:
        assert (accounts[0].reserved_calls, accounts[0].reserved_bytes) == (0, 0)
        assert accounts[0].spent_calls == spent <= most

    play(asks, rng, build, handler, at_rest)


@proves(1, "layers.flight")
@given(ASKS, st.integers(1, 3), st.booleans(), schedules())
def test_equal_calls_are_one_and_nobody_ends_with_another(
    asks: list[Ask], kinds: int, lives: bool, rng: Random
) -> None:
    caches: list[Cache] = []
    inside: set[str] = set()
    runs: dict[str, list[Outcome]] = {}
    got: list[tuple[str, Outcome]] = []
    late = False

    async def handler(call: Call) -> Outcome:
        nonlocal late
        kind = call.name or ""
        assert kind not in inside, "the same is asked twice at once"
        inside.add(kind)
        try:
            plan = asks[int(kind)]
            if trio.current_time() + plan.runs >= call.deadline:
                await trio.sleep_until(call.deadline)
                raise DeadlineExceeded("late")
            await trio.sleep(plan.runs)
        finally:
            inside.remove(kind)
        if plan.fails:
            raise ConnectionLost("gone")
        outcome = Complete(Raw(b'{"run":%d,"ttlMs":%d}' % (len(runs.get(kind, [])), 1000 if lives else 0)))
        runs.setdefault(kind, []).append(outcome)
        return outcome

    def build(timer: Timer, handler: Handler) -> Handler:
        counters = Counters()
        caches.append(Cache(entries=2, counters=counters))
        around = cache(
            caches[0], seconds=100, reads=lambda _: True, fails=lambda _: False, timer=timer, counters=counters
        )
        cached = around(handler)

        async def asked(call: Call) -> Outcome:
            kind = str(int(call.name or "") % min(kinds, len(asks)))
            outcome = await cached(Call("resources/read", kind, deadline=call.deadline))
            got.append((kind, outcome))
            return outcome

        return asked

    def at_rest() -> None:
        assert not caches[0].flights
        assert len(caches[0]) <= 2

    endings = play(asks, rng, build, handler, at_rest)
    for number, (ending,) in enumerate(endings):
        plan, runs_by = asks[number], asks[number % min(kinds, len(asks))]
        if ending == "ConnectionLost":
            assert runs_by.fails
        if ending == "DeadlineExceeded":
            assert plan.within != math.inf  # it was its own
        if ending == "cancelled":
            assert plan.patience != math.inf
    for kind, outcome in got:
        assert isinstance(outcome, Complete)
        head = bytes(outcome.result).split(b",")[0]
        assert any(bytes(each.result).startswith(head) for each in runs[kind] if isinstance(each, Complete))


@proves("layers.hedge")
@given(ASKS, st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4), schedules())
def test_two_hedged_attempts_yield_one_response_and_leave_nothing(
    asks: list[Ask], seconds: list[float], rng: Random
) -> None:
    starts: dict[str, int] = {}
    open_: dict[str, int] = {}
    cancels: dict[str, int] = {}
    answers: dict[str, list[Outcome]] = {}
    warming = 2

    async def handler(call: Call) -> Outcome:
        name = call.park or "warm"
        if name == "warm":
            await trio.sleep(0.5)
            return DONE
        number = int(name)
        copy = starts.get(name, 0)
        starts[name] = copy + 1
        assert starts[name] <= 2
        open_[name] = open_.get(name, 0) + 1
        try:
            await trio.sleep(seconds[(number + copy) % 4])
        except trio.Cancelled:
            cancels[name] = cancels.get(name, 0) + 1
            raise
        finally:
            open_[name] -= 1
        if asks[number].fails and copy == 0:
            raise ConnectionLost("gone")
        answers.setdefault(name, []).append(outcome := Complete(Raw(b"%d" % copy)))
        return outcome

    def build(timer: Timer, handler: Handler) -> Handler:
        layer = hedge(may=lambda _: True, budget=RetryBudget(reserve=4, ratio=0), counters=Counters(), samples=warming)
        hedged = layer(handler)

        async def asked(call: Call) -> Outcome:
            name = call.name or ""
            for _ in range(warming):
                await hedged(Call("tools/call", "same"))
            outcome = await hedged(Call("tools/call", "same", park=name))
            assert outcome in answers[name]
            assert not open_[name]  # the other one is gone before its answer is given
            return outcome

        return asked

    def at_rest() -> None:
        assert not any(open_.values())
        assert sum(count == 2 for count in starts.values()) <= 2  # half of four

    endings = play(asks, rng, build, handler, at_rest)
    for number, (ending,) in enumerate(endings):
        assert ending in ("answered", "ConnectionLost", "cancelled")
        assert cancels.get(str(number), 0) <= (2 if ending == "cancelled" else 1)
