"""Which trace each run of an agent is part of, and in which span."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import trio
import trio.testing
from msgspec import Raw

from cord_trio.agents import Agents, Mailbox, SqliteJournal
from cord_trio.agents.asks import ask_nodes
from cord_trio.call import Call, Complete
from cord_trio.registry import Snapshot
from cord_trio.trace import TraceContext
from tests.agents.world import world

if TYPE_CHECKING:
    from pathlib import Path

    from cord_trio.agents import Context
    from cord_trio.call import Outcome

ID = "0af7651916cd43dd8448eb211c80319c"
GIVEN = TraceContext(ID, "b7ad6b7169203331", "01", "congo=1", "user=ada")


class Seen:
    """Notes the trace of each run that it handles."""

    def __init__(self) -> None:
        self.traces: list[TraceContext | None] = []

    def note(self, ctx: Context) -> None:
        assert ctx.trace == ctx.trace
        self.traces.append(ctx.trace)

    async def leaf(self, ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        self.note(ctx)
        return payload

    def are_one_trace(self) -> bool:
        """All of the given trace, each in a span of its own, none in the asker's."""
        traces = [trace for trace in self.traces if trace is not None]
        spans = {GIVEN.span, *(trace.span for trace in traces)}
        same = all((trace.id, trace.state, trace.baggage) == (ID, "congo=1", "user=ada") for trace in traces)
        return same and len(traces) == len(self.traces) == len(spans) - 1


async def test_without_a_trace_there_is_none() -> None:
    seen = Seen()
    async with world() as agents:
        agents.add("leaf", seen.leaf)
        await agents.converse("leaf", 1)
    assert seen.traces == [None]


async def test_asks_and_handoffs_go_on_with_the_trace_each_in_a_span_of_its_own() -> None:
    seen = Seen()

    async def asks(ctx: Context, payload: object) -> object:
        seen.note(ctx)
        await ctx.ask("leaf", payload)
        async with ctx.open_nursery() as crew:
            crew.spawn("leaf", payload)
        async with ctx.stream("leaf", payload) as events:
            await events.result()
        return ctx.handoff("hands", payload)

    async def hands(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        seen.note(ctx)
        return ctx.handoff("leaf", payload)

    async with world() as agents:
        agents.add("asks", asks)
        agents.add("hands", hands, deadline=5.0)
        agents.add("leaf", seen.leaf)
        assert await agents.converse("asks", 1, trace=GIVEN) == 1
    assert len(seen.traces) == 6
    assert seen.are_one_trace()


async def test_messages_go_on_with_it_too() -> None:
    seen = Seen()

    async def sends(ctx: Context, payload: object) -> object:
        seen.note(ctx)
        await ctx.tell("box", "hand")
        ctx.broadcast("news", "no")
        await ctx.ask("box", "later")
        return None

    async def box(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        seen.note(ctx)
        if payload == "later":
            ctx.after(0.0, "no")
        return ctx.handoff("leaf") if payload == "hand" else None

    async with world() as agents:
        agents.add("sends", sends)
        agents.add("box", box, mailbox=Mailbox(8), topics=["news"])
        agents.add("leaf", seen.leaf)
        await agents.converse("sends", 1, trace=GIVEN)
        await trio.testing.wait_all_tasks_blocked()
        await agents.wait_quiet()
    assert len(seen.traces) == 6
    assert seen.are_one_trace()


async def test_a_conversation_keeps_its_trace_over_a_restart(tmp_path: Path) -> None:
    seen = Seen()

    async def begins(ctx: Context, payload: object) -> str:
        seen.note(ctx)
        return (await ctx.start("works", payload)).id

    async def works(ctx: Context, payload: object) -> object:
        seen.note(ctx)
        if len(seen.traces) < 3:
            await trio.sleep_forever()
        return payload

    for _ in range(2):
        async with world(SqliteJournal(tmp_path / "journal")) as agents:
            agents.add("begins", begins)
            agents.add("works", works)
            if not seen.traces:
                await agents.converse("begins", 1, trace=GIVEN)
                await trio.testing.wait_all_tasks_blocked()
            else:
                (job,) = await agents.jobs.resume()
                assert await job.result() == 1
    assert len(seen.traces) == 3
    assert seen.are_one_trace()


async def test_a_tool_is_called_within_the_span_of_whoever_calls_it() -> None:
    calls: list[Call] = []
    traces: list[str] = []

    async def tools(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        calls.append(call)
        return Complete(Raw(b'{"content":[]}'))

    async def uses(ctx: Context, payload: object) -> None:
        await ctx.call("web__get")
        traces.append(str(ctx.trace))

    agents = Agents(tools, Snapshot)
    agents.add("uses", uses)
    await agents.converse("uses", 1, trace=GIVEN)
    await agents.converse("uses", 1)
    assert (calls[0].trace, calls[0].meta) == (
        traces[0],
        {"tracestate": Raw(b'"congo=1"'), "baggage": Raw(b'"user=ada"')},
    )
    assert (calls[1].trace, calls[1].meta) == ("", {})


async def test_where_all_is_traced_an_ask_begins_a_trace_and_those_below_go_on_with_it() -> None:
    seen = Seen()

    async def asks(ctx: Context, payload: object) -> object:
        seen.note(ctx)
        return await ctx.ask("leaf", payload)

    agents = Agents(lambda call: None, Snapshot, rng=Random(5), traced=True)  # type: ignore[arg-type, return-value]  # nobody calls a tool
    agents.add("asks", asks)
    agents.add("leaf", seen.leaf)
    await agents.converse("asks", 1)
    await agents.converse("leaf", 1)
    await agents.converse("leaf", 1, trace=GIVEN)
    first, below, second, given = (trace for trace in seen.traces if trace is not None)
    assert first.id == below.id
    assert len({first.span, below.span, second.span, given.span}) == 4
    assert len({first.id, second.id, given.id}) == 3
    assert given.id == ID


async def test_the_tree_names_trace_and_span() -> None:
    agents = Agents(lambda call: None, Snapshot)  # type: ignore[arg-type, return-value]  # nobody calls a tool
    found: list[tuple[object, object, str]] = []

    async def looks(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        (node,), _ = ask_nodes(agents.roots)
        found.append((node.facts.get("trace"), node.facts.get("span"), "" if ctx.trace is None else ctx.trace.span))

    agents.add("looks", looks)
    await agents.converse("looks", 1, trace=GIVEN)
    await agents.converse("looks", 1)
    assert found[0][0] == ID
    assert found[0][1] == found[0][2] != GIVEN.span
    assert found[1] == (None, None, "")
