"""Coming to be connected with one source: in its era, by its way, and in turn where starting is costly."""

from __future__ import annotations

import logging
import math
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.client import Client
from cord_trio.config import Http
from cord_trio.errors import ConnectFailed, ConnectionLost
from cord_trio.handshake import FreshNeeded, negotiate, unreached
from cord_trio.pool import refuse
from cord_trio.protocol.questions import ROOTS
from cord_trio.rooted import RootedClient
from cord_trio.session import open_session
from cord_trio.transports import limits_of
from cord_trio.transports.opening import is_interpreter, older_way, open_source
from cord_trio.transports.process import Graces

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from msgspec import Raw

    from cord_trio.answering import Answer, Asked
    from cord_trio.config import Source
    from cord_trio.handshake import EraChoice
    from cord_trio.protocol.jsonrpc import Id, Json
    from cord_trio.surroundings import Surroundings

log = logging.getLogger("cord_trio.link")

LEGACY_VERDICT: Final = 24 * 3600.0
"""Seconds for which a server found to be legacy is not asked again for the modern era."""

TAKEN: Final = 1.0
"""Seconds that a server has to take `notifications/initialized`, which no request may overtake on another connection:
some refuse all that comes before it. Then it is called anyway."""

LISTENING: Final = 1.0
"""Seconds that a server has to open its standing stream, before it is called without one."""


class Conversation:
    """One that has begun and ends with a block, which is given its client.

    Not a stack of one: that takes a kilobyte, for as long as the source is connected.

    Attributes:
        client: with which one converses.

    """

    __slots__ = ("_way", "client")

    def __init__(self, way: AbstractAsyncContextManager[Client], client: Client) -> None:
        self._way = way
        self.client = client

    async def __aenter__(self) -> Client:
        return self.client

    def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[bool | None]:
        return self._way.__aexit__(kind, exc, trace)


class Connecting:
    """Opens conversations with one source, and remembers in which era and by which way it could.

    Attributes:
        pid: of its process, if it is a child of ours and has been opened for everybody.

    """

    def __init__(self, source: Source, around: Surroundings, told: Callable[[str, Raw, Id | None], None]) -> None:
        """Make one; `told` takes what the shared conversation tells that belongs to no call."""
        self.pid: int | None = None
        self._source = source
        self._around = around
        self._told = told
        self._tasked: tuple[dict[str, None], dict[str, None]] = ({}, {})
        """Tools that the server runs only as tasks, in the legacy way and in the modern one."""
        self._legacy_until = -math.inf
        self._way = source  # `source` itself, or as an older server wants to be spoken to

    async def connect(self) -> Conversation:
        """A conversation on an open connection; whoever gets it enters it before anything else can wait or fail.

        Raises:
            ConnectFailed: it cannot be had.

        """
        async with AsyncExitStack() as starting:
            if is_interpreter(self._source):
                await starting.enter_async_context(self._around.turn_to_start())
            remembered = trio.current_time() < self._legacy_until
            try:
                begun = await self._greet(remembered)
            except ConnectFailed:
                self._legacy_until, self._way = -math.inf, self._source  # it may have become modern
                raise
        if not begun.client.greeting.modern and not remembered:
            self._legacy_until = trio.current_time() + LEGACY_VERDICT
        return begun

    async def _begin(self, era: EraChoice) -> Conversation:
        way = self._converse(era)
        return Conversation(way, await way.__aenter__())

    async def _greet(self, remembered: bool) -> Conversation:
        """The same, in the first era and by the first way that the source takes."""
        era: EraChoice = "legacy" if remembered and self._source.era == "auto" else self._source.era
        if isinstance(self._way, Http) and self._way.transport == "sse":
            era = "legacy"  # it never was anything else
        try:
            try:
                return await self._begin(era)
            except FreshNeeded as exc:
                log.debug("legacy on a fresh connection source=%s why=%s", self._source.name, exc)
                return await self._begin("legacy")
        except ConnectFailed as exc:
            older = older_way(self._way, exc)
            if older is None:
                raise
            log.debug("trying HTTP+SSE source=%s why=%s", self._source.name, exc)
            self._way = older
            try:
                return await self._begin("legacy")
            except ConnectFailed:
                raise exc from exc.__cause__  # which says more about a server that has neither

    @asynccontextmanager
    async def alone(self, declares: Mapping[str, Json], answer: Answer) -> AsyncGenerator[Client, None]:
        """A legacy session beside the shared one, which declares what its one principal can be asked."""
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as starting:
                if is_interpreter(self._source):
                    await starting.enter_async_context(self._around.turn_to_start())
                client = await stack.enter_async_context(self._converse("legacy", declares, answer))
            yield client

    async def _answer(self, asked: Asked) -> bytes:
        """What the shared session answers: it can ask nobody, but may learn the roots of everybody."""
        return await refuse(asked, self._around.roots, declared=asked.method == ROOTS and self._around.has_roots)

    @asynccontextmanager
    async def _converse(
        self, era: EraChoice, declares: Mapping[str, Json] | None = None, answer: Answer | None = None
    ) -> AsyncGenerator[Client, None]:
        """A conversation in `era`: the shared one, unless `answer` answers what `declares` says can be asked."""
        around, source = self._around, self._way
        shared = answer is None
        if declares is None:
            declares = {"roots": {}} if around.has_roots else {}
        graces = Graces(close=around.bounds.stop_close, term=around.bounds.stop_terminate)
        async with (
            open_source(
                source,
                guardian=around.guardian,
                counters=around.counters,
                graces=graces,
                limits=limits_of(around.bounds),
                pump=around.pump,
            ) as transport,
            open_session(
                transport,
                name=self._source.name,
                timer=around.timer,
                counters=around.counters,
                answer=answer or self._answer,
                told=self._told,
                max_message=around.bounds.message_out,
                depth=around.bounds.json_depth,
            ) as session,
        ):
            greeting = await negotiate(
                session, era=era, patience=source.connect, client_info=around.client_info, capabilities=declares
            )
            transport.speak(greeting.revision, modern=greeting.modern)
            if not greeting.modern:
                try:
                    session.notify("notifications/initialized")
                except ConnectionLost as exc:
                    raise await unreached(session, exc, "handshake") from exc
                if (initialized := transport.initialized) is not None:
                    with trio.move_on_after(TAKEN):
                        await initialized.wait()
            if not (shared or greeting.modern):
                # Some servers ask on the standing stream, and drop what they ask while nobody holds it.
                with trio.move_on_after(LISTENING):
                    await transport.wait_listening()
            if shared:
                self.pid = getattr(transport, "pid", None)
            bounds = around.bounds
            rooted = greeting.modern and around.has_roots
            client = (RootedClient if rooted else Client)(
                session, greeting, around.client_info,
                max_pages=bounds.list_pages, max_tools=bounds.tools, prefix=source.export_prefix,
                tasked=self._tasked[greeting.modern],
            )  # fmt: skip
            if isinstance(client, RootedClient):
                client.roots = around.roots
            yield client
