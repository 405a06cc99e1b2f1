"""Spans and metrics of calls, as whoever takes them sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

import cord_trio as cord
from cord_trio.fabric import open_fabric
from cord_trio.observe.spans import find_tracer
from cord_trio.testing import ToolServer
from tests.observe.provider import Provider

Json: TypeAlias = Any

otel = pytest.importorskip("opentelemetry.trace")

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    found = Provider()
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: found)
    return found


def test_without_a_provider_nothing_is_traced() -> None:
    assert find_tracer() is None


async def test_each_call_is_a_span_within_its_trace(provider: Provider, autojump_clock: MockClock) -> None:
    server = ToolServer()
    trace = cord.TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    async with open_fabric([server.in_process(name="x")]) as fabric:
        await fabric.call("x__echo", {"text": ""}, trace=trace)
        with pytest.raises(cord.CallFailed):
            await fabric.call("x__error", {"code": -5})
        with trio.move_on_after(1):
            await fabric.call("x__sleep", {"seconds": 5})
    well, failed, left = provider.spans
    assert well.name == "tools/call x__echo"
    assert well.attributes == {
        "mcp.method.name": "tools/call",
        "cord_trio.source": "x",
        "gen_ai.tool.name": "x__echo",
    }
    assert f"{well.parent.trace_id:032x}" == trace.id
    assert well.parent.is_remote
    assert not failed.parent.is_valid
    assert (failed.attributes["error.type"], failed.status) == ("-5", otel.StatusCode.ERROR)
    assert left.attributes["error.type"] == "Cancelled"
    assert [span.ended for span in provider.spans] == [1, 1, 1]


async def test_the_server_is_told_the_span_of_the_call(provider: Provider, autojump_clock: MockClock) -> None:
    seen: list[str] = []

    def look(handler: cord.Handler) -> cord.Handler:
        async def looked(call: cord.Call) -> cord.Outcome:
            seen.append(call.trace)
            return await handler(call)

        return looked

    async with open_fabric([ToolServer().in_process(name="x")], layers=[look]) as fabric:
        await fabric.call("x__echo", {"text": ""})
    assert seen == [f"00-{0xA0:032x}-{0xB0:016x}-01"]


async def test_each_run_of_an_agent_is_a_span_of_what_caused_it(provider: Provider, autojump_clock: MockClock) -> None:
    async def asks(ctx: cord.Context, payload: object) -> object:
        await ctx.call("x__echo", {"text": ""})
        with pytest.raises(ValueError, match="no such order"):
            await ctx.ask("fails")
        return ctx.handoff("box")

    async def fails(ctx: cord.Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise ValueError("no such order")

    async def takes(ctx: cord.Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return str(ctx.trace)

    trace = cord.TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", state="congo=1")
    async with open_fabric([ToolServer().in_process(name="x")]) as fabric:
        fabric.agent("asks", asks)
        fabric.agent("fails", fails)
        fabric.agent("box", takes, mailbox=cord.Mailbox())
        answer = await fabric.ask("asks", trace=trace)
        assert await fabric.ask("box") != answer
    asking, call, failing, taking, alone = provider.spans
    assert (asking.name, failing.name, taking.name) == ("invoke_agent asks", "invoke_agent fails", "invoke_agent box")
    assert asking.attributes == {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "asks"}
    assert f"{asking.parent.span_id:016x}" == trace.span
    assert call.parent.span_id == failing.parent.span_id == taking.parent.span_id == asking.context.span_id
    assert (failing.attributes["error.type"], failing.status) == ("ValueError", otel.StatusCode.ERROR)
    assert (asking.status, taking.status) == (None, None)
    assert answer == f"00-{trace.id}-{taking.context.span_id:016x}-01"
    assert not alone.parent.is_valid
    assert [span.ended for span in provider.spans] == [1] * 5


async def test_calls_are_counted_in_the_users_registry(autojump_clock: MockClock) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    own = [cord.Rule(tools="add", then="deny")]
    async with open_fabric([ToolServer().in_process(name="x", rules=own)], metrics=registry) as fabric:
        await fabric.call("x__sleep", {"seconds": 2})
        with pytest.raises(cord.CallFailed):
            await fabric.call("x__error", {"code": -5})
        with pytest.raises(cord.Denied):
            await fabric.call("x__add", {"a": 1, "b": 2})

    def count(tool: str, outcome: str) -> float | None:
        labels = {"source": "x", "method": "tools/call", "tool": tool, "outcome": outcome}
        found: float | None = registry.get_sample_value("cord_trio_calls_total", labels)
        return found

    assert (count("x__sleep", "Complete"), count("x__error", "error -5"), count("x__add", "Denied")) == (1, 1, 1)
    seconds = registry.get_sample_value("cord_trio_call_seconds_sum", {"source": "x", "method": "tools/call"})
    assert seconds == pytest.approx(2.0)
