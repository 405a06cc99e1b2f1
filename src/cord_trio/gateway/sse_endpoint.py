"""HTTP+SSE (2024-11-05) for clients that know nothing newer: `GET /sse`, and `POST /messages` for what they say.

Each stream is a pipe to one client, with a state of its own; it ends with its connection.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import trio

from cord_trio.errors import ConnectionLost
from cord_trio.gateway.outlet import EVENT_FIELDS, EVENTS, JSON, accepted
from cord_trio.gateway.stdio_endpoint import serve_pipe
from cord_trio.gateway.steps import ACCEPTED, BAD_REQUEST, FORBIDDEN, NOT_FOUND, OK, STRANGER, UNAVAILABLE
from cord_trio.protocol.framing import SSE_COMMENT, encode_sse
from cord_trio.transports import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cord_trio.gateway.outlet import Fields
    from cord_trio.gateway.ports import Lines
    from cord_trio.gateway.service import Service
    from cord_trio.transports import Receiver
    from cord_trio.transports.http1_server import Request, Response

STREAM_PATH: Final = "/sse"
MESSAGES: Final = "messages"
MESSAGES_PATH: Final = f"/{MESSAGES}"
SESSION: Final = "session_id"

BEAT: Final = 15.0
"""Seconds between comments, so that no proxy takes the stream for dead."""

_TEXT: Final = (("Content-Type", "text/plain"),)


class SseClient(Transport):
    """The way back to one client: its event stream. What it says comes by `take`."""

    def __init__(self, response: Response, id: str, common: Fields, principal: str) -> None:
        self.id = id
        self.principal = principal
        self._response = response
        self._common = common
        self._receiver: Receiver | None = None

    def send(
        self,
        message: bytes,
        *,
        id: int | str | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        if self._response.gone:
            raise ConnectionLost("the client left", "no")
        self._response.write(encode_sse(message))

    def withdraw(self, id: int | str) -> bool:
        return False

    def written(self, id: int | str) -> bool:
        return True

    def take(self, message: bytes) -> None:
        """The client says something."""
        if self._receiver is not None:
            self._receiver.feed([message])

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._receiver = receiver
        task_status.started()
        self._response.start(OK, (*EVENT_FIELDS, *self._common))
        # Relative, so that it is right behind a proxy that puts us below a path of its own.
        self._response.write(encode_sse(f"{MESSAGES}?{SESSION}={self.id}".encode(), event="endpoint"))
        while True:
            await trio.sleep(BEAT)
            if not self._response.congested:
                self._response.write(SSE_COMMENT)

    @property
    def congested(self) -> bool:
        return self._response.congested

    async def wait_uncongested(self) -> None:
        await self._response.wait_uncongested()


class SseEndpoint:
    """Every such client, by the id that only it was told."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clients: dict[str, SseClient] = {}

    async def handle(
        self, request: Request, response: Response, common: Fields, principal_of: Callable[[Lines], str | None]
    ) -> bool:
        """Answer a request that is about this; False, and nothing done, if it is not."""
        path = request.path.rstrip("/")
        if path not in (STREAM_PATH, MESSAGES_PATH):
            return False
        principal = principal_of(request.headers)
        match path, request.method:
            case _ if principal is None:
                self._service.counters.add("gateway.strangers_refused")
                response.send(FORBIDDEN, (*_TEXT, *common), f"{STRANGER}\n".encode())
            case (found, "GET") if found == STREAM_PATH:
                await self._open(request, response, common, principal)
            case (found, "POST") if found == MESSAGES_PATH:
                self._post(request, response, common, principal)
            case _:
                response.send(405, (*_TEXT, *common, ("Allow", "GET" if path == STREAM_PATH else "POST")))
        return True

    async def _open(self, request: Request, response: Response, common: Fields, principal: str) -> None:
        """Serve one client until it leaves, or all is answered when draining."""
        if not accepted(request.headers.get("accept"))[1]:
            response.send(406, (*_TEXT, *common), f"Accept must allow {EVENTS}\n".encode())
            return
        if self._service.draining:
            response.send(UNAVAILABLE, (*_TEXT, *common), b"draining\n")
            return
        client = SseClient(response, secrets.token_hex(16), common, principal)
        self._clients[client.id] = client
        self._service.counters.add("gateway.sse_clients")
        try:
            await serve_pipe(self._service, client, principal)
        finally:
            del self._clients[client.id]
        response.end()

    def _post(self, request: Request, response: Response, common: Fields, principal: str) -> None:
        media = (request.headers.get("content-type") or JSON).split(";", 1)[0].strip().lower()
        found = parse_qs(request.query).get(SESSION, [])
        client = self._clients.get(found[0]) if len(found) == 1 else None
        if media != JSON:
            response.send(415, (*_TEXT, *common), f"the body must be {JSON}\n".encode())
        elif len(found) != 1:
            response.send(BAD_REQUEST, (*_TEXT, *common), f"{SESSION} is missing\n".encode())
        elif client is None or client.principal != principal:
            response.send(NOT_FOUND, (*_TEXT, *common), b"session not found: its stream has ended, or never was\n")
        elif not request.body.strip():
            response.send(BAD_REQUEST, (*_TEXT, *common), b"no message\n")
        else:
            response.send(ACCEPTED, (*_TEXT, *common), b"accepted\n")
            client.take(request.body)
