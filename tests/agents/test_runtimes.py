"""What users of other agent runtimes met, and how it is here: a test for each complaint, with where it was met."""

from __future__ import annotations

import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import cord_trio as cord
from cord_trio.agents import Agents, Budget, Context, Mailbox, Step, last
from cord_trio.errors import AgentCrashed, AgentDown, BudgetExceeded, CallCycle, HandoffRefused, Overloaded
from cord_trio.registry import Snapshot
from cord_trio.testing import ToolServer
from tests.agents.world import at_rest, echo, hang, no_tools, quick, world

if TYPE_CHECKING:
    from types import TracebackType

    from trio.testing import MockClock


class Broken(Exception):
    """What a handler raises."""


async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
    raise Broken


class Scoped:
    """A state with a cancel scope of its own, which must be left in the task that entered it."""

    def __init__(self, tasks: list[trio.lowlevel.Task]) -> None:
        self.tasks = tasks
        self.scope = trio.CancelScope()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self.tasks.append(trio.lowlevel.current_task())
        self.scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tasks.append(trio.lowlevel.current_task())
        self.scope.__exit__(None, None, None)

    async def __call__(self, ctx: Context, payload: object) -> object:
        if payload == "crash":
            raise Broken
        await trio.lowlevel.checkpoint()
        return payload


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_teardown_happens_in_the_task_that_set_up_whoever_asks_and_whoever_ends(mailbox: Mailbox | None) -> None:
    """openai-agents-python#1393, #2005; adk-python#2196, #5729; pydantic-ai#2818; mcp-agent#35."""
    tasks: list[trio.lowlevel.Task] = []
    async with world() as agents:
        agents.add("scoped", partial(Scoped, tasks), mailbox=mailbox, supervisor=quick())
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(agents.converse, "scoped", number)
        with pytest.raises((Broken, AgentCrashed)):
            await agents.converse("scoped", "crash")
        await agents.converse("scoped", 1)
        await agents.remove("scoped")
        assert len(tasks) == 4
    assert tasks[0] is tasks[1]
    assert tasks[2] is tasks[3]


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_a_crash_reaches_the_asker_and_who_watches(mailbox: Mailbox | None) -> None:
    """autogen#5716."""
    async with world() as agents:
        agents.add("fails", fails, mailbox=mailbox)
        with agents.monitor("fails") as notices:
            with pytest.raises((Broken, AgentCrashed)):
                await agents.converse("fails", None)
            notice = await anext(notices)
    assert (notice.what, type(notice.cause)) == ("crashed", Broken)


async def test_a_failed_transfer_is_an_error_and_no_success() -> None:
    """adk-python#1206."""

    async def transfers(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("nobody", payload)

    agents = Agents(no_tools, Snapshot)
    agents.add("transfers", transfers)
    with pytest.raises(HandoffRefused):
        await agents.converse("transfers", None)


async def test_stopping_settles_everyone_who_waits(autojump_clock: MockClock) -> None:
    """autogen#7963."""
    errors: list[Exception] = []

    async def ask() -> None:
        try:
            await agents.converse("hang", None)
        except AgentDown as exc:
            errors.append(exc)

    async with trio.open_nursery() as outside:
        async with world() as agents:
            agents.add("hang", hang, mailbox=Mailbox(2), grace=1)
            for _ in range(5):
                outside.start_soon(ask)
            await wait_all_tasks_blocked()
    assert len(errors) == 5
    assert trio.current_time() == 1


async def test_after_a_dropped_message_draining_still_ends() -> None:
    """autogen-core 0.7.5: `stop_when_idle` never returns after a message was dropped."""
    async with cord.open_fabric() as fabric:
        gate = trio.Event()

        async def waits(ctx: Context, payload: object) -> None:
            await gate.wait()

        fabric.agent("waits", waits, mailbox=Mailbox(1, full="drop_newest"))
        assert [await fabric.tell("waits", number) for number in range(2)].count(True) >= 1
        await wait_all_tasks_blocked()
        assert not all([await fabric.tell("waits", number) for number in range(2)])
        gate.set()
        assert await fabric.drain(5)


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_cancelled_work_has_ended_when_the_asker_goes_on(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    """langgraph#5682; adk-python#6564, #7202; autogen-core 0.7.5."""
    running = 0

    async def works(ctx: Context, payload: object) -> object:
        nonlocal running
        running += 1
        try:
            if ctx.agent.name == "works":
                await ctx.ask("below")
            await trio.sleep_forever()
        finally:
            running -= 1

    async with world() as agents:
        agents.add("works", works, mailbox=mailbox)
        agents.add("below", works, mailbox=mailbox)
        async with trio.open_nursery() as nursery:  # an explicit cancel: a deadline would go along by itself
            nursery.start_soon(agents.converse, "works", None)
            await trio.sleep(1)
            assert running == 2
            nursery.cancel_scope.cancel("the asker leaves")
        assert running == 0
        assert trio.current_time() == 1
        assert at_rest(agents)


async def test_work_that_was_started_outlives_its_client_and_can_be_found_again() -> None:
    """a2a-python#440, #472."""
    async with world() as agents:
        agents.add("echo", echo)
        ids: list[str] = []

        async def client() -> None:
            ids.append((await agents.jobs.start("echo", "kept")).id)

        with trio.CancelScope() as connection:
            await client()
            connection.cancel("the client leaves")
        assert await agents.jobs.attach(ids[0]).result() == "kept"


async def test_long_work_is_not_dispatched_again(autojump_clock: MockClock) -> None:
    """langgraph#7417, of an agent."""
    runs: list[object] = []

    async def long(ctx: Context, payload: object) -> None:
        runs.append(payload)
        await trio.sleep(3600)

    async with world() as agents:
        agents.add("long", long, mailbox=Mailbox())
        job = await agents.jobs.start("long", 1)
        for _ in range(5):
            await trio.sleep(180)
            assert await agents.jobs.resume() == []
        await job.wait()
    assert runs == [1]


async def test_a_handoff_hands_on_exactly_what_is_kept_once() -> None:
    """agent-framework#4053; semantic-kernel#12756; livekit/agents#5150; langgraph#5277."""
    seen: list[tuple[Step, ...]] = []

    async def giver(ctx: Context, payload: int) -> object:  # noqa: ASYNC124  # async by contract
        if payload < 3:
            return ctx.handoff("giver", payload + 1)
        return ctx.handoff("taker", "last", keep=last(2))

    async def taker(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.transcript)
        return payload

    agents = Agents(no_tools, Snapshot)
    agents.add("giver", giver)
    agents.add("taker", taker)
    assert await agents.converse("giver", 1) == "last"
    assert seen == [(Step("giver", 2), Step("giver", 3))]


async def test_of_two_handoffs_made_in_one_turn_the_one_that_is_returned_happens() -> None:
    """openai-agents-js#1122."""
    seen: list[object] = []

    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        ctx.handoff("taker", "first")
        return ctx.handoff("taker", "second")

    async def taker(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        seen.append(payload)
        return payload

    agents = Agents(no_tools, Snapshot)
    agents.add("giver", giver)
    agents.add("taker", taker)
    assert await agents.converse("giver", None) == "second"
    assert seen == ["second"]


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_the_giver_has_ended_with_all_it_asked_when_the_taker_starts(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    """agent-framework PR#5136."""
    log: list[str] = []

    async def giver(ctx: Context, payload: object) -> object:
        try:
            async with ctx.open_nursery() as crew:
                crew.spawn("helper")
                return ctx.handoff("taker")
        finally:
            log.append("giver ends")

    async def helper(ctx: Context, payload: object) -> None:
        await trio.sleep(1)
        log.append("helper ends")

    async def taker(ctx: Context, payload: object) -> None:
        log.append("taker starts")
        assert not ctx.branch.children
        assert await ctx.ask("helper") is None
        assert not ctx.agent.turn.waiting

    async with world() as agents:
        for name, function in (("giver", giver), ("helper", helper), ("taker", taker)):
            agents.add(name, function, mailbox=mailbox)
        await agents.converse("giver", None)
        assert log == ["helper ends", "giver ends", "taker starts", "helper ends"]
        assert at_rest(agents)


async def test_a_tool_that_works_for_an_hour_is_called_once(autojump_clock: MockClock) -> None:
    """langgraph#7417, of a tool."""
    server = ToolServer()

    async def calls(ctx: Context, payload: object) -> object:
        return (await ctx.call("x__sleep", {"seconds": 3600})).text

    async with cord.open_fabric([server.in_process(name="x", deadline=4000)]) as fabric:
        fabric.agent("calls", calls)
        assert await fabric.ask("calls") == "slept"
    assert server.received["tools/call"] == 1
    assert trio.current_time() >= 3600


@pytest.mark.parametrize("ends", ["cancelled", "by itself"])
async def test_a_connection_belongs_to_nobody_who_calls(ends: str, autojump_clock: MockClock) -> None:
    """agent-framework#2846; pydantic-ai#2355, #4514; kagent#1276; of connections."""
    server = ToolServer()
    async with cord.open_fabric([server.in_process(name="x", start="lazy", deadline=60)]) as fabric:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.call, "x__sleep", {"seconds": 1 if ends == "by itself" else 50})
            await trio.sleep(2)
            nursery.cancel_scope.cancel("the first caller leaves")
        assert (await fabric.call("x__echo", {"text": "still there"})).text == "still there"
        assert fabric.links["x"].starts == 1


async def test_a_queue_that_nobody_empties_does_not_grow() -> None:
    """langgraph#7094, #8054; ractor#84; spawned#170."""
    async with world() as agents:
        agents.add("hang", hang, mailbox=Mailbox(8, full="fail"), grace=0)
        refused = 0
        for number in range(100):
            try:
                await agents.tell("hang", number)
            except Overloaded:
                refused += 1
        assert agents["hang"].node().facts["peak"] == 8
        assert refused >= 90
        assert agents.counters["agents.mailbox_full"] == refused


async def test_each_ask_has_the_identity_of_its_own_asker() -> None:
    """pydantic-ai#6428."""

    async def who(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return ctx.principal, await ctx.ask("below") if ctx.agent.name == "who" else None

    async with world() as agents:
        for name in ("who", "below"):
            agents.add(name, who, mailbox=Mailbox())
        answers: dict[str, object] = {}

        async def ask(name: str) -> None:
            answers[name] = await agents.converse("who", None, principal=name)

        async with trio.open_nursery() as nursery:
            for name in ("ada", "ben"):
                nursery.start_soon(ask, name)
    assert answers == {name: (name, (name, None)) for name in ("ada", "ben")}


async def test_endless_delegation_ends() -> None:
    """crewAI#330."""

    async def delegates(ctx: Context, to: str) -> object:
        await trio.lowlevel.checkpoint()
        return ctx.handoff("hands", to) if ctx.agent.name == "hands" else await ctx.ask(to, to)

    agents = Agents(no_tools, Snapshot)
    for name in ("hands", "asks"):
        agents.add(name, delegates, turn=99)
    with pytest.raises(HandoffRefused, match="16"):
        await agents.converse("hands", "hands")
    with pytest.raises(CallCycle):
        await agents.converse("asks", "asks")
    with pytest.raises(BudgetExceeded):
        await agents.ask_within(Budget(hops=3), "hands", "hands")


async def test_a_traceback_shows_few_frames_of_ours_between_asker_and_handler() -> None:
    async def asks(ctx: Context, payload: object) -> object:
        return await ctx.ask("fails", payload)

    async with cord.open_fabric() as fabric:
        fabric.agent("fails", fails)
        fabric.agent("asks", asks)
        with pytest.raises(Broken) as caught:
            await fabric.ask("asks")
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    for first, then in (("asks", "fails"), (frames[0], "asks")):
        assert frames.index(then) - frames.index(first) - 1 <= 3


async def test_a_hog_is_seen_by_who_looks_at_the_tree() -> None:
    states: list[Any] = []

    async def hogs(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        states.append(ctx.agent.node().state)

    async with world() as agents:
        agents.add("hogs", hogs, mailbox=Mailbox())
        await agents.converse("hogs", None)
        assert (states, agents["hogs"].node().state) == (["busy"], "idle")
