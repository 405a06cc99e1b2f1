"""What messages meet on a transport with faults."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.cell import Timer
from cord_trio.errors import CallError, ConnectionLost, Overloaded
from cord_trio.session import open_session
from cord_trio.testing import Fault, FaultyTransport, ToolServer
from cord_trio.testing import wire as wire_module
from cord_trio.transports import Transport
from cord_trio.transports.memory import memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trio.testing import MockClock

    from cord_trio.testing.faults import WireFault
    from cord_trio.transports import Receiver
    from cord_trio.transports.memory import MemoryTransport


class Heard:
    """Keeps what it is fed, with the seconds since it began."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.when: list[float] = []
        self.over: list[str] = []
        self.began = trio.current_time()

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.got += messages
        self.when += [trio.current_time() - self.began] * len(messages)

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError(error)

    def lost(self, error: ConnectionLost, /) -> None:
        self.over.append(error.reason)

    def waits(self, id: int | str, /) -> bool:
        return True


@asynccontextmanager
async def conversing(
    *plan: WireFault | None,
) -> AsyncGenerator[tuple[FaultyTransport, Heard, MemoryTransport, Heard]]:
    """A transport with faults, who listens there, its plain peer, and who listens there."""
    inner, peer = memory_transport_pair()
    faulty, ours, theirs = FaultyTransport(inner, plan), Heard(), Heard()
    with faulty, peer:
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run, ours)
            await nursery.start(peer.run, theirs)
            yield faulty, ours, peer, theirs
            nursery.cancel_scope.cancel("the block has ended")


async def test_without_faults_it_is_the_inner_transport(autojump_clock: MockClock) -> None:
    async with conversing() as (faulty, ours, peer, theirs):
        faulty.send(b"1", id=1)
        assert not faulty.written(1)
        assert not faulty.congested
        await faulty.wait_uncongested()
        faulty.speak("2026-07-28", modern=True)
        peer.send(b"2")
        await wait_all_tasks_blocked()
        assert faulty.written(1)
        assert not faulty.withdraw(1)
        faulty.send(b"3", id=3)
        assert faulty.withdraw(3)
        await wait_all_tasks_blocked()
        assert (ours.got, theirs.got) == ([b"2"], [b"1"])
        assert faulty.faults.happened == []


async def test_a_delayed_message_holds_up_those_behind_it(autojump_clock: MockClock) -> None:
    async with conversing(None, Fault("delay", 3), None) as (faulty, _, _, theirs):
        for text in (b"1", b"2", b"3"):
            faulty.send(text)
        await trio.sleep(5)
        faulty.send(b"4")
        await wait_all_tasks_blocked()
        assert theirs.got == [b"1", b"2", b"3", b"4"]
        assert theirs.when == [0, 3, 3, 5]


async def test_what_comes_in_meets_faults_too(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3), None, Fault("lose")) as (_, ours, peer, _):
        for text in (b"1", b"2", b"3"):
            peer.send(text)
        await trio.sleep(5)
        assert ours.got == [b"1", b"2"]
        assert ours.when == [3, 3]


async def test_a_held_message_is_not_written_and_can_be_withdrawn(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3), None, Fault("reorder", 4)) as (faulty, _, _, theirs):
        for id in (1, 2, 3):
            faulty.send(b"%d" % id, id=id)
        assert not any(map(faulty.written, (1, 2, 3)))
        assert faulty.withdraw(3)
        assert faulty.withdraw(1)
        await trio.sleep(9)
        assert theirs.got == [b"2"]
        assert faulty.written(2)


async def test_a_lost_message_counts_as_written(autojump_clock: MockClock) -> None:
    async with conversing(Fault("lose")) as (faulty, _, _, theirs):
        faulty.send(b"1", id=1)
        faulty.send(b"2", id=2)
        await wait_all_tasks_blocked()
        assert theirs.got == [b"2"]
        assert faulty.written(1)
        assert not faulty.withdraw(1)


async def test_a_duplicate_comes_twice_and_cannot_be_withdrawn(autojump_clock: MockClock) -> None:
    async with conversing(Fault("duplicate"), Fault("duplicate")) as (faulty, _, _, theirs):
        faulty.send(b"1", id=1)
        await wait_all_tasks_blocked()
        assert theirs.got == [b"1", b"1"]
        faulty.send(b"2", id=2)
        assert not faulty.withdraw(2)
        await wait_all_tasks_blocked()
        assert theirs.got == [b"1", b"1", b"2"]


async def test_the_next_message_overtakes_one_that_is_reordered(autojump_clock: MockClock) -> None:
    async with conversing(Fault("reorder", 9), None, Fault("reorder", 9)) as (faulty, _, _, theirs):
        for text in (b"1", b"2", b"3"):
            faulty.send(text)
        await trio.sleep(20)
        assert theirs.got == [b"2", b"1", b"3"]
        assert theirs.when == [0, 0, 9]


async def test_of_two_that_are_reordered_the_second_goes_first(autojump_clock: MockClock) -> None:
    async with conversing(Fault("reorder", 9), Fault("reorder", 9)) as (faulty, _, _, theirs):
        faulty.send(b"1")
        faulty.send(b"2")
        await wait_all_tasks_blocked()
        assert theirs.got == [b"2", b"1"]


async def test_the_copy_of_a_message_that_was_withdrawn_still_comes(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3), Fault("duplicate")) as (faulty, _, _, theirs):
        faulty.send(b"1", id=1)
        faulty.send(b"2", id=2)
        assert faulty.written(2)
        assert not faulty.withdraw(2)
        await trio.sleep(5)
        assert theirs.got == [b"1", b"2"]


async def test_the_inner_transport_reaches_the_receiver(autojump_clock: MockClock) -> None:
    failed: list[object] = []

    class Failing(Quiet):
        async def run(
            self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            task_status.started()
            await trio.lowlevel.checkpoint()
            failed.append(receiver.waits(7))
            receiver.fail(7, CallError("no"))
            receiver.lost(ConnectionLost("done"))

    class Listening(Heard):
        def fail(self, id: int | str, error: CallError, /) -> None:
            failed.append((id, str(error)))

    ours = Listening()
    await FaultyTransport(Failing()).run(ours)
    assert failed == [True, (7, "no")]
    assert ours.over == ["done"]


async def test_what_comes_beside_and_cannot_be_sent_ends_the_connection(autojump_clock: MockClock) -> None:  # noqa: ASYNC124  # async by contract
    faulty = FaultyTransport(Quiet(), [Fault("garbage")])
    with pytest.raises(Overloaded):
        faulty.send(b"1")
    with pytest.raises(ConnectionLost, match="quiet"):
        faulty.send(b"2")


async def test_garbage_and_floods_come_before_the_message(autojump_clock: MockClock) -> None:
    async with conversing(Fault("garbage"), Fault("flood", count=3), Fault("garbage")) as (faulty, ours, peer, theirs):
        faulty.send(b"1")
        faulty.send(b"2")
        peer.send(b"3")
        await wait_all_tasks_blocked()
        assert theirs.got == [wire_module.RUBBISH, b"1", *[wire_module.LOG_LINE] * 3, b"2"]
        assert ours.got == [wire_module.RUBBISH, b"3"]


async def test_a_slow_way_lets_one_message_through_at_a_time(autojump_clock: MockClock) -> None:
    async with conversing(Fault("slow", 2)) as (faulty, _, _, theirs):
        for text in (b"1", b"2", b"3"):
            faulty.send(text)
        await trio.sleep(7)
        assert theirs.when == [2, 4, 6]


async def test_a_cut_ends_both_ends_once_and_its_message_was_not_sent(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3), Fault("cut")) as (faulty, ours, _, theirs):
        faulty.send(b"1", id=1)
        with pytest.raises(ConnectionLost) as raised:
            faulty.send(b"2", id=2)
        assert raised.value.executed == "no"
        await trio.sleep(9)
        assert (ours.over, theirs.over) == ([raised.value.reason], [raised.value.reason])
        assert theirs.got == []
        assert not faulty.written(1)
        assert faulty.withdraw(1)
        with pytest.raises(ConnectionLost):
            faulty.send(b"3")


async def test_what_came_before_the_end_and_is_late_comes_before_the_end(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3)) as (_, ours, peer, _):
        peer.send(b"1")
        peer.close()
        await wait_all_tasks_blocked()
        assert ours.got == [b"1"]
        assert ours.over == ["the peer closed the connection"]


async def test_a_late_message_that_cannot_be_sent_ends_the_connection(autojump_clock: MockClock) -> None:
    async with conversing(Fault("delay", 3)) as (faulty, ours, peer, _):
        faulty.send(b"1")
        peer.close()
        await trio.sleep(5)
        assert ours.over == ["the peer closed the connection"]


async def test_more_than_it_holds_is_refused(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "HELD", 2)
    async with conversing(Fault("delay", 3), None, Fault("delay", 3)) as (faulty, ours, peer, _):
        faulty.send(b"1")
        faulty.send(b"2")
        with pytest.raises(Overloaded, match=r"faulty_transport\.held"):
            faulty.send(b"3")
        for text in (b"4", b"5", b"6"):
            peer.send(text)
        await wait_all_tasks_blocked()
        assert ours.got == [b"4", b"5", b"6"]  # what came cannot be refused


class Quiet(Transport):
    """A transport that cannot be broken from here."""

    def send(self, message: bytes, **about: object) -> None:
        raise Overloaded("quiet", 0)

    def withdraw(self, id: int | str) -> bool:
        return True

    def written(self, id: int | str) -> bool:
        return False

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()


async def test_a_transport_that_cannot_be_broken_is_left(autojump_clock: MockClock) -> None:
    ours = Heard()
    with FaultyTransport(Quiet(), [None, Fault("delay", 1)]) as faulty:
        with pytest.raises(Overloaded):
            faulty.send(b"1")
        faulty.send(b"2")
        await faulty.run(ours)
    assert trio.current_time() - ours.began == 1
    assert ours.over == ["message beyond quiet"]
    faulty = FaultyTransport(Quiet())
    faulty.lose("before it began")
    await faulty.run(ours)
    assert ours.over[1:] == ["before it began"]


@pytest.mark.parametrize("seed", range(20))
async def test_a_session_ends_every_request_whatever_the_way_does(seed: int, autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def ask(number: int) -> None:
        try:
            params = b'{"name":"echo","arguments":{"text":"%d"}}' % number
            reply = await session.request("tools/call", params, deadline=trio.current_time() + 30)
            assert b'"%d"' % number in bytes(reply)
            ended.append("answered")
        except CallError as exc:
            ended.append(exc.executed)

    server = ToolServer(era="legacy")
    async with server.open() as inner:
        faulty = FaultyTransport(inner, random.Random(seed), chance=0.3)
        timer = Timer()
        async with trio.open_nursery() as around:
            await around.start(timer.run)
            async with open_session(faulty, timer=timer) as session:
                async with trio.open_nursery() as nursery:
                    for number in range(10):
                        nursery.start_soon(ask, number)
                assert session.peer.open == {}
            assert len(timer) == 0
            around.cancel_scope.cancel("all has been asked")
    assert len(ended) == 10
    assert len(faulty.faults.happened) > 0
