"""What one node wants to hear of another while nothing is called.

That is: which resources change, which questions are moot, for how long lists can be trusted. These are calls that only
wait. What they tell is level-triggered and numbered, so that what is lost on the way is seen to be missing within
`BEAT`; then all that was subscribed to is told of once, since it may have changed.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.client import CAPABILITY
from cord_trio.config import Foreign
from cord_trio.errors import CallError, CallFailed
from cord_trio.following import LEAST_TRUST, SUBSCRIBE_PATIENCE
from cord_trio.mesh.frames import CHANGES, MOOT, PAGES, TRUST
from cord_trio.pages import KEPT
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, UNREADABLE, encode, object_of

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from typing import TypeAlias

    from cord_trio.call import Outcome
    from cord_trio.config import MeshConfig
    from cord_trio.counters import Counters
    from cord_trio.fabric import Fabric
    from cord_trio.following import Subscriptions
    from cord_trio.handshake import Greeting
    from cord_trio.snapshot import Kind

    Carry: TypeAlias = Callable[[Call], Awaitable[Outcome]]

log = logging.getLogger("cord_trio.mesh")

GATHER: Final = 0.05
"""Seconds in which further changes join the first, before they are told."""

BEAT: Final = 5.0
"""Seconds after which it is told how much was told so far, if there was nothing else to tell."""

AGAIN: Final = (0.2, 30.0)
"""Seconds before a node is asked again that told an error, at first and at most."""

MAX_LINGERING: Final = 8
"""Calls whose place others have taken, and that end once it is known that nothing of them was lost."""

RENEW: Final = 1800.0
"""Seconds after which another call takes the place of one that tells of changes: a broker may let a node answer what it
was asked for an hour alone (`permissions.ANSWERING`)."""

REFETCH: Final = 10.0
"""Seconds for which a list that could not be trusted any more is waited for."""

LOOK: Final = 0.1
"""Seconds between two looks at whether it has come."""

MAX_URIS: Final = 10_000
"""Resources of one server that another node may want to hear of."""

MAX_NEWS: Final = 1_000
"""Resources that are told of at once; the rest is only counted, and so seen to be missing."""

MAX_PAGES: Final = 100
"""Pages that one call asks for."""

UPDATED: Final = "notifications/resources/updated"
_BEAT: Final = "notifications/cord/beat"


class _Wanted(msgspec.Struct, gc=False):
    uris: tuple[str, ...] = ()
    park: str = ""
    server: str = ""
    kinds: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


class _Told(msgspec.Struct, gc=False):
    n: int
    uri: str = ""


_decode_wanted = msgspec.json.Decoder(_Wanted).decode
_decode_told = msgspec.json.Decoder(_Told).decode
_decode_trust = msgspec.json.Decoder(dict[str, float | None]).decode


# Who has the server


async def answer_standing(fabric: Fabric, settings: MeshConfig, call: Call) -> Outcome:
    """How a call of another node ended that only waits.

    Raises:
        CallFailed: it makes no sense, or nothing of it is ours.

    """
    try:
        wanted = _decode_wanted(object_of(call.params))
    except UNREADABLE as exc:
        raise CallFailed(INVALID_PARAMS, f"{call.method}: {exc}", executed="no") from exc
    match call.method:
        case "cord/changes":
            await _tell_changes(fabric, settings, call, wanted.uris)
            return Complete(Raw(b"{}"))
        case "cord/moot":
            await fabric.wait_moot("" if "." in wanted.park else wanted.park)
            return Complete(Raw(b"{}"))
        case "cord/pages":
            if not (0 < len(wanted.ids) <= MAX_PAGES and await fabric.wait_pages(wanted.ids, KEPT)):
                raise CallFailed(INVALID_PARAMS, "no server told that it is done with these pages", executed="no")
            return Complete(Raw(b"{}"))
        case "cord/trust":
            return Complete(Raw(encode(await _trust(fabric, settings, wanted.server, wanted.kinds))))
        case _:
            raise CallFailed(METHOD_NOT_FOUND, f"method not found: {call.method}", executed="no")


async def _tell_changes(fabric: Fabric, settings: MeshConfig, call: Call, uris: Collection[str]) -> None:
    """Tell of each change of these resources, until cancelled."""

    def shared(uri: str) -> bool:
        link = fabric.links.get(fabric.source_of(Call("resources/read", uri)) or "")
        ours = link is not None and not isinstance(link.source, Foreign) and settings.shares(link.name)
        return ours and fabric.refusal(call.principal, uri) is None

    told = missed = 0
    news: dict[str, None] = {}
    stirred = trio.Event()

    def sink(uri: str) -> None:
        nonlocal missed
        if uri in news or len(news) < MAX_NEWS:
            news[uri] = None
        else:
            missed += 1
        stirred.set()

    ours = [uri for uri in uris if shared(uri)]
    if not ours or len(uris) > MAX_URIS or call.events is None:
        raise CallFailed(INVALID_PARAMS, "none of these resources is told of here", executed="no")
    with fabric.subscribe(call.principal, ours, sink):
        while True:
            call.events(_BEAT, Raw(b'{"n":%d}' % told))
            with trio.move_on_after(BEAT):
                await stirred.wait()
                await trio.sleep(GATHER)
            stirred = trio.Event()
            for uri in tuple(news):
                told += 1
                call.events(UPDATED, Raw(b'{"n":%d,"uri":%b}' % (told, encode(uri))))
            news.clear()
            told, missed = told + missed, 0


async def _trust(fabric: Fabric, settings: MeshConfig, server: str, kinds: Collection[str]) -> Mapping[str, float]:
    """Seconds for which these lists can be trusted; those that cannot are fetched anew first, as long as that takes."""
    names = [server, *(name for name, group in settings.groups.items() if group == server)]
    links = [fabric.links[name] for name in names if name in fabric.links and settings.shares(name)]
    asked = [kind for kind in CAPABILITY if kind in kinds]

    def look() -> Mapping[str, float]:
        return {kind: min(link.trust(kind) for link in links) for kind in asked} if links else {}

    found = look()
    with trio.move_on_after(REFETCH):
        while found and min(found.values()) <= 0:  # noqa: ASYNC110  # an event would cost each list
            await trio.sleep(LOOK)
            found = look()
    await trio.lowlevel.checkpoint()
    return found


# Who uses it


@attrs.define(eq=False)
class _Held:
    """One call that tells of changes.

    Attributes:
        uris: of what.
        scope: of its task.
        live: set once its node tells of them, or cannot.
        heard: set whenever its node has said something.
        hurry: set to end it whatever may have been lost.

    """

    uris: tuple[str, ...]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    live: trio.Event = attrs.field(factory=trio.Event)
    heard: trio.Event = attrs.field(factory=trio.Event)
    hurry: trio.Event = attrs.field(factory=trio.Event)


class Hearing:
    """Has a node tell of the resources of one server that somebody wants to hear of.

    Args:
        carry: makes a call on a node that has the server.
        subscriptions: who wants to hear of what, now: others take its place with another link.
        rng: draws pauses.
        counters: where to count.

    """

    def __init__(
        self, carry: Carry, subscriptions: Callable[[], Subscriptions | None], rng: random.Random, counters: Counters
    ) -> None:
        self._carry = carry
        self._subscriptions = subscriptions
        self._rng = rng
        self._counters = counters

    async def run(self) -> None:
        """Hold one call for all that is wanted, and another one, before that ends, when that has changed."""
        async with trio.open_nursery() as nursery:
            lingering: deque[_Held] = deque()
            old: _Held | None = None
            while (subscriptions := self._subscriptions()) is not None:
                changed, uris = subscriptions.changed, subscriptions.uris
                held: _Held | None = None
                if uris:
                    held = _Held(uris)
                    nursery.start_soon(self._hold, held)
                    with trio.move_on_after(SUBSCRIBE_PATIENCE):
                        await held.live.wait()
                if old is not None and held is None:
                    old.scope.cancel("nobody wants to hear of anything any more")
                elif old is not None:
                    lingering.append(old)
                    nursery.start_soon(self._let_go, old, lingering)
                    if len(lingering) > MAX_LINGERING:
                        lingering[0].hurry.set()
                old = held
                with trio.move_on_after(RENEW):
                    await changed.wait()
                await trio.sleep(GATHER)
            nursery.cancel_scope.cancel("no node offers the server any more")

    async def _let_go(self, old: _Held, lingering: deque[_Held]) -> None:
        """End a call whose place another has taken, once it has said that nothing was lost of what it told before."""
        await trio.sleep(2 * GATHER)
        old.heard = trio.Event()
        with trio.move_on_after(2 * BEAT):
            async with trio.open_nursery() as nursery:

                async def first(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel("one is enough")

                nursery.start_soon(first, old.heard)
                nursery.start_soon(first, old.hurry)
        if not old.heard.is_set():
            self._tell(old.uris)
        lingering.remove(old)
        old.scope.cancel("another call has taken its place")

    async def _hold(self, held: _Held) -> None:
        seen = -1
        gap = False
        failures = 0

        def told(method: str, params: Raw) -> None:
            nonlocal seen, gap, failures
            try:
                news = _decode_told(params)
            except UNREADABLE:
                self._counters.add("mesh.bad_frames")
                return
            if news.n < seen or (news.n == seen and method == UPDATED):
                return
            missing = (gap or news.n > 0) if seen < 0 else news.n > seen + (method == UPDATED)
            seen, gap, failures = news.n, False, 0
            held.live.set()
            if missing:
                self._counters.add("mesh.changes_missed")
                self._tell(held.uris)
            elif method == UPDATED:
                self._tell((news.uri,))
            held.heard.set()

        params = {"uris": Raw(encode(held.uris))}
        with held.scope:
            while True:
                try:
                    await self._carry(Call(CHANGES, None, params, events=told))
                except CallError as exc:
                    log.debug("a node does not tell of changes error=%s", exc)
                self._counters.add("mesh.changes_lost")
                held.live.set()  # whoever waits need not wait for it any longer
                seen, gap = -1, True
                first, most = AGAIN
                failures += 1
                await trio.sleep(self._rng.uniform(0.5, 1.0) * min(most, first * 2.0 ** min(failures, 30)))

    def _tell(self, uris: Collection[str]) -> None:
        if (subscriptions := self._subscriptions()) is not None:
            for uri in uris:
                subscriptions.updated(uri)


class Trusting:
    """How long the lists of another node's server can be trusted, those of which it does not say when they change.

    Args:
        carry: makes a call on a node that has the server.
        server: what those call it.

    """

    def __init__(self, carry: Carry, server: str) -> None:
        self._carry = carry
        self._server = server
        self._until: dict[Kind, float] = {}
        self._asked: set[Kind] = set()
        self._stirred = trio.Event()

    def greeted(self, greeting: Greeting) -> None:
        """The server says this of itself from here on."""
        self._until = {
            kind: self._until.get(kind, 0.0)
            for kind, capability in CAPABILITY.items()
            if isinstance(settings := greeting.capabilities.get(capability), dict)
            and settings.get("listChanged") is not True
        }

    def trust(self, kind: Kind) -> float:
        """As `Following.trust`; of what is not known yet 0, and its node is asked."""
        if kind not in self._until:
            return float("inf")
        left = self._until[kind] - trio.current_time()
        if left <= 0:
            self._asked.add(kind)
            self._stirred.set()
        return max(0.0, left)

    async def run(self) -> None:
        """Ask, once for all that are wanted meanwhile, until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            kinds, self._asked = self._asked, set()
            params = {"server": Raw(encode(self._server)), "kinds": Raw(encode(sorted(kinds)))}
            deadline = trio.current_time() + REFETCH + LEAST_TRUST
            try:
                outcome = await self._carry(Call(TRUST, None, params, deadline=deadline))
                found = _decode_trust(outcome.result) if isinstance(outcome, Complete) else {}
            except (CallError, *UNREADABLE) as exc:
                log.debug("a node does not tell how long its lists can be trusted error=%s", exc)
                found = {}
            now = trio.current_time()
            for kind in kinds:
                seconds = found.get(kind, 0.0)
                self._until[kind] = float("inf") if seconds is None else now + seconds
            await trio.sleep(LEAST_TRUST)


async def wait_pages_there(carry: Carry, ids: Sequence[str], patience: float) -> bool:
    """As `Fabric.wait_pages`, of pages of a server that another node has; `carry` makes a call there."""
    with trio.move_on_after(patience):
        try:
            await carry(Call(PAGES, None, {"ids": Raw(encode(ids))}))
            return True
        except CallError as exc:  # such as one of an older version, that knows nothing of this
            log.debug("a node does not tell whether pages are done with error=%s", exc)
        await trio.sleep_forever()
    return False


async def wait_moot_there(carry: Carry, park: str, there: Callable[[], bool], rng: random.Random) -> None:
    """Return once the question `park` needs no answer any more: says its node, or that is no more.

    Args:
        carry: makes a call on the node that asked.
        park: the question's token there.
        there: whether that node, and incarnation, is in the mesh now.
        rng: draws pauses.

    """
    pause, most = AGAIN
    while there():
        try:
            await carry(Call(MOOT, None, {"park": Raw(encode(park))}))
            return
        except CallError as exc:
            log.debug("a node does not tell whether its question is moot error=%s", exc)
        await trio.sleep(rng.uniform(0.5, 1.0) * pause)
        pause = min(most, 2 * pause)
