"""A client of NATS on Trio: publish, subscribe, request.

Whatever was asked on a connection that is lost fails at once, and says whether the server can have seen it: what
was not handed to the kernel whole was never received whole.
"""

from __future__ import annotations

import logging
import random
import secrets
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.mesh_errors import NoResponders, NotPermitted
from cord_trio.nats.dialing import parse_server
from cord_trio.nats.inflow import MAX_BYTES, MAX_MESSAGES, Inflow, Subscription, Told
from cord_trio.nats.keys import Credentials
from cord_trio.nats.line import OUTBOX_BYTES, Line, Owner
from cord_trio.nats.wire import (
    NO_RESPONDERS,
    Hello,
    Message,
    check_subject,
    encode_headers,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)
from cord_trio.version import __version__

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from cord_trio.nats.line import Reach

log = logging.getLogger("cord_trio.nats")

MAX_AWAITED: Final = 65536
"""Requests that may wait for their replies."""

FAREWELL: Final = 1.0
"""Seconds for what still waits to be written when the block ends."""


class _Request(Cell[Message]):
    """A request that awaits its reply.

    Attributes:
        subject: what it was published to.
        until: where in the connection's bytes it ends.

    """

    __slots__ = ("subject", "until")

    def __init__(self, subject: str, until: int) -> None:
        super().__init__()
        self.subject = subject
        self.until = until

    def take(self, message: Message) -> None:
        if not message.data and message.status == NO_RESPONDERS:
            self.fail(NoResponders(self.subject))
        else:
            self.settle(message)


class Stream(Inflow):
    """The replies to one request that has many. `with` ends it.

    Attributes:
        subject: what it was published to.
        inbox: where its replies go.
        until: where in the connection's bytes it ends.

    """

    def __init__(
        self, subject: str, inbox: str, until: int, forget: Callable[[str], None], counters: Counters, messages: int
    ) -> None:
        super().__init__(counters, messages=messages)
        self.subject = subject
        self.inbox = inbox
        self.until = until
        self._forget = forget

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget(self.inbox)

    def take(self, message: Message) -> None:
        if not message.data and message.status == NO_RESPONDERS:
            self.fail(NoResponders(self.subject))
        else:
            super().take(message)


class Nats(Owner):
    """A client that stays connected to one of some NATS servers. Made by `open_nats`.

    Attributes:
        inbox: what the subjects of replies begin with.
        line: its connection.
        counters: where events are counted.

    """

    def __init__(self, inbox: str, counters: Counters, make_line: Callable[[Owner], Line]) -> None:
        self.inbox = check_subject(f"{inbox}.{secrets.token_hex(8)}")
        self.counters = counters
        self._sids = 0
        self._tokens = 0
        self._subscriptions: dict[int, Subscription] = {}
        self._awaited: dict[str, _Request | Stream] = {}  # by the inbox of its replies
        self._fragile: set[int] = set()  # numbers of those that end with this connection
        self._deaf: str | None = None  # why no reply would reach us
        self._idle = trio.Event()
        self.line = make_line(self)
        self._replies = self.subscribe(f"{self.inbox}.*", tell=self._reply)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self.line.connected

    @property
    def returned(self) -> float:
        """Trio time at which a lost connection was made again; -inf if none was."""
        return self.line.returned

    @property
    def max_payload(self) -> int:
        """Bytes of the longest message that the server takes, headers included."""
        return self.line.info.max_payload

    async def wait_connected(self) -> None:
        """Return once there is a connection."""
        await self.line.wait_connected()

    def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None,
        head: bytes = b"",
    ) -> None:  # fmt: skip
        """Send a message to whoever listens. Nothing is known of whether it arrives.

        Args:
            subject: where they listen.
            data: its payload.
            reply: where an answer goes; "" if none is awaited.
            headers: its headers.
            head: instead of these, the block that `encode_headers` makes of them.

        Raises:
            ValueError: the subject or the headers cannot be sent.
            ConnectionLost: there is no connection.
            Overloaded: it is longer than the server takes, or too much waits for the server already.

        """
        self._publish(check_subject(subject), data, check_subject(reply) if reply else "", headers, head)

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, head: bytes = b""
    ) -> Message:
        """The first reply to a message. Waits for as long as its caller's scopes let it. Takes what `publish` takes.

        Raises:
            ValueError: the subject or the headers cannot be sent.
            NoResponders: nobody listens.
            NotPermitted: the server does not let us.
            ConnectionLost: the connection was lost; `executed` says whether it can have arrived.
            Overloaded: a bound was met; nothing was sent.

        """
        inbox = self._ask()
        until = self._publish(check_subject(subject), data, inbox, headers, head)
        request = self._awaited[inbox] = _Request(subject, until)
        try:
            return await request.wait(_nothing)
        finally:
            self._forget(inbox)

    def open_stream(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        head: bytes = b"",
        messages: int = MAX_MESSAGES,
    ) -> Stream:
        """The replies to a message, for as long as its block runs. Takes what `publish` takes, and raises as `request`.

        What ends it (`NoResponders`, `NotPermitted`, `ConnectionLost`) is raised by the stream's `receive`.
        """
        inbox = self._ask()
        until = self._publish(check_subject(subject), data, inbox, headers, head)
        stream = Stream(subject, inbox, until, self._forget, self.counters, messages)
        self._awaited[inbox] = stream
        return stream

    def subscribe(
        self,
        subject: str,
        *,
        queue: str = "",
        tell: Callable[[Message], None] | None = None,
        messages: int = MAX_MESSAGES,
        octets: int = MAX_BYTES,
        lasting: bool = True,
    ) -> Subscription:
        """Listen to a subject or pattern, on this connection and those that follow it.

        Args:
            subject: `*` stands for one token of it, `>` for the rest.
            queue: of all who listen with this name, one gets each message.
            tell: told each message at once, in the reader's turn; must not block. Without it, the
                subscription is a queue to take them from.
            messages: that may wait to be taken.
            octets: bytes that may wait to be taken.
            lasting: False to end with this connection, by `ConnectionLost`.

        Raises:
            ValueError: the subject or the queue's name cannot be sent.

        """
        check_subject(subject, pattern=True)
        if queue:
            check_subject(queue)
        sid = self._sids + 1
        line = encode_subscribe(subject, sid, queue=queue)
        self._sids = sid
        subscription: Subscription
        if tell is None:
            subscription = Subscription(
                subject, sid, queue=queue, unsubscribe=self._unsubscribe, counters=self.counters,
                messages=messages, octets=octets,
            )  # fmt: skip
        else:
            subscription = Told(
                subject, sid, queue=queue, unsubscribe=self._unsubscribe, counters=self.counters, tell=tell
            )
        self._subscriptions[sid] = subscription
        if not lasting:
            self._fragile.add(sid)
        if self.line.connected:
            self._command(line)
        return subscription

    def new_inbox(self) -> str:
        """A subject below ours for messages that are no replies; nobody else knows it."""
        return f"{self.inbox}.in.{secrets.token_hex(8)}"

    async def flush(self) -> None:
        """Return once the server has worked off all that was sent before.

        Raises:
            ConnectionLost: the connection was lost first.

        """
        await self.line.flush()

    async def drain(self) -> None:
        """End all subscriptions without losing what was under way; replies still come, and more can be sent.

        Raises:
            ConnectionLost: the connection was lost meanwhile, and with it what was under way.

        """
        mine = [one for one in self._subscriptions.values() if one is not self._replies]
        for subscription in mine:
            self._unsubscribe(subscription, keep=True)
        try:
            await self.flush()
        finally:
            for subscription in mine:
                self._subscriptions.pop(subscription.sid, None)
                subscription.end()

    # Sending

    def _ask(self) -> str:
        """The inbox for replies to one request."""
        if self._deaf is not None:
            raise NotPermitted(self.inbox, self._deaf)
        if len(self._awaited) >= MAX_AWAITED:
            self.counters.add("nats.awaited_full")
            raise Overloaded("nats_awaited", MAX_AWAITED)
        self._tokens += 1
        return f"{self.inbox}.{self._tokens:x}"

    def _forget(self, inbox: str) -> None:
        del self._awaited[inbox]
        if not self._awaited:
            self._idle.set()

    def _publish(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None, head: bytes) -> int:
        """Send it; returns where it ends in the connection's bytes."""
        if headers:
            head = encode_headers(headers)
        line = self.line
        if len(head) + len(data) > line.info.max_payload and line.connected:
            raise Overloaded("nats_payload", self.max_payload)
        return line.send(encode_publish(subject, data, reply=reply, head=head))

    def _command(self, line: bytes) -> None:
        """Tell the server, if there is one."""
        try:
            self.line.command(line)
        except ConnectionLost:
            pass  # the next connection begins with what is subscribed to by then

    def _unsubscribe(self, subscription: Subscription, *, keep: bool = False) -> None:
        if subscription.sid in self._subscriptions:
            if not keep:
                del self._subscriptions[subscription.sid]
                self._fragile.discard(subscription.sid)
            self._command(encode_unsubscribe(subscription.sid))

    # What the line tells

    def opened(self) -> bytes:
        self._deaf = None
        subscriptions = self._subscriptions.values()
        return b"".join(encode_subscribe(one.subject, one.sid, queue=one.queue) for one in subscriptions)

    def take(self, message: Message) -> None:
        subscription = self._subscriptions.get(message.sid)
        if subscription is not None:
            try:
                subscription.take(message)
            except Exception:
                self.counters.add("nats.taker_failed")
                log.exception("a taker of messages failed subject=%s", subscription.subject)

    def lost(self, reason: str, sent: int) -> None:
        for awaited in list(self._awaited.values()):
            awaited.fail(ConnectionLost(reason, "unknown" if awaited.until <= sent else "no"))
        fragile, self._fragile = self._fragile, set()
        for sid in fragile & self._subscriptions.keys():
            self._subscriptions.pop(sid).fail(ConnectionLost(reason, "no"))

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._awaited:
            self._idle = trio.Event()
            await self._idle.wait()

    def _reply(self, message: Message) -> None:
        awaited = self._awaited.get(message.subject)
        if awaited is None:
            self.counters.add("nats.late_reply")
        else:
            awaited.take(message)

    def refused(self, text: str) -> bool:
        # The server names the subject, and says so once for each message.
        lower = text.lower()
        if not lower.startswith("permissions violation"):
            return False
        self.counters.add("nats.not_permitted")
        subject = text.split('"')[1] if text.count('"') >= 2 else ""
        if lower.startswith("permissions violation for publish"):
            # The latest: rights that are taken away while we run meet the younger ones.
            asked = [one for one in self._awaited.values() if one.subject == subject and not one.settled]
            if asked:
                asked[-1].fail(NotPermitted(subject, text))
            else:
                log.warning("a message was refused error=%s", text)
        elif subject == self._replies.subject:
            self._deaf = text
            for awaited in list(self._awaited.values()):
                awaited.fail(NotPermitted(subject, text, "unknown"))
        else:
            for subscription in [one for one in self._subscriptions.values() if one.subject == subject]:
                subscription.fail(NotPermitted(subject, text))
        return True


def _nothing() -> None:
    pass


@asynccontextmanager
async def open_nats(
    servers: str | Sequence[str],
    *,
    name: str = "cord-trio",
    credentials: Credentials | None = None,
    verify: bool | ssl.SSLContext = True,
    inbox: str = "_INBOX",
    outbox: int = OUTBOX_BYTES,
    echo: bool = True,
    counters: Counters | None = None,
    environ: Mapping[str, str] | None = None,
    rng: random.Random | None = None,
    reach: Reach | None = None,
) -> AsyncGenerator[Nats]:
    """A connection to one of `servers` for as long as the block runs. The block's own errors leave as raised.

    Args:
        servers: URLs, tried in order: `nats://host:4222`, `tls://`, `ws://` or `wss://`.
        name: what the server calls us.
        credentials: who we are; None for nobody.
        verify: False to accept any certificate, or a context of your own.
        inbox: what the subjects of replies begin with, for servers that permit only some.
        outbox: bytes that may wait to be written.
        echo: whether we get what we publish ourselves, where we listen to it.
        counters: where to count.
        environ: where proxies for WebSockets are named; None for the process's environment.
        rng: draws the pauses before connecting again.
        reach: makes a connection to a server; None for real ones.

    Raises:
        ValueError: an address or `inbox` cannot be used.
        ConnectFailed: none of the servers takes us.

    """
    counters = counters or Counters()
    make_line = partial(
        Line,
        [parse_server(url) for url in ([servers] if isinstance(servers, str) else servers)],
        hello=Hello(name=name, version=__version__, echo=echo),
        credentials=credentials or Credentials(),
        verify=verify,
        environ=environ,
        outbox=outbox,
        counters=counters,
        rng=rng or random.Random(),
        reach=reach,
    )
    nats = Nats(inbox, counters, make_line)
    failure: Exception | None = None
    kept = trio.CancelScope()

    async def keep(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # the line says so
        with kept:
            await nats.line.keep(task_status=task_status)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(keep)
            kept.shield = True  # until the block has ended: a node that is cancelled gives its name back
            yield nats
            with trio.move_on_after(FAREWELL, shield=True):
                await _say_goodbye(nats)
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            failure = exc
        finally:
            kept.cancel("the block of the client has ended")
        nursery.cancel_scope.cancel("the block of the client has ended")
    for subscription in list(nats._subscriptions.values()):
        subscription.end()
    if failure is not None:
        raise failure


async def _say_goodbye(nats: Nats) -> None:
    """Let the server read what was sent."""
    if nats.connected:
        try:
            await nats.flush()
        except ConnectionLost:
            pass
