from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.testing.schedule import scheduled
from cord_trio.transports import Limits, memory
from cord_trio.transports.memory import memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

    from cord_trio.errors import CallError


class Record:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.batches: list[int] = []
        self.loss: ConnectionLost | None = None

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.messages += messages
        self.batches.append(len(messages))

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        assert self.loss is None
        self.loss = error

    def waits(self, id: int | str, /) -> bool:
        return True


async def test_messages_arrive_in_order_and_in_batches(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    sent = [b"%d" % number for number in range(20)]
    for message in sent:
        here.send(message)
    here.close()
    record = Record()
    await there.run(record)
    assert record.messages == sent
    assert record.batches == [8, 8, 4]


async def test_what_was_sent_before_closing_arrives_before_the_loss(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    record = Record()
    with here:
        here.send(b"last")
    await there.run(record)
    assert record.messages == [b"last"]
    assert record.loss is not None
    assert record.loss.reason == "the peer closed the connection"


async def test_closing_tells_the_own_reader_too(autojump_clock: MockClock) -> None:
    here, _there = memory_transport_pair()
    record = Record()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run, record)
        await trio.testing.wait_all_tasks_blocked()
        here.close()
    assert record.loss is not None


async def test_who_closes_takes_nothing_more_and_the_sender_knows(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    here.send(b"one", id=1)
    there.close()
    record = Record()
    await there.run(record)
    assert record.messages == []
    assert not here.written(1)


async def test_a_message_not_yet_taken_can_be_withdrawn(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    for id in (1, "1", 2):
        here.send(b"%r" % id if isinstance(id, int) else b"text", id=id)
    assert not here.written(1)
    assert here.withdraw(1)
    here.close()
    record = Record()
    await there.run(record)
    assert record.messages == [b"text", b"2"]


async def test_a_message_that_was_taken_cannot_be_withdrawn(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    record = Record()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.run, record)
        here.send(b"one", id=1)
        await trio.testing.wait_all_tasks_blocked()
        assert here.written(1)
        assert not here.withdraw(1)
        nursery.cancel_scope.cancel("seen")
    assert record.messages == [b"one"]


async def test_a_break_tells_both_ends_and_knows_what_never_arrived(autojump_clock: MockClock) -> None:
    here, there = memory_transport_pair()
    records = Record(), Record()
    here.send(b"one", id=1)
    here.lose("the wire was cut")
    await here.run(records[0])
    await there.run(records[1])
    assert [record.loss.reason for record in records if record.loss] == ["the wire was cut"] * 2
    assert [record.messages for record in records] == [[], []]
    assert not here.written(1)
    assert here.withdraw(1)


@pytest.mark.parametrize("broken", [False, True])
def test_after_the_end_nothing_is_sent(broken: bool) -> None:
    here, there = memory_transport_pair()
    if broken:
        there.lose("gone")
    else:
        there.close()
    for end in (here, there):
        with pytest.raises(ConnectionLost) as caught:
            end.send(b"late", id=9)
        assert caught.value.executed == "no"


def test_the_outbox_is_bounded_in_messages_and_bytes() -> None:
    here, _there = memory_transport_pair()
    here.limits = Limits(outbox_bytes=10, outbox_messages=2)
    here.send(b"12345678")
    with pytest.raises(Overloaded) as bytes_met:
        here.send(b"123")
    here.send(b"12")
    with pytest.raises(Overloaded) as messages_met:
        here.send(b"")
    assert (bytes_met.value.bound, messages_met.value.bound) == ("bounds.outbox_bytes", "bounds.outbox_messages")


@pytest.mark.parametrize("how", ["taken", "withdrawn", "lost"])
async def test_who_waits_for_the_outbox_wakes(
    how: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CONGESTED_MESSAGES", 1)
    here, there = memory_transport_pair()
    await here.wait_uncongested()
    here.send(b"one", id=1)
    assert here.congested
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.wait_uncongested)
        with trio.move_on_after(1) as gives_up:
            await here.wait_uncongested()
        assert gives_up.cancelled_caught
        if how == "taken":
            nursery.start_soon(there.run, Record())
            await trio.testing.wait_all_tasks_blocked()
            there.close()
        elif how == "withdrawn":
            here.withdraw(1)
        else:
            here.lose("gone")


@pytest.mark.parametrize("seed", range(20))
def test_under_any_schedule_both_directions_keep_order_and_lose_nothing(seed: int) -> None:
    here, there = memory_transport_pair()
    records = Record(), Record()
    sent = [b"%d" % number for number in range(12)]

    async def speak(end: memory.MemoryTransport) -> None:
        for message in sent:
            end.send(message)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.run, records[0])
            nursery.start_soon(there.run, records[1])
            async with trio.open_nursery() as speakers:
                speakers.start_soon(speak, here)
                speakers.start_soon(speak, there)
            await trio.testing.wait_all_tasks_blocked()
            here.close()

    with scheduled(Random(seed)):
        trio.run(main)
    assert [record.messages for record in records] == [sent, sent]
    assert all(record.loss for record in records)
