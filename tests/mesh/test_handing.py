"""A call that one node hands on to another is answered by that one, and by nobody else."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import CallError, DeadlineExceeded
from cord_trio.mesh.frames import Request, encode_request
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.owning import HandOn
from cord_trio.mesh_errors import OwnerFailed, OwnerLost
from tests.mesh.ring import Names, node, tool_call

if TYPE_CHECKING:
    from cord_trio.nats.wire import Message


class Taker:
    """Who it is handed on to.

    Attributes:
        begun: what was begun.
        cancelled: how often it was cut off.

    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[Call] = []
        self.cancelled = 0

    async def __call__(self, call: Call) -> Outcome:
        self.begun.append(call)
        if call.events is not None:
            call.events("notifications/progress", Raw(b"1"))
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return Complete(Raw(b'"taken"'))


async def giver(call: Call) -> Outcome:
    await trio.sleep(1)
    raise HandOn("c", Call(call.method, "taker", {"arguments": Raw(b'"job"')}))


async def test_who_takes_a_call_over_answers_its_caller_within_what_is_left(autojump_clock: MockClock) -> None:
    names, taker, told = Names(), Taker(5), []
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", giver) as between:
            async with node(broker, names, "c", taker):
                began = trio.current_time()
                outcome = await here.calling.call(tool_call(within=60, events=lambda *event: told.append(event)), ["b"])
                assert outcome == Complete(Raw(b'"taken"'))
                assert trio.current_time() - began == pytest.approx(6, abs=0.1)
                (call,) = taker.begun
                assert (call.name, call.params) == ("taker", {"arguments": Raw(b'"job"')})
                assert began + 59 < call.deadline < began + 60
                assert told == [("notifications/progress", Raw(b"1"))]
                assert (between.owning.busy, between.counters["mesh.handed_on"]) == (0, 1)
                with pytest.raises(DeadlineExceeded) as caught:
                    await here.calling.call(tool_call(within=3), ["b"])
                assert (caught.value.executed, taker.cancelled) == ("unknown", 1)


async def test_a_cancel_reaches_who_took_the_call_over_also_by_way_of_who_gave_it(autojump_clock: MockClock) -> None:
    names, taker = Names(), Taker(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", giver) as between:
            async with node(broker, names, "c", taker):
                for count in (1, 2):
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(here.calling.call, tool_call(), ["b"])
                            while len(taker.begun) < count:  # noqa: ASYNC110  # on a clock that jumps
                                await trio.sleep(0.1)
                            if count == 2:
                                (flight,) = here.calling._flights.values()
                                lease = between.presence.lease
                                assert lease is not None
                                subject = f"{between.presence.subject(lease.epoch)}.a"
                                here.nats.publish(subject, headers=encode_request(Request("cancel", flight.request.id)))
                                await wait_all_tasks_blocked()
                                assert taker.cancelled == 2
                            scope.cancel("the test wants it")
                    await wait_all_tasks_blocked()
                    assert taker.cancelled == count


async def test_a_lost_connection_finds_who_took_the_call_over_and_runs_nothing_again(
    autojump_clock: MockClock,
) -> None:
    names, taker = Names(), Taker(5)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", giver):
            async with node(broker, names, "c", taker):

                async def ask() -> None:
                    assert await here.calling.call(tool_call(), ["b"]) == Complete(Raw(b'"taken"'))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await trio.sleep(2)
                    here.way.reset()
                    await trio.sleep(2)
                    here.way.reset()
                assert len(taker.begun) == 1


async def test_what_was_handed_on_in_vain_may_have_run(autojump_clock: MockClock) -> None:
    names, taker = Names(), Taker(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", giver):
            with pytest.raises(OwnerFailed, match="c is not in the mesh now") as caught:
                await here.calling.call(tool_call(), ["b"])
            assert caught.value.executed == "unknown"
            async with node(broker, names, "c", taker) as there:
                there.owning.draining = True
                with pytest.raises(OwnerFailed, match="draining") as caught:
                    await here.calling.call(tool_call(), ["b"])
                assert caught.value.executed == "unknown"
                there.owning.draining = False
                lost: list[CallError] = []

                async def ask() -> None:
                    with pytest.raises(OwnerLost) as caught:
                        await here.calling.call(tool_call(), ["b"])
                    lost.append(caught.value)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await trio.sleep(2)
                    names.end("c")
                assert [each.executed for each in lost] == ["unknown"]
                names.epochs["c"] = "00000000"  # nobody listens there
                again = trio.current_time()
                with pytest.raises(OwnerLost) as late:
                    await here.calling.call(tool_call(), ["b"])
                assert late.value.executed == "unknown"
                assert trio.current_time() - again < 10
                assert len(taker.begun) == 1


async def test_what_was_lost_on_its_way_to_who_takes_it_over_is_not_asked_for_anew(autojump_clock: MockClock) -> None:
    names, taker = Names(), Taker()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", giver):
            async with node(broker, names, "c", taker) as there:
                take = there.owning.take
                lose = ["call"]

                def losing(message: Message) -> None:
                    if message.header("C-Op") in lose:
                        lose.clear()
                    else:
                        take(message)

                there.presence._take = losing
                with pytest.raises(OwnerLost, match="it was handed on, and is not known there") as caught:
                    await here.calling.call(tool_call(), ["b"])
                assert caught.value.executed == "unknown"
                await trio.sleep(10)
                assert taker.begun == []
