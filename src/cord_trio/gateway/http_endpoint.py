"""The gateway's HTTP endpoint: `/mcp` for both eras, `/healthz` and `/readyz` for whoever keeps it running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cord_trio.call import LOCAL
from cord_trio.gateway.http_exchange import Exchanges, Manner, say
from cord_trio.gateway.outlet import JSON_FIELDS
from cord_trio.gateway.routing import SESSION_HEADER, VERSION_HEADER
from cord_trio.gateway.sse_endpoint import SseEndpoint
from cord_trio.gateway.steps import FORBIDDEN, OK, STRANGER, UNAVAILABLE
from cord_trio.gateway.websocket_endpoint import asks_websocket, serve_websocket
from cord_trio.protocol.jsonrpc import encode
from cord_trio.transports.http1 import BODY_LIMIT, LOOPBACK_HOSTS, LOOPBACK_ORIGINS, check_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from cord_trio.gateway.outlet import Fields, Outlet
    from cord_trio.gateway.ports import Lines
    from cord_trio.gateway.service import Service
    from cord_trio.transports.http1_server import Request, Response

MCP_PATH: Final = "/mcp"
"""Where MCP is served; a profile below it."""

DOORS: Final = 64
"""Pairs of `Host` and `Origin` that are known to be let in."""

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


def everyone(_headers: Lines) -> str:
    """Whose a request is where all are one."""
    return LOCAL


class HttpEndpoint:
    """Answers requests. Legacy calls run in `calls`, since they outlive their connection.

    `principal` tells from a request's header lines who sends it; None is nobody who may.
    """

    def __init__(
        self,
        service: Service,
        calls: trio.Nursery,
        *,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
        max_message: int = BODY_LIMIT,
        sse: bool = False,
        profiles: Mapping[str, Service] = {},
        principal: Callable[[Lines], str | None] = everyone,
    ) -> None:
        self._principal = principal
        self._alike = principal is everyone
        self._max_message = max_message
        self._sse = SseEndpoint(service) if sse else None
        self._service = service
        self._hosts = (*LOOPBACK_HOSTS, *allowed_hosts)
        self._origins = (*LOOPBACK_ORIGINS, *allowed_origins)
        self._doors: set[tuple[str | None, str | None]] = set()
        self._outlets: dict[Outlet, None] = {}
        self._views: dict[str, Exchanges] = {}
        for path, view in [(MCP_PATH, service), *((f"{MCP_PATH}/{name}", each) for name, each in profiles.items())]:
            # Both spellings, since clients lose things on a redirect.
            self._views[path] = self._views[f"{path}/"] = Exchanges(view, calls, self._outlets)

    def handle(self, request: Request, response: Response) -> Awaitable[None]:
        """Answer one request. Cancelled when its client leaves."""
        headers = request.headers
        manner = headers.memo
        # Whatever its head decides was decided with the last one; but for who sends it, since a right to that may end.
        if type(manner) is Manner and (principal := LOCAL if self._alike else self._principal(headers)) is not None:
            return manner.exchanges.answer(request, response, manner, principal)
        return self._handle(request, response)

    async def _handle(self, request: Request, response: Response) -> None:
        headers = request.headers
        origin = headers.get("origin")
        door = (headers.get("host"), origin)
        if door not in self._doors and (refusal := self._check(*door)) is not None:
            self._service.counters.add("gateway.foreign_refused")
            what = "Host" if refusal == 421 else "Origin"
            say(response, refusal, f"this {what} is not on the gateway's list (gateway.allowed_{what.lower()}s)")
            return
        common = () if origin is None else _cors(origin)
        exchanges = self._views.get(request.path)
        if exchanges is not None:
            await self._mcp(exchanges, request, response, common)
            return
        if self._sse is not None and await self._sse.handle(request, response, common, self._principal):
            return
        match request.path, request.method:
            case ("/healthz", "GET" | "HEAD"):
                say(response, OK, "alive")
            case ("/readyz", "GET" | "HEAD"):
                self._ready(response)
            case ("/healthz" | "/readyz", _):
                say(response, 405, "method not allowed", ("Allow", "GET, HEAD"))
            case _:
                say(response, 404, "there is nothing here; MCP is at /mcp")

    def _check(self, host: str | None, origin: str | None) -> int | None:
        """The status to refuse a request with; who was let in once need not be judged again."""
        refusal = check_origin(host, origin, allowed_hosts=self._hosts, allowed_origins=self._origins)
        if refusal is None:
            if len(self._doors) >= DOORS:
                self._doors.clear()
            self._doors.add((host, origin))
        return refusal

    async def _mcp(self, exchanges: Exchanges, request: Request, response: Response, common: Fields) -> None:
        if request.method == "OPTIONS":
            response.send(204, (*common, ("Allow", METHODS), *_preflight(request)))
            return
        principal = self._principal(request.headers)
        if principal is None:
            self._service.counters.add("gateway.strangers_refused")
            say(response, FORBIDDEN, STRANGER, *common)
            return
        match request.method:
            case "POST":
                await exchanges.post(request, response, common, principal)
            case "GET" if asks_websocket(request):
                service, most = exchanges.service, self._max_message
                await serve_websocket(service, request, response, max_message=most, principal=principal)
            case "GET":
                await exchanges.get(request, response, common, principal)
            case "DELETE":
                exchanges.delete(request, response, common, principal)
            case _:
                say(response, 405, "method not allowed", ("Allow", METHODS), *common)

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

    # --- health -------------------------------------------------------------------------------------------

    def _ready(self, response: Response) -> None:
        service = self._service
        ready = service.fabric.ready and not service.draining
        sources = {name: source.state for name, source in service.fabric.registry.snapshot.sources.items()}
        now = trio.current_time()
        down = {
            name: {
                "reason": source.reason,
                "next_try_in": None if source.next_try is None else round(max(0.0, source.next_try - now), 1),
            }
            for name, source in service.fabric.registry.snapshot.sources.items()
            if source.state == "down"
        }
        body = {"ready": ready, "draining": service.draining, "sources": sources, "down": down}
        response.send(OK if ready else UNAVAILABLE, JSON_FIELDS, encode(body))


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
