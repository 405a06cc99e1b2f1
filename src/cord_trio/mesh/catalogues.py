"""What the servers of a mesh list, each text under its own digest: servers that list the same share one.

A node's record names digests only, and whoever needs one fetches it. So a record stays small, and what is fetched is
known to be what was meant, whoever stored it. Lists name everything as its node exports it.
"""

from __future__ import annotations

import logging
import re
from base64 import urlsafe_b64encode
from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio
from msgspec import Raw

from cord_trio.client import DECODERS
from cord_trio.config.rules import Shown
from cord_trio.config.settings import DEEPEST
from cord_trio.counters import Counters
from cord_trio.errors import CallError, Malformed
from cord_trio.handshake import Greeting
from cord_trio.manifests import MEMBERS
from cord_trio.mesh_errors import BadCatalogue, NotPermitted
from cord_trio.protocol.eras import ERAS, LATEST_MODERN
from cord_trio.protocol.jsonrpc import UNREADABLE, object_of, payload_of
from cord_trio.snapshot import KINDS, NO_EXPORTS, RULED, Listed

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence

    from cord_trio.config.rules import Rule
    from cord_trio.mesh.contracts import Store
    from cord_trio.protocol.mcp import Tool
    from cord_trio.snapshot import Kind, Snapshot

log = logging.getLogger("cord_trio.mesh")

PAGE: Final = 512 * 1024
"""Bytes of a catalogue that one key holds."""

MAX_CATALOGUE: Final = 16 * 1024 * 1024
"""Bytes of the longest catalogue."""

MAX_SHOWN: Final = 1000
"""Rules of a source about its prompts and resources that are told of."""

CACHED: Final = 64 * 1024 * 1024
"""Bytes of catalogues that a node keeps; past it those that were not needed for longest are let go of."""

KEPT: Final = 24 * 60 * 60
"""Seconds that a catalogue is kept in the store after somebody last said that he has it."""

MISSING: Final = (0.2, 5.0)
"""Seconds before a catalogue that is not there is looked for again, at least and at most."""

PATIENCE: Final = 10.0
"""Seconds that the store may take for one page."""

_DIGEST: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_PAGES: Final = MAX_CATALOGUE // PAGE + 1


class _Shown(msgspec.Struct, frozen=True):
    principals: tuple[str, ...]
    then: str
    names: dict[str, tuple[str, ...]]
    number: int


class _Text(msgspec.Struct, frozen=True, omit_defaults=True):
    revision: str
    capabilities: dict[str, Any]
    server_info: dict[str, Any]
    instructions: str | None
    lists: dict[str, Raw]
    shown: tuple[_Shown, ...] = ()


@attrs.frozen(eq=False)
class Catalogue:
    """What one server lists, under the names by which its node exports it.

    Attributes:
        digest: of its text.
        size: bytes of its text.
        greeting: what the server says of itself.
        lists: its tools, prompts, resources and templates.
        shown: what its node's rules say of who may see what of it.

    """

    digest: str
    size: int
    greeting: Greeting
    lists: Mapping[Kind, Listed] = attrs.field(repr=False)
    shown: tuple[Shown, ...] = attrs.field(default=(), repr=False)


def digest_of(text: bytes) -> str:
    """What the catalogue with this text is called: its SHA-256, as 43 characters of URL-safe base64."""
    return urlsafe_b64encode(sha256(text).digest()).rstrip(b"=").decode()


def is_digest(name: str) -> bool:
    """Whether a catalogue can be called so."""
    return _DIGEST.fullmatch(name) is not None


def encode_catalogue(snapshot: Snapshot, source: str, rules: Sequence[Rule] = ()) -> bytes | None:
    """The text of what `source` exports; None before it has listed. Equal lists have equal texts.

    Args:
        snapshot: what there is.
        source: its name.
        rules: of it: which prompts and resources they deny to whom is told as well, by their exported names.

    Raises:
        BadCatalogue: it is too long.

    """
    view = snapshot.sources.get(source)
    if view is None or view.greeting is None:
        return None
    greeting = view.greeting
    lists: dict[str, Raw] = {}
    for kind in KINDS:
        part = snapshot.merged.get(kind, {}).get(source, NO_EXPORTS)
        if part.routes:
            lists[kind] = Raw(b"[%b]" % part.encoded)
    told = _Text(
        greeting.revision, dict(greeting.capabilities), dict(greeting.server_info), greeting.instructions, lists,
        tuple(_shown(snapshot, source, rules)),
    )  # fmt: skip
    return _checked(source, told)


def _shown(snapshot: Snapshot, source: str, rules: Sequence[Rule]) -> Iterator[_Shown]:
    """What rules say of what is listed; those that say nothing of it are left out."""
    for number, rule in enumerate(rules):
        names: dict[str, tuple[str, ...]] = {}
        for kind in RULED if rule.prompts or rule.resources else ():
            part = snapshot.merged.get(kind, {}).get(source, NO_EXPORTS)
            if found := tuple(public for public, route in part.routes.items() if rule.is_on(kind, route.key)):
                names[kind] = found
        if names:
            yield _Shown(rule.principals, rule.then, names, number)


def encode_agents(tools: Sequence[Tool]) -> bytes:
    """The text of a catalogue of agents, each as it is listed as a tool.

    Raises:
        BadCatalogue: it is too long.

    """
    listed = b",".join(object_of(tool.members) for tool in sorted(tools, key=lambda tool: tool.name))
    lists = {"tools": Raw(b"[%b]" % listed)}
    return _checked("agents", _Text(LATEST_MODERN, {}, {"name": "agents"}, None, lists))


def _checked(source: str, told: _Text) -> bytes:
    if len(told.shown) > MAX_SHOWN:
        raise BadCatalogue(source, f"it has {len(told.shown)} rules about what it lists, where {MAX_SHOWN} may be")
    text = msgspec.json.encode(told, order="sorted")
    if len(text) > MAX_CATALOGUE:
        raise BadCatalogue(source, f"what it lists takes {len(text)} bytes, where {MAX_CATALOGUE} may be")
    return text


def decode_catalogue(text: bytes) -> Catalogue:
    """What a text says. Items that cannot be used are left out.

    Raises:
        BadCatalogue: it is none.

    """
    digest = digest_of(text)
    try:
        told = msgspec.json.decode(payload_of(text, DEEPEST), type=_Text)
        era = ERAS[told.revision]
        lists = {
            kind: Listed(DECODERS[kind](Raw(b'{"%b":%b}' % (MEMBERS[kind].encode(), told.lists[kind]))).items)
            for kind in KINDS
            if kind in told.lists
        }
    except (*UNREADABLE, Malformed, KeyError) as exc:
        raise BadCatalogue(digest, f"it cannot be read: {exc!r}") from exc
    if len(told.shown) > MAX_SHOWN:
        raise BadCatalogue(digest, f"it has {len(told.shown)} rules about what it lists, where {MAX_SHOWN} may be")
    shown = tuple(
        Shown(each.principals, each.then, {kind: frozenset(names) for kind, names in each.names.items()}, each.number)
        for each in told.shown
    )
    greeting = Greeting(told.revision, era.modern, told.capabilities, told.server_info, told.instructions)
    return Catalogue(digest, len(text), greeting, lists, shown)


class Catalogues:
    """The catalogues of a mesh: those that were needed lately are at hand.

    Args:
        store: of the mesh.
        rng: draws pauses.
        counters: where to count.
        cached: bytes that are kept at hand.

    """

    def __init__(
        self, store: Store, *, rng: random.Random, counters: Counters | None = None, cached: int = CACHED
    ) -> None:
        self._store = store
        self._rng = rng
        self._counters = Counters() if counters is None else counters
        self._bound = cached
        self._size = 0
        self._known: OrderedDict[str, Catalogue] = OrderedDict()
        self._fetching: dict[str, trio.Event] = {}

    async def put(self, text: bytes) -> str:
        """Let everybody find `text`, from now on for `KEPT` seconds; returns its digest.

        Raises:
            CallError: the store could not be told.

        """
        digest = digest_of(text)
        pages = [text[at : at + PAGE] for at in range(0, len(text), PAGE)] or [b""]
        # The first last: who finds it finds them all.
        for number in range(len(pages) - 1, 0, -1):
            await self._store.put(f"cat.{digest}.{number}", pages[number], ttl=KEPT)
        await self._store.put(f"cat.{digest}", b"%d\n%b" % (len(pages), pages[0]), ttl=KEPT)
        return digest

    def at_hand(self, digest: str) -> Catalogue | None:
        """The catalogue, if it was fetched and is still kept."""
        found = self._known.get(digest)
        if found is not None:
            self._known.move_to_end(digest)
        return found

    async def fetch(self, digest: str) -> Catalogue:
        """The catalogue of this digest. Waits until somebody has stored it.

        Raises:
            BadCatalogue: what is stored under it is something else, or is none.
            NotPermitted: the store does not let us.

        """
        await trio.lowlevel.checkpoint()
        if not is_digest(digest):
            raise BadCatalogue(digest, "no catalogue is called so")
        while True:
            found = self.at_hand(digest)
            if found is not None:
                return found
            event = self._fetching.get(digest)
            if event is not None:  # another fetches it
                await event.wait()
                continue
            event = self._fetching[digest] = trio.Event()
            try:
                self._keep(await self._look(digest))
            finally:
                del self._fetching[digest]
                event.set()

    def _keep(self, catalogue: Catalogue) -> None:
        self._counters.add("mesh.catalogues_fetched")
        self._known[catalogue.digest] = catalogue
        self._size += catalogue.size
        while self._size > self._bound and len(self._known) > 1:
            self._size -= self._known.popitem(last=False)[1].size
            self._counters.add("mesh.catalogues_dropped")

    async def _look(self, digest: str) -> Catalogue:
        """Look for it until it is found."""
        pause = MISSING[0]
        while True:
            try:
                text = await self._read(digest)
                if text is not None:
                    if digest_of(text) != digest:
                        raise BadCatalogue(digest, "something else is stored under its name")
                    return decode_catalogue(text)
            except BadCatalogue:
                self._counters.add("mesh.bad_catalogue")
                raise
            except NotPermitted:
                raise
            except (CallError, trio.TooSlowError) as exc:
                log.info("a catalogue was not fetched digest=%s reason=%r", digest, exc)
            self._counters.add("mesh.catalogue_missing")
            await trio.sleep(self._rng.uniform(pause / 2, pause))
            pause = min(MISSING[1], 2 * pause)

    async def _read(self, digest: str) -> bytes | None:
        """All its pages; None if one of them is not there."""
        with trio.fail_after(PATIENCE):
            entry = await self._store.get(f"cat.{digest}")
        if entry is None:
            return None
        count, end, _ = entry.value[:16].partition(b"\n")
        if not (end and count.isdigit() and 1 <= int(count) <= _MAX_PAGES):
            raise BadCatalogue(digest, "its first page does not say how many there are")
        pages = [self._bounded(digest, 0, entry.value[len(count) + 1 :])]
        for number in range(1, int(count)):
            with trio.fail_after(PATIENCE):
                page = await self._store.get(f"cat.{digest}.{number}")
            if page is None:
                return None
            pages.append(self._bounded(digest, number, page.value))
        return b"".join(pages)

    def _bounded(self, digest: str, number: int, page: bytes) -> bytes:
        if len(page) > PAGE:  # whoever wrote it is none of us, or of another version: what follows is not read
            self._counters.add("mesh.catalogue_page_long")
            raise BadCatalogue(digest, f"its page {number} takes {len(page)} bytes, where {PAGE} may be")
        return page


class Pins:
    """Which catalogue each server was last seen with: a server that says other things of its tools is an event.

    Args:
        counters: where to count.
        most: servers that are known; of more the oldest are forgotten.

    """

    def __init__(self, *, counters: Counters | None = None, most: int = 10_000) -> None:
        self._counters = Counters() if counters is None else counters
        self._most = most
        self._seen: OrderedDict[tuple[str, str], str] = OrderedDict()

    def see(self, node: str, server: str, digest: str) -> str | None:
        """Note that `server` of `node` has this catalogue; returns the one that it had before, if that was another."""
        key = node, server
        before = self._seen.pop(key, None)
        self._seen[key] = digest
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
        if before is None or before == digest:
            return None
        self._counters.add("mesh.catalogue_changed")
        log.warning("a server lists other things than before node=%s server=%s", node, server)
        return before
