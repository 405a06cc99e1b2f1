"""What one HTTP request to MCP gets: an answer, a stream, or a session's end. One set of these for each view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from cord_trio.cell import Cell
from cord_trio.errors import CallError, Overloaded
from cord_trio.gateway.asking import Channel
from cord_trio.gateway.listen import follow
from cord_trio.gateway.outlet import EVENTS, JSON, JSON_FIELDS, Outlet, accepted
from cord_trio.gateway.plain import read_plain
from cord_trio.gateway.relay import failure
from cord_trio.gateway.routing import SESSION_HEADER, bad_version, says_modern
from cord_trio.gateway.running import MAX_RUNNING
from cord_trio.gateway.service import Service, error_code
from cord_trio.gateway.steps import (
    ACCEPTED,
    BAD_REQUEST,
    OK,
    UNAVAILABLE,
    Answered,
    Batch,
    Caller,
    Cancel,
    Level,
    List,
    Listen,
    Open,
    Reply,
    Run,
    Subscribe,
)
from cord_trio.protocol.eras import REQUEST_CANCELLED
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST, encode, encode_error, encode_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from cord_trio.gateway.listen import News
    from cord_trio.gateway.outlet import Fields
    from cord_trio.gateway.sessions import Session
    from cord_trio.gateway.steps import Step
    from cord_trio.transports.http1_server import Request, Response


class Manner(msgspec.Struct, frozen=True):
    """What the head of a request says of how it is answered. Good for all requests with such a head.

    Attributes:
        exchanges: who answers.
        common: header fields of every answer.
        json: whether the client takes JSON.
        events: whether it takes an event stream.
        session: the id that it names.
        legacy: whether its version header is in order for a legacy client.

    """

    exchanges: Exchanges
    common: Fields
    json: bool
    events: bool
    session: str | None
    legacy: bool


class Exchanges:
    """Answers requests to one service.

    Args:
        service: what is served.
        calls: where those of an array run.
        outlets: the open ones, of all views.

    """

    def __init__(self, service: Service, calls: trio.Nursery, outlets: dict[Outlet, None]) -> None:
        self.service = service
        self._calls = calls
        self._outlets = outlets
        # The run's own clock, without the calls that lead to it from `trio.current_time`.
        self._clock = trio.lowlevel.current_clock().current_time

    # --- POST ---------------------------------------------------------------------------------------------

    async def post(self, request: Request, response: Response, common: Fields, principal: str) -> None:
        """Do what a message of `principal` asks."""
        headers = request.headers
        media = (headers.get("content-type") or JSON).split(";", 1)[0].strip().lower()
        if media != JSON:
            say(response, 415, f"the body must be {JSON}", *common)
            return
        json, events = accepted(headers.get("accept"))
        if not (json or events):
            say(response, 406, f"Accept must allow {JSON} or {EVENTS}", *common)
            return
        legacy = not says_modern(headers) and bad_version(headers) is None
        manner = Manner(self, common, json, events, headers.get(SESSION_HEADER), legacy)
        headers.memo = manner  # for the next request with the same head
        await self.answer(request, response, manner, principal)

    def answer(self, request: Request, response: Response, manner: Manner, principal: str) -> Awaitable[None]:
        """The same, with what its head says seen to."""
        service, events = self.service, manner.events
        if manner.legacy and manner.session is not None and not service.drains():
            session = service.sessions.find(manner.session, self._clock(), principal=principal)
            if session is not None:
                # Nearly always it is this, and so in its own way: without two of the coroutines, each of which every
                # wake passes, and what is told of the caller to who reads other messages.
                step = read_plain(
                    request.body, session.client, askable=events, level=session.level, principal=principal
                )
                if step is not None:
                    outlet = Outlet(response, service.counters, manner.common, json=manner.json, events=events)
                    return self._run_legacy(step, session, outlet, response)
        return self._answer(request, response, manner, principal)

    async def _answer(self, request: Request, response: Response, manner: Manner, principal: str) -> None:
        session, caller = self._caller(request, principal, manner.session, events=manner.events)
        outlet = Outlet(response, self.service.counters, manner.common, json=manner.json, events=manner.events)
        step = self.service.front.read(request.body, caller)
        if self.service.draining and isinstance(step, Open | Run | List | Listen):
            outlet.answer(self.service.turned_away(step.id))
            return
        self._outlets[outlet] = None
        try:
            if type(step) is Run and session is not None and not step.era.modern:
                await self._run_legacy(step, session, outlet, response)
            else:
                await self._act(step, session, outlet, principal)
        finally:
            self._outlets.pop(outlet, None)

    def _caller(
        self, request: Request, principal: str, id: str | None, *, events: bool = False
    ) -> tuple[Session | None, Caller]:
        headers = request.headers
        if id is None:
            return None, Caller(headers, principal=principal)
        session = self.service.sessions.find(id, self._clock(), principal=principal)
        if session is None:
            return None, Caller(headers, named=True, principal=principal)
        return session, Caller(headers, session.client, True, principal, askable=events, level=session.level)

    async def _act(self, step: Step, session: Session | None, outlet: Outlet, principal: str) -> None:
        service = self.service
        match step:
            case Reply():
                outlet.answer(step)
            case Run():  # of a modern client
                events = service.events(step, outlet.tell) if outlet.events else None
                outlet.answer(await service.run(step, events))
            case List():
                reply = await service.list(step)
                if session is not None:
                    session.saw(step.kind, service.changes.generation)
                outlet.answer(reply)
            case Open():
                self._open(step, outlet, principal)
            case Listen():
                await self._listen(step, outlet)
            case Subscribe() | Level():
                if session is not None:
                    outlet.answer(self._set(step, session))
            case Answered():
                self._answered(step, session)
                outlet.answer(Reply(None, ACCEPTED))
            case Cancel(id, reason):
                if session is not None and session.running.cancel(id, f"client cancelled: {reason}"):
                    service.counters.add("gateway.cancelled")
                outlet.answer(Reply(None, ACCEPTED))
            case Batch(steps):
                if session is not None:
                    await self._batch(steps, session, outlet)

    def _open(self, step: Open, outlet: Outlet, principal: str) -> None:
        service = self.service
        try:
            session = service.sessions.open(
                step.client, trio.current_time(), principal=principal, seen=service.changes.generation
            )
        except Overloaded as exc:
            outlet.answer(Reply(encode_error(step.id, INTERNAL_ERROR, str(exc)), UNAVAILABLE))
            return
        outlet.answer(Reply(step.message), (SESSION_HEADER, session.id))

    def _set(self, step: Subscribe | Level, session: Session) -> Reply:
        match step:
            case Level(id, level):
                session.level = level
                return Reply(encode_result(id, b"{}"))
            case Subscribe():
                return self.service.subscribe(step, session.principal, session.subscriptions, session.ring)

    def _answered(self, step: Answered, session: Session | None) -> None:
        if session is None or not session.asked.settle(step):
            self.service.counters.add("gateway.answers_unasked")

    async def _run_legacy(self, step: Run, session: Session, outlet: Outlet, response: Response) -> None:
        """Run a call that goes on even if its client leaves: a lost connection cancels nothing (MCP 2025-11-25).

        It runs in the connection's own task, which outlives the connection if it must, and in its scope.
        """
        service = self.service
        scope = self._begin(step, session, response.scope)
        if isinstance(scope, Reply):
            outlet.answer(scope)
            return
        events = channel = None
        if outlet.events:
            if step.token or step.level:
                events = service.events(step, outlet.tell)
            channel = Channel(session.asked, outlet.ask)
            outlet.make_trail = session.begin_trail
        reply: Reply | None = None
        response.outlive(True)
        self._outlets[outlet] = None
        try:
            reply = await service.run(step, events, channel)
        finally:
            self._outlets.pop(outlet, None)
            response.outlive(False)
            session.running.end(step.id)
            if reply is None and scope.cancel_called:
                reply = _cancelled(step)
            if reply is not None:
                self._give(reply, session, outlet, response)

    def _give(self, reply: Reply, session: Session, outlet: Outlet, response: Response) -> None:
        """Answer a legacy call; if its client left, the answer is kept for when he comes back."""
        session.used = self._clock()
        if response.gone and not outlet.resumable:
            self.service.counters.add("gateway.answers_dropped")
        else:
            outlet.answer(reply)
        if outlet.trail is not None and session.trails is not None:
            session.trails.end(outlet.trail, session.used)

    def _begin(self, step: Run, session: Session, scope: trio.CancelScope | None = None) -> trio.CancelScope | Reply:
        """The scope that a call of the session runs in, or the answer that refuses it."""
        if session.running.full:
            self.service.counters.add("gateway.running_refused")
            return failure(Overloaded("gateway.running", MAX_RUNNING), step, self.service.front.identity)
        found = session.running.begin(step.id, scope)
        if found is None:
            return Reply(encode_error(step.id, INVALID_REQUEST, "this id is in flight already"), BAD_REQUEST)
        return found

    def _start(self, step: Run, session: Session) -> Cell[Reply] | Reply:
        """Start a call beside others. Returns what will hold its answer, or the answer that refuses it."""
        scope = self._begin(step, session)
        if isinstance(scope, Reply):
            return scope
        done: Cell[Reply] = Cell()
        self._calls.start_soon(self._carry, step, session, scope, done)
        return done

    async def _carry(self, step: Run, session: Session, scope: trio.CancelScope, done: Cell[Reply]) -> None:
        reply: Reply | None = None
        with scope:
            reply = await self.service.run(step, None)
        session.running.end(step.id)
        session.used = trio.current_time()
        if not done.settle(_cancelled(step) if reply is None else reply):
            self.service.counters.add("gateway.answers_dropped")

    async def _batch(self, steps: Sequence[Step], session: Session, outlet: Outlet) -> None:
        """Run all members at once; answer with one array in their order (MCP 2025-03-26)."""
        pending: list[Cell[Reply] | Reply] = []
        for step in steps:
            match step:
                case Reply():
                    pending.append(step)
                case Run():
                    pending.append(self._start(step, session))
                case List():
                    pending.append(self.service.list_nowait(step))
                case Subscribe() | Level():
                    pending.append(self._set(step, session))
                case Answered():
                    self._answered(step, session)
                case Cancel(id, reason):
                    session.running.cancel(id, f"client cancelled: {reason}")
                case Open() | Listen() | Batch():
                    pass  # the front lets none of them into an array
        replies = [item if isinstance(item, Reply) else await item.wait(_nothing) for item in pending]
        told = b",".join(reply.message for reply in replies if reply.message is not None)
        outlet.answer(Reply(b"[%b]" % told) if told else Reply(None, ACCEPTED))

    # --- streams ------------------------------------------------------------------------------------------

    async def _listen(self, step: Listen, outlet: Outlet) -> None:
        if not outlet.events:
            outlet.answer(Reply(encode_error(step.id, INVALID_REQUEST, f"Accept must allow {EVENTS}"), 406))
            return
        try:
            end = await self.service.listen(step, outlet, outlet.tell)
        except CallError as exc:
            status = UNAVAILABLE if isinstance(exc, Overloaded) else OK
            outlet.answer(Reply(encode_error(step.id, error_code(exc), str(exc)), status))
            return
        outlet.answer(Reply(end))

    async def get(self, request: Request, response: Response, common: Fields, principal: str) -> None:
        """The stream for what belongs to no request of a legacy session (MCP 2025-11-25, transports)."""
        if says_modern(request.headers):
            say(response, 405, "this revision has POST alone", ("Allow", "POST"), *common)
            return
        session, caller = self._caller(request, principal, request.headers.get(SESSION_HEADER))
        _, events = accepted(request.headers.get("accept"))
        outlet = Outlet(response, self.service.counters, common, events=events)
        refusal = self.service.front.attend(caller)
        if session is None or refusal is not None:
            outlet.answer(refusal or Reply(None, BAD_REQUEST))
            return
        if not events:
            say(response, 406, f"Accept must allow {EVENTS}", *common)
            return
        since = 0
        event_id = request.headers.get("last-event-id")
        if session.trails is not None:
            outlet.trail = session.trails.standing
            if event_id:
                found = session.trails.find(event_id, trio.current_time())
                if found is None or found[1].since(found[2]) is None:
                    say(response, BAD_REQUEST, "nothing is kept of what followed this event", *common)
                    return
                way, _, since = found
                if way is not None:
                    await self._resume(way, response, common, since)
                    return
        await self._stand(session, outlet, since if event_id else None)

    async def _resume(self, outlet: Outlet, response: Response, common: Fields, since: int) -> None:
        """Give the rest of a stream, until its answer or until its client comes back once more."""
        outlet.resume(response, common, since)
        self.service.counters.add("gateway.resumed")
        self._outlets[outlet] = None
        try:
            await outlet.wait_over()
        finally:
            self._outlets.pop(outlet, None)

    async def _stand(self, session: Session, outlet: Outlet, since: int | None) -> None:
        changes = self.service.changes

        def told(news: News) -> None:
            if isinstance(news, str):
                session.saw(news, changes.generation)

        try:
            with changes.watch() as watch:
                session.attach(watch)
                for kind, generation in changes.generation.items():
                    if session.seen[kind] != generation:
                        watch.ring(kind)  # it changed while nobody was there to be told
                self._outlets[outlet] = None
                outlet.open(since)
                try:
                    await follow(watch, outlet, told=told)
                finally:
                    self._outlets.pop(outlet, None)
                    session.detach(watch, trio.current_time())
        except Overloaded as exc:
            outlet.answer(Reply(encode({"error": str(exc)}), UNAVAILABLE))
            return
        outlet.close()

    def delete(self, request: Request, response: Response, common: Fields, principal: str) -> None:
        """End a legacy session."""
        if says_modern(request.headers):
            say(response, 405, "this revision has POST alone", ("Allow", "POST"), *common)
            return
        session, caller = self._caller(request, principal, request.headers.get(SESSION_HEADER))
        refusal = self.service.front.attend(caller)
        if session is None or refusal is not None:
            Outlet(response, self.service.counters, common).answer(refusal or Reply(None, BAD_REQUEST))
            return
        self.service.sessions.close(session, "the client ended the session")
        response.send(OK, common)


def say(response: Response, status: int, text: str, *fields: tuple[str, str]) -> None:
    """Answer with a text that is no JSON-RPC message."""
    response.send(status, (*JSON_FIELDS, *fields), encode({"status" if status == OK else "error": text}))


def _cancelled(step: Run) -> Reply:
    return Reply(encode_error(step.id, REQUEST_CANCELLED, "request cancelled"))


def _nothing() -> None:
    """A call goes on without whoever waited for it."""
