"""What all ways into the gateway share: one fabric, one front, one list, one watch over its changes."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.auth.sealing import KEY_BYTES, Sealer
from cord_trio.errors import CallError, CallFailed, Draining
from cord_trio.gateway.catalogue import PAGE_ITEMS, Catalogue
from cord_trio.gateway.events import Events
from cord_trio.gateway.front import Front
from cord_trio.gateway.listen import Changed, Changes, Updated, follow
from cord_trio.gateway.performing import Performer
from cord_trio.gateway.sessions import SWEEP, Sessions
from cord_trio.gateway.steps import UNAVAILABLE, Reply
from cord_trio.gateway.tasks import open_tasks, watch_task
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
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from msgspec import Raw

    from cord_trio.gateway.asking import Channel
    from cord_trio.gateway.listen import News, Outlet, Watch
    from cord_trio.gateway.ports import Fabric, PromptRoute, ResourceRoute, Route
    from cord_trio.gateway.steps import List, Listen, Run, Subscribe
    from cord_trio.gateway.subscriptions import Subscriptions
    from cord_trio.protocol.jsonrpc import Id, Json

START_PATIENCE: Final = 5.0
"""Seconds that a list waits for sources which have not been tried yet; then it is what there is."""

SEVERAL: Final = 2
"""Sources from which on a person is told which one asks."""


class Service:
    """One gateway's state, without any way in.

    Attributes:
        sessions: of legacy clients over HTTP.
        changes: tells streams that lists have changed.
        sealer: seals what clients keep for us.

    """

    def __init__(
        self, fabric: Fabric, identity: bytes, *, page: int = PAGE_ITEMS, sealer: Sealer | None = None
    ) -> None:
        self.fabric = fabric
        self.counters = fabric.counters
        self.drains = fabric.draining.is_set
        """Whether no new work is taken: asked for each call, and so without the properties on the way."""
        self.sealer = sealer or Sealer(secrets.token_bytes(KEY_BYTES))
        self.front = Front(
            identity, lambda: fabric.registry.snapshot, depth=fabric.config.bounds.json_depth, counters=self.counters
        )
        self._performer = Performer(
            fabric.handle, identity, self.sealer,
            wait_pages=fabric.wait_pages, wait_moot=fabric.wait_moot, abandon=self._abandon, origin=self._origin,
            hold=fabric.holding, elsewhere=lambda: fabric.elsewhere,
        )  # fmt: skip
        fabric.brought = self._performer.brought
        self.catalogue = Catalogue(self.sealer, page)
        self.sessions = Sessions(lambda: secrets.token_hex(16), self.counters)
        self.changes = Changes(fabric.registry, self.catalogue, self.counters)

    def events(self, run: Run, emit: Callable[[bytes], None]) -> Events | None:
        """Where progress and log notifications of `run` go; None if its client did not ask for any."""
        return Events(run.token, run.level, emit, self.counters) if run.token or run.level else None

    def run(self, run: Run, events: Events | None, channel: Channel | None = None) -> Awaitable[Reply]:
        """The answer to a relayed request. Raises nothing but cancellation."""
        self.counters.add("gateway.calls")
        if events is None:
            return self._performer.perform(run, None, channel)
        return self._run_telling(run, events, channel)

    async def _run_telling(self, run: Run, events: Events, channel: Channel | None) -> Reply:
        try:
            return await self._performer.perform(run, events, channel)
        finally:
            events.over = True

    def _origin(self, run: Run) -> str:
        """The source of what `run` is about, if there are several."""
        snapshot = self.fabric.registry.snapshot
        if len(snapshot.sources) < SEVERAL:
            return ""
        route: Route | PromptRoute | ResourceRoute | None
        match run.method:
            case "tools/call":
                route = snapshot.tools.get(run.name)
            case "prompts/get":
                route = snapshot.prompts.get(run.name)
            case _:
                route = snapshot.resources.get(run.name)
        return "" if route is None else route.source

    def _abandon(self, park: str, reason: str) -> None:
        self.counters.add("gateway.abandoned")
        self.fabric.abandon(park, reason)

    def subscribe(
        self, step: Subscribe, principal: str, subscriptions: Subscriptions, ring: Callable[[News], None]
    ) -> Reply:
        """The answer to a legacy client that wants to hear of a resource from now on, or no longer."""
        if not step.wanted:
            subscriptions.remove(step.uri)
            return Reply(encode_result(step.id, b"{}"))
        try:
            subscriptions.add(
                step.uri, lambda: self.fabric.subscribe(principal, (step.uri,), lambda uri: ring(Updated(uri)))
            )
        except CallError as exc:
            self.counters.add("gateway.subscriptions_refused")
            return Reply(encode_error(step.id, error_code(exc), str(exc)))
        return Reply(encode_result(step.id, b"{}"))

    @contextmanager
    def listening(self, step: Listen) -> Generator[Watch, None, None]:
        """A watch that is rung about all that `step` asks for.

        Raises:
            CallError: it cannot be had.

        """
        with self.changes.watch(step.kinds) as watch, ExitStack() as stack:
            if step.uris:
                stack.enter_context(
                    self.fabric.subscribe(step.principal, step.uris, lambda uri: watch.ring(Updated(uri)))
                )
            yield watch

    async def listen(self, step: Listen, outlet: Outlet, tell: Callable[[bytes], None]) -> bytes:
        """Acknowledge `step` with `tell`, then tell `outlet` of what it wants to hear; the result, once that ends.

        Raises:
            CallError: it cannot be had, and was not acknowledged.

        """
        tasks = open_tasks(self.sealer, step, trio.current_time()) if step.tasks else {}
        ack, meta, end = listen_messages(step, self.front.identity, tuple(tasks))
        with self.listening(step) as watch:
            tell(ack)
            async with trio.open_nursery() as nursery:
                for id, ref in tasks.items():
                    told = partial(self._task_changed, watch, id)
                    nursery.start_soon(watch_task, self.fabric.handle, step, id, ref, told)
                await follow(watch, outlet, meta)
                nursery.cancel_scope.cancel("the subscription has ended")
        return end

    def _task_changed(self, watch: Watch, id: str, state: bytes) -> None:
        watch.ring(Changed(id, state))

    async def list(self, step: List) -> Reply:
        """The answer to a list request, from the snapshot."""
        if self.fabric.start_unlisted() or not self.fabric.ready:
            # Many clients list once, at once, and never again: an empty list would stay empty.
            with trio.move_on_after(START_PATIENCE):
                await self.fabric.wait_started()
        return self.list_nowait(step)

    def list_nowait(self, step: List) -> Reply:
        """The same, as it is now."""
        self.fabric.start_unlisted()
        trust = self.fabric.trust(step.kind)
        snapshot, now = self.fabric.registry.snapshot, trio.current_time()
        hidden = self.fabric.hidden(step.kind, step.principal)
        return self.catalogue.answer(step, snapshot, self.front.signature, now, trust, hidden)

    @property
    def draining(self) -> bool:
        """Whether no new work is taken."""
        return self.drains()

    def turned_away(self, id: Id) -> Reply:
        """The answer to new work while draining."""
        self.counters.add("gateway.draining")
        return Reply(encode_error(id, INTERNAL_ERROR, str(Draining())), UNAVAILABLE)

    async def watch(self) -> None:
        """Watch the registry and the sessions' age until cancelled; then every session is over."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.changes.run)
                nursery.start_soon(self._sweep)
                await self.fabric.draining.wait()
                self.changes.end("draining")
        finally:
            self.sessions.close_all("the gateway has ended")

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self.sessions.sweep(trio.current_time())


def error_code(error: CallError) -> int:
    """The JSON-RPC code of an error that is no answer to a relayed request."""
    return error.code if isinstance(error, CallFailed) else INTERNAL_ERROR


def listen_messages(step: Listen, identity: bytes, tasks: Sequence[str] = ()) -> tuple[bytes, bytes, bytes]:
    """Acknowledgment, `_meta` of all news, and final result of one listen request (MCP 2026-07-28, subscriptions).

    The subscription's id is the request's, and stands in all of them. `identity` is our `serverInfo`, `tasks` are those
    that are honoured.
    """
    own: dict[str, bytes | Raw] = {META_SUBSCRIPTION_ID: encode(step.id)}
    meta = object_of(own)
    honoured: dict[str, Json] = {f"{kind}ListChanged": True for kind in step.kinds}
    if step.uris:
        honoured["resourceSubscriptions"] = list(step.uris)
    if tasks:
        honoured["taskIds"] = list(tasks)
    return (
        encode_notification(
            "notifications/subscriptions/acknowledged", b'{"_meta":%b,"notifications":%b}' % (meta, encode(honoured))
        ),
        meta,
        encode_result(
            step.id, b'{"resultType":"complete","_meta":%b}' % object_of({**own, META_SERVER_INFO: identity})
        ),
    )
