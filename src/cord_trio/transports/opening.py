"""From a source as configured to an open transport, whatever its kind."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.config import Http, InProcess, Stdio, WebSocket
from cord_trio.errors import ConnectFailed, HttpFailed
from cord_trio.transports import LIMITS
from cord_trio.transports.memory import memory_transport_pair
from cord_trio.transports.process import GRACES, Graces
from cord_trio.transports.stdio import open_stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from cord_trio.config import Source
    from cord_trio.counters import Counters
    from cord_trio.transports import Limits, Transport
    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.pump import Pump

log = logging.getLogger("cord_trio.transports")

NOT_STREAMABLE: Final = frozenset({400, 404, 405})
"""What servers that know HTTP+SSE alone answer to `initialize` by POST."""

INTERPRETERS: Final = frozenset({"python", "python3", "uv", "uvx", "pipx", "node", "npx", "npm", "bun", "bunx", "deno"})
"""Commands whose start keeps a core busy with imports."""


def open_source(
    source: Source,
    *,
    guardian: Guardian,
    counters: Counters,
    graces: Graces = GRACES,
    limits: Limits = LIMITS,
    pump: Pump | None = None,
) -> AbstractAsyncContextManager[Transport]:
    """The way to `source` for as long as the block runs. The block's own errors leave as raised.

    Raises:
        ConnectFailed: it could not be opened, or the function that serves in this process failed.

    """
    if isinstance(source, Stdio):  # not within another block, since of these there are many
        return open_stdio(
            source, guardian=guardian, counters=counters, name=source.name,
            max_message=source.max_message, graces=graces, pump=pump, limits=limits,
        )  # fmt: skip
    return _open_other(source, counters, limits)


@asynccontextmanager
async def _open_other(source: Source, counters: Counters, limits: Limits) -> AsyncGenerator[Transport, None]:
    """The way to a source that is no child of ours."""
    match source:
        case Http():
            # Here, as below: not everybody has such sources, and everybody would pay for the import.
            opening: Callable[..., AbstractAsyncContextManager[Transport]]
            if source.transport == "sse":
                from cord_trio.transports.sse import open_sse

                opening = open_sse
            else:
                from cord_trio.transports.http import open_http

                opening = open_http
            async with opening(source, name=source.name, counters=counters) as http:
                http.limits = limits
                yield http
        case InProcess():
            async with _open_function(source) as memory:
                memory.limits = limits
                yield memory
        case WebSocket():
            from cord_trio.transports.websocket_open import open_websocket

            async with open_websocket(source, name=source.name, counters=counters) as socket:
                socket.limits = limits
                yield socket


@asynccontextmanager
async def _open_function(source: InProcess) -> AsyncGenerator[Transport, None]:
    """The client's end of a connection that the source's function serves, in a task of its own."""
    block_error: Exception | None = None
    fault: Exception | None = None
    ours, theirs = memory_transport_pair()

    async def serve() -> None:
        nonlocal fault
        reason = "the function that serves it returned"
        try:
            await source.serve(theirs)
        except Exception as exc:
            if over:  # it was told to end, and what it makes of that is no news
                log.debug("serving function failed at its end source=%s error=%r", source.name, exc)
                return
            fault, reason = exc, _failed(exc)
        theirs.lose(reason)

    over = False
    async with trio.open_nursery() as nursery:
        # What we send waits for it, so it need not have begun.
        nursery.start_soon(serve, name=f"serve {source.name}")  # noqa: ASYNC113
        try:
            yield ours
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            block_error = exc
        over = True
        ours.close()
        nursery.cancel_scope.cancel("the source's session has ended")
    if fault is not None:
        raise ConnectFailed(source.name, "serve", _failed(fault)) from fault
    if block_error is not None:
        raise block_error


def _failed(fault: Exception) -> str:
    return f"the function that serves it failed: {alone(fault)!r}"


def alone(exc: BaseException) -> BaseException:
    """What is in a group that holds one thing; any other error as it is."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def older_way(source: Source, failure: ConnectFailed) -> Source | None:
    """The same source over HTTP+SSE, if the way its handshake failed suggests that (MCP 2025-03-26, transports)."""
    cause = failure.__cause__
    if not isinstance(source, Http) or source.transport == "sse" or source.era == "modern":
        return None
    if not isinstance(cause, HttpFailed) or cause.status not in NOT_STREAMABLE:
        return None
    return attrs.evolve(source, transport="sse")


def is_interpreter(source: Source) -> bool:
    """Whether starting `source` means importing a language's world."""
    if not isinstance(source, Stdio):
        return False
    if os.path.basename(source.command).rstrip("0123456789.") in INTERPRETERS:
        return True
    path = shutil.which(source.command)
    try:
        with open(path or source.command, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False
