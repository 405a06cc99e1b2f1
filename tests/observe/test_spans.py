"""Spans and metrics of calls, as whoever takes them sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

import cord_trio as cord
from cord_trio.fabric import open_fabric
from cord_trio.observe.spans import find_tracer
from cord_trio.testing import ToolServer

Json: TypeAlias = Any

otel = pytest.importorskip("opentelemetry.trace")

if TYPE_CHECKING:
    from trio.testing import MockClock


class Span(otel.Span):  # type: ignore[name-defined,misc]  # imported only if it is there
    """Notes what it is told."""

    def __init__(self, name: str, parent: Json, attributes: dict[str, str], number: int) -> None:
        self.name = name
        self.parent = parent
        self.attributes = dict(attributes)
        self.ended = 0
        self.status: Json = None
        self.context = otel.SpanContext(0xA0 + number, 0xB0 + number, False, otel.TraceFlags(1))

    def get_span_context(self) -> Json:
        return self.context

    def set_attribute(self, key: str, value: Json) -> None:
        self.attributes[key] = value

    def set_status(self, status: Json, description: str | None = None) -> None:
        self.status = status.status_code

    def end(self, end_time: int | None = None) -> None:
        self.ended += 1

    def set_attributes(self, attributes: Json) -> None: ...

    def add_event(self, name: str, attributes: Json = None, timestamp: int | None = None) -> None: ...

    def update_name(self, name: str) -> None: ...

    def is_recording(self) -> bool:
        return True

    def record_exception(
        self, exception: Json, attributes: Json = None, timestamp: Json = None, escaped: Json = 0
    ) -> None: ...


class Provider(otel.TracerProvider):  # type: ignore[name-defined,misc]  # as above
    """Keeps every span."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def get_tracer(self, *args: Json, **more: Json) -> Json:
        return self

    def start_span(self, name: str, *, context: Json, kind: Json, attributes: Json) -> Span:
        span = Span(name, otel.get_current_span(context).get_span_context(), attributes, len(self.spans))
        self.spans.append(span)
        return span


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
