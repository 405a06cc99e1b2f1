"""The gateway's HTTP endpoint: `/mcp` for both eras, `/healthz` and `/readyz` for whoever keeps it running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import Overloaded
from cord_trio.gateway.front import SESSION_HEADER, VERSION_HEADER, says_modern
from cord_trio.gateway.listen import follow
from cord_trio.gateway.outlet import EVENTS, JSON, JSON_FIELDS, Outlet, accepted
from cord_trio.gateway.relay import failure
from cord_trio.gateway.running import MAX_RUNNING
from cord_trio.gateway.service import LIST_CHANGED, PRINCIPAL, Service, listen_messages
from cord_trio.gateway.steps import (
    ACCEPTED,
    BAD_REQUEST,
    OK,
    UNAVAILABLE,
    Batch,
    Caller,
    Cancel,
    List,
    Listen,
    Open,
    Reply,
    Run,
)
from cord_trio.gateway.websocket_endpoint import asks_websocket, serve_websocket
from cord_trio.protocol.eras import REQUEST_CANCELLED
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST, encode, encode_error
from cord_trio.transports.http1 import BODY_LIMIT, LOOPBACK_HOSTS, LOOPBACK_ORIGINS, check_origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.gateway.outlet import Fields
    from cord_trio.gateway.relay import Progress
    from cord_trio.gateway.sessions import Session
    from cord_trio.gateway.steps import Step
    from cord_trio.transports.http1_server import Request, Response


MCP_PATHS: Final = ("/mcp", "/mcp/")
"""Both spellings, since clients lose things on a redirect."""

METHODS: Final = "POST, GET, DELETE, OPTIONS"
BEAT: Final = 15.0
"""Seconds between comments on open streams, so that no proxy takes them for dead."""

PREFLIGHT_LIFE: Final = 600
"""Seconds for which a browser may remember a preflight."""

ALLOWED_HEADERS: Final = (
    "Content-Type",
    "Accept",
    "Authorization",
    VERSION_HEADER,
    "Mcp-Method",
    "Mcp-Name",
    SESSION_HEADER,
    "Last-Event-ID",
)
_EXPOSED: Final = f"{SESSION_HEADER}, WWW-Authenticate"
_PARAM: Final = "mcp-param-"


class HttpEndpoint:
    """Answers requests. Legacy calls run in `calls`, since they outlive their connection."""

    def __init__(
        self,
        service: Service,
        calls: trio.Nursery,
        *,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
        max_message: int = BODY_LIMIT,
    ) -> None:
        self._max_message = max_message
        self._service = service
        self._calls = calls
        self._hosts = (*LOOPBACK_HOSTS, *allowed_hosts)
        self._origins = (*LOOPBACK_ORIGINS, *allowed_origins)
        self._outlets: dict[Outlet, None] = {}

    async def handle(self, request: Request, response: Response) -> None:
        """Answer one request. Cancelled when its client leaves."""
        headers = request.headers
        origin = headers.get("origin")
        refusal = check_origin(headers.get("host"), origin, allowed_hosts=self._hosts, allowed_origins=self._origins)
        if refusal is not None:
            self._service.counters.add("gateway.foreign_refused")
            what = "Host" if refusal == 421 else "Origin"
            _say(response, refusal, f"this {what} is not on the gateway's list (gateway.allowed_{what.lower()}s)")
            return
        common = () if origin is None else _cors(origin)
        if request.path in MCP_PATHS and asks_websocket(request):
            await serve_websocket(self._service, request, response, max_message=self._max_message)
            return
        match request.path, request.method:
            case ("/mcp" | "/mcp/", "POST"):
                await self._post(request, response, common)
            case ("/mcp" | "/mcp/", "GET"):
                await self._get(request, response, common)
            case ("/mcp" | "/mcp/", "DELETE"):
                self._delete(request, response, common)
            case ("/mcp" | "/mcp/", "OPTIONS"):
                response.send(204, (*common, ("Allow", METHODS), *_preflight(request)))
            case ("/mcp" | "/mcp/", _):
                _say(response, 405, "method not allowed", ("Allow", METHODS), *common)
            case ("/healthz", "GET" | "HEAD"):
                _say(response, OK, "alive")
            case ("/readyz", "GET" | "HEAD"):
                self._ready(response)
            case ("/healthz" | "/readyz", _):
                _say(response, 405, "method not allowed", ("Allow", "GET, HEAD"))
            case _:
                _say(response, 404, "there is nothing here; MCP is at /mcp")

    async def keep_alive(self) -> None:
        """Send a comment on every open stream now and then, until cancelled.

        An answer that has been due for a whole interval becomes a stream by that.
        """
        while True:
            before = set(self._outlets)
            await trio.sleep(BEAT)
            for outlet in tuple(self._outlets):
                if outlet.opened or outlet in before:
                    outlet.beat()

    # --- POST ---------------------------------------------------------------------------------------------

    async def _post(self, request: Request, response: Response, common: Fields) -> None:
        headers = request.headers
        media = (headers.get("content-type") or JSON).split(";", 1)[0].strip().lower()
        if media != JSON:
            _say(response, 415, f"the body must be {JSON}", *common)
            return
        json, events = accepted(headers.get("accept"))
        if not (json or events):
            _say(response, 406, f"Accept must allow {JSON} or {EVENTS}", *common)
            return
        session, caller = self._caller(request)
        outlet = Outlet(response, self._service.counters, common, json=json, events=events)
        step = self._service.front.read(request.body, caller)
        if self._service.draining and isinstance(step, Open | Run | List | Listen):
            outlet.answer(self._service.turned_away(step.id))
            return
        self._outlets[outlet] = None
        try:
            await self._act(step, session, outlet)
        finally:
            self._outlets.pop(outlet, None)

    def _caller(self, request: Request) -> tuple[Session | None, Caller]:
        headers = request.headers
        id = headers.get(SESSION_HEADER)
        if id is None:
            return None, Caller(headers)
        session = self._service.sessions.find(id, trio.current_time(), principal=PRINCIPAL)
        return session, Caller(headers, None if session is None else session.client, named=True)

    async def _act(self, step: Step, session: Session | None, outlet: Outlet) -> None:
        service = self._service
        match step:
            case Reply():
                outlet.answer(step)
            case Run():
                if step.era.modern:
                    progress = service.progress(step, outlet.tell) if outlet.events else None
                    outlet.answer(await service.run(step, progress))
                elif session is not None:
                    await self._run_legacy(step, session, outlet)
            case List():
                reply = await service.list(step)
                if session is not None:
                    session.seen = service.changes.generation
                outlet.answer(reply)
            case Open():
                self._open(step, outlet)
            case Listen():
                await self._listen(step, outlet)
            case Cancel(id, reason):
                if session is not None and session.running.cancel(id, f"client cancelled: {reason}"):
                    service.counters.add("gateway.cancelled")
                outlet.answer(Reply(None, ACCEPTED))
            case Batch(steps):
                if session is not None:
                    await self._batch(steps, session, outlet)

    def _open(self, step: Open, outlet: Outlet) -> None:
        service = self._service
        try:
            session = service.sessions.open(
                step.client, trio.current_time(), principal=PRINCIPAL, seen=service.changes.generation
            )
        except Overloaded as exc:
            outlet.answer(Reply(encode_error(step.id, INTERNAL_ERROR, str(exc)), UNAVAILABLE))
            return
        outlet.answer(Reply(step.message), (SESSION_HEADER, session.id))

    async def _run_legacy(self, step: Run, session: Session, outlet: Outlet) -> None:
        """Wait for a call that goes on even if we do not: a lost connection cancels nothing (MCP 2025-11-25)."""
        started = self._start(step, session, self._service.progress(step, outlet.tell) if outlet.events else None)
        outlet.answer(started if isinstance(started, Reply) else await started.wait(_nothing))

    def _start(self, step: Run, session: Session, progress: Progress | None) -> Cell[Reply] | Reply:
        """Start a call in the session. Returns what will hold its answer, or the answer that refuses it."""
        if session.running.full:
            self._service.counters.add("gateway.running_refused")
            return failure(Overloaded("gateway.running", MAX_RUNNING), step, self._service.front.identity)
        scope = session.running.begin(step.id)
        if scope is None:
            return Reply(encode_error(step.id, INVALID_REQUEST, "this id is in flight already"), BAD_REQUEST)
        done: Cell[Reply] = Cell()
        self._calls.start_soon(self._carry, step, session, scope, progress, done)
        return done

    async def _carry(
        self, step: Run, session: Session, scope: trio.CancelScope, progress: Progress | None, done: Cell[Reply]
    ) -> None:
        reply = Reply(encode_error(step.id, REQUEST_CANCELLED, "request cancelled"))
        with scope:
            reply = await self._service.run(step, progress)
        session.running.end(step.id)
        session.used = trio.current_time()
        if not done.settle(reply):
            self._service.counters.add("gateway.answers_dropped")

    async def _batch(self, steps: Sequence[Step], session: Session, outlet: Outlet) -> None:
        """Run all members at once; answer with one array in their order (MCP 2025-03-26)."""
        pending: list[Cell[Reply] | Reply] = []
        for step in steps:
            match step:
                case Reply():
                    pending.append(step)
                case Run():
                    pending.append(self._start(step, session, None))
                case List():
                    pending.append(self._service.list_nowait(step))
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
        ack, news, end = listen_messages(step, self._service.front.identity)
        try:
            with self._service.changes.watch(tools=step.tools) as watch:
                outlet.tell(ack)
                await follow(watch, outlet, news)
        except Overloaded as exc:
            outlet.answer(Reply(encode_error(step.id, INTERNAL_ERROR, str(exc)), UNAVAILABLE))
            return
        outlet.answer(Reply(end))

    async def _get(self, request: Request, response: Response, common: Fields) -> None:
        """The stream for what belongs to no request of a legacy session (MCP 2025-11-25, transports)."""
        if says_modern(request.headers):
            _say(response, 405, "this revision has POST alone", ("Allow", "POST"), *common)
            return
        session, caller = self._caller(request)
        _, events = accepted(request.headers.get("accept"))
        outlet = Outlet(response, self._service.counters, common, events=events)
        refusal = self._service.front.attend(caller)
        if session is None or refusal is not None:
            outlet.answer(refusal or Reply(None, BAD_REQUEST))
            return
        if not events:
            _say(response, 406, f"Accept must allow {EVENTS}", *common)
            return
        changes = self._service.changes

        def told() -> None:
            session.seen = changes.generation

        try:
            with changes.watch() as watch:
                session.attach(watch)
                if session.seen != changes.generation:
                    watch.ring()  # it changed while nobody was there to be told
                self._outlets[outlet] = None
                outlet.open()
                try:
                    await follow(watch, outlet, LIST_CHANGED, told)
                finally:
                    self._outlets.pop(outlet, None)
                    session.detach(watch, trio.current_time())
        except Overloaded as exc:
            _say(response, UNAVAILABLE, str(exc), *common)
            return
        outlet.close()

    def _delete(self, request: Request, response: Response, common: Fields) -> None:
        if says_modern(request.headers):
            _say(response, 405, "this revision has POST alone", ("Allow", "POST"), *common)
            return
        session, caller = self._caller(request)
        refusal = self._service.front.attend(caller)
        if session is None or refusal is not None:
            Outlet(response, self._service.counters, common).answer(refusal or Reply(None, BAD_REQUEST))
            return
        self._service.sessions.close(session, "the client ended the session")
        response.send(OK, common)

    # --- health -------------------------------------------------------------------------------------------

    def _ready(self, response: Response) -> None:
        service = self._service
        ready = service.fabric.ready and not service.draining
        sources = {name: source.state for name, source in service.fabric.registry.snapshot.sources.items()}
        body = {"ready": ready, "draining": service.draining, "sources": sources}
        response.send(OK if ready else UNAVAILABLE, JSON_FIELDS, encode(body))


def _say(response: Response, status: int, text: str, *fields: tuple[str, str]) -> None:
    """Answer with a text that is no JSON-RPC message."""
    response.send(status, (*JSON_FIELDS, *fields), encode({"status" if status == OK else "error": text}))


def _cors(origin: str) -> Fields:
    """What lets a page of a known origin read the answer."""
    return ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _EXPOSED), ("Vary", "Origin")


def _preflight(request: Request) -> Fields:
    """What lets a page of a known origin send its request; nothing for who is no page."""
    if "origin" not in request.headers or "access-control-request-method" not in request.headers:
        return ()
    wanted = (request.headers.get("access-control-request-headers") or "").split(",")
    mirrored = [name.strip() for name in wanted if name.strip().lower().startswith(_PARAM)]
    return (
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Allow-Headers", ", ".join((*ALLOWED_HEADERS, *mirrored))),
        ("Access-Control-Max-Age", str(PREFLIGHT_LIFE)),
    )


def _nothing() -> None:
    """A call goes on without whoever waited for it."""
