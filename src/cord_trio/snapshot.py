"""What there is to call, at one moment: immutable values that are shared between versions where nothing changed."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import msgspec

from cord_trio.errors import Problem
from cord_trio.names import Names
from cord_trio.protocol.tools import SEPARATOR
from cord_trio.protocol.uris import split_exported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cord_trio.handshake import Greeting
    from cord_trio.protocol.items import Prompt, Resource, Template
    from cord_trio.protocol.mcp import Tool

    Item: TypeAlias = Tool | Prompt | Resource | Template

NEAR: Final = 3
"""Names offered in place of one that does not exist."""

NEAR_SEARCH: Final = 200
"""Names compared with one that does not exist: a client that invents names must not hold up the loop."""

State: TypeAlias = Literal["configured", "manifest", "starting", "ready", "down", "draining", "closing", "closed"]
"""Of a source. In `manifest` its lists are known, and it is not running: nobody has needed it, or not for long."""
Kind: TypeAlias = Literal["tools", "prompts", "resources", "templates"]

KINDS: Final[tuple[Kind, ...]] = ("tools", "prompts", "resources", "templates")
"""What servers list."""

RULED: Final[tuple[Kind, ...]] = ("prompts", "resources", "templates")
"""What rules can keep from being listed."""

WORDS: Final[Mapping[Kind, str]] = {
    "tools": "tool",
    "prompts": "prompt",
    "resources": "resource",
    "templates": "resource template",
}
"""One of each, for people."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where the tool that is exported as `public` lives. The server knows it as `tool.name`."""

    public: str
    source: str
    tool: Tool

    @property
    def key(self) -> str:
        return self.tool.name

    @property
    def item(self) -> Tool:
        return self.tool


class PromptRoute(msgspec.Struct, frozen=True, gc=False):
    """Where the prompt that is exported as `public` lives. The server knows it as `prompt.name`."""

    public: str
    source: str
    prompt: Prompt

    @property
    def key(self) -> str:
        return self.prompt.name

    @property
    def item(self) -> Prompt:
        return self.prompt


class ResourceRoute(msgspec.Struct, frozen=True, gc=False):
    """Where the resource that is exported as `public` lives. The server knows it as `resource.uri`."""

    public: str
    source: str
    resource: Resource

    @property
    def key(self) -> str:
        return self.resource.uri

    @property
    def item(self) -> Resource:
        return self.resource


class TemplateRoute(msgspec.Struct, frozen=True, gc=False):
    """Where the template that is exported as `public` lives. The server knows it as `template.uri`."""

    public: str
    source: str
    template: Template

    @property
    def key(self) -> str:
        return self.template.uri

    @property
    def item(self) -> Template:
        return self.template


AnyRoute: TypeAlias = Route | PromptRoute | ResourceRoute | TemplateRoute

KEY_OF: Final[Mapping[Kind, Callable[[AnyRoute], str]]] = {
    "tools": attrgetter("tool.name"),
    "prompts": attrgetter("prompt.name"),
    "resources": attrgetter("resource.uri"),
    "templates": attrgetter("template.uri"),
}
"""What servers know them by; as `key` says, for many at once."""


@attrs.frozen
class Listed:
    """One list of one server, in its order, and what was wrong with it.

    Attributes:
        items: without those that were left out.
        notes: what was wrong.
        ttl: seconds for which its server says that it may be trusted; 0 if it does not say.

    """

    items: tuple[Item, ...] = ()
    notes: tuple[str, ...] = ()
    ttl: float = attrs.field(default=0.0, eq=False)


NOTHING_LISTED: Final = Listed()


@attrs.frozen(eq=False)
class Exports:
    """One source's part of one list: made when that changes, and shared by all snapshots until then.

    Attributes:
        routes: by exported name, in the server's order.
        problems: why others are not exported.
        spelled: what the server calls its tools, as one text; "" if that cannot be told so, or is not known.

    """

    routes: Mapping[str, AnyRoute] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()
    spelled: str = ""

    @cached_property
    def encoded(self) -> bytes:
        """The items as members of a JSON list, without its brackets."""
        return b",".join([route.item.encode(public) for public, route in self.routes.items()])

    def without(self, taken: Mapping[str, AnyRoute], kind: Kind) -> Exports:
        """The part that remains when the names in `taken` are; the others become problems."""
        clashes = [
            problem(
                route.source,
                f"{WORDS[kind]} {route.key!r} is not exported: "
                f"{taken[public].source!r} already exports its {taken[public].key!r} as {public!r}",
                "give one of the sources another prefix, or rename or deny the tool",
            )
            for public, route in self.routes.items()
            if public in taken
        ]
        if not clashes:
            return self
        routes = {public: route for public, route in self.routes.items() if public not in taken}
        return Exports(routes, (*self.problems, *clashes))


NO_EXPORTS: Final = Exports()


@attrs.frozen(eq=False)
class SourceView:
    """One source in a snapshot. One that is down keeps its last known lists: listed is not callable.

    Attributes:
        name: as configured.
        epoch: of its newest update; 0 before the first.
        state: how it is.
        reason: why it is down.
        next_try: Trio time of the next attempt to connect, if one is planned.
        greeting: what the server said of itself when it was last connected.
        lists: all that it lists, in its order, whether exported or not; by kind.
        parts: what it adds to each list if no other source has the names.

    """

    name: str
    epoch: int = 0
    state: State = "configured"
    reason: str = ""
    next_try: float | None = None
    greeting: Greeting | None = None
    lists: Mapping[Kind, Listed] = attrs.field(factory=dict, repr=False)
    parts: Mapping[Kind, Exports] = attrs.field(factory=dict, repr=False)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """All of its tools, in its order, whether exported or not."""
        return self.listed("tools").items  # type: ignore[return-value]  # under that key there are tools

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with its list of tools."""
        return self.listed("tools").notes

    @property
    def exports(self) -> Exports:
        """Its part of the list of tools."""
        return self.parts.get("tools", NO_EXPORTS)

    def listed(self, kind: Kind) -> Listed:
        """Its list of one kind."""
        return self.lists.get(kind, NOTHING_LISTED)


@attrs.frozen(eq=False)
class Snapshot:
    """What there is, at one version. Never changes, so it is safe to keep.

    Attributes:
        version: 0 as configured, then counted up by one with each publication.
        listed_tools: the version since which the exported tools are what they are; clients need hear of no other.
        listed_prompts: the same of prompts.
        listed_resources: the same of resources and templates together.
        sources: by name, in configured order.
        tools: by exported name; in configured order of sources, then in each server's order.
        prompts: the same of prompts.
        resources: the same of resources, by exported URI.
        templates: the same of resource templates, by exported URI template.
        problems: names that are not exported, tools that were left out.
        merged: what each source adds to each list, without what others before it do; by kind, then by source.

    """

    version: int = 0
    listed_tools: int = 0
    listed_prompts: int = 0
    listed_resources: int = 0
    sources: Mapping[str, SourceView] = attrs.field(factory=dict)
    tools: Mapping[str, Route] = attrs.field(factory=Names, repr=False)
    prompts: Mapping[str, PromptRoute] = attrs.field(factory=Names, repr=False)
    resources: Mapping[str, ResourceRoute] = attrs.field(factory=Names, repr=False)
    templates: Mapping[str, TemplateRoute] = attrs.field(factory=Names, repr=False)
    problems: tuple[Problem, ...] = ()
    merged: Mapping[Kind, Mapping[str, Exports]] = attrs.field(factory=dict, repr=False)

    @cached_property
    def encoded_tools(self) -> bytes:
        """All exported tools as a JSON list."""
        return self._encoded("tools")

    @cached_property
    def encoded_prompts(self) -> bytes:
        """All exported prompts as a JSON list."""
        return self._encoded("prompts")

    @cached_property
    def encoded_resources(self) -> bytes:
        """All exported resources as a JSON list."""
        return self._encoded("resources")

    @cached_property
    def encoded_templates(self) -> bytes:
        """All exported resource templates as a JSON list."""
        return self._encoded("templates")

    @cached_property
    def owners(self) -> Mapping[str, tuple[str, ...]]:
        """The sources that list a resource, by its own URI."""
        owners: dict[str, tuple[str, ...]] = {}
        for name, view in self.sources.items():
            for resource in view.listed("resources").items:
                owners[resource.key] = (*owners.get(resource.key, ()), name)
        return owners

    @cached_property
    def exported_before(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """The sources that list a resource as other nodes export it, each with that URI; by the one of its server."""
        owners: dict[str, tuple[tuple[str, str], ...]] = {}
        for name, view in self.sources.items():
            for resource in view.listed("resources").items:
                found = split_exported(resource.key)
                if found is not None:
                    owners[found[1]] = (*owners.get(found[1], ()), (name, resource.key))
        return owners

    def _encoded(self, kind: Kind) -> bytes:
        return b"[%b]" % b",".join([part.encoded for part in self.merged.get(kind, {}).values() if part.routes])

    def near(self, name: str) -> tuple[str, ...]:
        """The exported names closest to `name`, the closest first."""
        name = name[:128]
        prefix, _, bare = name.rpartition(SEPARATOR)
        # The right tool of another source, or of none, is the likeliest mistake, and cheap to find.
        same = [public for public in self.tools if public.rpartition(SEPARATOR)[2] == bare]
        siblings = [public for public in self.tools if prefix and public.startswith(prefix)]
        alike = [public for public in self.tools if abs(len(public) - len(name)) <= 2]
        likely = dict.fromkeys([*siblings, *alike])
        close = get_close_matches(name, list(likely)[:NEAR_SEARCH], NEAR)
        return tuple(dict.fromkeys([*same[:NEAR], *close]))[:NEAR]


def problem(source: str, what: str, remedy: str) -> Problem:
    """Something about the lists of `source` that its owner should know."""
    return Problem("", f"sources.{source}", what, remedy, fatal=False, source=source)
