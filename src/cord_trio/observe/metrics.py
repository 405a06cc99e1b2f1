"""Counters and durations of calls for Prometheus, in a registry that the user gives."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from cord_trio.call import Error
from cord_trio.observe.spans import find_tracer, runs, spans

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry as CollectorRegistry

    from cord_trio.call import Call, Outcome
    from cord_trio.trace import RunWatch

    Watch: TypeAlias = Callable[[Call], tuple[Call, Callable[[Outcome | BaseException], None]]]


class Metrics:
    """The metrics of one fabric.

    `cord_trio_calls_total` counts by source, method, tool and outcome (the name of the outcome or error);
    `cord_trio_call_seconds` is the histogram of how long calls took, by source and method.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        labels = ("source", "method")
        self._calls = Counter("cord_trio_calls", "Calls", (*labels, "tool", "outcome"), registry=registry)
        self._seconds = Histogram("cord_trio_call_seconds", "Seconds of calls", labels, registry=registry)

    def watch(self, source: str) -> Watch:
        """What counts the calls of `source`."""

        def watch(call: Call) -> tuple[Call, Callable[[Outcome | BaseException], None]]:
            begun = trio.current_time()
            tool = (call.name or "") if call.method == "tools/call" else ""

            def ended(how: Outcome | BaseException) -> None:
                kind = f"error {how.code}" if isinstance(how, Error) else type(how).__name__
                self._calls.labels(source, call.method, tool, kind).inc()
                self._seconds.labels(source, call.method).observe(trio.current_time() - begun)

            return call, ended

        return watch


def watches(registry: CollectorRegistry | None) -> tuple[Callable[[str], Watch], ...]:
    """What watches the calls of each source, by its name; nothing, unless somebody wants to know."""
    found: list[Callable[[str], Watch]] = []
    tracer = find_tracer()
    if tracer is not None:
        found.append(partial(spans, tracer))
    if registry is not None:
        found.append(Metrics(registry).watch)
    return tuple(found)


def watch_runs() -> RunWatch | None:
    """What is told of each run of an agent; None unless somebody takes spans."""
    tracer = find_tracer()
    return None if tracer is None else runs(tracer)
