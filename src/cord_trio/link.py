"""One supervised source: connect, list, publish, wait, back off, and again.

A link is a task. It alone opens and closes the source's sessions, and contains whatever goes wrong with
them: a failure becomes a state with a reason, never an exception for its neighbours.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cell import Cell
from cord_trio.client import Client
from cord_trio.config import Http, InProcess, Stdio, WebSocket
from cord_trio.errors import CallError, CallFailed, ConnectFailed, DeadlineExceeded, SourceDown
from cord_trio.handshake import FreshNeeded, negotiate
from cord_trio.observe import Node
from cord_trio.protocol import jsonrpc
from cord_trio.registry import Update
from cord_trio.session import open_session
from cord_trio.transports.http import open_http
from cord_trio.transports.memory import memory_transport_pair
from cord_trio.transports.stdio import open_stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping
    from random import Random

    from msgspec import Raw

    from cord_trio.call import Call, Outcome
    from cord_trio.cell import Timer
    from cord_trio.config import Source
    from cord_trio.counters import Counters
    from cord_trio.handshake import EraChoice, Greeting
    from cord_trio.protocol.jsonrpc import Id, Json
    from cord_trio.protocol.mcp import Tool
    from cord_trio.registry import Registry, State
    from cord_trio.transports import Transport
    from cord_trio.transports.guardian import Guardian

log = logging.getLogger("cord_trio.link")

BACKOFF_BASE: Final = 0.2
"""Seconds the first pause after a failure may last; each further one twice as long."""

BACKOFF_CAP: Final = 30.0
"""Seconds a pause lasts at most."""

STEADY: Final = 10.0
"""Seconds a connection must have been ready for the next failure to count as the first."""

DEBOUNCE: Final = 0.1
"""Seconds to wait after a `list_changed` for more of them, before listing anew."""

LEGACY_VERDICT: Final = 24 * 3600.0
"""Seconds for which a server found to be legacy is not asked again for the modern era."""

INTERPRETERS: Final = frozenset({"python", "python3", "uv", "uvx", "pipx", "node", "npx", "npm", "bun", "bunx", "deno"})
"""Commands whose start keeps a core busy with imports."""

SHARED: Final = "shared"
"""Key of the session that everybody may use: it declares nothing that could be asked of one person."""


@attrs.frozen(eq=False)
class Surroundings:
    """What all links of one fabric share."""

    registry: Registry
    guardian: Guardian
    timer: Timer
    counters: Counters
    rng: Random
    client_info: Mapping[str, Json]
    starts: trio.CapacityLimiter
    """Held by interpreters while they start: more at once than cores only make all of them late."""


class Link:
    """One source and the sessions with it.

    Invariant: `sessions` is empty unless the state is ready.

    Attributes:
        source: as configured.
        state: configured, starting, ready or down.
        reason: why it is down; "" otherwise.
        failure: the last failure to connect, with its step and remedy; None once it is ready.
        next_try: Trio time of the next attempt while it is down.
        epoch: counts what it told the registry.
        sessions: what is open, by key; so far there is the shared one alone.
        notes: what was left out of the last list.
        starts: how often it became ready.
        pid: of its process, if it is a child of ours and running.

    """

    def __init__(self, source: Source, around: Surroundings) -> None:
        self.source = source
        self.state: State = "configured"
        self.reason = ""
        self.failure: ConnectFailed | None = None
        self.next_try: float | None = None
        self.epoch = 0
        self.sessions: dict[str, Client] = {}
        self.notes: tuple[str, ...] = ()
        self.starts = 0
        self.pid: int | None = None
        self._around = around
        self._waiting: dict[Cell[Client], None] = {}
        self._changed = trio.Event()
        self._tried = trio.Event()
        self._past_log_lines = 0
        self._legacy_until = float("-inf")

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def log_lines(self) -> int:
        """Log notifications that the source has sent, over all its sessions."""
        return self._past_log_lines + sum(client.session.log_lines for client in self.sessions.values())

    @property
    def in_flight(self) -> int:
        """Requests that await the source's reply."""
        return sum(len(client.session.peer.open) for client in self.sessions.values())

    @property
    def tried(self) -> bool:
        """Whether the first attempt to connect has ended, in whichever way."""
        return self._tried.is_set()

    async def wait_tried(self) -> None:
        """Return once the first attempt to connect has ended, in whichever way."""
        await self._tried.wait()

    def node(self) -> Node:
        """The source as it is now, for the live tree."""
        now = trio.current_time()
        facts: dict[str, object] = {
            "pid": self.pid,
            "reason": self.reason,
            "next_try_in": None if self.next_try is None else round(max(0.0, self.next_try - now), 1),
            "waiting": len(self._waiting) or None,
            "notes": len(self.notes) or None,
        }
        sessions = []
        for key, client in self.sessions.items():
            open_calls = client.session.peer.open.values()
            nearest = min((pending.deadline for pending in open_calls), default=math.inf)
            sessions.append(
                Node("session", key, client.greeting.revision,
                     {"in_flight": len(open_calls), "deadline_in": None if nearest == math.inf else round(nearest - now, 3), "log_lines": client.session.log_lines})
            )  # fmt: skip
        return Node("source", self.name, self.state, facts, tuple(sessions))

    def call(self, call: Call, name: str | None) -> Awaitable[Outcome]:
        """How the source ended `call`, which it knows as `name`. Waits for one attempt to connect if it must.

        Raises:
            SourceDown: it is not connected, and the next attempt failed or is later than the deadline.
            CallError: what else can end a call.

        """
        client = self.sessions.get(SHARED)
        return self._call_later(call, name) if client is None else client.call(call, name)

    async def _call_later(self, call: Call, name: str | None) -> Outcome:
        client = await self._ready(call.deadline)
        return await client.call(call, name)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the source connected until cancelled. Never raises for what the source did."""
        task_status.started()
        failures = 0
        while True:
            ready_at: float | None = None
            try:
                await self._publish("starting")
                async with AsyncExitStack() as stack:
                    client = await self._connect(stack)
                    await self._list(client)
                    self._admit(client)
                    ready_at = trio.current_time()
                    reason = await self._serve(client)
            except ConnectFailed as exc:
                self.failure = exc
                reason = f"{exc.step}: {exc.reason}" + (f"; {exc.remedy}" if exc.remedy else "")
            except CallError as exc:
                self.failure = ConnectFailed(self.name, "list", str(exc))
                reason = str(exc)
            except Exception as exc:
                log.exception("link failed source=%s", self.name)
                reason = f"internal error: {exc!r}"
            finally:
                self._dismiss()
            if ready_at is not None and trio.current_time() - ready_at >= STEADY:
                failures = 0
            pause = self._around.rng.uniform(0.0, min(BACKOFF_CAP, BACKOFF_BASE * 2**failures))
            failures += 1
            self._around.counters.add("link.down")
            log.info("source down source=%s reason=%s pause=%.3f", self.name, reason, pause)
            self.reason, self.next_try = reason, trio.current_time() + pause
            await self._publish("down")
            if ready_at is None:
                self._refuse()  # calls wait for one attempt; after a loss none has been made yet
            self._tried.set()
            await trio.sleep_until(self.next_try)
            self.next_try = None

    # Connecting

    async def _connect(self, stack: AsyncExitStack) -> Client:
        """A client on an open connection that `stack` will close.

        Raises:
            ConnectFailed: it cannot be had.

        """
        async with AsyncExitStack() as starting:
            if _is_interpreter(self.source):
                await starting.enter_async_context(self._around.starts)
            era: EraChoice = self.source.era
            if era == "auto" and trio.current_time() < self._legacy_until:
                era = "legacy"
            try:
                client = await stack.enter_async_context(self._converse(era))
            except FreshNeeded as exc:
                log.debug("legacy on a fresh connection source=%s why=%s", self.name, exc)
                client = await stack.enter_async_context(self._converse("legacy"))
        if not client.greeting.modern:
            self._legacy_until = trio.current_time() + LEGACY_VERDICT
        return client

    @asynccontextmanager
    async def _converse(self, era: EraChoice) -> AsyncGenerator[Client, None]:
        around = self._around
        async with (
            self._open_transport() as transport,
            open_session(
                transport, name=self.name, timer=around.timer, counters=around.counters, told=self._told
            ) as session,
        ):
            greeting = await negotiate(
                session, era=era, patience=self.source.connect, client_info=around.client_info, capabilities={}
            )
            transport.speak(greeting.revision, modern=greeting.modern)
            if not greeting.modern:
                session.notify("notifications/initialized")
            self.pid = getattr(transport, "pid", None)
            yield Client(session, greeting, around.client_info)

    @asynccontextmanager
    async def _open_transport(self) -> AsyncGenerator[Transport, None]:
        counters = self._around.counters
        match self.source:
            case Stdio() as source:
                async with open_stdio(
                    source, guardian=self._around.guardian, counters=counters, name=self.name
                ) as transport:
                    yield transport
            case Http() as source:
                async with open_http(source, name=self.name, counters=counters) as http:
                    yield http
            case InProcess() as source:
                ours, theirs = memory_transport_pair()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.serve, theirs)
                    yield ours
                    nursery.cancel_scope.cancel("the source's session has ended")
            case WebSocket():
                raise ConnectFailed(self.name, "connect", "WebSocket sources are not supported yet", "use stdio or http")

    # Serving

    def _admit(self, client: Client) -> None:
        """From here on calls go to `client`."""
        self.state, self.reason, self.failure = "ready", "", None
        self.sessions[SHARED] = client
        self.starts += 1
        self._tried.set()
        for cell in self._waiting:
            cell.settle(client)
        self._waiting.clear()
        log.info("source ready source=%s revision=%s", self.name, client.greeting.revision)

    def _dismiss(self) -> None:
        self._past_log_lines = self.log_lines
        self.sessions.clear()
        self.pid = None

    def _refuse(self) -> None:
        """The attempt that these calls waited for has failed."""
        for cell in self._waiting:
            cell.fail(SourceDown(self.name, self.reason, self.next_try))
        self._waiting.clear()

    async def _ready(self, deadline: float) -> Client:
        if self.state == "down" and (self.next_try or 0.0) > deadline:
            raise SourceDown(self.name, self.reason, self.next_try)
        cell: Cell[Client] = Cell()
        self._waiting[cell] = None
        self._around.timer.add(cell, deadline, partial(self._late, cell))
        try:
            return await cell.wait(partial(self._waiting.pop, cell, None))
        finally:
            self._around.timer.discard(cell)

    def _late(self, cell: Cell[Client]) -> None:
        self._waiting.pop(cell, None)
        cell.fail(DeadlineExceeded(f"{self.name} was still {self.state}", "no"))

    async def _serve(self, client: Client) -> str:
        """Keep the list fresh until the connection is lost; returns why it was."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh, client)
            if client.greeting.modern and client.announces_tools:
                nursery.start_soon(self._listen, client)
            reason = await client.session.wait_lost()
            nursery.cancel_scope.cancel("the connection is lost")
        return reason

    def _told(self, method: str, _params: Raw, _within: Id | None) -> None:
        if method == "notifications/tools/list_changed":
            self._around.counters.add("link.list_changed")
            self._changed.set()

    async def _refresh(self, client: Client) -> None:
        """List anew after changes: one list at a time, and one more for all changes meanwhile."""
        while True:
            await self._changed.wait()
            await trio.sleep(DEBOUNCE)
            self._changed = trio.Event()
            try:
                await self._list(client)
            except CallError as exc:
                # What was listed before stays: a stale list serves better than none.
                self._around.counters.add("link.refresh_failed")
                log.warning("listing anew failed source=%s error=%s", self.name, exc)

    async def _list(self, client: Client) -> None:
        started = trio.current_time()
        tools, self.notes = await client.list_tools(deadline=started + self.source.first_list)
        if isinstance(self.source, Http):
            # Such a tool must not be called over HTTP (MCP 2026-07-28, tools); the others may.
            self.notes += tuple(f"tool {tool.name!r}: {tool.header_fault}" for tool in tools if tool.header_fault)
            tools = tuple(tool for tool in tools if not tool.header_fault)
        await self._publish("ready", tools, client.greeting)

    async def _listen(self, client: Client) -> None:
        """Hold a `subscriptions/listen` open; after each loss list anew, since changes may have been missed."""
        failures = 0
        while True:
            began = trio.current_time()
            try:
                await client.listen()
            except CallFailed as exc:
                if exc.code in (jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS):
                    return  # it announced what it does not do
            except CallError as exc:
                log.debug("listen lost source=%s error=%s", self.name, exc)
            failures = 0 if trio.current_time() - began >= STEADY else failures + 1
            await trio.sleep(self._around.rng.uniform(0.0, min(BACKOFF_CAP, BACKOFF_BASE * 2**failures)))
            self._changed.set()

    async def _publish(
        self, state: State, tools: tuple[Tool, ...] | None = None, greeting: Greeting | None = None
    ) -> None:
        self.state = state
        self.epoch += 1
        await self._around.registry.update(
            Update(
                self.name, self.epoch, state, tools=tools, reason=self.reason if state == "down" else "",
                next_try=self.next_try if state == "down" else None, greeting=greeting, notes=self.notes,
            )
        )  # fmt: skip


def _is_interpreter(source: Source) -> bool:
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
