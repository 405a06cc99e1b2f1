"""The client over a wire in memory, on a clock that jumps: what a real server cannot be made to do."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.counters import Counters
from cord_trio.errors import ConnectFailed, ConnectionLost, Overloaded
from cord_trio.mesh_errors import NotPermitted
from cord_trio.nats import client, line
from cord_trio.nats.client import Nats, open_nats
from cord_trio.nats.dialing import Greeted, Server, parse_server
from cord_trio.nats.inflow import Inflow
from cord_trio.nats.wire import PING, PONG, Info, Message, Parser
from cord_trio.transports.http1_wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class MemoryWire(Wire):
    """A wire whose other end is the test.

    Attributes:
        written: what the kernel took.
        stuck: whether it takes nothing.
        answers: whether pings are answered.

    """

    def __init__(self) -> None:
        self.sent = self.waiting = 0
        self.deadline = math.inf
        self.written = b""
        self.stuck = False
        self.answers = True
        self.closed = False
        self._send, self._receive = trio.open_memory_channel[bytes](math.inf)

    def write(self, *parts: bytes) -> None:
        if self.closed:
            raise OSError("the connection is closed")
        data = b"".join(parts)
        if self.stuck:
            self.waiting += len(data)
            return
        self.sent += len(data)
        self.written += data
        if self.answers:
            for _ in range(data.count(PING)):
                self.say(PONG)

    def say(self, data: bytes) -> None:
        self._send.send_nowait(data)

    async def read(self) -> bytes:
        return await self._receive.receive()

    def quiet(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.say(b"")


class World:
    """What servers there are.

    Attributes:
        wires: of the connections so far, in order.
        tried: (Trio time, host) of each attempt.
        down: whether attempts fail.

    """

    def __init__(self) -> None:
        self.wires: list[MemoryWire] = []
        self.tried: list[tuple[float, str]] = []
        self.down = False
        self.counters = Counters()
        self.info = Info(version="2.11.0", max_payload=1000)

    async def greet(self, server: Server, _nursery: trio.Nursery, **_: object) -> Greeted:
        await trio.lowlevel.checkpoint()
        self.tried.append((trio.current_time(), server.origin.host))
        if self.down:
            raise ConnectFailed(server.name, "connect", "nobody there")
        wire = MemoryWire()
        self.wires.append(wire)
        return Greeted(wire, Parser(), self.info, [])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(line, "greet", world.greet)
    return world


@asynccontextmanager
async def opened(world: World, *servers: str, outbox: int = 10_000, rng: Random | None = None) -> AsyncGenerator[Nats]:
    async with open_nats(servers or "one", counters=world.counters, outbox=outbox, rng=rng or Random(1)) as nats:
        yield nats


async def test_a_silent_server_is_given_up_after_its_pings(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        wire = world.wires[0]
        await trio.sleep(line.PING_INTERVAL * 5)
        assert nats.line.connections == 1
        wire.answers = False
        changes: list[tuple[bool, str]] = []
        lost = trio.Event()

        def change(connected: bool, reason: str) -> None:
            changes.append((connected, reason))
            lost.set()

        nats.line.on_change = change
        with trio.fail_after(line.PING_INTERVAL * (line.PINGS_MISSED + 2.5)):
            await lost.wait()
        await nats.wait_connected()
        assert changes == [(False, "no sign of life within 30 s"), (True, "connected")]
        assert world.counters["nats.silent"] == 1


async def test_a_server_that_reads_nothing_is_given_up(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        world.wires[0].deadline = trio.current_time() + 1
        await trio.sleep(line.PING_INTERVAL * 2)
        assert (nats.line.connections, world.wires[0].closed) == (2, True)


async def test_what_was_not_written_whole_was_not_executed(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        wire = world.wires[0]
        outcomes: dict[str, str] = {}

        async def ask(subject: str) -> None:
            with pytest.raises(ConnectionLost) as caught:
                await nats.request(subject, b"x")
            outcomes[subject] = caught.value.executed

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "written")
            await wait_all_tasks_blocked()
            wire.stuck = True
            nursery.start_soon(ask, "stuck")
            with nats.open_stream("stuck.too") as stream:
                await wait_all_tasks_blocked()
                wire.close()
                with pytest.raises(ConnectionLost) as caught:
                    await stream.receive()
                assert caught.value.executed == "no"
                with pytest.raises(trio.EndOfChannel):
                    await stream.receive()
        assert outcomes == {"written": "unknown", "stuck": "no"}


async def test_while_there_is_no_connection_everything_fails_at_once(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        with nats.subscribe("kept"):
            ended = nats.subscribe("ended")
            world.down = True
            world.wires[0].say(b"-ERR 'Authentication Expired'\r\n")
            await wait_all_tasks_blocked()
            world.wires[0].close()
            await wait_all_tasks_blocked()
            assert not nats.connected
            ended.close()
            for use in (nats.flush, nats.drain):
                with pytest.raises(ConnectionLost, match="the server said: Authentication Expired") as caught:
                    await use()
                assert caught.value.executed == "no"
            with pytest.raises(ConnectionLost):
                nats.publish("a")
            again = nats.subscribe("again")
            world.down = False
            await nats.wait_connected()
            said = world.wires[1].written
            assert b"SUB again %d\r\n" % again.sid in said
            assert b"SUB _INBOX" in said
            assert b"ended" not in said


async def test_attempts_go_round_the_servers_with_full_jitter(world: World, autojump_clock: MockClock) -> None:
    async with opened(world, "one", "two") as nats:
        world.down = True
        world.wires[0].close()
        await trio.sleep(60)
        hosts = [host for _, host in world.tried]
        assert hosts[:5] == ["one", "two", "one", "two", "one"]
        pauses = [later - sooner for (sooner, _), (later, _) in zip(world.tried[1:], world.tried[2:], strict=False)]
        assert max(pauses) <= line.BACKOFF[1]
        assert len(set(pauses)) == len(pauses)
        assert 10 < len(pauses) < 60
        world.down = False
        await nats.wait_connected()


async def test_other_servers_of_the_cluster_are_learnt_and_rubbish_is_not(
    world: World, autojump_clock: MockClock
) -> None:
    async with opened(world) as nats:
        world.wires[0].say(b'INFO {"version":"2.11.0","max_payload":7,"connect_urls":["two:1","x y","one:4222"]}\r\n')
        await wait_all_tasks_blocked()
        assert nats.max_payload == 7
        world.down = True
        world.wires[0].close()
        await trio.sleep(30)
        assert {host for _, host in world.tried} == {"one", "two"}


async def test_if_no_server_takes_us_that_is_the_error(world: World, autojump_clock: MockClock) -> None:
    world.down = True
    with pytest.raises(ConnectFailed, match=r"two:4222: connect: nobody there \(and nats://one:4222: connect: nob"):
        async with opened(world, "one", "two"):
            raise AssertionError
    assert [host for _, host in world.tried] == ["one", "two"]


async def test_a_full_outbox_refuses_and_says_so(world: World, autojump_clock: MockClock) -> None:
    async with opened(world, outbox=100) as nats:
        world.wires[0].stuck = True
        nats.publish("a", bytes(80))
        with pytest.raises(Overloaded, match="nats_outbox = 100"):
            nats.publish("a", bytes(80))
        assert world.counters["nats.outbox_full"] == 1
        world.wires[0].stuck = False
        world.wires[0].waiting = 0
        nats.publish("a", bytes(80))


async def test_too_many_requests_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(client, "MAX_AWAITED", 1)
    async with opened(world) as nats:
        with nats.open_stream("a"):
            with pytest.raises(Overloaded, match="nats_awaited = 1"):
                await nats.request("b")
        with nats.open_stream("a"):
            pass


async def test_a_cancelled_request_is_forgotten_and_its_late_reply_counted(
    world: World, autojump_clock: MockClock
) -> None:
    async with opened(world) as nats:
        with trio.move_on_after(1):
            await nats.request("a")
        assert not nats._awaited
        world.wires[0].say(b"MSG %b.1 1 2\r\nok\r\n" % nats.inbox.encode())
        await wait_all_tasks_blocked()
        assert world.counters["nats.late_reply"] == 1


async def test_a_refusal_is_of_the_latest_request_to_that_subject(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        outcomes: list[str] = []

        async def ask(name: str) -> None:
            try:
                await nats.request("a.b")
                outcomes.append(f"{name} answered")
            except NotPermitted as exc:
                outcomes.append(f"{name} {exc.executed}")

        async with trio.open_nursery() as nursery:
            for name in ("older", "younger"):
                nursery.start_soon(ask, name)
                await wait_all_tasks_blocked()
            world.wires[0].say(b"-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n")
            await wait_all_tasks_blocked()
            assert outcomes == ["younger no"]
            world.wires[0].say(b"MSG %b.1 1 0\r\n\r\n" % nats.inbox.encode())
        assert outcomes == ["younger no", "older answered"]
        # One that nobody waits for harms nothing.
        world.wires[0].say(b"-ERR 'Permissions Violation for Publish to \"c\"'\r\nMSG x 99 0\r\n\r\n+OK\r\nPING\r\n")
        await wait_all_tasks_blocked()
        assert world.wires[0].written.endswith(PONG)
        assert world.counters["nats.not_permitted"] == 2


async def test_a_server_that_breaks_the_protocol_is_left(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        world.wires[0].say(b"HTTP/1.1 400\r\n")
        await wait_all_tasks_blocked()
        assert "broke the protocol: a line that is none of NATS" in nats.line.why
        await nats.wait_connected()


async def test_a_taker_that_raises_harms_nobody_else(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(world) as nats:
        bad = nats.subscribe("a", tell=lambda message: [].pop(len(message.data)))
        good = nats.subscribe("a")
        world.wires[0].say(b"MSG a %d 0\r\n\r\nMSG a %d 2\r\nok\r\n" % (bad.sid, good.sid))
        assert (await good.receive()).data == b"ok"
        assert world.counters["nats.taker_failed"] == 1
        assert "a taker of messages failed" in caplog.text


async def test_what_a_batch_provokes_is_written_together(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        wire = world.wires[0]
        asked = nats.subscribe("a", tell=lambda message: nats.publish(message.reply, b"ok"))
        writes: list[bytes] = []
        write = wire.write

        def seen(*parts: bytes) -> None:
            writes.append(b"".join(parts))
            write(*parts)

        wire.write = seen  # type: ignore[method-assign]
        wire.say(b"MSG a %d r 0\r\n\r\n" % asked.sid * 8)
        await wait_all_tasks_blocked()
        assert writes == [b"PUB r 2\r\nok\r\n" * 8]
        wire.say(b"MSG a %d r 0\r\n\r\n" % asked.sid)
        await wait_all_tasks_blocked()
        assert writes[1:] == [b"PUB r 2\r\nok\r\n"]


async def test_a_connection_that_broke_is_noticed_by_who_writes(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        world.wires[0].closed = True
        with pytest.raises(ConnectionLost, match="writing failed: the connection is closed") as caught:
            await nats.request("a")
        assert caught.value.executed == "no"


async def test_one_task_at_a_time_takes_from_a_subscription(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        with nats.subscribe("a", octets=10) as subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subscription.receive)
                await wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await subscription.receive()
                nursery.cancel_scope.cancel("enough was seen")
            world.wires[0].say(b"MSG a %d 11\r\n12345678901\r\n" % subscription.sid)
            await wait_all_tasks_blocked()
            with pytest.raises(Overloaded, match="nats_inflow_bytes = 10"):
                await subscription.receive()


async def test_a_subscription_that_does_not_last_ends_with_its_connection(
    world: World, autojump_clock: MockClock
) -> None:
    async with opened(world) as nats:
        fragile, lasting = nats.subscribe("a", lasting=False), nats.subscribe("a")
        world.wires[0].close()
        with pytest.raises(ConnectionLost):
            await fragile.receive()
        await nats.wait_connected()
        assert b"SUB a %d\r\n" % lasting.sid in world.wires[1].written
        assert b"SUB a %d\r\n" % fragile.sid not in world.wires[1].written


async def test_who_could_not_hear_replies_may_on_the_next_connection(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        refusal = f"-ERR 'Permissions Violation for Subscription to \"{nats.inbox}.*\"'\r\n".encode()
        world.wires[0].say(refusal)
        await wait_all_tasks_blocked()
        with pytest.raises(NotPermitted):
            await nats.request("a")
        world.wires[0].close()
        await wait_all_tasks_blocked()
        await nats.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nats.request, "a")
            await wait_all_tasks_blocked()
            world.wires[1].say(b"MSG %b.1 1 0\r\n\r\n" % nats.inbox.encode())


async def test_after_a_gap_nothing_comes_until_the_taker_knows_of_it() -> None:
    inflow = Inflow(Counters(), messages=1)
    for number in b"12":
        inflow.take(Message("a", 1, "", b"", b"%c" % number))
    assert (await inflow.receive()).data == b"1"
    inflow.take(Message("a", 1, "", b"", b"3"))  # there is room, but the gap is before it
    with pytest.raises(Overloaded):
        await inflow.receive()
    assert inflow.dropped == 2
    inflow.take(Message("a", 1, "", b"", b"4"))
    assert (await inflow.receive()).data == b"4"


async def test_what_was_taken_makes_room_for_as_many_bytes() -> None:
    inflow = Inflow(Counters(), octets=10)
    for _ in range(5):
        inflow.take(Message("a", 1, "", b"", b"sixsix"))
        assert (await inflow.receive()).data == b"sixsix"


class Longest(Random):
    """Draws the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_the_pause_is_short_again_once_there_was_a_connection(world: World, autojump_clock: MockClock) -> None:
    async with opened(world, rng=Longest()) as nats:
        world.down = True
        world.wires[0].close()
        await trio.sleep(30)
        world.down = False
        await nats.wait_connected()
        lost = trio.current_time()
        world.wires[1].close()
        await trio.sleep(1)
        assert world.tried[-1][0] - lost == pytest.approx(line.BACKOFF[0])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("host", "nats://host:4222"),
        ("nats://host:1", "nats://host:1"),
        ("tls://[::1]", "tls://[::1]:4222"),
        ("ws://host/path?x", "ws://host"),
        ("wss://host:8443", "wss://host:8443"),
    ],
)
def test_an_address_is_read(url: str, name: str) -> None:
    server = parse_server(url)
    assert server.name == name
    assert server.path == ("/path?x" if "path" in url else "/")


@pytest.mark.parametrize("url", ["", "http://host", "nats://", "nats://user:secret@host", "nats://host:x"])
def test_what_is_no_address_is_refused_and_no_secret_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"NATS server|port|Port") as caught:
        parse_server(url)
    assert "secret" not in str(caught.value)


async def test_what_is_queued_can_be_had_without_waiting() -> None:
    inflow = Inflow(Counters())
    with pytest.raises(trio.WouldBlock):
        inflow.receive_nowait()
    first, second = Message("a", 1, "", b"", b"1"), Message("a", 1, "", b"", b"2")
    inflow.take(first)
    inflow.take(second)
    assert inflow.receive_nowait() is first
    assert await inflow.receive() is second
    with pytest.raises(trio.WouldBlock):
        inflow.receive_nowait()


async def test_who_waits_for_a_message_gets_it_once(world: World, autojump_clock: MockClock) -> None:
    async with opened(world) as nats:
        with nats.subscribe("a") as subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subscription.receive)
                await wait_all_tasks_blocked()
                world.wires[0].say(b"MSG a %d 1\r\nx\r\n" % subscription.sid)
            with pytest.raises(trio.WouldBlock):
                subscription.receive_nowait()
