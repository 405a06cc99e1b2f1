"""A part of a fabric, as if it were all there is: what a profile does not name is neither listed nor answered."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import attrs

from cord_trio.call import Error
from cord_trio.errors import CallFailed, ToolNotFound
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import trio

    from cord_trio.call import Call, Handler, Outcome
    from cord_trio.counters import Counters
    from cord_trio.gateway.ports import (
        Config,
        Fabric,
        Profile,
        PromptRoute,
        Registry,
        ResourceRoute,
        Route,
        Snapshot,
        SourceView,
        TemplateRoute,
    )
    from cord_trio.gateway.steps import Kind
    from cord_trio.routing import Elsewhere

R = TypeVar("R", "Route", "PromptRoute", "ResourceRoute", "TemplateRoute")


@attrs.frozen(eq=False)
class PartOfSnapshot:
    """What a profile shows of one snapshot."""

    version: int
    sources: Mapping[str, SourceView]
    tools: Mapping[str, Route]
    prompts: Mapping[str, PromptRoute]
    resources: Mapping[str, ResourceRoute]
    templates: Mapping[str, TemplateRoute]


class PartOfRegistry:
    """Holds what a profile shows of the newest snapshot; made anew only when that is another one."""

    def __init__(self, registry: Registry, profile: Profile) -> None:
        self._registry = registry
        self._profile = profile
        self._part: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The part of the newest one."""
        whole = self._registry.snapshot
        if self._part is None or self._part.version != whole.version:
            self._part = part_of(whole, self._profile)
        return self._part

    async def changed(self, since: int, /) -> Snapshot:
        """The part of the newest one, once its version is above `since`; the part itself may be the same."""
        await self._registry.changed(since)
        return self.snapshot


class PartOfFabric:
    """A fabric that has only what a profile names. What is sealed for its clients is for this gateway alone."""

    elsewhere: Elsewhere | None = None

    def __init__(self, fabric: Fabric, profile: Profile) -> None:
        self.brought: Callable[[Call], Awaitable[Outcome]] | None = None
        self._fabric = fabric
        self._profile = profile
        self._registry = PartOfRegistry(fabric.registry, profile)

    @property
    def config(self) -> Config:
        return self._fabric.config

    @property
    def registry(self) -> Registry:
        return self._registry

    @property
    def counters(self) -> Counters:
        return self._fabric.counters

    @property
    def draining(self) -> trio.Event:
        return self._fabric.draining

    @property
    def ready(self) -> bool:
        return self._fabric.ready

    def start_unlisted(self) -> bool:
        return self._fabric.start_unlisted()

    def trust(self, kind: Kind, /) -> float:
        return self._fabric.trust(kind)

    def hidden(self, kind: Kind, principal: str, /) -> frozenset[str]:
        return self._fabric.hidden(kind, principal)

    async def wait_started(self) -> None:
        await self._fabric.wait_started()

    async def handle(self, call: Call, /) -> Outcome:
        """How the call ended; what is not in the profile does not exist."""
        name = call.name or ""
        profile = self._profile
        match call.method:
            case "tools/call" | "tasks/get" | "tasks/update" | "tasks/cancel":
                if not named(profile.tools, name):
                    raise ToolNotFound(name)
            case "resources/read":
                if not named(profile.resources, name):
                    return Error(INVALID_PARAMS, f"no resource {name!r}", b'{"uri":%b}' % encode(name))
            case "completion/complete":
                # The front keeps the type of what is completed alone, and that tells the two apart.
                of_prompt = b"ref/prompt" in bytes(call.params.get("ref", b""))
                if not named(profile.prompts if of_prompt else profile.resources, name):
                    return Error(INVALID_PARAMS, f"nothing to complete for {name!r}")
            case _:
                if not named(profile.prompts, name):
                    return Error(INVALID_PARAMS, f"no prompt named {name!r}")
        return await self._fabric.handle(call)

    async def wait_pages(self, ids: Iterable[str], patience: float, call: Call | None = None, /) -> bool:
        return await self._fabric.wait_pages(ids, patience, call)

    async def wait_moot(self, park: str, /) -> None:
        await self._fabric.wait_moot(park)

    def abandon(self, park: str, reason: str, /) -> None:
        self._fabric.abandon(park, reason)

    def holding(self) -> AbstractContextManager[Handler]:
        return self._fabric.holding()  # of a call that was in the profile

    def subscribe(
        self, principal: str, uris: Iterable[str], sink: Callable[[str], None], /
    ) -> AbstractContextManager[object]:
        wanted = tuple(uris)
        for uri in wanted:
            if not named(self._profile.resources, uri):
                data = b'{"uri":%b}' % encode(uri)
                raise CallFailed(INVALID_PARAMS, f"no resource {uri!r}", data, executed="no")
        return self._fabric.subscribe(principal, wanted, sink)


def part_of(snapshot: Snapshot, profile: Profile) -> PartOfSnapshot:
    """What `profile` shows of `snapshot`, and the sources that it is from."""
    tools = _part(snapshot.tools, profile.tools)
    prompts = _part(snapshot.prompts, profile.prompts)
    resources = _part(snapshot.resources, profile.resources)
    templates = _part(snapshot.templates, profile.resources)
    shown = {
        route.source
        for routes in (tools.values(), prompts.values(), resources.values(), templates.values())
        for route in routes
    }
    sources = {name: source for name, source in snapshot.sources.items() if name in shown}
    return PartOfSnapshot(snapshot.version, sources, tools, prompts, resources, templates)


def named(globs: Sequence[str], name: str) -> bool:
    """Whether one of `globs` names it."""
    return any(fnmatchcase(name, glob) for glob in globs)


def _part(routes: Mapping[str, R], globs: Sequence[str]) -> dict[str, R]:
    return {name: route for name, route in routes.items() if named(globs, name)}
