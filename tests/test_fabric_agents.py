"""The fabric's verbs on agents. What they mean is tested with the agents; here, that they reach them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import cord_trio as cord
from cord_trio.config import AgentConfig, BudgetConfig, GatewayConfig, MailboxConfig, SupervisorConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from cord_trio.observe import Node


class Ledger:
    """Sums up what it is told."""

    def __init__(self) -> None:
        self.total = 0

    async def __call__(self, ctx: cord.Context, amount: Any) -> int:  # noqa: ANN401  # numbers, or what breaks it
        await trio.lowlevel.checkpoint()
        self.total += amount
        return self.total


async def counts(ctx: cord.Context, upto: int) -> str:
    for number in range(upto):
        await ctx.emit(number)
    return "counted"


async def test_the_fabric_has_every_verb_and_shows_its_agents() -> None:
    async with cord.open_fabric() as fabric:
        fabric.agent("ledger", Ledger, mailbox=cord.Mailbox(8), topics=("orders",))
        fabric.agent("counts", counts, budget=cord.Budget(tokens=5))
        assert await fabric.ask("ledger", 1) == 1
        assert await fabric.tell("ledger", 2)
        assert fabric.broadcast("orders", 4) == 1
        assert await fabric.ask("ledger", 0, budget=cord.Budget(calls=1)) == 7
        async with fabric.stream("counts", 3) as events:
            assert [value async for value in events] == [0, 1, 2]
        job = await fabric.start("counts", 2, deadline=60)
        assert await fabric.attach(job.id).result() == "counted"
        assert await fabric.resume() == []
        with fabric.monitor("ledger") as notices:
            with pytest.raises(cord.AgentCrashed):
                await fabric.ask("ledger", "much")
            assert (await anext(notices)).what == "crashed"
        nodes: dict[str, Node] = {node.kind: node for node in fabric.tree().children}
        assert nodes["conversation"].state == "done"
        facts = next(node.facts for node in fabric.tree().children if node.name.startswith("ledger"))
        assert (facts["mailbox"], facts["dropped"]) == ("0/8", 0)


async def test_draining_waits_for_messages_and_conversations() -> None:
    done: list[str] = []

    async def slow(ctx: cord.Context, payload: str) -> None:
        await trio.sleep(0.05)
        done.append(payload)

    async with cord.open_fabric() as fabric:
        fabric.agent("slow", slow, mailbox=cord.Mailbox())
        fabric.agent("plain", slow)
        await fabric.start("plain", "conversation")
        await fabric.tell("slow", "message")
        assert await fabric.drain(5)
        for verb in (fabric.tell, fabric.start, fabric.ask):
            with pytest.raises(cord.Draining):
                await verb("slow", None)
        with pytest.raises(cord.Draining):
            fabric.broadcast("any")
    assert sorted(done) == ["conversation", "message"]


async def test_what_does_not_end_is_cut_off_when_the_grace_is_over() -> None:
    async def hangs(ctx: cord.Context, payload: object) -> None:
        await trio.sleep_forever()

    async with cord.open_fabric(cord.Config(gateway=GatewayConfig(grace=0.01))) as fabric:
        fabric.agent("hangs", hangs, mailbox=cord.Mailbox(), grace=0)
        await fabric.tell("hangs", 1)
        job = await fabric.start("hangs", 2)
        assert not await fabric.drain(0.01)
        assert fabric.counters["fabric.drain_unfinished"] == 2
    assert job.state == "cancelled"


async def test_agents_that_crash_too_often_end_the_block_with_a_bare_error() -> None:
    with pytest.raises(cord.RestartIntensity) as caught:
        async with cord.open_fabric() as fabric:
            desk = cord.Supervisor("one_for_all", max_restarts=0)
            fabric.agent("ledger", Ledger, mailbox=cord.Mailbox(), supervisor=desk)
            with pytest.raises(cord.AgentCrashed):
                await fabric.ask("ledger", "much")
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, TypeError)


async def test_a_conversation_goes_on_in_the_next_fabric(tmp_path: Any) -> None:  # noqa: ANN401  # a path
    async def works(ctx: cord.Context, payload: str) -> object:
        if ctx.restored is None:
            await ctx.checkpoint("half")
            kept.set()
            await trio.sleep_forever()
        return payload, ctx.restored

    kept = trio.Event()
    with pytest.raises(KeyError, match="crash"):
        async with cord.open_fabric(journal=cord.SqliteJournal(tmp_path / "journal")) as fabric:
            fabric.agent("works", works)
            id = (await fabric.start("works", "job")).id
            await kept.wait()
            raise KeyError("crash")
    async with cord.open_fabric(journal=cord.SqliteJournal(tmp_path / "journal")) as fabric:
        fabric.agent("works", works)
        (job,) = await fabric.resume()
        assert (job.id, await job.result()) == (id, ("job", "half"))


async def test_an_agent_that_is_called_as_a_tool_is_asked_below_its_caller() -> None:
    """So a circle is refused, and a budget holds, as if it had been asked."""
    chains: list[tuple[str, ...]] = []

    async def outer(ctx: cord.Context, payload: object) -> str:
        return (await ctx.call("agent__inner", {"payload": payload})).text

    async def inner(ctx: cord.Context, payload: object) -> str:
        chains.append(ctx.chain)
        if payload == "around":
            return (await ctx.call("agent__outer", {"payload": payload})).text
        with pytest.raises(cord.BudgetExceeded):
            ctx.budget.spend(tokens=6)
        ctx.budget.spend(tokens=5)
        return "inner"

    async with cord.open_fabric() as fabric:
        fabric.agent("outer", outer, export=True)
        fabric.agent("inner", inner, export=True)
        assert await fabric.ask("outer", "in", budget=cord.Budget(tokens=5)) == "inner"
        with trio.fail_after(5):
            assert await fabric.ask("outer", "around") == "call cycle: outer > inner > outer"
        assert chains[0] == ("outer", "inner")
        with trio.fail_after(5):  # by a client, it is a root
            await fabric.call("agent__inner", {"payload": "around"})


async def test_an_agent_that_was_removed_is_no_tool_any_more() -> None:
    async with cord.open_fabric() as fabric:
        fabric.agent("counts", counts, export=True)
        fabric.agent("other", counts)
        assert "agent__counts" in fabric.registry.snapshot.tools
        await fabric.remove("counts")
        await fabric.remove("other")
        assert not fabric.registry.snapshot.tools
        with pytest.raises(cord.AgentNotFound):
            await fabric.remove("counts")


async def test_a_call_from_outside_is_a_hop_of_its_trace() -> None:
    given = cord.TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "01", "congo=1", "user=ada")
    seen: list[cord.TraceContext | None] = []

    async def leaf(ctx: cord.Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.trace)

    async with cord.open_fabric() as fabric:
        fabric.agent("leaf", leaf, export=True, mailbox=cord.Mailbox(8))
        await fabric.handle(cord.Call("tools/call", "agent__leaf", meta=given.meta, trace=str(given)))
        await fabric.ask("leaf", trace=given)
        await fabric.call("agent__leaf", trace=given)
        await fabric.tell("leaf", trace=given)
        async with fabric.stream("leaf", trace=given) as events:
            await events.result()
        await (await fabric.start("leaf", trace=given)).result()
        await fabric.ask("leaf")
    *traced, last = seen
    assert last is None
    assert len(traced) == 6
    spans = {trace.span for trace in traced if trace is not None}
    assert len(spans | {given.span}) == 7
    assert traced == [cord.TraceContext(given.id, trace.span, "01", "congo=1", "user=ada") for trace in traced if trace]


async def test_a_traced_fabric_gives_each_ask_a_trace() -> None:
    seen: list[cord.TraceContext | None] = []

    async def leaf(ctx: cord.Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.trace)

    async with cord.open_fabric(traced=True) as fabric:
        fabric.agent("leaf", leaf)
        await fabric.ask("leaf")
        await fabric.ask("leaf")
    assert len({trace.id for trace in seen if trace is not None}) == 2


async def test_configured_agents_live_under_their_supervisors() -> None:
    config = cord.Config(
        agents=[
            AgentConfig(name="ledger", handler="m:f", mailbox=MailboxConfig(size=8), supervisor="desk"),
            AgentConfig(
                name="counts", handler="m:f", budget=BudgetConfig(tokens=1), supervisor="desk", singleton=True
            ),  # without a mesh it is here
        ],
        supervisors=[SupervisorConfig(name="desk", strategy="one_for_all", max_restarts=0)],
    )
    async with cord.open_fabric(config) as fabric:
        fabric.add_configured({"ledger": Ledger, "counts": counts})
        with pytest.raises(cord.AgentCrashed):
            await fabric.ask("ledger", "much")
        for name in ("ledger", "counts"):
            with pytest.raises(cord.AgentDown):
                await fabric.ask(name, 1)


async def test_the_tree_shows_a_thousand_of_each_unless_told_otherwise() -> None:
    async with cord.open_fabric() as fabric:
        for number in range(1001):
            fabric.agent(f"a{number}", counts)
        tree = fabric.tree()
        assert (len(tree.children), tree.facts["left_out"]) == (1000, 1)
        assert len(fabric.tree(most=math.inf).children) == 1001


async def caught(run: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """Keep how `run` ends."""
    try:
        into.append(await run())
    except cord.CordError as exc:
        into.append(exc)
    except trio.Cancelled as exc:
        into.append(exc)
        raise


@pytest.mark.parametrize("raises", [False, True])
async def test_an_ask_of_a_task_that_is_not_the_fabrics_ends_with_it(raises: bool, autojump_clock: MockClock) -> None:
    """Even where its handler needs nothing of the fabric."""
    left: list[float] = []
    endings: list[object] = []

    async def hangs(ctx: cord.Context, payload: object) -> None:
        try:
            await trio.sleep(1000)
        finally:
            left.append(trio.current_time())

    async with trio.open_nursery() as outside:
        start = trio.current_time()
        try:
            async with cord.open_fabric(cord.Config(gateway=GatewayConfig(grace=2.0))) as fabric:
                fabric.agent("hangs", hangs, turn=8, export=True)
                outside.start_soon(caught, lambda: fabric.ask("hangs"), endings)
                outside.start_soon(caught, lambda: fabric.ask("hangs", budget=cord.Budget(calls=1)), endings)
                outside.start_soon(caught, lambda: fabric.call("agent__hangs"), endings)
                job = await fabric.start("hangs", owner=outside)
                outside.start_soon(caught, job.result, endings)
                await trio.testing.wait_all_tasks_blocked()
                if raises:
                    raise KeyError
        except KeyError:
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert left == [start + (0.0 if raises else 2.0)] * 4
    names = sorted(type(ending).__name__ for ending in endings)
    if raises:
        assert names == ["AgentDown", "AgentDown", "ConnectionLost", "JobCancelled"]
    else:
        assert names == ["DrainTimeout", "DrainTimeout", "DrainTimeout", "JobCancelled"]
    assert not any(isinstance(ending, trio.Cancelled) for ending in endings)


async def test_an_ask_within_the_block_is_cancelled_by_its_own_scope_alone() -> None:
    async def hangs(ctx: cord.Context, payload: object) -> None:
        await trio.sleep_forever()

    endings: list[object] = []
    async with cord.open_fabric() as fabric:
        fabric.agent("hangs", hangs, turn=8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caught, lambda: fabric.ask("hangs"), endings)
            await trio.testing.wait_all_tasks_blocked()
            assert not fabric.agents.served
            nursery.cancel_scope.cancel("enough")
    assert [type(ending) for ending in endings] == [trio.Cancelled]


async def test_a_conversation_that_a_drain_cut_off_is_resumed(autojump_clock: MockClock) -> None:
    async def works(ctx: cord.Context, payload: object) -> object:
        if payload == "slow" and ctx.restored is None:
            await ctx.checkpoint("half")
            await trio.sleep_forever()
        return ctx.restored

    journal = cord.MemoryJournal()
    async with cord.open_fabric(cord.Config(gateway=GatewayConfig(grace=1.0)), journal=journal) as fabric:
        fabric.agent("works", works)
        first = await fabric.start("works", "slow")
    with pytest.raises(cord.JobCancelled):
        await first.result()
    async with cord.open_fabric(journal=journal) as fabric:
        fabric.agent("works", works)
        (job,) = await fabric.resume()
        assert await job.result() == "half"


async def test_two_fabrics_share_no_timer(autojump_clock: MockClock) -> None:
    """What one expires is its own: the other has ended, and its timer with it."""
    async with cord.open_fabric() as first, cord.open_fabric() as second:
        assert first.agents.timer is not second.agents.timer


async def test_a_message_to_oneself_comes_in_a_whole_fabric_too(autojump_clock: MockClock) -> None:
    came: list[float] = []

    async def later(ctx: cord.Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        if payload == "due":
            came.append(trio.current_time())
        else:
            ctx.after(3.0, "due")

    async with cord.open_fabric() as fabric:
        fabric.agent("later", later, mailbox=cord.Mailbox(8))
        start = trio.current_time()
        await fabric.ask("later")
        await trio.sleep(5)
        assert came == [start + 3.0]
