"""What a pump reads has no task of its own. Real child processes, so the system clock."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.process import Graces
from cord_trio.transports.pump import make_pump
from cord_trio.transports.stdio import open_stdio
from tests.transports.test_stdio import ECHO, Record, python, shell

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.pump import Pump

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only where there is a pump")

SHORT = Graces(close=0.1, term=0.1)


@asynccontextmanager
async def surroundings() -> AsyncGenerator[tuple[Guardian, Pump, trio.Nursery], None]:
    pump = make_pump()
    assert pump is not None
    async with open_guardian() as guardian, trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await guardian.wait_ready()
        await trio.testing.wait_all_tasks_blocked()
        yield guardian, pump, nursery
        nursery.cancel_scope.cancel("the test has seen enough")


class Faulty(Record):
    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        raise RuntimeError("a bug")


async def test_a_child_that_is_read_and_watched_by_a_pump_takes_no_task() -> None:
    async with surroundings() as (guardian, pump, nursery):
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with open_stdio(
            python(ECHO), guardian=guardian, counters=Counters(), name="it", graces=SHORT, pump=pump
        ) as transport:
            record = Record()
            leave = transport.begin(record, nursery)
            assert leave is not None
            transport.send(b"{}")
            await record.wait_messages(1)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            leave()
            assert record.loss is None
        assert not pump.pipes


async def test_nothing_is_told_after_leaving() -> None:
    async with surroundings() as (guardian, pump, _):
        async with open_stdio(
            python(ECHO), guardian=guardian, counters=Counters(), name="it", graces=SHORT, pump=pump
        ) as transport:
            record, before = Record(), len(pump.pipes)
            async with trio.open_nursery() as nursery:
                leave = transport.begin(record, nursery)
                assert leave is not None
                transport.send(b"{}")
                leave()
            assert len(pump.pipes) == before
            with trio.move_on_after(0.2):
                await record.wait_messages(1)
            assert record.messages == []
            os.kill(transport.pid, signal.SIGKILL)
            while guardian.groups:  # noqa: ASYNC110  # until it was collected, which nothing tells
                await trio.sleep(0.01)
            with pytest.raises(ConnectionLost):
                transport.send(b"{}")
            assert record.loss is None


async def test_a_bug_ends_one_connection_and_not_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    async with surroundings() as (guardian, pump, nursery):
        async with (
            open_stdio(python(ECHO), guardian=guardian, counters=Counters(), name="a", graces=SHORT, pump=pump) as one,
            open_stdio(python(ECHO), guardian=guardian, counters=Counters(), name="b", graces=SHORT, pump=pump) as two,
        ):
            faulty, record = Faulty(), Record()
            leaves = [one.begin(faulty, nursery), two.begin(record, nursery)]
            one.send(b"{}")
            await faulty.wait_messages(1)
            assert faulty.loss is not None
            assert faulty.loss.reason == "internal error: a bug"
            two.send(b"{}")
            await record.wait_messages(1)
            assert record.messages == [b"{}"]
            for leave in leaves:
                assert leave is not None
                leave()
    assert "transport failed source=a" in caplog.text


async def test_a_child_that_exited_before_it_is_read_is_heard_to_the_end() -> None:
    helped = "(trap '' TERM; echo '{}'; sleep 60) & read line; exit 4"  # the helper holds its stdout for long
    async with surroundings() as (guardian, pump, nursery):
        async with open_stdio(
            shell(helped), guardian=guardian, counters=Counters(), name="it", graces=Graces(0.1, 2.0), pump=pump
        ) as transport:
            await trio.lowlevel.wait_readable(transport._read_fd)
            transport.send(b"{}")
            while transport.exit_status is None:  # noqa: ASYNC110  # it shall not be collected by who waits
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            record = Record()
            leave = transport.begin(record, nursery)
            assert leave is not None
            with trio.fail_after(1):
                await record.wait_messages(2)
            leave()
    assert record.messages == [b"{}"]
    assert record.loss is not None
    assert record.loss.reason == "server exited with status 4"
