"""Crashes at any moment, under searched schedules. The numbers are those of the contract's invariants."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Self
from unittest import mock

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.agents import Agents, Backoff, Context, Mailbox, Notice, Supervisor, open_agents
from cord_trio.agents.resident import Resident
from cord_trio.errors import AgentCrashed, AgentDown, AgentGone, RestartIntensity
from cord_trio.registry import Snapshot
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.agent_programs import no_tools
from properties.invariants import proves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

NAMES = ("a", "b", "c", "d")
STRATEGIES = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])
MAILBOXES = st.sampled_from([None, Mailbox()])
AT_ONCE = Backoff(0, 0)


class Broken(Exception):
    """What a handler raises."""


def run(main: Callable[[], Awaitable[None]], rng: Random) -> None:
    async def bounded() -> None:
        with trio.fail_after(10_000):
            await main()

    with scheduled(rng):
        trio.run(bounded, clock=MockClock(autojump_threshold=0))


class State:
    """One incarnation, which knows its number and notes when it is made, entered and left."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name
        self.crashed = False
        log.append(f"made {name}")

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self.log.append(f"+{self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.move_on_after(1, shield=True):
            await trio.lowlevel.checkpoint()
        self.log.append(f"-{self.name}")

    async def __call__(self, ctx: Context, payload: object) -> object:
        assert not self.crashed
        await trio.lowlevel.checkpoint()
        if payload == "crash":
            self.crashed = True
            raise Broken
        return payload


async def crash_for(ticks: int | None, agents: Agents, name: str) -> None:
    """As `crash`, cancelled after so many ticks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash, agents, name)
        if ticks is not None:
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel(f"after {ticks} ticks")


async def crash(agents: Agents, name: str) -> bool:
    """Whether the agent could be made to crash."""
    try:
        await agents.converse(name, "crash")
    except (Broken, AgentCrashed):
        return True
    except AgentDown:
        return False
    raise AssertionError


@proves(34)
@given(
    st.integers(0, 3),
    st.sampled_from([1.0, 3.0]),
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.sampled_from(NAMES[:2])), max_size=10),
    st.sampled_from(["fail", "stop"]),
    MAILBOXES,
    schedules(),
)
def test_invariant_34_restarts_are_bounded_and_then_there_is_one_escalation(
    most: int,
    within: float,
    crashes: list[tuple[float, str]],
    gives_up: Literal["fail", "stop"],
    mailbox: Mailbox | None,
    rng: Random,
) -> None:
    said: list[tuple[float, Notice]] = []
    failures: list[RestartIntensity] = []

    async def main() -> None:
        supervisor = Supervisor(max_restarts=most, within=within, backoff=AT_ONCE, gives_up=gives_up)
        try:
            async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
                for name in NAMES[:2]:
                    agents.add(name, partial(State, [], name), mailbox=mailbox, supervisor=supervisor)
                agents.monitors.tell = lambda notice: said.append((trio.current_time(), notice))  # type: ignore[method-assign]  # all, in order
                with agents.monitor("a"), agents.monitor("b"):
                    for pause, name in crashes:
                        await trio.sleep(pause)
                        await crash(agents, name)
                    await wait_all_tasks_blocked()
        except RestartIntensity as exc:
            failures.append(exc)

    run(main, rng)
    whats = [notice.what for _, notice in said]
    restarts = [at for at, notice in said if notice.what == "restarted"]
    causes = [notice.cause for _, notice in said if notice.what == "crashed"]
    given_up = [notice for _, notice in said if notice.what == "gave_up"]
    for first, later in zip(restarts, restarts[most:], strict=False):
        assert later - first >= within
    assert most or not restarts
    assert len(given_up) == len(failures) if gives_up == "fail" else len(given_up) <= 1 and not failures
    assert len(given_up) <= 1
    if given_up:
        assert "restarted" not in whats[whats.index("gave_up") :]
        failure = given_up[0].cause
        assert isinstance(failure, RestartIntensity)
        assert failures in ([failure], [])
        assert failure.restarts == most
        assert any(failure.__cause__ is cause for cause in causes)
    elif len(crashes) > most:  # enough of them for giving up, were they close to each other
        assert sum(what == "restarted" for what in whats) == whats.count("crashed")


@proves(35)
@given(STRATEGIES, st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), MAILBOXES, schedules())
def test_invariant_35_a_strategy_restarts_exactly_its_set_in_order(
    strategy: Any,  # noqa: ANN401  # a literal
    crashes: list[str],
    mailbox: Mailbox | None,
    rng: Random,
) -> None:
    log: list[str] = []
    rounds: list[tuple[str, list[str]]] = []

    async def main() -> None:
        supervisor = Supervisor(strategy, max_restarts=99, backoff=AT_ONCE)
        async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
            for name in NAMES:
                agents.add(name, partial(State, log, name), mailbox=mailbox, supervisor=supervisor)
            await wait_all_tasks_blocked()
            assert [line for line in log if line[0] == "+"] == [f"+{name}" for name in NAMES]
            for name in crashes:
                log.clear()
                assert await crash(agents, name)
                await wait_all_tasks_blocked()
                rounds.append((name, [line for line in log if line[0] in "+-"]))
            log.clear()
        assert [line for line in log if line[0] == "-"] == [f"-{name}" for name in reversed(NAMES)]

    run(main, rng)
    for name, seen in rounds:
        at = NAMES.index(name)
        affected = {"one_for_one": (name,), "one_for_all": NAMES, "rest_for_one": NAMES[at:]}[strategy]
        stopped = [f"-{name}", *(f"-{other}" for other in reversed(affected) if other != name)]
        assert seen == [*stopped, *(f"+{other}" for other in affected)]


@proves(36)
@given(
    STRATEGIES,
    st.lists(
        st.tuples(st.sampled_from(NAMES[:2]), st.sampled_from(["ask", "ask", "tell", "crash"])), min_size=1, max_size=8
    ),
    st.integers(1, 2),
    schedules(),
)
def test_invariant_36_the_asker_of_a_crash_is_told_and_what_is_queued_survives(
    strategy: Any,  # noqa: ANN401  # a literal
    messages: list[tuple[str, str]],
    size: int,
    rng: Random,
) -> None:
    endings: list[str] = []
    handled: list[object] = []

    class Noting(State):
        async def __call__(self, ctx: Context, payload: object) -> object:
            answer = await super().__call__(ctx, payload)
            handled.append(payload)
            return answer

    async def send(agents: Agents, number: int, name: str, how: str) -> None:
        if how == "tell":
            assert await agents.tell(name, number)
            endings.append("told")
        elif how == "crash":
            assert await crash(agents, name)
            endings.append("crashed")
        else:
            assert await agents.converse(name, number) == number
            endings.append("answered")

    async def main() -> None:
        supervisor = Supervisor(strategy, max_restarts=99, backoff=AT_ONCE)
        async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
            for name in NAMES[:2]:
                agents.add(name, partial(Noting, [], name), mailbox=Mailbox(size), supervisor=supervisor)
            async with trio.open_nursery() as nursery:
                for number, (name, how) in enumerate(messages):
                    nursery.start_soon(send, agents, number, name, how)
            await agents.wait_quiet()

    run(main, rng)
    assert len(endings) == len(messages)
    expected = [number for number, (_, how) in enumerate(messages) if how != "crash"]
    assert sorted(handled) == expected  # type: ignore[type-var]  # numbers


@attrs.frozen
class Addressed:
    """A message for one generation, or for any."""

    name: str
    generation: int
    how: str


@proves(37)
@given(
    st.lists(
        st.builds(
            Addressed,
            st.sampled_from(NAMES[:2]),
            st.integers(0, 3),
            st.sampled_from(["ask", "ask", "tell", "crash"]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["one_for_one", "one_for_all"]),
    MAILBOXES,
    schedules(),
)
def test_invariant_37_a_reference_by_generation_reaches_no_other(
    messages: list[Addressed],
    strategy: Any,  # noqa: ANN401  # a literal
    mailbox: Mailbox | None,
    rng: Random,
) -> None:
    made = dict.fromkeys(NAMES, 0)
    reached: list[Addressed] = []

    class Numbered:
        def __init__(self, name: str) -> None:
            made[name] += 1
            self.generation = made[name]

        async def __call__(self, ctx: Context, payload: Addressed) -> object:
            assert payload.generation in (0, self.generation)
            reached.append(payload)
            await trio.lowlevel.checkpoint()
            assert payload.generation in (0, self.generation)
            if payload.how == "crash":
                raise Broken
            return None

    async def send(agents: Agents, message: Addressed) -> None:
        address = f"{message.name}#{message.generation}" if message.generation else message.name
        try:
            if message.how == "tell" and mailbox is not None:
                await agents.tell(address, message)
            else:
                await agents.converse(address, message)
        except (AgentGone, Broken, AgentCrashed):
            pass

    async def main() -> None:
        supervisor = Supervisor(strategy, max_restarts=99, backoff=AT_ONCE)
        async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
            for name in NAMES[:2]:
                agents.add(name, partial(Numbered, name), mailbox=mailbox, supervisor=supervisor)
            async with trio.open_nursery() as nursery:
                for message in messages:
                    nursery.start_soon(send, agents, message)
            await agents.wait_quiet()

    run(main, rng)
    if not any(message.how == "crash" for message in messages):  # then those of the first are reached
        assert len(reached) == sum(message.generation <= 1 for message in messages)
    assert len(reached) >= sum(message.generation == 0 for message in messages)


@proves(38)
@given(
    STRATEGIES,
    st.sampled_from([0.0, 0.3, 2.0]),
    st.lists(st.sampled_from(NAMES[:3]), max_size=5),
    st.integers(0, 20),
    st.lists(st.integers(0, 25), max_size=5),
    MAILBOXES,
    schedules(),
)
def test_invariant_38_nothing_is_made_anew_while_it_drains(
    strategy: Any,  # noqa: ANN401  # a literal
    pause: float,
    crashes: list[str],
    ticks: int,
    cancels: list[int],
    mailbox: Mailbox | None,
    rng: Random,
) -> None:
    """Whoever makes an agent crash may be cancelled after so many ticks, before the drain or after it."""
    log: list[str] = []
    start = Resident.start

    async def noted(resident: Resident) -> None:
        log.append(f"start {resident.agent.name}")
        await start(resident)

    async def main() -> None:
        supervisor = Supervisor(strategy, max_restarts=99, backoff=Backoff(pause, pause))
        async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
            for name in NAMES[:3]:
                agents.add(name, partial(State, log, name), mailbox=mailbox, supervisor=supervisor)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                for name, cancel in zip_longest(crashes, cancels[: len(crashes)]):
                    nursery.start_soon(crash_for, cancel, agents, name)
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                agents.draining.set()
                log.append("drains")
            await wait_all_tasks_blocked()
            for name in NAMES[:3]:  # what has not crashed still answers what was accepted
                try:
                    assert await agents.converse(name, 1) == 1
                except AgentDown:
                    assert name in crashes or strategy != "one_for_one"

    with mock.patch.object(Resident, "start", noted):
        run(main, rng)
    # One that was being made at that moment is finished, no other is begun.
    before, after = log[: log.index("drains")], log[log.index("drains") :]
    assert not any(line.startswith("start") for line in after)
    under_way = sum(line.startswith("start") for line in before) - sum(line.startswith("made") for line in before)
    assert sum(line.startswith("made") for line in after) <= under_way <= 1


@proves(34, 35)
@given(
    st.tuples(STRATEGIES, STRATEGIES),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([0.0, 0.0, 0.4])), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.5]),
    MAILBOXES,
    schedules(),
)
def test_invariant_34_35_in_a_tree_of_supervisors_each_agent_lives_once_or_is_down(
    strategies: tuple[Any, Any],
    most: tuple[int, int],
    crashes: list[tuple[str, float]],
    pause: float,
    mailbox: Mailbox | None,
    rng: Random,
) -> None:
    log: list[str] = []

    async def main() -> None:
        backoff = Backoff(pause, pause)
        above = Supervisor(strategies[0], max_restarts=most[0], backoff=backoff, gives_up="stop")
        below = Supervisor(strategies[1], max_restarts=most[1], backoff=backoff, parent=above)
        async with open_agents(no_tools, Snapshot, rng=Random(0)) as agents:
            for name, supervisor in zip(NAMES, (above, below, below, above), strict=True):
                agents.add(name, partial(State, log, name), mailbox=mailbox, supervisor=supervisor)
            async with trio.open_nursery() as nursery:
                for name, after in crashes:
                    await trio.sleep(after)
                    nursery.start_soon(crash, agents, name)
            for name in NAMES:
                try:
                    assert await agents.converse(name, 1) == 1
                except AgentDown:
                    assert agents.counters["agents.gave_up"]
            assert agents.counters["agents.gave_up"] <= most[0] + 2

    run(main, rng)
    for name in NAMES:
        lives = [line[0] for line in log if line in (f"+{name}", f"-{name}")]
        assert lives == ["+", "-"] * (len(lives) // 2)
