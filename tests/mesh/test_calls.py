"""Calls between two nodes: they end once, in time, and say whether they ran."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Error, InputRequired, Outcome, Task
from cord_trio.errors import CallError, CallFailed, DeadlineExceeded, Overloaded, SourceDown
from cord_trio.mesh import calling as calling_module
from cord_trio.mesh.frames import Request, encode_request
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.peers import RESERVE
from cord_trio.mesh.pinning import marked
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh_errors import NoOwner, OwnerFailed, OwnerLost, OwnerRefused
from tests.mesh.ring import Names, node, tool_call

if TYPE_CHECKING:
    from tests.mesh.ring import Node


class Work:
    """A handler that takes its time, and counts.

    Attributes:
        begun: names of what was begun, in order.
        cancelled: those that were cut off.
        going: set once something was begun.

    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.going = trio.Event()

    async def __call__(self, call: Call) -> Outcome:
        what = bytes(call.params["arguments"])
        self.begun.append(what)
        self.going.set()
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled.append(what)
            raise
        return Complete(Raw(what))


async def test_a_call_crosses_with_all_that_belongs_to_it(autojump_clock: MockClock) -> None:
    seen: list[Call] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        seen.append(call)
        return Complete(Raw(b'{"content":[]}'))

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler):
            call = Call(
                "prompts/get", "näme %\r\n", {"arguments": Raw(b'{"x":1}')}, {"x/y": Raw(b"1")}, "ann@x",
                deadline=trio.current_time() + 9, capabilities=b'{"sampling":{}}', log_level="info",
                revision="2026-07-28", trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
            )  # fmt: skip
            assert await here.calling.call(call, ["b"]) == Complete(Raw(b'{"content":[]}'))
            (came,) = seen
            assert came.deadline == pytest.approx(call.deadline - 0.02)
            assert came.events is None
            assert came.principal == "ann@x@a"  # as its node says
            for field in ("method", "name", "params", "meta", "capabilities", "log_level", "revision"):
                assert getattr(came, field) == getattr(call, field)
            assert came.trace == call.trace


@pytest.mark.parametrize(
    "outcome",
    [
        Complete(Raw(b'{"a":"\xc3\xa9"}')),
        Task(Raw(b'{"taskId":"t"}')),
        InputRequired(Raw(b'{"requestState":"s"}')),
        Error(-32602, "no such thing", b'{"uri":"x"}'),
        Error(-32000, "böse"),
    ],
)
async def test_every_outcome_comes_back_as_it_was(outcome: Outcome, autojump_clock: MockClock) -> None:
    async def handler(_: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return outcome

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler):
            epoch = here.calling._roster.epoch("b") or ""
            assert await here.calling.call(tool_call(), ["b"]) == marked(outcome, "b", epoch)


async def failure(handler_raises: Exception) -> CallError:
    async def handler(_: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        raise handler_raises

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler):
            with pytest.raises(CallError) as caught:
                await here.calling.call(tool_call(), ["b"])
            return caught.value


async def test_an_error_keeps_its_class_and_what_is_known_of_the_call(autojump_clock: MockClock) -> None:
    failed = await failure(CallFailed(-32001, "gone", b"[1]", executed="unknown"))
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.message, failed.data, failed.executed) == (-32001, "gone", b"[1]", "unknown")
    full = await failure(Overloaded("slots", 3))
    assert isinstance(full, Overloaded)
    assert (full.bound, full.limit, full.executed) == ("slots", 3, "no")
    down = await failure(SourceDown("s", "it died", 5.0))
    assert (type(down), str(down), down.executed) == (SourceDown, "source 's' is down: it died", "no")
    late = await failure(DeadlineExceeded("x", "no"))
    assert (type(late), str(late), late.executed) == (DeadlineExceeded, "deadline exceeded: x", "no")


async def test_what_goes_wrong_in_the_owner_is_said_without_its_secrets(autojump_clock: MockClock) -> None:
    failed = await failure(RuntimeError("password hunter2"))
    assert (type(failed), failed.executed) == (OwnerFailed, "unknown")
    assert "hunter2" not in str(failed)


async def test_progress_comes_in_order_before_the_result(autojump_clock: MockClock) -> None:
    async def handler(call: Call) -> Outcome:
        assert call.events is not None
        for number in range(3):
            call.events("notifications/progress", Raw(b"%d" % number))
            await trio.sleep(number)
        return Complete(Raw(b"{}"))

    names, told = Names(), []
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler):
            await here.calling.call(tool_call(events=lambda *event: told.append(event)), ["b"])
    assert told == [("notifications/progress", Raw(b"%d" % number)) for number in range(3)]


async def test_a_cancelled_call_is_cancelled_where_it_runs_within_a_trip(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.calling.call, tool_call(), ["b"])
                    await work.going.wait()
                    cancelled_at = trio.current_time()
                    scope.cancel("the test wants it")
            await wait_all_tasks_blocked()
            assert work.cancelled == [b"{}"]
            assert trio.current_time() == cancelled_at
            assert there.owning.busy == 0


async def test_a_deadline_ends_a_call_on_both_sides(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            began = trio.current_time()
            with pytest.raises(DeadlineExceeded) as caught:
                await here.calling.call(tool_call(within=5), ["b"])
            assert caught.value.executed == "unknown"
            assert 4.9 < trio.current_time() - began < 5
            assert work.cancelled == [b"{}"]
            # Of a node that does not say so its caller knows it all the same.
            there.way.cut()
            began = trio.current_time()
            with pytest.raises(DeadlineExceeded) as caught:
                await here.calling.call(tool_call(within=5), ["b"])
            assert (caught.value.executed, trio.current_time() - began) == ("unknown", 5)
            with pytest.raises(DeadlineExceeded) as caught:
                await here.calling.call(tool_call(within=0.01), ["b"])
            assert caught.value.executed == "no"


async def test_a_call_survives_lost_connections_and_runs_once(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(10)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert await here.calling.call(tool_call(b'"x"'), ["b"]) == Complete(Raw(b'"x"'))

                nursery.start_soon(ask)
                await work.going.wait()
                here.way.reset()
                await trio.sleep(2)
                there.way.reset()
                await trio.sleep(2)
                broker.kill()
                await trio.sleep(1)
                broker.start()
            assert work.begun == [b'"x"']
            assert here.calling._flights == {}


async def test_a_result_that_was_lost_on_its_way_is_told_again(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1.5)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert await here.calling.call(tool_call(b"1"), ["b"]) == Complete(Raw(b"1"))

                nursery.start_soon(ask)
                await trio.sleep(1)
                broker.kill()  # it ends while nobody can be told
                await trio.sleep(1)  # after more, its owner might take longer to be back than it is waited for
                broker.start()
            assert work.begun == [b"1"]
            assert there.counters["mesh.unsaid"] >= 1


async def test_nobody_listening_means_not_run_and_is_waited_for_no_longer_than_3_s(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here:
            with pytest.raises(NoOwner, match="b is not in the mesh now") as caught:
                await here.calling.call(tool_call(), ["b"])
            assert caught.value.executed == "no"
            with pytest.raises(NoOwner, match="none is in the mesh now"):
                await here.calling.call(tool_call(), [])
            names.epochs["b"] = "00000000"
            began = trio.current_time()
            with pytest.raises(NoOwner, match="nobody listens at node b") as caught:
                await here.calling.call(tool_call(), ["b"])
            assert caught.value.executed == "no"
            assert 3 <= trio.current_time() - began < 3.5
            began = trio.current_time()
            for _ in range(3):  # who waited once knows
                with pytest.raises(NoOwner, match="nobody listens at node b"):
                    await here.calling.call(tool_call(), ["b"])
            assert trio.current_time() == began
            names.end("b")


async def test_an_owner_that_was_away_is_waited_for_again_once_it_was_heard(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            there.way.reset()
            there.way.cut()
            with pytest.raises(NoOwner):
                await here.calling.call(tool_call(), ["b"])
            there.way.mend()
            await there.nats.wait_connected()
            await here.calling.call(tool_call(), ["b"])
            there.way.reset()
            assert await here.calling.call(tool_call(b"7"), ["b"]) == Complete(Raw(b"7"))


async def test_an_owner_that_is_still_connecting_is_waited_for(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            for _ in range(10):
                there.way.reset()
                await here.calling.call(tool_call(), ["b"])
            assert len(work.begun) == 10


async def test_an_owner_that_is_no_more_is_told_at_once(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            lost: list[OwnerLost] = []

            async def ask() -> None:
                with pytest.raises(OwnerLost) as caught:
                    await here.calling.call(tool_call(), ["b"])
                lost.append(caught.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await work.going.wait()
                there.way.cut()
                names.end("b")
                await wait_all_tasks_blocked()
                assert [each.executed for each in lost] == ["unknown"]


async def test_an_owner_that_says_nothing_is_given_up_in_the_end(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    began = trio.current_time()
                    with pytest.raises(OwnerLost, match="no word of it for 30 s") as caught:
                        await here.calling.call(tool_call(), ["b"])
                    assert caught.value.executed == "unknown"
                    assert trio.current_time() - began < 2 * LEASE + 4

                nursery.start_soon(ask)
                await work.going.wait()
                there.way.cut()


async def test_orphans_are_cancelled_and_what_comes_late_of_their_caller_does_not_run(
    autojump_clock: MockClock,
) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            epoch = names.epochs["a"]

            async def ask() -> None:
                with pytest.raises(CallError) as caught:
                    await here.calling.call(tool_call(), ["b"])
                assert caught.value.executed == "unknown"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await work.going.wait()
                names.end("a")
                await wait_all_tasks_blocked()
                assert work.cancelled == [b"{}"]
                assert there.counters["mesh.orphans"] == 1
            late = Request("call", "0" * 32, b"{}", tool="t", epoch=epoch)
            reply = await here.nats.request(subject(there, "a"), late.body, headers=encode_request(late))
            assert (reply.header("C-K"), reply.header("C-Why")) == ("rej", "fenced")


def subject(there: Node, caller: str) -> str:
    lease = there.presence.lease
    assert lease is not None
    return f"{there.presence.subject(lease.epoch)}.{caller}"


async def test_a_call_that_comes_behind_its_cancel_does_not_run(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            for op in ("cancel", "call"):
                request = Request(op, "1" * 32, b"{}", epoch=names.epochs["a"])
                reply = await here.nats.request(subject(there, "a"), request.body, headers=encode_request(request))
            assert reply.header("C-K") == "err"
            assert b"cancelled" in reply.data
            assert work.begun == []


async def test_the_same_message_twice_runs_once(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            request = Request("call", "1" * 32, b'{"arguments":1}', epoch=names.epochs["a"])
            headers = encode_request(request)
            with here.nats.open_stream(subject(there, "a"), request.body, headers=headers) as first:
                with here.nats.open_stream(subject(there, "a"), request.body, headers=headers) as second:
                    assert (await second.receive()).header("C-State") == "running"
                    assert (await second.receive()).header("C-K") == "acc"
                    assert (await second.receive()).data == b"1"
                    reply = await here.nats.request(subject(there, "a"), request.body, headers=headers)
                    assert (reply.header("C-K"), reply.data) == ("ok", b"1")
                    with trio.move_on_after(5) as silent:
                        await first.receive()
                    assert silent.cancelled_caught
            assert work.begun == [b"1"]


async def test_what_ended_is_forgotten_once_its_caller_says_so_or_after_a_minute(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            for _ in range(50):
                await here.calling.call(tool_call(), ["b"])
            tenure = there.owning._tenure
            assert tenure is not None
            assert (len(tenure.known), len(tenure._ended), len(tenure._kept)) == (1, 1, 1)
            await trio.sleep(61)
            tenure.forget(trio.current_time())
            assert (len(tenure.known), len(tenure._ended), len(tenure._kept), tenure._kept_bytes) == (0, 0, 0, 0)


async def test_a_flood_of_cancelled_calls_does_not_stay_in_the_owners_memory(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            for _ in range(200):
                with trio.move_on_after(0.01):
                    await here.calling.call(tool_call(), ["b"])
                await wait_all_tasks_blocked()
            tenure = there.owning._tenure
            assert tenure is not None
            assert len(work.cancelled) == len(work.begun) == 200
            assert len(tenure.known) < 10


async def test_a_call_that_was_offered_twice_is_known_a_minute_after_its_cancel(autojump_clock: MockClock) -> None:
    """Its first message may still be on its way, behind the cancel."""
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.calling.call, tool_call(), ["b"])
                    await work.going.wait()
                    here.way.reset()
            await trio.sleep(5)
            work.seconds = 0
            for _ in range(3):
                await here.calling.call(tool_call(b"1"), ["b"])
            tenure = there.owning._tenure
            assert tenure is not None
            assert len(work.cancelled) == 1
            assert sum(one.why != "" for one in tenure.known.values()) == 1


async def test_a_long_call_says_that_it_runs_and_needs_no_pings(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(100)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            await here.calling.call(tool_call(), ["b"])
            assert here.counters["mesh.pings"] == 0


async def test_a_node_that_drains_takes_no_new_calls_and_ends_those_it_has(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(10)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.calling.call, tool_call(), ["b"])
                await work.going.wait()
                there.owning.draining = True
                with pytest.raises(OwnerRefused, match="draining") as caught:
                    await here.calling.call(tool_call(), ["b"])
                assert caught.value.executed == "no"
            assert len(work.begun) == 1


async def test_what_is_not_admitted_is_refused_with_the_reason(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here:
            async with node(broker, names, "b", work, admit=lambda _, request: "nosuch" if request.tool else ""):
                with pytest.raises(OwnerRefused, match="node 'b' did not take the call: nosuch"):
                    await here.calling.call(tool_call(), ["b"])
                assert work.begun == []


async def test_a_full_owner_refuses_and_callers_take_turns(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1)
    async with open_broker(Random(1)) as broker:
        async with (
            node(broker, names, "a") as here,
            node(broker, names, "c") as other,
            node(broker, names, "b", work, slots=1, line=3),
        ):
            ends: list[str] = []

            async def ask(who: Node, what: bytes) -> None:
                try:
                    await who.calling.call(tool_call(what), ["b"])
                    ends.append(f"{what.decode()} ran")
                except OwnerRefused as exc:
                    ends.append(f"{what.decode()} {exc.reason}")

            async with trio.open_nursery() as nursery:
                for number in range(5):  # one runs, three wait, one is refused
                    nursery.start_soon(ask, here, b'"a%d"' % number)
                    await wait_all_tasks_blocked()
                for number in range(2):  # the second finds its like there already
                    nursery.start_soon(ask, other, b'"c%d"' % number)
                    await wait_all_tasks_blocked()
                assert ends == ['"a4" busy', '"a3" busy', '"c1" busy']
            assert work.begun == [b'"a0"', b'"a1"', b'"c0"', b'"a2"']


async def test_of_several_owners_the_one_with_less_to_do_is_asked_and_who_refuses_is_left(
    autojump_clock: MockClock,
) -> None:
    names, slow, quick = Names(), Work(100), Work(0.1)
    async with open_broker(Random(1)) as broker:
        async with (
            node(broker, names, "a") as here,
            node(broker, names, "b", slow, slots=4),
            node(broker, names, "c", quick, slots=4) as there,
        ):
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(here.calling.call, tool_call(), ["b", "c"])
                    await trio.sleep(0.2)
                assert len(slow.begun) <= 4
                nursery.cancel_scope.cancel("enough was seen")
            there.owning.draining = True
            begun = len(slow.begun)
            with trio.move_on_after(1):
                await here.calling.call(tool_call(), ["c", "b"])
            assert len(slow.begun) == begun + 1


async def test_a_node_that_is_gone_is_left_for_another_at_once(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            names.epochs["gone"] = "00000000"
            for number in range(10):
                began = trio.current_time()
                await here.calling.call(tool_call(b"%d" % number), ["b", "gone"])
                assert trio.current_time() == began
            assert len(work.begun) == 10


async def test_nodes_that_are_all_away_for_a_moment_are_waited_for_when_no_more_may_be_tried_elsewhere(
    autojump_clock: MockClock,
) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with (
            node(broker, names, "a") as here,
            node(broker, names, "b", work) as one,
            node(broker, names, "c", work) as other,
        ):
            one.way.reset()
            other.way.reset()
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(here.calling.call, tool_call(b"%d" % number), ["b", "c"])
            assert len(work.begun) == 40
            assert here.counters["mesh.elsewhere"] <= RESERVE + 4


async def test_a_node_that_is_gone_costs_few_calls_a_second_try(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            names.epochs["gone"] = "00000000"
            for number in range(150):  # as long as its lease may stand
                await here.calling.call(tool_call(b"%d" % number), ["b", "gone"])
                await trio.sleep(0.1)
            assert len(work.begun) == 150
            assert 1 <= here.counters["mesh.elsewhere"] <= 4


async def test_what_may_have_run_is_not_asked_of_another(autojump_clock: MockClock) -> None:
    names, work, other = Names(), Work(1000), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            async with node(broker, names, "c", other):
                here.calling.peers.get("c", names.epochs["c"]).told(99, 1)

                async def ask() -> None:
                    with pytest.raises(OwnerLost) as caught:
                        await here.calling.call(tool_call(), ["b", "c"])
                    assert caught.value.executed == "unknown"

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await work.going.wait()
                    there.way.reset()
                    there.way.cut()
                assert other.begun == []


async def test_a_question_is_answered_where_it_was_asked(autojump_clock: MockClock) -> None:
    asked: list[Call] = []
    dropped: list[tuple[str, str]] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        asked.append(call)
        if not call.park:
            return InputRequired(Raw(b'{"inputRequests":{}}'), "tok.en")
        return Complete(Raw(b"{}"))

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "c"):
            async with node(broker, names, "b", handler, drop=lambda *told: dropped.append(told)):
                question = await here.calling.call(tool_call(), ["b"])
                assert isinstance(question, InputRequired)
                assert question.park == f"b.{names.epochs['b']}.tok.en"
                answer = Call("tools/call", "t", {"inputResponses": Raw(b"{}")}, park=question.park)
                assert await here.calling.call(answer, ["c", "b"]) == Complete(Raw(b"{}"))
                assert [call.park for call in asked] == ["", "tok.en"]
                question = await here.calling.call(tool_call(), ["b"])
                assert isinstance(question, InputRequired)
                here.calling.drop(question.park, "nobody answers")
                await wait_all_tasks_blocked()
                await here.calling.call(tool_call(), ["b"])
                names.end("a")
                assert dropped[0] == ("tok.en", "nobody answers")
                assert (len(dropped), dropped[1][0]) == (2, "tok.en")
            with pytest.raises(OwnerLost, match="the question that this answers went with it") as caught:
                await here.calling.call(answer, ["b"])
            assert caught.value.executed == "unknown"


async def test_a_call_goes_through_8_nodes_at_most(autojump_clock: MockClock) -> None:
    names, hops = Names(), []
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here:

            async def handler(call: Call) -> Outcome:
                hops.append(1)
                return await there.calling.call(call, ["b"])

            async with node(broker, names, "b", handler) as there:
                with pytest.raises(OwnerFailed, match="did not take the call: denied") as caught:
                    await here.calling.call(tool_call(), ["b"])
                assert (caught.value.kind, caught.value.executed) == ("OwnerRefused", "no")
            assert len(hops) == 8


async def test_garbage_is_refused_and_disturbs_nothing(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            to = subject(there, "a")
            for headers in ({"C-Op": "call"}, {"C-Ver": "2", "C-Op": "call", "C-Id": "0" * 32}):
                reply = await here.nats.request(to, b"x", headers=headers)
                assert (reply.header("C-K"), reply.header("C-Why")) == ("rej", "unsupported")
            here.nats.publish(to, b"x")
            request = Request("call", "2" * 32, b"[]", epoch=names.epochs["a"])
            reply = await here.nats.request(to, request.body, headers=encode_request(request))
            assert b"cannot be read" in reply.data
            await here.calling.call(tool_call(), ["b"])
            assert work.begun == [b"{}"]


async def test_calls_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(calling_module, "MAX_FLIGHTS", 0)
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b"):
            with pytest.raises(Overloaded, match="mesh_flights"):
                await here.calling.call(tool_call(), ["b"])


async def test_a_handler_that_fails_while_it_is_cancelled_harms_no_other_call(autojump_clock: MockClock) -> None:
    async def handler(call: Call) -> Outcome:
        if call.name == "well":
            await trio.lowlevel.checkpoint()
            return Complete(Raw(b"{}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in its cleanup")

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler) as there:
            with trio.move_on_after(1):
                await here.calling.call(tool_call(), ["b"])
            assert await here.calling.call(tool_call(name="well"), ["b"]) == Complete(Raw(b"{}"))
            assert (there.counters["mesh.handler_failed"], there.owning.busy) == (1, 0)
