"""What the gateway asks of the fabric behind it. Types alone: any object of this shape will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import trio

    from cord_trio.call import Call, Outcome
    from cord_trio.config import Bounds
    from cord_trio.counters import Counters
    from cord_trio.protocol.tools import Tool


class Route(Protocol):
    """Where an exported tool leads to."""

    @property
    def tool(self) -> Tool: ...


class SourceView(Protocol):
    """One source."""

    @property
    def state(self) -> str: ...


class Snapshot(Protocol):
    """What tools exist at one moment. Immutable, numbered, in a deterministic order."""

    @property
    def version(self) -> int: ...

    @property
    def sources(self) -> Mapping[str, SourceView]: ...

    @property
    def tools(self) -> Mapping[str, Route]: ...


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


class Config(Protocol):
    """The part of the configuration that is about the gateway."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def gateway(self) -> Settings: ...


class Fabric(Protocol):
    """What answers calls."""

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

    async def wait_started(self) -> None:
        """Return once every source was tried once."""

    async def handle(self, call: Call, /) -> Outcome:
        """How the call ended. Raises `CallError`."""


class Lines(Protocol):
    """The header lines of an HTTP request; names in any case."""

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values as they came."""

    def get(self, name: str, /) -> str | None:
        """The first value of `name`."""

    def all(self, name: str, /) -> Sequence[str]:
        """Every value of `name`, in order."""
