"""What the gateway asks of the fabric behind it. Types alone: any object of this shape will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import trio

    from cord_trio.call import Call, Handler, Outcome
    from cord_trio.config import Bounds
    from cord_trio.counters import Counters
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.tools import Tool
    from cord_trio.routing import Elsewhere


class Listed(Protocol):
    """A prompt, a resource or a template, as its server lists it."""

    def encode(self, public: str, /) -> bytes:
        """JSON text under its exported name or URI, all other members as they came."""


class Route(Protocol):
    """Where an exported tool leads to."""

    @property
    def source(self) -> str: ...

    @property
    def tool(self) -> Tool: ...


class PromptRoute(Protocol):
    """Where an exported prompt leads to."""

    @property
    def source(self) -> str: ...

    @property
    def prompt(self) -> Listed: ...


class ResourceRoute(Protocol):
    """Where an exported resource leads to."""

    @property
    def source(self) -> str: ...

    @property
    def resource(self) -> Listed: ...


class TemplateRoute(Protocol):
    """Where the URIs of an exported template lead to."""

    @property
    def source(self) -> str: ...

    @property
    def template(self) -> Listed: ...


class Greeting(Protocol):
    """What a server said of itself."""

    @property
    def capabilities(self) -> Mapping[str, Json]: ...

    @property
    def instructions(self) -> str | None: ...


class SourceView(Protocol):
    """One source."""

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def next_try(self) -> float | None: ...

    @property
    def greeting(self) -> Greeting | None: ...


class Snapshot(Protocol):
    """What there is at one moment, by exported name or URI. Immutable, numbered, in a deterministic order."""

    @property
    def version(self) -> int: ...

    @property
    def sources(self) -> Mapping[str, SourceView]: ...

    @property
    def tools(self) -> Mapping[str, Route]: ...

    @property
    def prompts(self) -> Mapping[str, PromptRoute]: ...

    @property
    def resources(self) -> Mapping[str, ResourceRoute]: ...

    @property
    def templates(self) -> Mapping[str, TemplateRoute]: ...


class Registry(Protocol):
    """Holds the newest snapshot."""

    @property
    def snapshot(self) -> Snapshot: ...

    async def changed(self, since: int, /) -> Snapshot:
        """The newest snapshot, once its version is above `since`."""


class Settings(Protocol):
    """How the gateway is served."""

    @property
    def allowed_hosts(self) -> Sequence[str]: ...

    @property
    def allowed_origins(self) -> Sequence[str]: ...

    @property
    def page_size(self) -> int: ...

    @property
    def sse(self) -> bool: ...


class Profile(Protocol):
    """A named part of what is served: globs over exported names and URIs."""

    @property
    def tools(self) -> Sequence[str]: ...

    @property
    def prompts(self) -> Sequence[str]: ...

    @property
    def resources(self) -> Sequence[str]: ...


class Config(Protocol):
    """The part of the configuration that is about the gateway."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def profiles(self) -> Mapping[str, Profile]: ...

    @property
    def gateway(self) -> Settings: ...


class Fabric(Protocol):
    """What answers calls.

    Attributes:
        brought: takes what was sealed here and a client brought to another node.

    """

    brought: Callable[[Call], Awaitable[Outcome]] | None

    @property
    def elsewhere(self) -> Elsewhere | None:
        """The other nodes of a mesh."""

    @property
    def config(self) -> Config: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def draining(self) -> trio.Event: ...

    @property
    def ready(self) -> bool:
        """Whether every source was tried once."""

    def start_unlisted(self) -> bool:
        """Start the sources that are started when somebody lists; whether one has not been tried yet."""

    def trust(self, kind: Literal["tools", "prompts", "resources", "templates"], /) -> float:
        """Seconds for which what is listed of `kind` may be trusted; what may not be any more is fetched anew."""

    def hidden(self, kind: Literal["tools", "prompts", "resources", "templates"], principal: str, /) -> frozenset[str]:
        """The exported names of `kind` that `principal` is not shown."""

    async def wait_started(self) -> None:
        """Return once every source was tried once."""

    async def handle(self, call: Call, /) -> Outcome:
        """How the call ended. Raises `CallError`."""

    async def wait_pages(self, ids: Iterable[str], patience: float, call: Call | None = None, /) -> bool:
        """Return once a server told that the pages `ids` of `call` are done with, or after `patience` seconds."""

    async def wait_moot(self, park: str, /) -> None:
        """Return once a parked call wants no answer any more, or is none."""

    def abandon(self, park: str, reason: str, /) -> None:
        """Cancel a parked call whose questions will not be answered. An unknown one is none any more."""

    def holding(self) -> AbstractContextManager[Handler]:
        """What takes the further rounds of an accepted call, also while draining, which waits for the block's end."""

    def subscribe(
        self, principal: str, uris: Iterable[str], sink: Callable[[str], None], /
    ) -> AbstractContextManager[object]:
        """While entered, `sink` is called with each of `uris` that is updated. Must not block."""


class Lines(Protocol):
    """The header lines of an HTTP request; names in any case."""

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values as they came."""

    def get(self, name: str, /) -> str | None:
        """The first value of `name`."""

    def all(self, name: str, /) -> Sequence[str]:
        """Every value of `name`, in order."""
