"""Watching keys: what they hold, then what happens to them, and word whenever that has to begin anew."""

from __future__ import annotations

import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec
import trio

from cord_trio.errors import CallError
from cord_trio.mesh_errors import NotPermitted, StoreFailed

if TYPE_CHECKING:
    from cord_trio.nats.client import Nats
    from cord_trio.nats.inflow import Subscription
    from cord_trio.nats.wire import Message

Json: TypeAlias = Any

log = logging.getLogger("cord_trio.nats")

HEARTBEAT: Final = 2.0
"""Seconds of silence after which the store says that it is there."""

SILENCE: Final = 2.5
"""Heartbeats without a word after which watching begins anew."""

RESUME: Final = 20.0
"""Seconds of a gap after which everything is told again: what is known of deletions ends too (`MARKERS`)."""

ABANDONED: Final = 5
"""Seconds after which the store forgets a watch that nobody listens to."""

PAUSE: Final = (0.02, 0.5)
"""Seconds before watching begins anew, at least and at most the first time; twice as many each time that it fails."""

MOST: Final = 2.0
"""Seconds before it, at most, however often it failed: a broker that has trouble is not asked by all at once."""

ASKING: Final = 5.0
"""Seconds that the store may take to begin."""


class Change(msgspec.Struct, frozen=True):
    """One key changed.

    Attributes:
        key: its name.
        value: what it holds; None if it is no more.
        revision: of the change.
        expired: whether it ended by itself.

    """

    key: str
    value: bytes | None
    revision: int
    expired: bool = False


class Reset(msgspec.Struct, frozen=True):
    """What was told before may be wrong: the keys that are there follow, up to `Synced`; all others are no more.

    Attributes:
        lost: whether the store was lost, and made anew: who wrote the other keys may be about to write them again.

    """

    lost: bool = False


class Synced(msgspec.Struct, frozen=True):
    """Every key that was there has been told."""


WatchEvent: TypeAlias = Change | Reset | Synced


class Place(Protocol):
    """The bucket that is watched."""

    @property
    def name(self) -> str: ...
    @property
    def created(self) -> str: ...
    async def open(self) -> None: ...
    async def api(self, what: str, body: Json = None, /) -> Json: ...


class _Gap(Exception):
    """Something was missed."""


class Watch:
    """What happens to keys. Events are drawn by `receive`, and the store waits for whoever draws slowly."""

    def __init__(self, nats: Nats, place: Place, pattern: str, strip: int) -> None:
        self._nats = nats
        self._place = place
        self._pattern = pattern
        self._strip = strip
        self._ready: deque[WatchEvent] = deque()
        self._subscription: Subscription | None = None
        self._created = ""  # of the bucket that the rest is about
        self._synced = False
        self._told: set[str] = set()  # keys, until all are
        self._last = 0  # revision
        self._count = 0  # messages of this consumer
        self._failures = 0  # since the last message
        self._seen = trio.current_time()
        self._rng = random.Random()

    async def receive(self) -> WatchEvent:
        """The next event: the keys that are there, `Synced`, and then what happens; after a gap `Reset`, and again.

        Raises:
            NotPermitted: the server does not let us watch.

        """
        await trio.lowlevel.checkpoint()
        while not self._ready:
            try:
                if self._subscription is None:
                    with trio.fail_after(ASKING):
                        await self._begin()
                    continue
                try:
                    # All of a thousand keys are there at once: a scope for each would cost most of it.
                    message = self._subscription.receive_nowait()
                except trio.WouldBlock:
                    with trio.fail_after(HEARTBEAT * SILENCE):
                        message = await self._subscription.receive()
                self._take(message)
            except NotPermitted:
                raise
            except (_Gap, CallError, trio.TooSlowError, trio.EndOfChannel) as exc:
                log.info("watching begins anew bucket=%s reason=%r", self._place.name, exc)
                self._nats.counters.add("nats.watch_restarts")
                self.close()
                least, most = PAUSE
                await trio.sleep(self._rng.uniform(least, min(MOST, most * 2**self._failures)))
                self._failures = min(self._failures + 1, 10)
                await self._nats.wait_connected()
        return self._ready.popleft()

    def close(self) -> None:
        """Watch no more."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    async def _begin(self) -> None:
        """Make a consumer: of everything, or of what follows what was seen, if that is still known."""
        inbox = self._nats.new_inbox()
        await self._place.open()
        late = trio.current_time() - self._seen > RESUME
        lost = self._created != self._place.created
        if self._created and (late or lost or not self._synced):
            self._last = 0
            self._synced = False
            self._told.clear()
            self._ready.append(Reset(lost))
        self._created = self._place.created
        stream = f"KV_{self._place.name}"
        config: Json = {
            "deliver_subject": inbox,
            "filter_subject": self._pattern,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT * 10**9),
            "inactive_threshold": ABANDONED * 10**9,
            "mem_storage": True,
            "num_replicas": 1,
            "deliver_policy": "by_start_sequence" if self._last else "last_per_subject",
        }
        if self._last:
            config["opt_start_seq"] = self._last + 1
        self._count = 0
        subscription = self._nats.subscribe(inbox, lasting=False)
        try:
            info = await self._place.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        except BaseException:
            subscription.close()
            raise
        self._subscription = subscription
        self._seen = trio.current_time()
        if not info["num_pending"] and not self._synced:
            self._sync()

    def _sync(self) -> None:
        self._synced = True
        self._told.clear()
        self._ready.append(Synced())

    def _take(self, message: Message) -> None:
        """Note what a message says.

        Raises:
            _Gap: one before it was missed.
            StoreFailed: the store ends the watch.

        """
        self._seen = trio.current_time()
        self._failures = 0
        if message.status == 100:
            answer = message.reply or message.header("Nats-Consumer-Stalled")
            if answer:
                self._nats.publish(answer)
            if int(message.header("Nats-Last-Consumer") or self._count) != self._count:
                raise _Gap
            return
        if message.status:
            raise StoreFailed(message.status, message.description)
        # $JS.ACK.<stream>.<consumer>.<delivered>.<revision>.<number>.<time>.<pending>, and in newer releases
        # domain and account behind ACK.
        words = message.reply.split(".")
        if len(words) > 9:
            words = words[:2] + words[4:]
        revision, number, pending = int(words[5]), int(words[6]), int(words[8])
        if number != self._count + 1:
            raise _Gap
        self._count = number
        self._last = revision
        reason = message.header("Nats-Marker-Reason")
        gone = reason is not None or message.header("KV-Operation") in ("DEL", "PURGE")
        key = message.subject[self._strip :]
        # Of those that were gone before nobody needs to hear; but one may go while the others are still being told.
        if not gone or self._synced or key in self._told:
            self._ready.append(Change(key, None if gone else message.data, revision, reason == "MaxAge"))
            if not self._synced:
                self._told.add(key)
        if not pending and not self._synced:
            self._sync()
