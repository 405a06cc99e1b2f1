"""Traces of random programs of agents, under searched schedules: who is whose parent, and how each span ends."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING
from unittest.mock import patch

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.agent_programs import PROGRAMS, Payload, World
from tests.observe.provider import Provider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cord_trio.agents import Agents, Context
    from properties.agent_programs import Program, Script

otel = pytest.importorskip("opentelemetry.trace")


@attrs.frozen
class Run:
    """One run of a handler.

    Attributes:
        agent: whose.
        ask: its number.
        trace: its trace's id.
        cause: the span of whoever asked, told or handed on; empty if nobody of ours did.
        call: whether it called a tool.

    """

    agent: str
    ask: int
    trace: str
    cause: str
    call: bool


class Streams:
    """A context whose asks are streams."""

    def __init__(self, ctx: Context) -> None:
        self.branch = ctx.branch
        self._ctx = ctx

    async def ask(self, target: str, payload: object) -> object:
        async with self._ctx.stream(target, payload) as events:
            async for _ in events:
                pass
            return await events.result()


class Traced(World):
    """A world whose handlers call a tool now and then, and that knows what caused each run, and how it ended."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.server = ToolServer(name="web")
        self.causes: dict[int, str] = {}
        self.roots: dict[int, int] = {}
        self.runs: dict[str, Run] = {}
        self.ends: dict[str, str] = {}

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Agents]:
        async with open_fabric([self.server.in_process()], rng=Random(0), traced=True) as fabric:
            fabric.agents.max_hops = self.program.max_hops
            yield fabric.agents

    def caused(self, number: int, ctx: Context | None) -> None:
        assert ctx is None or ctx.trace is not None
        self.causes[number] = "" if ctx is None or ctx.trace is None else ctx.trace.span
        self.roots[number] = number if ctx is None else self.roots[self.numbers[ctx.branch]]

    def new_ask(self, ctx: Context | None) -> int:
        number = super().new_ask(ctx)
        self.caused(number, ctx)
        return number

    async def _ask(self, number: int, target: str, script: Script, ctx: Context | None) -> None:
        streams = ctx if ctx is None or number % 3 else Streams(ctx)
        await super()._ask(number, target, script, streams)  # type: ignore[arg-type]  # it asks, no more

    async def tell(self, target: str, script: Script, ctx: Context | None = None) -> None:
        self.caused(len(self.record.endings), ctx)
        await super().tell(target, script, ctx)

    def hand(self, ctx: Context, payload: Payload, target: str, script: Script, kept: int | None) -> object:
        assert ctx.trace is not None
        self.causes[payload.ask] = ctx.trace.span
        return super().hand(ctx, payload, target, script, kept)

    async def handle(self, ctx: Context, payload: Payload) -> object:
        assert ctx.trace is not None
        span, number = ctx.trace.span, payload.ask
        assert span not in self.runs
        self.runs[span] = Run(ctx.agent.name, number, ctx.trace.id, self.causes[number], call=number % 2 == 1)
        self.ends[span] = ""
        try:
            return await super().handle(ctx, payload)
        except BaseException as exc:
            self.ends[span] = type(exc).__name__
            raise
        finally:
            assert ctx.trace.span == span

    async def steps(self, ctx: Context, payload: Payload) -> object:
        assert ctx.trace is not None
        if self.runs[ctx.trace.span].call:
            await ctx.call("web__echo", {"text": ctx.trace.span})
        return await super().steps(ctx, payload)

    def heard(self) -> list[tuple[str, str]]:
        """Of each call that reached the server, by whose span it was made, and the `traceparent` that came with it."""
        calls = [message["params"] for message in map(json.loads, self.server.lines) if "echo" in str(message)]
        return [(params["arguments"]["text"], params["_meta"]["traceparent"]) for params in calls if "name" in params]


def parents(fake: Provider, trace: Sequence[str]) -> None:
    """Nothing is a child of what there is not."""
    known = {span.context.span_id for span in fake.spans}
    for span in fake.spans:
        assert not span.parent.is_valid or span.parent.span_id in known
        assert f"{span.context.trace_id:032x}" in trace


@given(PROGRAMS, schedules(), st.booleans())
def test_each_run_and_each_call_is_a_span_of_what_caused_it(program: Program, rng: Random, exported: bool) -> None:
    world, fake = Traced(program), Provider()
    provider = fake if exported else otel.NoOpTracerProvider()
    with patch.object(otel, "get_tracer_provider", lambda: provider), scheduled(rng):
        trio.run(world.play, clock=MockClock(autojump_threshold=0))
    traces = {world.roots[run.ask]: run.trace for run in world.runs.values()}
    assert len(set(traces.values())) == len(traces)  # one for each root
    assert all(run.trace == traces[world.roots[run.ask]] for run in world.runs.values())
    by_call = {f"{span.context.span_id:016x}": span for span in fake.spans if span.name.startswith("tools/call")}
    for caller, traceparent in world.heard():
        _, trace, span, _ = traceparent.split("-")
        assert trace == world.runs[caller].trace
        assert f"{by_call[span].parent.span_id:016x}" == caller if exported else span == caller
    if not exported:
        assert fake.spans == []
        return
    ours = {f"{span.context.span_id:016x}": span for span in fake.spans if span.name.startswith("invoke_agent")}
    assert ours.keys() == world.runs.keys()
    for id, span in ours.items():
        run = world.runs[id]
        assert span.name == f"invoke_agent {run.agent}"
        assert (f"{span.parent.span_id:016x}" if span.parent.is_valid else "") == run.cause
        assert span.attributes.get("error.type", "") == world.ends[id]
        assert (span.status is otel.StatusCode.ERROR) == bool(world.ends[id])
    assert all(span.ended == 1 for span in fake.spans)
    parents(fake, list(traces.values()))
