from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import trio

from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost
from cord_trio.nats.watch import MOST, PAUSE, Change, Synced, Watch
from cord_trio.nats.wire import Message, encode_headers

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.nats.watch import WatchEvent


class Server:
    """A client of NATS, a bucket, and a subscription, as far as a watch needs them: what it brings is scripted."""

    name = "b"
    created = "today"
    counters = Counters()

    def __init__(self, *messages: Message) -> None:
        self._messages = deque(messages)

    def new_inbox(self) -> str:
        return "inbox"

    def subscribe(self, subject: str, *, lasting: bool) -> Server:
        return self

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()

    async def api(self, what: str, body: object = None, /) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {"num_pending": len(self._messages)}

    def receive_nowait(self) -> Message:
        return self._messages.popleft()

    def close(self) -> None:
        pass


def message(number: int, key: str, pending: int, *, gone: bool = False, revision: int = 0) -> Message:
    head = encode_headers({"KV-Operation": "DEL"}) if gone else b""
    return Message(f"$KV.b.{key}", 1, f"$JS.ACK.KV_b.c.1.{revision or number}.{number}.0.{pending}", head, b"x")


class Silent(Server):
    """Says that it has sent what did not arrive, and then nothing until it is asked anew."""

    begun = 0

    async def api(self, what: str, body: object = None, /) -> dict[str, int]:
        self.begun += 1
        if self.begun == 2:
            self._messages.append(message(1, "b", 0, revision=2))
        return await super().api(what, body)

    def receive_nowait(self) -> Message:
        if not self._messages:
            raise trio.WouldBlock
        return super().receive_nowait()

    async def receive(self) -> Message:
        await trio.sleep_forever()
        raise AssertionError

    async def wait_connected(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_heartbeat_that_tells_of_more_than_came_is_a_gap(autojump_clock: MockClock) -> None:
    head = encode_headers({"Nats-Last-Consumer": "2"}).replace(b"NATS/1.0", b"NATS/1.0 100 Idle Heartbeat")
    server = Silent(message(1, "a", 0), Message("inbox", 1, "", head, b""))
    watch = Watch(server, server, "$KV.b.>", len("$KV.b."))  # type: ignore[arg-type]  # as much as it needs
    told: list[WatchEvent] = [await watch.receive() for _ in range(3)]
    assert told == [Change("a", b"x", 1), Synced(), Change("b", b"x", 2)]
    assert server.begun == 2
    assert trio.current_time() < 1


class Failing(Silent):
    """Fails to begin so many times."""

    def __init__(self, times: int) -> None:
        super().__init__(message(1, "a", 0))
        self.tried: list[float] = []
        self._times = times

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()
        self.tried.append(trio.current_time())
        if len(self.tried) <= self._times:
            raise ConnectionLost("the test wants it", "no")


async def test_a_watch_that_cannot_begin_is_tried_less_and_less_often(autojump_clock: MockClock) -> None:
    server = Failing(40)
    watch = Watch(server, server, "$KV.b.>", len("$KV.b."))  # type: ignore[arg-type]  # as much as it needs
    await watch.receive()
    pauses = [after - before for before, after in pairwise(server.tried)]
    assert pauses[0] <= PAUSE[1] < max(pauses) <= MOST
    assert sum(pauses) > 20  # 10 at most where each pause is like the first


async def test_a_key_that_goes_while_the_others_are_still_being_told_is_told_to_be_gone() -> None:
    # A real server does so: what comes after the watch began is pending behind what was there before.
    server = Server(
        message(1, "a", 3), message(2, "b", 2, gone=True), message(3, "a", 1, gone=True), message(4, "c", 0)
    )  # fmt: skip
    watch = Watch(server, server, "$KV.b.>", len("$KV.b."))  # type: ignore[arg-type]  # as much as it needs
    told: list[WatchEvent] = [await watch.receive() for _ in range(4)]
    assert told == [Change("a", b"x", 1), Change("a", None, 3), Change("c", b"x", 4), Synced()]
