"""Following a call over a mesh."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from cord_trio.call import Error
from cord_trio.errors import CallError, Draining
from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.outcomes import failure_of, frame_of
from cord_trio.mesh.recent import MOST_TOLD, STEPS, Recent, trace_of
from cord_trio.mesh.sounding import ask_all
from cord_trio.testing import ToolServer
from cord_trio.trace import TraceContext
from tests.mesh.members import listed, member
from tests.observe.provider import Provider

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.mesh.local import LocalBroker
    from cord_trio.mesh.recent import Step
    from tests.mesh.members import Member

TRACE = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


async def steps(broker: LocalBroker, who: Member, id: str) -> dict[str, list[Step]]:
    """What each node tells to who asks as a stranger."""
    async with broker.way().open() as nats:
        found = await ask_all(nats, who.node.roster.nodes, mesh="cord", node="x", op="trace", body=id.encode())
    told = {name: answer.message for name, answer in found.items()}
    return {name: [] if message is None else STEPS.decode(message.data) for name, message in told.items()}


async def test_a_call_is_known_on_both_sides_by_its_trace_and_by_its_id(autojump_clock: MockClock) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a") as a,
        member(broker, "b", ToolServer(name="web").in_process()),
        member(broker, "c"),
    ):
        await listed(a.fabric, "web__sleep")
        await a.fabric.call("web__sleep", {"seconds": 2}, trace=TRACE)
        await a.fabric.call("web__echo", {"text": "x"})  # of no trace
        await trio.sleep(10)
        found = await steps(broker, a, TRACE.id)
        assert {name: len(each) for name, each in found.items()} == {"a": 1, "b": 1, "c": 0}
        (made,), (ran,) = found["a"], found["b"]
        assert (made.side, made.node, made.name, made.executed, made.how) == (
            "made",
            "b",
            "web__sleep",
            "yes",
            "answered",
        )
        assert (ran.side, ran.node, ran.name, ran.executed, ran.how) == ("ran", "a", "web__sleep", "yes", "answered")
        assert (made.id, made.epoch, made.trace) == (ran.id, ran.epoch, ran.trace)
        assert trace_of(made.trace) == TRACE.id
        assert made.ago == pytest.approx(12, abs=0.1) == ran.ago
        assert made.took == pytest.approx(2, abs=0.1) == ran.took
        assert await steps(broker, a, made.id) == await steps(broker, a, TRACE.id)
        assert (await steps(broker, a, "0" * 32))["a"] == []


async def test_a_call_that_runs_is_known_where_it_does(autojump_clock: MockClock) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a") as a,
        member(broker, "b", ToolServer(name="web").in_process()),
        trio.open_nursery() as nursery,
    ):
        await listed(a.fabric, "web__sleep")
        nursery.start_soon(partial(a.fabric.call, "web__sleep", {"seconds": 50}, trace=TRACE))
        await trio.sleep(2)
        (ran,) = (await steps(broker, a, TRACE.id))["b"]
        assert (ran.side, ran.node, ran.how, ran.executed) == ("ran", "a", "runs", "unknown")
        assert ran.ago == pytest.approx(2, abs=0.1) == ran.took
        nursery.cancel_scope.cancel("it is seen")


async def test_how_a_call_failed_is_known(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        async with member(broker, "b", ToolServer(name="web").in_process()) as b:
            await listed(a.fabric, "web__sleep")
            with trio.move_on_after(1):
                await a.fabric.call("web__sleep", {"seconds": 50}, trace=TRACE)
            await trio.sleep(1)
            found = await steps(broker, a, TRACE.id)
            assert [(each.how, each.executed) for each in found["a"]] == [("cancelled", "unknown")]
            assert [each.how.endswith("its caller cancelled it") for each in found["b"]] == [True]
            b.way.cut()
            with pytest.raises(CallError):
                await a.fabric.call("web__sleep", {"seconds": 50}, trace=TRACE)
            last, _ = a.node.presence.recent.find(TRACE.id)
            assert last.how.startswith(("OwnerLost: ", "NoOwner: "))
            b.way.mend()


@pytest.mark.parametrize(
    ("frame", "how", "executed"),
    [
        (Frame("ok", body=b"{}"), "answered", "yes"),
        (Frame("end"), "answered", "yes"),
        (Frame("rej", reason="busy"), "refused: busy", "no"),
        (Frame("moved", node="c"), "handed on to c", "unknown"),
        (frame_of(Error(-1, "no")), "answered an error", "yes"),
        (failure_of(Draining()), "Draining: ", "no"),
    ],
)
async def test_each_end_has_its_words(frame: Frame, how: str, executed: str) -> None:
    await trio.lowlevel.checkpoint()
    recent = Recent()
    request = Request("call", "1" * 32, trace=str(TRACE))
    recent.came(request, "a", "11111111", 0.0)
    recent.ran(request, "a", "11111111", frame, 1.0)
    (step,) = recent.find(TRACE.id)
    assert step.how.startswith(how)
    assert (step.executed, step.took) == (executed, 1.0)


async def test_what_is_told_is_bounded_and_the_last(autojump_clock: MockClock) -> None:
    await trio.lowlevel.checkpoint()
    recent = Recent(most=MOST_TOLD + 10)
    for number in range(MOST_TOLD + 20):
        recent.ran(Request("call", f"{number:032x}", trace=str(TRACE)), "a", "1" * 8, Frame("end"), 1.0)
    told = msgspec.json.decode(recent.answer(TRACE.id.encode()))
    assert len(told) == MOST_TOLD
    assert told[0]["id"] == f"{MOST_TOLD + 19:032x}"
    assert recent.find(f"{9:032x}") == []
    for number in range(MOST_TOLD + 20):
        recent.came(Request("call", f"{number:032x}", trace="00-t-s-01"), "a", "1" * 8, 0.0)
    assert [recent.find(f"{number:032x}") for number in range(10)] == [[]] * 10
    assert recent.find(f"{10:032x}")[0].how == "runs"


async def test_the_spans_of_both_nodes_are_one_trace(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    otel = pytest.importorskip("opentelemetry.trace")
    provider = Provider()
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: provider)
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a") as a,
        member(broker, "b", ToolServer(name="web").in_process()),
    ):
        await listed(a.fabric, "web__echo")
        await a.fabric.call("web__echo", {"text": "x"}, trace=TRACE)
    made, ran = provider.spans
    assert [each.attributes["cord_trio.source"] for each in (made, ran)] == ["web@b", "web"]
    assert f"{made.parent.trace_id:032x}" == f"{ran.parent.trace_id:032x}" == TRACE.id
    assert ran.parent.span_id == made.get_span_context().span_id
