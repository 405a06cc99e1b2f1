"""Real child processes, so the system clock."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.errors import ConnectFailed, ConnectionLost, Overloaded
from cord_trio.transports import Limits, lines
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.process import STDERR_TAIL, Graces, group_lives
from cord_trio.transports.pump import Pump, make_pump
from cord_trio.transports.stdio import NOISE_LINES, StdioTransport, open_stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from cord_trio.errors import CallError

SHORT = Graces(close=0.1, term=0.1)
LONG = Graces(close=5.0, term=5.0)
"""So long that a test that waits for it fails."""

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
PUMPED = False
"""Whether a pump reads what children say; each test runs both with and without."""
UNREAD = "import time; print('{}', flush=True); time.sleep(60)"


@attrs.frozen
class Program:
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None


class Record:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.loss: ConnectionLost | None = None
        self.written: dict[int | str, bool] = {}
        self._changed = trio.Event()

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.messages += messages
        self._change()

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        assert self.loss is None
        self.loss = error
        self._change()

    def waits(self, id: int | str, /) -> bool:
        return True

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_messages(self, count: int) -> None:
        while len(self.messages) < count and self.loss is None:
            await self._changed.wait()


def python(code: str) -> Program:
    return Program(sys.executable, ("-I", "-S", "-c", code))


def shell(code: str) -> Program:
    return Program("/bin/sh", ("-c", code))


@pytest.fixture(params=[False, True], ids=["a task reads", "the pump reads"], autouse=True)
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PUMPED", request.param)


@asynccontextmanager
async def pumping() -> AsyncGenerator[Pump | None, None]:
    """A pump that runs, if this test is to have one and there can be one."""
    pump = make_pump() if PUMPED else None
    if pump is None:
        yield None
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        yield pump
        nursery.cancel_scope.cancel("the test has seen enough")


@asynccontextmanager
async def connected(
    program: Program, counters: Counters, *, max_message: int = 1 << 24, graces: Graces = SHORT
) -> AsyncGenerator[tuple[StdioTransport, Record], None]:
    """A child whose transport runs while the block does."""
    async with open_guardian(counters=counters) as guardian, pumping() as pump:
        async with open_stdio(
            program, guardian=guardian, counters=counters, name="it", max_message=max_message, graces=graces, pump=pump
        ) as transport:
            record = Record()
            async with trio.open_nursery() as nursery:
                leave = transport.begin(record, nursery)
                if leave is None:
                    await nursery.start(transport.run, record)
                yield transport, record
                if leave is not None:
                    leave()
                nursery.cancel_scope.cancel("the test has seen enough")
        assert pump is None or not pump.pipes


async def the_loss(program: Program, counters: Counters, *, max_message: int = 1 << 24) -> tuple[Record, str]:
    """What a child that ends by itself said, and how its end is told."""
    async with open_guardian(counters=counters) as guardian, pumping() as pump:
        async with open_stdio(
            program, guardian=guardian, counters=counters, name="it", max_message=max_message, graces=SHORT, pump=pump
        ) as transport:
            record = Record()
            if pump is None:
                await transport.run(record)
            else:
                async with trio.open_nursery() as nursery:
                    leave = transport.begin(record, nursery)
                    assert leave is not None
                    await record.wait_messages(1 << 30)
                    leave()
    assert record.loss is not None
    assert guardian.groups == set()
    return record, record.loss.reason


async def test_a_message_comes_back() -> None:
    counters = Counters()
    async with connected(python(ECHO), counters, graces=LONG) as (transport, record):
        transport.send(b'{"a":1}', id=1)
        transport.send('{"b":"ř\u2028"}'.encode())
        assert transport.written(1)
        assert not transport.withdraw(1)
        await record.wait_messages(2)
    assert record.messages == [b'{"a":1}', '{"b":"ř\u2028"}'.encode()]
    assert transport.exit_status == 0
    assert counters.snapshot() == {}


@pytest.mark.parametrize("size", [70_000, 1_200_000, 9_000_000])
async def test_f07_long_lines_pass_in_both_directions(size: int) -> None:
    message = b'{"x":"%b"}' % (b"y" * size)
    async with connected(python(ECHO), Counters()) as (transport, record):
        transport.send(message, id=1)
        transport.send(b'{"next":1}', id=2)
        assert transport.congested == (size > lines.CONGESTED_BYTES)
        await record.wait_messages(2)
        assert record.messages == [message, b'{"next":1}']
        assert not transport.congested


async def test_f09_a_line_without_end_stops_the_server_and_names_the_bound() -> None:
    counters = Counters()
    record, reason = await the_loss(
        python("import sys\nprint('{}')\nwhile True: sys.stdout.write('a' * 65536)"), counters, max_message=100_000
    )
    assert record.messages == [b"{}"]
    assert "'it'" in reason
    assert "message_in" in reason
    assert "100000" in reason
    assert counters["stdio.message_too_long"] == 1


async def test_a_server_that_passed_the_bound_is_stopped_while_the_block_still_runs() -> None:
    async with connected(python("print('a' * 99, flush=True)\nwhile True: pass"), Counters(), max_message=10) as (
        transport,
        record,
    ):
        await record.wait_messages(1)
        with trio.fail_after(2):
            while transport.exit_status is None:  # noqa: ASYNC110  # the kernel tells the transport, not us
                await trio.sleep(0.01)


async def test_f14_a_flood_on_stderr_blocks_nothing_and_leaves_a_tail() -> None:
    flood = "import sys\nsys.stderr.write('e' * 300_000 + 'last words')\nsys.stderr.flush()\n"
    async with connected(python(flood + ECHO), Counters()) as (transport, record):
        transport.send(b"{}")
        await record.wait_messages(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert transport.stderr_tail.endswith("last words")
        assert len(transport.stderr_tail) <= STDERR_TAIL


async def test_f01_a_banner_is_kept_as_noise_and_fed_like_the_rest() -> None:
    counters = Counters()
    code = "print('Server v1 ready\\n[INFO] loaded\\n\\n [{}]\\n{}'); print('\\n'.join('x' * 9999 for _ in range(30)))"
    record, _reason = await the_loss(python(code), counters)
    assert record.messages[:4] == [b"Server v1 ready", b"[INFO] loaded", b" [{}]", b"{}"]
    assert counters["stdio.noise"] == 32


async def test_noise_is_bounded() -> None:
    async with connected(python("print('\\n'.join('x' * 9999 for _ in range(30)), flush=True)"), Counters()) as (
        transport,
        record,
    ):
        await record.wait_messages(31)
        assert list(transport.noise) == ["x" * 500] * NOISE_LINES


async def test_p01_a_server_that_exits_at_once_tells_status_and_stderr() -> None:
    with trio.fail_after(1):
        _record, reason = await the_loss(shell("echo need API_KEY >&2; exit 3"), Counters())
    assert reason == "server exited with status 3; stderr: need API_KEY"


async def test_p02_a_killed_server_tells_its_signal() -> None:
    async with connected(python(UNREAD), Counters()) as (transport, record):
        await record.wait_messages(1)
        os.kill(transport.pid, signal.SIGKILL)
        with trio.fail_after(0.5):
            await record.wait_messages(2)
        assert record.loss is not None
        assert record.loss.reason == "server exited (signal 9)"
        with pytest.raises(ConnectionLost) as caught:
            transport.send(b"{}", id=7)
        assert caught.value.executed == "no"


async def test_a_server_is_gone_even_if_its_helper_holds_its_stdout() -> None:
    async with connected(shell("sleep 60 & echo '{}'; read line; exit 4"), Counters(), graces=LONG) as (
        transport,
        record,
    ):
        await record.wait_messages(1)
        transport.send(b"{}")
        with trio.fail_after(1):
            await record.wait_messages(2)
        assert record.loss is not None
        assert record.loss.reason == "server exited with status 4"
    assert not group_lives(transport.pid)


async def test_what_a_server_said_before_it_exited_is_fed_before_the_loss() -> None:
    record, reason = await the_loss(python("for n in range(20000): print('{\"n\":%d}' % n)"), Counters())
    assert record.messages == [b'{"n":%d}' % number for number in range(20000)]
    assert reason == "server exited with status 0"


async def test_half_a_message_at_the_end_is_dropped_and_counted() -> None:
    counters = Counters()
    record, _reason = await the_loss(shell("printf '{}\\n{\"half\":'"), counters)
    assert record.messages == [b"{}"]
    assert counters["stdio.partial_line"] == 1


async def test_a_server_that_only_closes_its_stdout_is_lost_too() -> None:
    _record, reason = await the_loss(shell("exec >&-; echo why >&2; sleep 60"), Counters())
    assert reason == "server: closed its stdout; stderr: why"


async def test_a_closed_stdin_fails_the_message_and_then_the_connection() -> None:
    code = "exec 0<&-; echo '{}'; sleep 60"
    async with connected(shell(code), Counters()) as (transport, record):
        await record.wait_messages(1)
        with pytest.raises(ConnectionLost) as caught:
            transport.send(b"{}", id=1)
        assert caught.value.executed == "no"
        with trio.fail_after(2):
            await record.wait_messages(2)
        assert record.loss is not None
        assert "writing failed" in record.loss.reason


async def test_what_waits_in_the_backlog_can_be_taken_back() -> None:
    code = "import sys\nprint('{}', flush=True)\nimport time; time.sleep(0.1)\n" + ECHO
    big = b'{"big":"%b"}' % (b"x" * 200_000)
    async with connected(python(code), Counters()) as (transport, record):
        await record.wait_messages(1)
        transport.send(big, id=1)
        for id in (2, "2", 3):
            transport.send(b'{"id":%b}' % repr(id).replace("'", '"').encode(), id=id)
        assert [transport.written(id) for id in (1, 2, "2", 3)] == [True, False, False, False]
        assert not transport.withdraw(1)
        assert transport.withdraw(2)
        assert transport.withdraw(3)
        await record.wait_messages(3)
        assert record.messages == [b"{}", big, b'{"id":"2"}']
        assert transport.written("2")


async def test_a_lost_connection_still_knows_what_was_never_written() -> None:
    async with connected(python(UNREAD), Counters()) as (transport, record):
        await record.wait_messages(1)
        transport.send(b"x" * 200_000, id=1)
        transport.send(b"{}", id=2)
        os.kill(transport.pid, signal.SIGKILL)
        await record.wait_messages(2)
        assert record.loss is not None
        assert [transport.written(1), transport.written(2)] == [True, False]


async def test_the_outbox_is_bounded_and_counted() -> None:
    counters = Counters()
    async with connected(python(UNREAD), counters) as (transport, record):
        transport.limits = Limits(outbox_bytes=300_000, outbox_messages=3)
        await record.wait_messages(1)
        transport.send(b"x" * 200_000, id=1)
        with pytest.raises(Overloaded) as bytes_met:
            transport.send(b"x" * 200_000, id=2)
        transport.send(b"{}", id=3)
        transport.send(b"{}", id=4)
        with pytest.raises(Overloaded) as messages_met:
            transport.send(b"{}", id=5)
        assert transport.written(2)  # never accepted, so not waiting either: its sender was told
    assert (bytes_met.value.bound, messages_met.value.bound) == ("bounds.outbox_bytes", "bounds.outbox_messages")
    assert counters["stdio.outbox_full"] == 2


async def test_who_waits_for_the_outbox_wakes_when_it_empties_or_is_lost() -> None:
    async with connected(python(UNREAD), Counters()) as (transport, record):
        await transport.wait_uncongested()
        await record.wait_messages(1)
        transport.send(b"x" * 1_000_000, id=1)
        assert transport.congested
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.wait_uncongested)
            with trio.move_on_after(0.05) as gives_up:
                await transport.wait_uncongested()
            assert gives_up.cancelled_caught
            os.kill(transport.pid, signal.SIGKILL)


async def test_p03_a_missing_command_is_one_clear_error() -> None:
    async with open_guardian() as guardian:
        with pytest.raises(ConnectFailed):
            async with open_stdio(Program("no-such-bin"), guardian=guardian, counters=Counters(), name="it"):
                raise AssertionError
        assert guardian.groups == set()


async def test_the_blocks_own_error_leaves_as_it_is() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_guardian() as guardian:
            async with open_stdio(python(ECHO), guardian=guardian, counters=Counters(), name="it"):
                raise error
    assert caught.value is error


async def test_p09_a_cancelled_block_still_ends_a_deaf_child_in_time() -> None:
    counters = Counters()
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('{}', flush=True)\nwhile True: time.sleep(1)"
    with trio.fail_after(SHORT.bound + 1):
        with trio.CancelScope() as scope:
            async with connected(python(deaf), counters) as (transport, record):
                await record.wait_messages(1)
                scope.cancel("the test cancels")
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert transport.exit_status == -signal.SIGKILL
    assert counters["stdio.killed"] == 1


async def test_a_hundred_children_leave_no_descriptor_process_or_task() -> None:
    counters = Counters()
    async with open_guardian(counters=counters) as guardian:
        await guardian.wait_ready()
        await trio.testing.wait_all_tasks_blocked()
        descriptors = set(os.listdir("/proc/self/fd"))
        tasks = trio.lowlevel.current_statistics().tasks_living
        children: list[StdioTransport] = []

        async def one() -> None:
            async with open_stdio(shell("cat"), guardian=guardian, counters=counters, name="it") as transport:
                record = Record()
                async with trio.open_nursery() as nursery:
                    await nursery.start(transport.run, record)
                    transport.send(b"{}")
                    await record.wait_messages(1)
                    nursery.cancel_scope.cancel("heard")
                children.append(transport)

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one)
        assert len(children) == 100
        assert {child.exit_status for child in children} == {0}
        assert guardian.groups == set()
        assert set(os.listdir("/proc/self/fd")) == descriptors
        assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert threading.active_count() < 50
    assert counters.snapshot() == {}


async def test_a_start_cancelled_at_any_moment_leaves_nothing() -> None:
    rng = Random(7)
    async with open_guardian() as guardian:
        await guardian.wait_ready()
        await trio.testing.wait_all_tasks_blocked()
        descriptors = set(os.listdir("/proc/self/fd"))
        for _ in range(40):
            with trio.move_on_after(rng.uniform(0, 0.012)):
                async with open_stdio(shell("cat"), guardian=guardian, counters=Counters(), name="it") as transport:
                    record = Record()
                    transport.send(b"{}")
                    await transport.run(record)
            assert guardian.groups == set()
        assert set(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222  # it does not wait


async def test_what_was_called_never_written_is_never_written_later() -> None:
    code = (
        "import os, sys, time; print('{}', flush=True); time.sleep(0.1); os.close(1); time.sleep(0.1)\n"
        "sys.stderr.write('read the second' if b'second' in sys.stdin.buffer.read() else 'only the first')"
    )
    async with connected(python(code), Counters(), graces=LONG) as (transport, record):
        await record.wait_messages(1)
        transport.send(b"x" * 200_000, id=1)
        transport.send(b"second", id=2)
        await record.wait_messages(2)
        assert record.loss is not None
        assert not transport.written(2)
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert transport.stderr_tail == "only the first"


async def test_a_request_is_not_sent_while_the_pipe_is_congested() -> None:
    async with connected(python(UNREAD), Counters()) as (transport, record):
        await record.wait_messages(1)
        transport.send(b"x" * (2 * lines.CONGESTED_BYTES), id=1)
        assert transport.congested
        assert transport.send_seated(b"{}", 2, "ping", None, ()) is False
        assert 2 not in transport._backlog
