"""A span of OpenTelemetry for each call, where the process has configured somebody to take them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from cord_trio.call import Complete, Error
from cord_trio.errors import CallError
from cord_trio.trace import TraceContext
from cord_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from cord_trio.call import Call, Outcome
    from cord_trio.trace import Over, RunWatch

SCOPE: Final = "cord_trio"
"""What the spans say that they come from."""


def find_tracer() -> Tracer | None:
    """What takes spans; None if nobody does.

    Whoever configures a provider has imported it: it is not imported to find out that nobody has.
    """
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider):
        return None
    tracer: Tracer = provider.get_tracer(SCOPE, __version__)
    return tracer


def spans(tracer: Tracer, source: str) -> Callable[[Call], tuple[Call, Callable[[Outcome | BaseException], None]]]:
    """What makes a span of each call to `source`: a child of the call's trace, and the parent of what the server does.

    Its names and attributes are those of OpenTelemetry's conventions for MCP.
    """
    from opentelemetry.trace import SpanKind, Status, StatusCode

    def watch(call: Call) -> tuple[Call, Callable[[Outcome | BaseException], None]]:
        attributes = {"mcp.method.name": call.method, "cord_trio.source": source}
        if call.method == "tools/call":
            attributes["gen_ai.tool.name"] = call.name or ""
        elif call.method == "resources/read":
            attributes["mcp.resource.uri"] = call.name or ""
        title = f"{call.method} {call.name}" if call.method == "tools/call" else call.method
        span = tracer.start_span(title, context=_parent(call.trace), kind=SpanKind.CLIENT, attributes=attributes)
        own = span.get_span_context()
        if own.is_valid:
            text = f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
            call = replace(call, trace=text)

        def ended(how: Outcome | BaseException) -> None:
            what = ""
            if isinstance(how, BaseException):
                what = type(how).__name__
                if isinstance(how, CallError):
                    span.set_attribute("cord_trio.executed", how.executed)
            elif isinstance(how, Error):
                what = str(how.code)
            elif not isinstance(how, Complete):
                span.set_attribute("cord_trio.outcome", type(how).__name__)
            if what:
                span.set_attribute("error.type", what)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

        return call, ended

    return watch


def runs(tracer: Tracer) -> RunWatch:
    """What makes a span of each run of an agent's handler: a child of what caused it, the parent of what it does.

    Its name and attributes are those of OpenTelemetry's conventions for agents. Nothing of the payload is in it.
    """
    from opentelemetry.trace import SpanKind, Status, StatusCode

    def watch(agent: str, cause: TraceContext | None) -> tuple[TraceContext, Over]:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
        context = _parent("" if cause is None else str(cause))
        span = tracer.start_span(
            f"invoke_agent {agent}", context=context, kind=SpanKind.INTERNAL, attributes=attributes
        )
        own = span.get_span_context()
        given = (cause.state, cause.baggage) if cause is not None else ("", "")
        trace = TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", f"{int(own.trace_flags):02x}", *given)

        def over(how: object) -> None:
            if isinstance(how, BaseException):
                span.set_attribute("error.type", type(how).__name__)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

        return trace, over

    return watch


def _parent(traceparent: str) -> Context | None:
    """The context that a `traceparent` says; that of the running task if it says none."""
    if not traceparent:
        return None
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    _, trace, span, flags = traceparent.split("-")[:4]
    remote = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(remote))
