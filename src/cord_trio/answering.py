"""Answering what the peer asks: each request in a task of its own, and no more of them than the bound."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio

from cord_trio.errors import CallError, CallFailed, CordError
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from msgspec import Raw

    from cord_trio.counters import Counters
    from cord_trio.protocol.jsonrpc import Envelope, Id
    from cord_trio.protocol.peer import Peer
    from cord_trio.transports import Transport

    Answer: TypeAlias = Callable[["Asked"], Awaitable[bytes]]

log = logging.getLogger("cord_trio.session")

MAX_ASKED: Final = 64
"""Requests of the peer that are answered at one time; more are refused."""


@attrs.frozen
class Asked:
    """A request of the peer."""

    id: Id
    method: str
    params: Raw
    within: Id | None
    """Our request whose response stream carried it, if the transport can tell."""


class Answering:
    """The half of a session that serves. Each request gets one reply, or none if the peer withdraws it."""

    def __init__(
        self,
        answer: Answer | None,
        *,
        peer: Peer[Any, trio.CancelScope],
        transport: Transport,
        nursery: trio.Nursery,
        name: str,
        counters: Counters,
    ) -> None:
        self._answer = answer
        self._peer = peer
        self._transport = transport
        self._nursery = nursery
        self._name = name
        self._counters = counters

    def take(self, message: Envelope, within: Id | None) -> None:
        """Answer a request, sooner or later. A ping is answered at once."""
        id, method = message.id, message.method
        assert isinstance(id, int | str)
        assert method is not None
        if method == "ping":
            self._reply(jsonrpc.encode_result(id, b"{}"))
            return
        if self._answer is None:
            self._reply(jsonrpc.encode_error(id, jsonrpc.METHOD_NOT_FOUND, f"method not found: {method}"))
            return
        if len(self._peer.asked) >= MAX_ASKED:
            self._counters.add("session.asked_refused")
            self._reply(jsonrpc.encode_error(id, jsonrpc.INTERNAL_ERROR, f"more than {MAX_ASKED} requests at once"))
            return
        scope = trio.CancelScope()
        if not self._peer.ask(id, scope):
            self._reply(jsonrpc.encode_error(id, jsonrpc.INVALID_REQUEST, "this id is being answered already"))
            return
        self._nursery.start_soon(self._run, self._answer, Asked(id, method, message.params, within), scope)

    def withdrawn(self, id: Id) -> bool:
        """The peer no longer wants its request `id`; returns whether there was one."""
        scope = self._peer.asking(id)
        if scope is not None:
            scope.cancel("the peer withdrew its request")
        return scope is not None

    def lost(self) -> None:
        """Stop answering: nobody hears it."""
        for scope in self._peer.asked.values():
            scope.cancel("the connection is lost")

    async def _run(self, answer: Answer, asked: Asked, scope: trio.CancelScope) -> None:
        reply = b""
        try:
            with scope:
                try:
                    reply = jsonrpc.encode_result(asked.id, await answer(asked))
                except CallFailed as exc:
                    reply = jsonrpc.encode_error(asked.id, exc.code, exc.message, exc.data)
                except Exception as exc:
                    level = logging.DEBUG if isinstance(exc, CordError) else logging.ERROR
                    log.log(level, "answering failed peer=%s method=%s", self._name, asked.method, exc_info=exc)
                    reply = jsonrpc.encode_error(asked.id, jsonrpc.INTERNAL_ERROR, str(exc) or type(exc).__name__)
        finally:
            self._peer.answered(asked.id)
        if reply:  # none if the peer withdrew its request
            self._reply(reply)

    def _reply(self, message: bytes) -> None:
        try:
            self._transport.send(message)
        except CallError:
            self._counters.add("session.reply_unsent")
