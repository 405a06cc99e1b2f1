"""One conversation with one peer, in one nursery: call it, answer it, withdraw from it.

A reply wakes the waiting task straight from the reader, and a cancelled wait tells the peer synchronously,
so that neither a channel nor a cancel scope stands between a caller and the wire.
"""

from __future__ import annotations

import logging
import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio
from msgspec import Raw

from cord_trio.answering import Answering
from cord_trio.cell import Flag
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, CallFailed, ConnectionLost, DeadlineExceeded, Malformed, TooDeep
from cord_trio.pending import Pending, expire, too_long
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.framing import MAX_MESSAGE
from cord_trio.protocol.mcp import LEVELS
from cord_trio.protocol.notices import LOG_HEADS, decode_cancelled, decode_logged, decode_progressed
from cord_trio.protocol.peer import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from cord_trio.answering import Answer
    from cord_trio.call import EventSink
    from cord_trio.cell import Timer
    from cord_trio.errors import Executed
    from cord_trio.protocol.jsonrpc import Envelope, Id
    from cord_trio.transports import Transport

    Told: TypeAlias = Callable[[str, Raw, Id | None], None]

log = logging.getLogger("cord_trio.session")

NOISE_LINES: Final = 20
"""Lines kept of what the peer sent that was no message."""

NOISE_LENGTH: Final = 500
"""Bytes kept of each such line."""

LISTEN: Final = "subscriptions/listen"
"""The one request that the peer may end by a cancellation."""

NULL: Final = Raw(b"null")
"""An `error` that some peers send beside their result."""

_decode_batch = msgspec.json.Decoder(list[Raw]).decode


class Session:
    """A live conversation. Get one from `open_session`.

    Attributes:
        name: of the peer, for errors and logs.
        noise: the last lines the peer sent that were no messages.
        log_lines: log notifications seen.
        ending: whether the transport has refused a message, so that `lost` will come and say why.
        batches: whether the revision in use allows arrays of messages (MCP 2025-03-26 alone).
        on_asked: called when the peer asks anything; the handshake's sign of a legacy peer.
        log_sink: takes log notifications that belong to no call; None: they are counted unread.
        logging: our requests that want log notifications, with the level from which on.
        modern: whether the server logs only for requests that want it (MCP 2026-07-28, logging).
        max_message: bytes of one request that is sent.
        decode: reads one message.
        counters: where events are counted.
        over: whether the connection is.

    """

    def __init__(
        self,
        transport: Transport,
        nursery: trio.Nursery,
        *,
        name: str,
        timer: Timer,
        counters: Counters,
        answer: Answer | None,
        told: Told | None,
    ) -> None:
        self.transport = transport
        self.name = name
        self.noise: list[str] = []  # not a deque, which takes 700 bytes while it is empty
        self.log_lines = 0
        self.ending = self.over = False
        self.batches = False
        self.on_asked: Callable[[], None] | None = None
        self.log_sink: Callable[[Raw], None] | None = None
        self.logging: dict[Id, str] = {}
        self.modern = False
        self.max_message = MAX_MESSAGE
        self.decode: Callable[[bytes], jsonrpc.Envelope] = jsonrpc.decode
        self.peer: Peer[Pending, trio.CancelScope] = Peer()
        self._answering = Answering(
            answer, peer=self.peer, transport=transport, nursery=nursery, name=name, counters=counters
        )
        self._timer = timer
        timer.tables[self] = partial(expire, self.peer.open)
        self.counters = counters
        self._told = told
        self._loss: ConnectionLost | None = None
        self._ended = Flag()

    # What we ask

    async def request(
        self,
        method: str,
        params: bytes = b"{}",
        *,
        deadline: float = math.inf,
        events: EventSink | None = None,
        cancellable: bool = True,
    ) -> Raw:
        """The peer's result, unparsed. For the rest see `exchange`."""
        id = self.peer.mint()
        message = jsonrpc.encode_request(id, method, params)
        return await self.exchange(id, message, method, deadline=deadline, events=events, cancellable=cancellable)

    @trio.lowlevel.enable_ki_protection  # as `Pending.wait`, and what Ctrl-C would leave open between the two
    async def exchange(
        self, id: int, message: bytes, method: str, name: str | None = None, headers: Sequence[tuple[str, str]] = (),
        deadline: float = math.inf, events: EventSink | None = None, patience: float = 0.0, latest: float = math.inf,
        *, cancellable: bool = True,
    ) -> Raw:  # fmt: skip
        """Send request `id`, minted by `peer.mint`, and return the peer's result, unparsed.

        Cancelling it withdraws the request: unsent, it is never sent; sent, the peer is told exactly once,
        in the transport's way; answered, nobody is told. `cancellable=False` never tells. Progress moves the
        deadline on by `patience` seconds, up to `latest`.

        Raises:
            CallFailed: the peer answered with an error.
            ConnectionLost: no answer can come any more.
            DeadlineExceeded: `deadline` (Trio time) passed.
            CallError: what else the transport knows, such as a refusal by HTTP status.

        """
        pending = Pending(self, id, method, deadline, events, cancellable, patience, latest)
        # `begin` and `Pending.reply` in place: their calls, and a coroutine, were a 20th of a call's instructions.
        loss = self._loss
        if loss is not None:
            raise loss.fresh("no")
        if len(message) > self.max_message:
            raise too_long(message, self.max_message, self.counters)
        self.peer.open[id] = pending
        try:
            seat = self.transport.send_seated(message, id, method, name, headers)
        except BaseException as exc:  # whatever it is, no reply will take the entry away
            self._unsent(id, exc)
            raise
        timer = self._timer
        if seat is None and not pending.settled:
            if deadline < timer.next:
                timer.by(deadline)
            pending.task = trio.lowlevel.current_task()
            return await trio.lowlevel.wait_task_rescheduled(pending.abort)  # type: ignore[no-any-return]  # Trio says Any
        if seat:
            return await pending.read(seat, timer)
        if seat is False:
            del self.peer.open[id]
            await self.begin(pending, message, name, headers)
        return await pending.reply(timer)

    async def begin(
        self, pending: Pending, message: bytes, name: str | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send a request whose entry needs no task that waits for it, and whose deadline is another's to keep.

        Raises:
            ConnectionLost, DeadlineExceeded, Overloaded: it was not sent.

        """
        if self.transport.congested:
            with trio.move_on_at(pending.deadline) as waiting:
                while self.transport.congested:  # all who wait are woken together, and one long message may be enough
                    await self.transport.wait_uncongested()
            if waiting.cancelled_caught:
                raise DeadlineExceeded(f"{self.name}: {pending.method}: its connection takes no more bytes", "no")
        if self._loss is not None:
            raise self._loss.fresh("no")
        if len(message) > self.max_message:
            raise too_long(message, self.max_message, self.counters)
        self.peer.open[pending.id] = pending
        try:
            self.transport.send(message, id=pending.id, method=pending.method, name=name, headers=headers)
        except BaseException as exc:  # whatever it is, no reply will take the entry away
            self._unsent(pending.id, exc)
            raise

    def _unsent(self, id: int, error: BaseException) -> None:
        self.peer.abandon(id)
        self.ending = self.ending or isinstance(error, ConnectionLost)

    def notify(self, method: str, params: bytes = b"") -> None:
        """Tell the peer something, without waiting. Raises `ConnectionLost` or `Overloaded` if it was not sent."""
        self.transport.send(jsonrpc.encode_notification(method, params), method=method)

    @trio.lowlevel.enable_ki_protection
    def withdraw(self, pending: Pending, reason: str) -> None:
        """Stop waiting for a reply and, where it must know, tell the peer."""
        if self.peer.abandon(pending.id) is None:
            return
        self.counters.add("session.withdrawn")
        if self.transport.withdraw(pending.id) or not pending.cancellable:
            return
        params = b'{"requestId":%d,"reason":%b}' % (pending.id, jsonrpc.encode(reason))
        try:
            self.notify("notifications/cancelled", params)
        except CallError:
            self.counters.add("session.cancel_unsent")

    def executed(self, id: Id) -> Executed:
        """Whether request `id` may have been run: "no" if no byte of it left us."""
        return "unknown" if self.transport.written(id) else "no"

    # What arrives

    @trio.lowlevel.enable_ki_protection
    def feed(self, messages: Sequence[bytes], within: Id | None = None, /) -> None:
        """Take whole messages from the transport. See `transports.Receiver`."""
        waiting, decode, reschedule = self.peer.open, self.decode, trio.lowlevel.reschedule
        for line in messages:
            if line.startswith(LOG_HEADS):
                self.log_lines += 1
                if self.log_sink is None and within is None and not self.logging:
                    continue
            try:
                message = decode(line)
            except Malformed as exc:
                self._malformed(line, exc, within)
                continue
            if message.method is None:
                pending = waiting.pop(message.id, None)  # type: ignore[arg-type]  # anything hashable may be looked up
                if pending is None:
                    pending = self._match(message, within)
                    if pending is None:
                        continue
                if message.error and message.error != NULL:
                    error = jsonrpc.decode_error(message.error)
                    pending.fail(CallFailed(error.code, error.message, bytes(error.data)))
                elif message.result:
                    task = pending.task
                    if task is None:
                        pending.settle(message.result)
                    else:  # `Pending.settle`, in place: as nearly always with many in flight
                        pending.settled, pending.value, pending.task = True, message.result, None
                        reschedule(task, pending)  # type: ignore[arg-type]  # see `Cell`
                else:
                    pending.fail(BadReply(f"{self.name}: the reply has neither result nor error"))
            elif message.is_request:
                self._asked(message, within)
            elif message.is_notification:
                self._notified(message, within)
            else:
                self._malformed(line, Malformed(jsonrpc.INVALID_REQUEST, "a request's id is null"), within)

    @trio.lowlevel.enable_ki_protection
    def answered(self, pending: Pending, message: bytes, alone: bool, /) -> Raw | None:
        """The result in `message`, if it answers `pending`. See `pending.Session`."""
        try:  # what `feed` does with the plain reply that it nearly always is, in half the instructions
            reply = self.decode(message)
            if reply.id == pending.id and reply.result and not reply.error and reply.method is None:
                del self.peer.open[pending.id]
                pending.settled = True
                return reply.result
        except Malformed:
            pass
        self.feed((message,), pending.id if alone else None)
        return None

    @trio.lowlevel.enable_ki_protection
    def fail(self, id: Id, error: CallError, /) -> None:
        """Request `id` gets no reply. See `transports.Receiver`."""
        pending = self.peer.open.pop(id, None)  # type: ignore[arg-type]  # anything hashable may be looked up
        if pending is not None:
            pending.fail(error)

    def waits(self, id: Id, /) -> bool:
        """Whether request `id` is open. See `transports.Receiver`."""
        return id in self.peer.open

    @trio.lowlevel.enable_ki_protection
    def lost(self, error: ConnectionLost, /) -> None:
        """The connection is over. See `transports.Receiver`."""
        if self._loss is not None:
            return
        self._loss, self.over = error, True
        self._timer.tables.pop(self, None)
        written = self.transport.written
        for id, pending in self.peer.close_all():
            pending.fail(error.fresh("unknown" if written(id) else "no"))
        self._answering.lost()
        self._ended.set()

    @property
    def loss(self) -> str | None:
        """Why the connection is over; None while it lives."""
        return None if self._loss is None else self._loss.reason

    async def wait_lost(self) -> str:
        """Why the connection ended, once it has."""
        await self._ended.wait()
        return self.loss or ""

    def _match(self, message: Envelope, within: Id | None) -> Pending | None:
        """Whom a reply belongs to that no exact id matches."""
        id = message.id
        if isinstance(id, int | str):
            pending = self.peer.close(id)
            self.counters.add("session.lenient_reply" if pending else "session.late_reply")
            return pending
        # No id: the peer could not read our request. Only an exchange of its own, or being alone, tells whose.
        if message.error and within is not None:
            return self.peer.close(within)
        if message.error and len(self.peer.open) == 1:
            return self.peer.close(next(iter(self.peer.open)))
        self.counters.add("session.reply_without_id")
        self._note(jsonrpc.decode_error(message.error).message if message.error else "a reply without an id")
        return None

    def _malformed(self, line: bytes, error: Malformed, within: Id | None) -> None:
        """Take what is no message: a batch, a reply that is spoilt, or noise."""
        if self.batches and line.startswith(b"["):
            try:
                members = [bytes(member) for member in _decode_batch(line)]
            except (msgspec.DecodeError, RecursionError):
                members = []
            # A batch in a batch is none: it would be read again, level by level.
            if members and not any(member.startswith(b"[") for member in members):
                self.feed(members, within)
                return
        if isinstance(error, TooDeep):
            self.counters.add("session.too_deep")
        id = error.id
        if id is None:
            id = jsonrpc.spoilt_reply_id(line)
        elif "method" in jsonrpc.members(line):
            id = None
        pending = None if id is None else self.peer.close(id)
        if pending is not None:
            pending.fail(BadReply(f"{self.name}: {error}"))
            return
        self.counters.add("session.noise")
        self._note(line[:NOISE_LENGTH].decode(errors="replace"))

    def _note(self, text: str) -> None:
        log.debug("noise peer=%s text=%r", self.name, text)
        self.noise.append(text)
        del self.noise[:-NOISE_LINES]

    def _notified(self, message: Envelope, within: Id | None) -> None:
        method, params = message.method, message.params
        assert method is not None
        try:
            if method == "notifications/progress":
                token = decode_progressed(params).progressToken
                pending = self.peer.open.get(token)  # type: ignore[arg-type]  # anything hashable may be looked up
                if pending is not None:
                    if pending.patience:
                        self._extend(pending)
                    if pending.events is not None:
                        pending.events(method, params)
            elif method == "notifications/cancelled":
                self._withdrawn(decode_cancelled(params).requestId)
            elif method == "notifications/message":
                self._logged(params, within)
            elif self._told is not None:
                self._told(method, params, within)
        except msgspec.DecodeError:
            self.counters.add("session.bad_notification")
        except Exception:  # a sink's bug must end neither the reader nor another call
            self.counters.add("session.sink_failed")
            log.exception("sink failed peer=%s method=%s", self.name, method)

    def _logged(self, params: Raw, within: Id | None) -> None:
        """Give a log notification to the call that it belongs to, if anybody can tell which that is."""
        if within is None and len(self.logging) == 1 and (self.modern or len(self.peer.open) == 1):
            # Nothing on a shared channel says whose it is, unless there is one call that it can be.
            (within,) = self.logging
        pending = self.peer.open.get(within)  # type: ignore[arg-type]  # anything hashable may be looked up
        if pending is not None and pending.events is not None:
            wanted = self.logging.get(pending.id)
            level = decode_logged(params).level
            if wanted not in LEVELS or level not in LEVELS or LEVELS.index(level) >= LEVELS.index(wanted):
                pending.events("notifications/message", params)
        elif self.log_sink is not None:
            self.log_sink(params)

    def _extend(self, pending: Pending) -> None:
        """Move the deadline of a call on whose server tells progress."""
        pending.deadline = max(pending.deadline, min(trio.current_time() + pending.patience, pending.latest))

    def _withdrawn(self, id: Id | None) -> None:
        """The peer no longer wants its request `id`, or ends our subscription of that id."""
        if id is None or self._answering.withdrawn(id):
            return
        pending = self.peer.open.get(id)  # type: ignore[arg-type]  # anything hashable may be looked up
        if pending is not None and pending.method == LISTEN:
            # MCP 2026-07-28, cancellation: a server may end a subscription so.
            self.fail(pending.id, CallError(f"{self.name} ended the subscription", "yes"))

    def _asked(self, message: Envelope, within: Id | None) -> None:
        if self.on_asked is not None:
            self.on_asked()
        self._answering.take(message, within)

    async def run(  # noqa: ASYNC128  # the transport calls it
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hear the peer until the connection ends. A fault of the transport is a loss like any other."""
        try:
            running = self.transport.run(self, task_status=task_status)
            del task_status  # which holds the whole nursery of the start, for as long as somebody holds it
            await running
        except Exception as exc:
            log.exception("transport failed peer=%s", self.name)
            self.lost(ConnectionLost(f"internal error: {exc!r}"))


@asynccontextmanager
async def open_session(
    transport: Transport,
    *,
    name: str = "peer",
    timer: Timer,
    counters: Counters | None = None,
    answer: Answer | None = None,
    told: Told | None = None,
    max_message: int = MAX_MESSAGE,
    depth: int = jsonrpc.MAX_DEPTH,
) -> AsyncGenerator[Session, None]:
    """Converse over `transport` for as long as the block runs. The block's own errors leave as raised.

    Args:
        transport: opened, and closed afterwards, by the caller.
        name: of the peer, for errors and logs.
        timer: expires deadlines; running for as long as the session.
        counters: where events are counted.
        answer: answers a request of the peer with result JSON; without it all but `ping` are refused.
            Runs in a task of its own, cancelled if the peer withdraws the request.
        told: takes notifications that are neither progress, logs nor cancellations. Must not block.
        max_message: bytes of one request that is sent.
        depth: levels of JSON in one message that is received.

    """
    block_error = session = None
    try:
        async with transport.home() as nursery:
            session = Session(
                transport, nursery, name=name, timer=timer, counters=counters or Counters(), answer=answer, told=told
            )
            session.max_message, session.decode = max_message, jsonrpc.decoder(depth)
            leave = transport.begin(session, nursery)
            try:
                if leave is None:
                    await nursery.start(session.run)
                yield session
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                block_error = exc
            finally:
                if leave is None:
                    nursery.cancel_scope.cancel("the session's block has ended")
                else:
                    leave()
    finally:
        if session is not None:
            session.lost(ConnectionLost("the session was closed"))
    if block_error is not None:
        raise block_error
