"""Which source a call is for, and what that source knows its object as. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec import DecodeError, Raw
from msgspec.structs import replace

from cord_trio.errors import CallFailed, Malformed
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode, members, object_of, parse
from cord_trio.protocol.uris import export_uri, import_uri, may_expand_to, split_exported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

    from cord_trio.call import Call, Outcome
    from cord_trio.observe import Node
    from cord_trio.snapshot import Snapshot, SourceView

PROMPT: Final = "prompts/get"
READ: Final = "resources/read"
COMPLETE: Final = "completion/complete"

TASKS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
"""About the task that a call of a tool has become; the call is named after the tool."""

ROUTED: Final = frozenset({PROMPT, READ, COMPLETE}) | TASKS
"""What is routed here; calls of tools are by the fabric itself."""


BROUGHT: Final = "cord-gateway:"
"""How what a gateway has sealed begins, where it is brought back by another node than the one whose gateway it was."""


class Elsewhere(Protocol):
    """Where calls wait that other nodes make for us. Their tokens hold a dot, and ours never do."""

    @property
    def node(self) -> str:
        """Our name among the nodes."""

    @property
    def place(self) -> str:
        """Our name and incarnation, as `node.epoch`; "" between two of them."""

    def bring(self, call: Call) -> Awaitable[Outcome]:
        """Bring what the gateway of another node has sealed there, as the state or the task of `call`."""

    def shown(self) -> Node:
        """Our being there, for the live tree."""

    def resume(self, call: Call) -> Awaitable[Outcome]:
        """Go on with the call that waits for `call`."""

    def abandon(self, park: str, reason: str) -> None:
        """Let go of the call under this token."""

    async def wait_pages(self, source: str, ids: Sequence[str], patience: float) -> bool:
        """Return once pages of a source that another node has are done with, or after `patience` seconds."""

    async def wait_moot(self, park: str) -> None:
        """Return once the call under this token wants no answer any more, or is none."""


def is_brought(call: Call) -> bool:
    """Whether it brings what our own gateway has sealed, from another node."""
    raw = call.params.get("taskId" if call.method in TASKS else "requestState")
    return raw is not None and bytes(raw).startswith(b'"cord-gateway:')


class Finder:
    """Finds the way of calls.

    Args:
        prefixes: of the sources, each with the source's name; none for those that export names unchanged.
        theirs: the sources of other nodes, which list what they have as their nodes export it.

    """

    def __init__(self, prefixes: Mapping[str, str], theirs: Collection[str] = ()) -> None:
        self._sources = {prefix: name for prefix, name in prefixes.items() if prefix}
        self._theirs = frozenset(theirs)

    def prompt(self, snapshot: Snapshot, name: str) -> tuple[str, str] | None:
        """Source and own name of an exported prompt."""
        route = snapshot.prompts.get(name)
        return None if route is None else (route.source, route.prompt.name)

    def resource(self, snapshot: Snapshot, uri: str) -> tuple[str, str] | None:
        """Source and own URI of a resource, listed or not, by its exported URI or by its own if that is plain.

        By its own it is one that is listed, else that a template may lead to, else one of a source that has no prefix;
        of these, one of our own sources before one of another node; none where that is not one alone.
        """
        route = snapshot.resources.get(uri)
        if route is not None:
            return route.source, route.resource.uri
        found = import_uri(self._sources, uri)
        if found is not None:
            return self._sources[found[0]], found[1]
        for owners in self._candidates(snapshot, uri):
            ours = [owner for owner in owners if owner[0] not in self._theirs]
            found_by_own = ours or owners
            if found_by_own:
                return found_by_own[0] if len(found_by_own) == 1 else None
        return None

    def template(self, snapshot: Snapshot, uri: str) -> tuple[str, str] | None:
        """Source and own template of an exported one."""
        route = snapshot.templates.get(uri)
        return self.resource(snapshot, uri) if route is None else (route.source, route.template.uri)

    def source(self, uri: str) -> str | None:
        """The source that exports such a URI, by its words alone."""
        found = import_uri(self._sources, uri)
        return None if found is None else self._sources[found[0]]

    def way(self, snapshot: Snapshot, call: Call) -> tuple[str, str | None, Call] | None:
        """The source of `call`, what it knows its object as, and the call in its words; None if nobody has it.

        Raises:
            CallFailed: the call makes no sense.

        """
        name = call.name or ""
        if call.method == PROMPT:
            prompt = self.prompt(snapshot, name)
            return None if prompt is None else (*prompt, call)
        if call.method == READ:
            resource = self.resource(snapshot, name)
            return None if resource is None else (*resource, call)
        if call.method in TASKS:
            tool = snapshot.tools.get(name)
            # HTTP repeats the task's id in a header (MCP 2026-07-28, transports).
            return None if tool is None else (tool.source, parse(call.params.get("taskId", Raw(b'""'))), call)
        try:
            ref = members(call.params.get("ref", Raw(b"{}")))
            kind = parse(ref.get("type", Raw(b"null")))
        except (Malformed, DecodeError) as exc:
            raise _senseless("ref is not an object") from exc
        if kind == "ref/prompt":
            found, key = self.prompt(snapshot, name), "name"
        elif kind == "ref/resource":
            found, key = self.template(snapshot, name), "uri"
        else:
            raise _senseless("ref is of no known type")
        if found is None:
            return None
        named = Raw(object_of({**ref, key: encode(found[1])}))
        return found[0], None, replace(call, params={**call.params, "ref": named})

    def _candidates(self, snapshot: Snapshot, uri: str) -> Iterator[list[tuple[str, str]]]:
        """The sources that may know a URI by which nobody exports anything, each with its own; the likeliest first."""
        listed = [(name, uri) for name in snapshot.owners.get(uri, ())]
        yield listed + [owner for owner in snapshot.exported_before.get(uri, ()) if owner[0] in self._theirs]
        yield [
            found
            for name, view in snapshot.sources.items()
            if (found := self._by_template(name, view, uri)) is not None
        ]  # fmt: skip
        # What nobody lists is theirs to judge.
        prefixed = set(self._sources.values())
        yield [
            (name, uri)
            for name, view in snapshot.sources.items()
            if name not in prefixed and view.greeting is not None and "resources" in view.greeting.capabilities
        ]

    def _by_template(self, name: str, view: SourceView, uri: str) -> tuple[str, str] | None:
        for template in view.listed("templates").items:
            if may_expand_to(template.key, uri):
                return name, uri
            exported = split_exported(template.key) if name in self._theirs else None
            if exported is not None and may_expand_to(exported[1], uri):
                return name, export_uri(exported[0], uri)
        return None


def told_as(own: str, public: str, prefix: str, sink: Callable[[str], None]) -> Callable[[str], None]:
    """Tells `sink` of changes in the words of whoever subscribed to `public`, which is the server's `own`."""

    def told(uri: str) -> None:
        sink(public if uri == own else export_uri(prefix, uri))

    return told


def unknown(call: Call) -> CallFailed:
    """That nobody has what `call` is about."""
    name = call.name or ""
    if call.method == READ:
        return CallFailed(INVALID_PARAMS, f"no resource {name!r}", b'{"uri":%b}' % encode(name), executed="no")
    if call.method in TASKS:
        return CallFailed(INVALID_PARAMS, "unknown or expired taskId", executed="no")
    what = "prompt" if call.method == PROMPT else "prompt or resource template"
    return CallFailed(INVALID_PARAMS, f"no {what} named {name!r}", executed="no")


def _senseless(what: str) -> CallFailed:
    return CallFailed(INVALID_PARAMS, what, executed="no")
