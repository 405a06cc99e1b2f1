"""A provider of OpenTelemetry that keeps its spans, without the SDK."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest

Json: TypeAlias = Any

otel = pytest.importorskip("opentelemetry.trace")


class Span(otel.Span):  # type: ignore[name-defined,misc]  # imported only if it is there
    """Notes what it is told."""

    def __init__(self, name: str, parent: Json, attributes: dict[str, str], number: int) -> None:
        self.name = name
        self.parent = parent
        self.attributes = dict(attributes)
        self.ended = 0
        self.status: Json = None
        trace = parent.trace_id if parent.is_valid else 0xA0 + number
        self.context = otel.SpanContext(trace, 0xB0 + number, False, otel.TraceFlags(1))

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
