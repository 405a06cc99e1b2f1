"""A pipe to one client: both eras on it, each request in a task of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from cord_trio.call import LOCAL
from cord_trio.errors import CallError, ConnectionLost, Overloaded
from cord_trio.gateway.asking import Asked, Channel
from cord_trio.gateway.listen import follow
from cord_trio.gateway.relay import failure
from cord_trio.gateway.running import MAX_RUNNING, Running
from cord_trio.gateway.service import Service, error_code
from cord_trio.gateway.sessions import FIRST_LEVEL
from cord_trio.gateway.steps import (
    Answered,
    Batch,
    Caller,
    Cancel,
    Client,
    Level,
    List,
    Listen,
    Open,
    Reply,
    Run,
    Subscribe,
)
from cord_trio.gateway.subscriptions import Subscriptions
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST, encode_error, encode_result
from cord_trio.transports.stdio_server import ServerStdio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cord_trio.gateway.listen import News, Watch
    from cord_trio.gateway.steps import Step
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports import Receiver, Transport

    Done: TypeAlias = Callable[[bytes], None]

RETRY: Final = 0.05
"""Seconds between attempts to send an answer to a client that takes none."""

MAX_UNSENT: Final = 256
"""Answers that wait because the client takes none; then the pipe is closed."""


class Pipe:
    """One client's conversation; a `Receiver`. The legacy client on it, if any, is the one that initialized last."""

    def __init__(self, service: Service, transport: Transport, nursery: trio.Nursery, principal: str = LOCAL) -> None:
        self._service = service
        self._principal = principal
        self._transport = transport
        self._nursery = nursery
        self._client: Client | None = None
        self._level = FIRST_LEVEL
        self._asked = Asked()
        self._subscriptions = Subscriptions()
        self._watch: Watch | None = None
        self._following = False
        self._unsent = 0
        self.running = Running()

    # --- Receiver -----------------------------------------------------------------------------------------

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        """Read each message and do what it asks."""
        front = self._service.front
        for message in messages:
            # Made for each, since an earlier one may have changed what the next is read with.
            caller = Caller(client=self._client, principal=self._principal, level=self._level)
            self._act(front.read(message, caller), self.send)

    def fail(self, id: int | str, error: CallError, /) -> None:
        """We ask nothing, so nothing fails."""

    def lost(self, error: ConnectionLost, /) -> None:
        """The client is gone, and with it everything that it asked for."""
        self._nursery.cancel_scope.cancel(f"client left: {error.reason}")

    def waits(self, id: int | str, /) -> bool:
        """We ask nothing."""
        return False

    # --- Outlet -------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send an answer, if there is one: now, or as soon as the client takes it."""
        try:
            if message:
                self._transport.send(message)
        except ConnectionLost:
            pass  # `lost` says so to everyone
        except Overloaded:
            self._service.counters.add("gateway.pipe_full")
            if self._unsent >= MAX_UNSENT:
                self._nursery.cancel_scope.cancel(f"the client takes no answers (gateway.unsent = {MAX_UNSENT})")
            else:
                self._unsent += 1
                self._nursery.start_soon(self._send_later, message)

    def tell(self, message: bytes) -> None:
        """Send a notification, unless the client is behind."""
        if self._transport.congested:
            self._service.counters.add("gateway.notices_dropped")
            return
        try:
            self._transport.send(message)
        except (ConnectionLost, Overloaded):
            self._service.counters.add("gateway.notices_dropped")

    async def wait_room(self) -> None:
        """Return once the client reads."""
        await self._transport.wait_uncongested()

    async def wait_answered(self) -> None:
        """Return once nothing is in flight and every answer is on its way."""
        await trio.lowlevel.checkpoint()
        # Looked at anew after each wait: more may have come meanwhile. After the last look there is no wait.
        while len(self.running) or self._unsent or self._transport.congested:
            await self.running.wait_empty()
            await self._transport.wait_uncongested()
            if self._unsent:
                await trio.sleep(RETRY)

    async def _send_later(self, message: bytes) -> None:
        while True:
            await self._transport.wait_uncongested()
            try:
                self._transport.send(message)
                break
            except ConnectionLost:
                break
            except Overloaded:
                await trio.sleep(RETRY)
        self._unsent -= 1

    # --- steps --------------------------------------------------------------------------------------------

    def _act(self, step: Step, done: Done) -> None:
        """Do what a step asks. `done` is told the answer, empty if there is none to give."""
        match step:
            case Reply(message):
                done(message or b"")
            case Open(_, message, client):
                self._client = client
                done(message)
                if not self._following:
                    self._following = True
                    self._nursery.start_soon(self._follow)
            case Run():
                self._begin(step, partial(self._run, step), done)
            case List():
                if self._service.fabric.ready:
                    done(self._service.list_nowait(step).message or b"")
                else:
                    self._begin(step, partial(self._list, step), done)
            case Listen():
                self._begin(step, partial(self._listen, step), done)
            case Level(id, level):
                self._level = level
                done(encode_result(id, b"{}"))
            case Subscribe():
                reply = self._service.subscribe(step, self._principal, self._subscriptions, self._ring)
                done(reply.message or b"")
            case Answered():
                if not self._asked.settle(step):
                    self._service.counters.add("gateway.answers_unasked")
                done(b"")
            case Cancel(id, reason):
                if self.running.cancel(id, f"client cancelled: {reason}"):
                    self._service.counters.add("gateway.cancelled")
                done(b"")
            case Batch(steps):
                self._gather(steps, done)

    def _gather(self, steps: Sequence[Step], done: Done) -> None:
        """Do all steps; when the last is over, give their answers as one array."""
        answers: list[bytes] = []

        def collect(message: bytes) -> None:
            answers.append(message)
            if len(answers) == len(steps):
                told = b",".join(filter(None, answers))
                done(b"[%b]" % told if told else b"")

        for step in steps:
            self._act(step, collect)

    def _begin(self, step: Run | List | Listen, serve: Callable[[], Awaitable[bytes]], done: Done) -> None:
        if self.running.full:
            self._service.counters.add("gateway.running_refused")
            done(self._overloaded(step, Overloaded("gateway.running", MAX_RUNNING)))
            return
        scope = self.running.begin(step.id)
        if scope is None:
            done(encode_error(step.id, INVALID_REQUEST, "this id is in flight already"))
            return
        self._nursery.start_soon(self._serve, step.id, scope, serve, done)

    async def _serve(self, id: Id, scope: trio.CancelScope, serve: Callable[[], Awaitable[bytes]], done: Done) -> None:
        message = b""
        with scope:
            message = await serve()
        # Nothing between here and the answer can be cancelled: a late cancellation finds no request.
        self.running.end(id)
        done(message)

    async def _run(self, step: Run) -> bytes:
        events = self._service.events(step, self.tell)
        channel = None if step.era.modern else Channel(self._asked, self.send)
        return (await self._service.run(step, events, channel)).message or b""

    async def _list(self, step: List) -> bytes:
        return (await self._service.list(step)).message or b""

    async def _listen(self, step: Listen) -> bytes:
        try:
            return await self._service.listen(step, self, self.send)
        except CallError as exc:
            return encode_error(step.id, error_code(exc), str(exc))

    async def _follow(self) -> None:
        """Tell the legacy client of changes."""
        try:
            with self._service.changes.watch() as watch:
                self._watch = watch
                await follow(watch, self)
        except Overloaded:
            pass  # counted; it lists again when it wants to know

    def _ring(self, news: News) -> None:
        if self._watch is not None:
            self._watch.ring(news)

    def close(self) -> None:
        """Give back what the pipe holds."""
        self._subscriptions.close()

    def _overloaded(self, step: Run | List | Listen, error: Overloaded) -> bytes:
        if isinstance(step, Run):
            return failure(error, step, self._service.front.identity).message or b""
        return encode_error(step.id, INTERNAL_ERROR, str(error))


async def serve_pipe(service: Service, transport: Transport, principal: str = LOCAL) -> None:
    """Serve `principal`, who is at the other end of `transport`, until it leaves or all is answered when draining."""
    async with trio.open_nursery() as nursery:
        pipe = Pipe(service, transport, nursery, principal)
        receiver: Receiver = pipe
        if isinstance(transport, ServerStdio):
            transport.finish = pipe.wait_answered
        try:
            nursery.start_soon(transport.run, receiver)
            await service.fabric.draining.wait()
            await pipe.wait_answered()
        finally:
            pipe.close()
        nursery.cancel_scope.cancel("drained")
