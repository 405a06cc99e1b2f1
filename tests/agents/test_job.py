from __future__ import annotations

import random
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Agents, Budget, Context, Mailbox, MemoryJournal, Saved, SqliteJournal, open_agents
from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import (
    AgentError,
    AgentNotFound,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    InDoubt,
    JobCancelled,
    JobNotFound,
    Overloaded,
)
from cord_trio.registry import Snapshot
from tests.agents.world import at_rest, echo, hang, world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trio.testing import MockClock

    from cord_trio.agents import Journal


STUCK: ContextVar[trio.Event] = ContextVar("STUCK")


async def stuck() -> NoReturn:
    """Say that this is where the conversation is cut off, and wait for that."""
    STUCK.get().set()
    await trio.sleep_forever()


class Broken(Exception):
    """What a handler raises."""


async def test_a_conversation_outlives_the_scope_it_was_started_in() -> None:
    async with world() as agents:
        agents.add("echo", echo)
        with trio.CancelScope() as scope:
            job = await agents.jobs.start("echo", 7)
            scope.cancel("its starter leaves")
        assert await agents.jobs.attach(job.id).result() == 7
        assert (job.state, job.agent) == ("done", "echo")
        assert await job.result() == 7
        assert [one.id for one in agents.jobs.all()] == [job.id]
    assert at_rest(agents)


async def test_a_conversation_fails_with_what_its_handler_raised() -> None:
    mine = Broken("mine")

    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise mine

    async with world() as agents:
        agents.add("fails", fails)
        job = await agents.jobs.start("fails")
        with pytest.raises(Broken) as caught:
            await job.result()
        assert caught.value is mine
        assert job.state == "failed"
        assert await agents.jobs.journal.unfinished() == ()


async def test_a_conversation_is_cancelled_with_a_reason() -> None:
    async with world() as agents:
        agents.add("hang", hang, mailbox=Mailbox())
        job = await agents.jobs.start("hang")
        await wait_all_tasks_blocked()
        job.cancel("enough")
        job.cancel("too late to be the reason")
        with pytest.raises(JobCancelled) as caught:
            await job.result()
        assert (caught.value.reason, job.state) == ("enough", "cancelled")
        await agents.jobs.wait_quiet()
        assert await agents.jobs.journal.unfinished() == ()
        assert at_rest(agents)


async def test_a_conversation_has_a_deadline_and_a_budget(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("hang", hang, turn=9)
        for options in ({"deadline": 3.0}, {"budget": Budget(seconds=3)}):
            start = trio.current_time()
            job = await agents.jobs.start("hang", **options)
            with pytest.raises(DeadlineExceeded):
                await job.result()
            assert trio.current_time() == start + 3


async def test_a_conversation_may_belong_to_a_nursery() -> None:
    async with world() as agents:
        agents.add("hang", hang)
        async with trio.open_nursery() as mine:
            job = await agents.jobs.start("hang", owner=mine)
            await wait_all_tasks_blocked()
            mine.cancel_scope.cancel("mine")
        assert job.state == "cancelled"


async def test_a_conversation_that_is_unknown_or_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.job.MAX_JOBS", 1)
    monkeypatch.setattr("cord_trio.agents.job.MAX_ENDED", 1)
    async with world() as agents:
        agents.add("echo", echo)
        agents.add("hang", hang)
        with pytest.raises(AgentNotFound):
            await agents.jobs.start("nobody")
        with pytest.raises(JobNotFound):
            agents.jobs.attach("nobody")
        first = await agents.jobs.start("echo", 1)
        await first.wait()
        await agents.jobs.wait_quiet()
        second = await agents.jobs.start("hang")
        with pytest.raises(Overloaded) as caught:
            await agents.jobs.start("echo")
        assert (caught.value.bound, caught.value.limit) == ("agents.jobs", 1)
        second.cancel("to make room")
        await agents.jobs.wait_quiet()
        assert agents.jobs.attach(second.id) is second
        with pytest.raises(JobNotFound):
            agents.jobs.attach(first.id)
        assert agents.counters["agents.results_let_go"] == 1
        agents.draining.set()
        with pytest.raises(Draining):
            await agents.jobs.start("echo")


async def test_an_agent_starts_conversations_too() -> None:
    async def boss(ctx: Context, payload: object) -> object:
        job = await ctx.start("echo", payload)
        return job.id

    async with world() as agents:
        agents.add("echo", echo)
        agents.add("boss", boss)
        id: Any = await agents.converse("boss", 5)
        assert await agents.jobs.attach(id).result() == 5


class Tools:
    """A source that counts calls, and loses those that are asked to be lost."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.calls.append(str(call.name))
        if call.name == "web__never":
            raise ConnectionLost("before it was sent", "no")
        if call.name == "web__lost":
            raise ConnectionLost("after it was sent", "unknown")
        return Complete(Raw(b'{"content":[]}'))


def journals(tmp_path: Path) -> list[Journal]:
    return [MemoryJournal(), SqliteJournal(tmp_path / "journal.sqlite")]


def fabric(tools: Tools, journal: Journal) -> AbstractAsyncContextManager[Agents]:
    return open_agents(tools, Snapshot, journal=journal)


async def cut_off(journal: Journal, script: Any, **options: Any) -> str:  # noqa: ANN401  # of a handler
    """Run `script` as a conversation until it is stuck; then the fabric ends. Returns its id."""
    STUCK.set(reached := trio.Event())
    async with fabric(Tools(), journal) as agents:
        agents.add("works", script, **options)
        agents.add("taker", script, **options)
        job = await agents.jobs.start("works", {"n": 1})
        await reached.wait()
    assert job.state == "cancelled"
    return job.id


@pytest.mark.parametrize("which", [0, 1])
async def test_a_conversation_goes_on_from_its_last_checkpoint_after_a_restart(tmp_path: Path, which: int) -> None:
    async def works(ctx: Context, payload: object) -> object:
        if ctx.restored is None:
            await ctx.call("web__get")
            await ctx.checkpoint(["got", 1])
            assert ctx.restored == ["got", 1]
            await stuck()
        return ctx.restored, payload

    journal = journals(tmp_path)[which]
    id = await cut_off(journal, works)
    tools = Tools()
    async with fabric(tools, journal) as agents:
        agents.add("works", works)
        (job,) = await agents.jobs.resume()
        assert (job.id, await job.result()) == (id, (["got", 1], {"n": 1}))
        await agents.jobs.wait_quiet()
        assert await agents.jobs.resume() == []
        assert agents.counters["agents.resumed"] == 1
    assert tools.calls == []


@pytest.mark.parametrize("which", [0, 1])
async def test_what_may_have_run_is_not_run_again_unasked(tmp_path: Path, which: int) -> None:
    async def works(ctx: Context, payload: object) -> object:
        await ctx.call("web__get")
        if len(runs) == 0:
            runs.append(None)
            await stuck()
        return "done"

    runs: list[None] = []
    journal = journals(tmp_path)[which]
    id = await cut_off(journal, works)
    tools = Tools()
    async with fabric(tools, journal) as agents:
        agents.add("works", works)
        (job,) = await agents.jobs.resume()
        assert job.state == "in_doubt"
        with pytest.raises(InDoubt) as caught:
            await agents.jobs.attach(id).result()
        assert (caught.value.id, caught.value.calls) == (id, ("web__get",))
        assert tools.calls == []
        assert agents.counters["agents.in_doubt"] == 1
        with pytest.raises(AgentError, match="one by one"):
            await agents.jobs.resume(force=True)
        with pytest.raises(JobNotFound):
            await agents.jobs.resume("nobody")
        (job,) = await agents.jobs.resume(id, force=True)
        assert await job.result() == "done"
        assert agents.jobs.attach(id) is job


@pytest.mark.parametrize(
    ("tool", "repeatable", "doubt"),
    [
        ("web__get", (), True),
        ("web__lost", (), True),
        ("web__never", (), False),
        ("web__get", ("web__*",), False),
    ],
)
async def test_only_calls_that_may_have_run_and_may_not_be_repeated_are_in_doubt(
    tool: str, repeatable: tuple[str, ...], doubt: bool
) -> None:
    async def works(ctx: Context, payload: object) -> object:
        for _ in range(2):
            try:
                await ctx.ask("taker", tool)
            except ConnectionLost:
                pass
        await stuck()

    async def either(ctx: Context, payload: object) -> object:
        if ctx.agent.name == "works":
            return await works(ctx, payload)
        return (await ctx.call(str(payload))).text

    journal = MemoryJournal()
    await cut_off(journal, either, repeatable=repeatable)
    async with fabric(Tools(), journal) as agents:
        agents.add("works", hang)
        (job,) = await agents.jobs.resume()
        assert job.state == ("in_doubt" if doubt else "running")


async def test_a_conversation_goes_on_with_whom_it_was_handed_to() -> None:
    async def works(ctx: Context, payload: object) -> object:
        if ctx.agent.name == "works":
            await ctx.call("web__get")
            await ctx.checkpoint("of the giver")
            return ctx.handoff("taker", "handed")
        assert ctx.restored is None
        if not runs:
            runs.append(None)
            await stuck()
        return payload, [(step.agent, step.payload) for step in ctx.transcript]

    runs: list[None] = []
    journal = MemoryJournal()
    await cut_off(journal, works)
    async with fabric(Tools(), journal) as agents:
        agents.add("taker", works)
        (job,) = await agents.jobs.resume()
        assert await job.result() == ("handed", [("works", {"n": 1})])


async def test_deadline_and_budget_go_on_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def works(ctx: Context, payload: object) -> object:
        ctx.budget.spend(tokens=3, money="0.25")  # type: ignore[arg-type]  # exact
        await ctx.checkpoint(None)
        await trio.sleep_forever()

    async def left(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return [str(ctx.budget.left(counter)) for counter in ("tokens", "money", "calls")]

    journal = MemoryJournal()
    async with fabric(Tools(), journal) as agents:
        agents.add("works", works)
        job = await agents.jobs.start("works", deadline=100.0, budget=Budget(tokens=10, money=1))
        await wait_all_tasks_blocked()
        # It is one of those that the fabric's end cuts off.
        assert job.saved.expires is not None
        agents.jobs.nursery.cancel_scope.cancel("a crash")
    now = time.time()
    monkeypatch.setattr("cord_trio.agents.job.time.time", lambda: now + 60)
    async with fabric(Tools(), journal) as agents:
        agents.add("works", left)
        (job,) = await agents.jobs.resume()
        assert await job.result() == ["7", "0.75", "inf"]
        assert 30 < job.deadline - trio.current_time() < 41


async def test_only_a_started_conversation_has_checkpoints() -> None:
    async def works(ctx: Context, payload: object) -> object:
        assert ctx.restored is None
        with pytest.raises(AgentError, match="checkpoints"):
            await ctx.checkpoint(1)
        return await ctx.ask("below") if ctx.agent.name == "works" else "done"

    async with world() as agents:
        agents.add("works", works)
        agents.add("below", works)
        assert await agents.converse("works", None) == "done"
        agents.add("starts", lambda ctx, _: ctx.ask("below"))
        assert await (await agents.jobs.start("starts")).result() == "done"


async def test_a_file_takes_only_json(tmp_path: Path) -> None:
    async with fabric(Tools(), SqliteJournal(tmp_path / "journal.sqlite")) as agents:
        agents.add("echo", echo)
        with pytest.raises(TypeError):
            await agents.jobs.start("echo", object())
        assert not agents.jobs.running


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    async with journal:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await journal.unfinished()


async def test_a_journal_that_fails_fails_the_conversation_and_not_the_fabric() -> None:
    class Full(MemoryJournal):
        async def forget(self, id: str) -> None:
            raise OSError("no space left on device")

    async with world(Full()) as agents:
        agents.add("echo", echo)
        job = await agents.jobs.start("echo", 1)
        assert await job.result() == 1
        await agents.jobs.wait_quiet()
        assert agents.counters["agents.journal_failed"] == 1


async def test_a_full_disk_is_told_and_ends_nothing_else(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    async with world(journal) as agents:
        agents.add("echo", echo)
        assert await (await agents.jobs.start("echo", 1)).result() == 1
        await journal._in_thread(lambda: journal._execute("pragma max_page_count = 8"))
        with pytest.raises(AgentError, match="cannot be used: database or disk is full"):
            await agents.jobs.start("echo", "f" * 100_000)
        assert not agents.jobs.running
        await journal._in_thread(lambda: journal._execute("pragma max_page_count = 1000"))
        assert await (await agents.jobs.start("echo", 2)).result() == 2


async def test_memory_keeps_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.journal.KEPT", 1)
    async with world(rng=random.Random(1)) as agents:
        agents.add("hang", hang, turn=2)
        await agents.jobs.start("hang", 1)
        await agents.jobs.start("hang", 2)
        assert [saved.payload for saved in await agents.jobs.journal.unfinished()] == [2]


async def test_of_two_calls_of_one_tool_the_one_that_ran_stays_in_doubt() -> None:
    class Half(Tools):
        async def __call__(self, call: Call) -> Outcome:
            self.calls.append(str(call.name))
            if len(self.calls) == 1:
                await trio.sleep_forever()
            raise ConnectionLost("before it was sent", "no")

    async def works(ctx: Context, payload: object) -> object:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.call, "web__get")
            await wait_all_tasks_blocked()
            with pytest.raises(ConnectionLost):
                await ctx.call("web__get")
            both.set()
            await trio.sleep_forever()
        raise AssertionError

    both = trio.Event()
    async with fabric(Half(), MemoryJournal()) as agents:
        agents.add("works", works)
        job = await agents.jobs.start("works")
        await both.wait()
        assert job.saved.calls == {"web__get"}


async def test_a_checkpoint_leaves_a_call_in_doubt_that_is_not_over() -> None:
    class Slow(Tools):
        async def __call__(self, call: Call) -> Outcome:
            await gate.wait()
            return Complete(Raw(b'{"content":[]}'))

    async def works(ctx: Context, payload: object) -> object:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.call, "web__get")
            await wait_all_tasks_blocked()
            await ctx.checkpoint("while it is called")
            seen.append(job.saved.calls)
            gate.set()
        await ctx.checkpoint("after it")
        seen.append(job.saved.calls)
        return None

    gate = trio.Event()
    seen: list[frozenset[str]] = []
    async with fabric(Slow(), MemoryJournal()) as agents:
        agents.add("works", works)
        job = await agents.jobs.start("works")
        await job.result()
    assert seen == [{"web__get"}, frozenset()]


async def test_a_call_whose_note_was_cut_off_is_noted_again() -> None:
    class Slow(MemoryJournal):
        async def put(self, saved: Saved) -> None:
            if saved.calls and not gate.is_set():
                await trio.sleep_forever()
            await super().put(saved)

    async def works(ctx: Context, payload: object) -> object:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.call, "web__get")
                await wait_all_tasks_blocked()
                scope.cancel("the write is cut off")
        gate.set()
        await ctx.call("web__get")
        await trio.sleep_forever()

    gate = trio.Event()
    journal = Slow()
    tools = Tools()
    async with fabric(tools, journal) as agents:
        agents.add("works", works)
        await agents.jobs.start("works")
        await wait_all_tasks_blocked(0.01)
        assert tools.calls == ["web__get"]
        (saved,) = await journal.unfinished()
        assert saved.calls == {"web__get"}


async def test_what_ended_while_the_journal_was_read_is_not_run_again() -> None:
    class Slow(MemoryJournal):
        async def unfinished(self) -> Sequence[Saved]:
            saved = await super().unfinished()
            await job.wait()
            await agents.jobs.wait_quiet()
            return saved

    runs: list[object] = []

    async def works(ctx: Context, payload: object) -> object:
        runs.append(payload)
        await gate.wait()
        return None

    gate = trio.Event()
    async with fabric(Tools(), Slow()) as agents, trio.open_nursery() as nursery:
        agents.add("works", works)
        job = await agents.jobs.start("works", 1)
        nursery.start_soon(agents.jobs.resume)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
    assert runs == [1]


async def test_a_conversation_of_an_agent_that_is_not_there_stays_in_the_journal() -> None:
    journal = MemoryJournal()
    id = await cut_off(journal, lambda ctx, payload: stuck())
    async with fabric(Tools(), journal) as agents:
        assert await agents.jobs.resume() == []
        with pytest.raises(AgentNotFound):
            await agents.jobs.resume(id)
        assert agents.counters["agents.not_resumed"] == 1
        assert [saved.id for saved in await journal.unfinished()] == [id]


async def test_a_conversation_that_could_not_be_started_is_not_in_the_journal() -> None:
    async with world() as agents:
        agents.add("echo", echo)
        async with trio.open_nursery() as closed:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            await agents.jobs.start("echo", owner=closed)
        assert not agents.jobs.running
        assert await agents.jobs.journal.unfinished() == ()


async def test_one_file_is_for_one_fabric_and_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.journal.LOCKED", 0.01)
    path = tmp_path / "journal.sqlite"
    async with world(SqliteJournal(path)):
        assert path.stat().st_mode & 0o077 == 0
        with pytest.raises(AgentError, match="cannot be used: database is locked"):
            async with SqliteJournal(path):
                pass
    async with world(SqliteJournal(path)):
        pass
    with pytest.raises(AgentError, match="cannot be opened: Is a directory"):
        async with SqliteJournal(tmp_path):
            pass
