"""What callers and owners make of silence, of rubbish, and of what comes too late."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import CallError, DeadlineExceeded, Overloaded
from cord_trio.mesh import owning
from cord_trio.mesh.flight import GRACE
from cord_trio.mesh.frames import Request, encode_request
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.tenure import REMEMBERED
from cord_trio.mesh_errors import NoOwner, OwnerFailed, OwnerLost
from cord_trio.nats import line
from tests.mesh.ring import Names, node, tool_call
from tests.mesh.test_calls import Work, subject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cord_trio.nats.wire import Message
    from tests.mesh.ring import Node


def losing(there: Node, *ops: str) -> None:
    """Let the next message of each of these operations be lost on its way to `there`."""
    take, lose = there.owning.take, list(ops)

    def taking(message: Message) -> None:
        op = message.header("C-Op")
        if op in lose:
            lose.remove(op)
        else:
            take(message)

    there.presence._take = taking


def answering(there: Node, answer: Callable[[Message], None]) -> None:
    there.presence._take = answer


async def test_a_call_that_was_lost_on_its_way_is_offered_again_after_a_second(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            losing(there, "call", "ping")
            began = trio.current_time()
            assert await here.calling.call(tool_call(b"7", within=60), ["b"]) == Complete(Raw(b"7"))
            assert 2 <= trio.current_time() - began < 3
            assert work.begun == [b"7"]
            assert here.counters["mesh.offered_again"] == 1


async def test_a_cancel_that_was_lost_is_said_again(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            losing(there, "cancel", "cancel")
            with trio.move_on_after(0.5):
                await here.calling.call(tool_call(), ["b"])
            await wait_all_tasks_blocked()
            assert (work.cancelled, here.calling._withdrawals._untold) == ([], 1)
            await trio.sleep(3)
            assert (work.cancelled, here.calling._withdrawals._untold) == ([b"{}"], 0)


async def test_a_cancel_for_one_that_is_gone_is_said_less_and_less_often(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            asked: list[str] = []
            request = here.nats.request

            async def counted(subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> Message:
                asked.append(subject)
                return await request(subject, data, headers=headers)

            monkeypatch.setattr(here.nats, "request", counted)
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.calling.call, tool_call(), ["b"])
                    await work.going.wait()
                    there.way.reset()
                    there.way.cut()
                    await trio.sleep_forever()
            await trio.sleep(15)
            assert 10 <= sum(".call.b." in subject for subject in asked) < 60  # 140 at one pace
            there.way.mend()


async def test_a_cancel_while_cut_off_is_said_once_connected(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.calling.call, tool_call(), ["b"])
                    await work.going.wait()
                    here.way.reset()
                    await wait_all_tasks_blocked()
                    scope.cancel("the test wants it")
            await trio.sleep(3)
            assert work.cancelled == [b"{}"]
            assert there.owning.busy == 0


async def test_a_deadline_holds_while_nobody_listens_and_while_cut_off(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            names.epochs["gone"] = "00000000"
            began = trio.current_time()
            with pytest.raises(DeadlineExceeded) as caught:
                await here.calling.call(tool_call(within=1), ["gone"])
            assert (caught.value.executed, trio.current_time() - began) == ("no", 1)

            async def lose() -> None:
                await trio.sleep(0.5)
                broker.kill()

            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose)
                with pytest.raises(DeadlineExceeded) as caught:
                    await here.calling.call(tool_call(within=2), ["b"])
            assert (caught.value.executed, trio.current_time() - began) == ("unknown", 2)
            began = trio.current_time()
            with pytest.raises(OwnerLost, match="this node is cut off") as lost:
                await here.calling.call(tool_call(), ["b"])
            assert (lost.value.executed, trio.current_time() - began) == ("no", 3)
            broker.start()


class Earliest(Random):
    """Draws the shortest pause."""

    def uniform(self, least: float, _: float) -> float:
        return least


class Latest(Random):
    """Draws the longest pause."""

    def uniform(self, _: float, most: float) -> float:
        return most


async def test_an_owner_that_is_back_later_than_its_caller_is_waited_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BACKOFF", (5.0, 5.0))
    names, work = Names(), Work(1)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:

            async def ask() -> None:
                assert await here.calling.call(tool_call(b"7"), ["b"]) == Complete(Raw(b"7"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await work.going.wait()
                here.nats.line._rng, there.nats.line._rng = Earliest(), Latest()
                broker.kill()
                broker.start()
                await here.nats.wait_connected()
                began = trio.current_time()
                await there.nats.wait_connected()
                assert trio.current_time() - began > GRACE
            assert work.begun == [b"7"]


async def test_the_end_of_an_owner_is_told_while_its_caller_is_cut_off(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            lost: list[CallError] = []

            async def ask() -> None:
                with pytest.raises(OwnerLost) as caught:
                    await here.calling.call(tool_call(), ["b"])
                lost.append(caught.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await work.going.wait()
                broker.kill()
                await wait_all_tasks_blocked()
                names.end("b")
                await wait_all_tasks_blocked()
                assert [each.executed for each in lost] == ["unknown"]
            broker.start()
            await here.nats.wait_connected()


async def test_answers_that_are_rubbish_are_passed_over_and_such_an_end_is_an_error(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:

            def answer(message: Message) -> None:
                if message.header("C-Op") == "call":
                    there.nats.publish(message.reply, b"x")
                    there.nats.publish(message.reply, b"x", headers={"C-K": "ok", "C-Type": "poem"})

            answering(there, answer)
            with pytest.raises(OwnerFailed, match="its answer cannot be read") as caught:
                await here.calling.call(tool_call(), ["b"])
            assert caught.value.executed == "yes"
            assert here.counters["mesh.bad_frames"] == 2


async def test_a_flood_of_notifications_is_cut_short_and_the_result_comes(autojump_clock: MockClock) -> None:
    told: list[object] = []

    async def handler(call: Call) -> Outcome:
        assert call.events is not None
        for _ in range(10_000):
            call.events("notifications/progress", Raw(b"1"))
        await trio.sleep(1)
        return Complete(Raw(b"{}"))

    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler):
            call = tool_call(within=60, events=lambda *event: told.append(event))
            assert await here.calling.call(call, ["b"]) == Complete(Raw(b"{}"))
            assert len(told) <= 10_000


async def test_what_cannot_be_sent_was_not_run(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work):
            here.calling._parts = None
            with pytest.raises(Overloaded, match="nats_payload") as full:
                await here.calling.call(tool_call(b'"%b"' % (b"x" * 2_000_000)), ["b"])
            assert full.value.executed == "no"
            with pytest.raises(NoOwner, match="it cannot be said") as caught:
                await here.calling.call(tool_call(name="x" * 70_000), ["b"])
            assert caught.value.executed == "no"
            assert work.begun == []


async def test_an_owner_between_two_incarnations_refuses_and_a_caller_does_not_ask(autojump_clock: MockClock) -> None:
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            tenure, there.owning._tenure = there.owning._tenure, None
            request = Request("call", "0" * 32, b"{}", epoch=names.epochs["a"])
            reply = await here.nats.request(subject(there, "a"), request.body, headers=encode_request(request))
            assert (reply.header("C-K"), reply.header("C-Why")) == ("rej", "fenced")
            there.owning._tenure = tenure
            here.calling._epoch = lambda: ""
            with pytest.raises(NoOwner, match="this node is not in the mesh now"):
                await here.calling.call(tool_call(), ["b"])
            assert work.begun == []


async def test_an_owner_remembers_so_many_and_no_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(owning, "MAX_REMEMBERED", 1)
    names, work = Names(), Work()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", work) as there:
            tenure = there.owning._tenure
            assert tenure is not None
            for number, op in enumerate(("cancel", "cancel", "call", "ping", "credit", "drop")):
                request = Request(op, f"{number:032x}", b"{}", epoch=names.epochs["a"], park="p")
                here.nats.publish(subject(there, "a"), b"{}", reply="_INBOX.x", headers=encode_request(request))
            await here.nats.flush()
            await wait_all_tasks_blocked()
            assert (len(tenure.known), there.counters["mesh.remembered_full"], work.begun) == (1, 1, [])
            await trio.sleep(REMEMBERED + 1)
            await here.calling.call(tool_call(), ["b"])
            await here.calling.call(tool_call(), ["b"])  # says that the one before is settled
            assert (len(tenure.known), len(work.begun)) == (1, 2)


async def test_a_deadline_holds_while_a_large_result_comes(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b"):
            here.bulk.cut()
            began = trio.current_time()
            here.calling.peers.budget.earn()

            async with node(broker, names, "c", large) as there:
                with pytest.raises(DeadlineExceeded, match="while its result came") as caught:
                    await here.calling.call(tool_call(within=5), ["c"])
                assert caught.value.executed == "yes"
                assert trio.current_time() - began == pytest.approx(5)
                assert there.owning.busy == 0


async def large(_: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    return Complete(Raw(b'"%b"' % (b"x" * 300_000)))


async def test_who_ends_tells_what_is_under_way(autojump_clock: MockClock) -> None:
    names, work = Names(), Work(1000)
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "b", work):
            lost: list[CallError] = []

            async def ask(here: Node) -> None:
                with pytest.raises(OwnerLost, match="this node leaves the mesh") as caught:
                    await here.calling.call(tool_call(), ["b"])
                lost.append(caught.value)

            async with trio.open_nursery() as nursery:
                async with node(broker, names, "a") as here:
                    nursery.start_soon(ask, here)  # noqa: ASYNC111  # it ends after that node is the point
                    await work.going.wait()
            assert [each.executed for each in lost] == ["unknown"]
