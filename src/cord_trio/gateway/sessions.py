"""Sessions of legacy clients over HTTP (MCP 2025-11-25, transports, session management)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.call import LOCAL
from cord_trio.errors import Overloaded
from cord_trio.gateway.asking import Asked
from cord_trio.gateway.running import Running
from cord_trio.gateway.subscriptions import Subscriptions
from cord_trio.gateway.trail import Store, Trails

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cord_trio.counters import Counters
    from cord_trio.gateway.listen import News, Watch
    from cord_trio.gateway.outlet import Outlet
    from cord_trio.gateway.steps import Client
    from cord_trio.gateway.trail import Trail

MAX_SESSIONS: Final = 10_000
"""Sessions at one time."""

IDLE: Final = 1800.0
"""Seconds after which a session that nothing uses is over."""

FIRST_RESUMABLE: Final = "2025-03-26"
"""The revision that brought Streamable HTTP, and with it event ids."""

FIRST_LEVEL: Final[str | None] = None
"""The least severe log notification that a legacy client gets before it says which it wants: none. A server may
choose (MCP 2025-11-25, logging); and a log turns an answer into a stream, whose events clients bound."""

NOTHING_SEEN: Final[Mapping[str, int]] = {}

SWEEP: Final = 60.0
"""Seconds between looks for such sessions."""


class Session:
    """One legacy client's conversation. Its id is no credential: it belongs to its principal.

    Attributes:
        id: 128 random bits in hexadecimal.
        client: what it said when it initialized.
        principal: who opened it.
        running: its requests in flight.
        asked: our questions to it.
        level: the least severe log notification that it wants.
        subscriptions: ends the subscription of each resource that it wants to hear of.
        news: what it was not told yet, since it had no stream.
        seen: the generations of the lists that it was told of last.
        used: Trio time of its last request.
        stream: the watch of its open GET stream, if there is one.
        trails: what is kept of its event streams; None if its revision knows no resuming.
        over: whether it has ended.

    """

    __slots__ = (
        "asked",
        "client",
        "id",
        "level",
        "news",
        "over",
        "principal",
        "running",
        "seen",
        "stream",
        "subscriptions",
        "trails",
        "used",
    )

    def __init__(
        self, id: str, client: Client, principal: str, seen: Mapping[str, int], now: float, store: Store
    ) -> None:
        self.over = False
        self.asked = Asked()
        self.level = FIRST_LEVEL
        self.subscriptions = Subscriptions()
        self.news: dict[News, None] = {}
        self.id = id
        self.client = client
        self.principal = principal
        self.running = Running()
        self.seen = dict(seen)
        self.used = now
        self.stream: Watch | None = None
        resumes = client.era.revision >= FIRST_RESUMABLE
        self.trails: Trails[Outlet] | None = Trails(store, primed=client.era.priming) if resumes else None

    def attach(self, watch: Watch) -> None:
        """Let `watch` have the session's stream. A session has one: an older one ends.

        The newer one wins, since the older one is mostly a connection whose client is gone without a word.
        """
        if self.stream is not None:
            self.stream.end("the session has a newer stream")
        self.stream = watch
        for news in self.news:
            watch.ring(news)
        self.news.clear()

    def begin_trail(self, outlet: Outlet) -> Trail | None:
        """What is kept of a stream that begins now; None if nothing is."""
        if self.trails is None or self.over:
            return None
        return self.trails.begin(outlet, primed=self.client.era.priming)

    def saw(self, kind: str, generation: Mapping[str, int]) -> None:
        """The client has the newest list of `kind`, or was told of it."""
        kind = "resources" if kind == "templates" else kind
        self.seen[kind] = generation[kind]

    def ring(self, news: News) -> None:
        """Tell the client of `news`, as soon as it has a stream."""
        if self.stream is None:
            self.news[news] = None
        else:
            self.stream.ring(news)

    def detach(self, watch: Watch, now: float) -> None:
        """`watch` is over."""
        if self.stream is watch:
            self.stream = None
        self.used = now

    def end(self, reason: str) -> None:
        """Stop all that belongs to it."""
        self.over = True
        self.running.cancel_all(reason)
        self.subscriptions.close()
        if self.trails is not None:
            self.trails.clear()
        if self.stream is not None:
            self.stream.end(reason)


class Sessions:
    """Every session, by id.

    Args:
        new_id: makes an id that nobody can guess.
        counters: counts what happens.
        limit: sessions at one time.

    """

    def __init__(self, new_id: Callable[[], str], counters: Counters, limit: int = MAX_SESSIONS) -> None:
        self._new_id = new_id
        self._counters = counters
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._store = Store(counters)

    def __len__(self) -> int:
        return len(self._sessions)

    def open(
        self, client: Client, now: float, *, principal: str = LOCAL, seen: Mapping[str, int] = NOTHING_SEEN
    ) -> Session:
        """A new session.

        Raises:
            Overloaded: there are too many, and none of them is idle for long.

        """
        if len(self._sessions) >= self._limit:
            self.sweep(now)
        if len(self._sessions) >= self._limit:
            self._counters.add("gateway.sessions_refused")
            raise Overloaded("gateway.sessions", self._limit)
        session = Session(self._new_id(), client, principal, seen, now, self._store)
        self._sessions[session.id] = session
        self._counters.add("gateway.sessions_opened")
        return session

    def find(self, id: str, now: float, *, principal: str = LOCAL) -> Session | None:
        """The session, which is in use as of now; None if there is none for this principal."""
        session = self._sessions.get(id)
        if session is None or session.principal != principal:
            return None
        if session.used + IDLE <= now and self._idle(session, now):
            self._end(session, "idle for too long")
            return None
        session.used = now
        return session

    def close(self, session: Session, reason: str) -> None:
        """End `session`. Again does nothing."""
        if self._sessions.get(session.id) is session:
            self._end(session, reason)

    def sweep(self, now: float) -> None:
        """End the sessions that nothing uses."""
        for session in [session for session in self._sessions.values() if self._idle(session, now)]:
            self._end(session, "idle for too long")
            self._counters.add("gateway.sessions_expired")
        for session in self._sessions.values():
            if session.trails is not None:
                session.trails.sweep(now)

    def close_all(self, reason: str) -> None:
        """End every session."""
        for session in tuple(self._sessions.values()):
            self._end(session, reason)

    def _idle(self, session: Session, now: float) -> bool:
        return session.used + IDLE <= now and session.stream is None and not session.running

    def _end(self, session: Session, reason: str) -> None:
        del self._sessions[session.id]
        session.end(reason)
