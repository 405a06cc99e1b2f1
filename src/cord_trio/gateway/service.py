"""What all ways into the gateway share: one fabric, one front, one list, one watch over its changes."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.call import LOCAL
from cord_trio.errors import Draining
from cord_trio.gateway.catalogue import PAGE_TOOLS, Catalogue
from cord_trio.gateway.front import Front
from cord_trio.gateway.listen import Changes
from cord_trio.gateway.relay import Progress, perform
from cord_trio.gateway.sessions import SWEEP, Sessions
from cord_trio.gateway.steps import UNAVAILABLE, Reply
from cord_trio.protocol.jsonrpc import (
    INTERNAL_ERROR,
    encode,
    encode_error,
    encode_notification,
    encode_result,
    object_of,
)
from cord_trio.protocol.mcp import META_SERVER_INFO, META_SUBSCRIPTION_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from cord_trio.gateway.ports import Fabric
    from cord_trio.gateway.steps import List, Listen, Run
    from cord_trio.protocol.jsonrpc import Id

START_PATIENCE: Final = 5.0
"""Seconds that a list waits for sources which have not been tried yet; then it is what there is."""

LIST_CHANGED: Final = encode_notification("notifications/tools/list_changed")
"""What a legacy client is told."""

PRINCIPAL: Final = LOCAL
"""Who everyone is, until there is authentication."""


class Service:
    """One gateway's state, without any way in.

    Attributes:
        sessions: of legacy clients over HTTP.
        changes: tells streams that the list changed.

    """

    def __init__(self, fabric: Fabric, identity: bytes, *, page: int = PAGE_TOOLS) -> None:
        self.fabric = fabric
        self.counters = fabric.counters
        self.front = Front(identity, lambda: fabric.registry.snapshot)
        self.catalogue = Catalogue(secrets.token_bytes(32), page)
        self.sessions = Sessions(lambda: secrets.token_hex(16), self.counters)
        self.changes = Changes(fabric.registry, self.catalogue, self.counters)

    def progress(self, run: Run, emit: Callable[[bytes], None]) -> Progress | None:
        """Where the progress of `run` goes; None if its client did not ask for any."""
        return Progress(run.token, emit, self.counters) if run.token else None

    async def run(self, run: Run, progress: Progress | None) -> Reply:
        """The answer to a tool call. Raises nothing but cancellation."""
        self.counters.add("gateway.calls")
        try:
            return await perform(self.fabric.handle, run, progress, self.front.identity)
        finally:
            if progress is not None:
                progress.over = True

    async def list(self, step: List) -> Reply:
        """The answer to a list request, from the snapshot."""
        if not self.fabric.ready:
            # Many clients list once, at once, and never again: an empty list would stay empty.
            with trio.move_on_after(START_PATIENCE):
                await self.fabric.wait_started()
        return self.list_nowait(step)

    def list_nowait(self, step: List) -> Reply:
        """The same, as it is now."""
        return self.catalogue.answer(step, self.fabric.registry.snapshot, self.front.signature, trio.current_time())

    @property
    def draining(self) -> bool:
        """Whether no new work is taken."""
        return self.fabric.draining.is_set()

    def turned_away(self, id: Id) -> Reply:
        """The answer to new work while draining."""
        self.counters.add("gateway.draining")
        return Reply(encode_error(id, INTERNAL_ERROR, str(Draining())), UNAVAILABLE)

    async def watch(self) -> None:
        """Watch the registry and the sessions' age until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.changes.run)
            nursery.start_soon(self._sweep)
            await self.fabric.draining.wait()
            self.changes.end("draining")

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self.sessions.sweep(trio.current_time())


def listen_messages(step: Listen, identity: bytes) -> tuple[bytes, bytes, bytes]:
    """Acknowledgment, news and final result of one listen request (MCP 2026-07-28, subscriptions).

    The subscription's id is the request's, and stands in all three. `identity` is our `serverInfo`.
    """
    own: dict[str, bytes | Raw] = {META_SUBSCRIPTION_ID: encode(step.id)}
    meta = object_of(own)
    honoured = b'{"toolsListChanged":true}' if step.tools else b"{}"
    return (
        encode_notification(
            "notifications/subscriptions/acknowledged", b'{"_meta":%b,"notifications":%b}' % (meta, honoured)
        ),
        encode_notification("notifications/tools/list_changed", b'{"_meta":%b}' % meta),
        encode_result(
            step.id, b'{"resultType":"complete","_meta":%b}' % object_of({**own, META_SERVER_INFO: identity})
        ),
    )
