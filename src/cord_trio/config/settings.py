"""The whole configuration as one frozen value: sources, agents, gateway and bounds."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from cord_trio.config.agents import (
    AGENT_NAME,
    AgentConfig,
    SupervisorConfig,
    agents_by_name,
    check_supervisors,
    supervisors_by_name,
)
from cord_trio.config.checks import Fault, check_numbers, raise_problems
from cord_trio.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cord_trio.config.mesh import MeshConfig
    from cord_trio.config.values import Source

HTTP_HOST = "127.0.0.1"
"""Where the gateway listens unless told otherwise."""

HTTP_PORT = 8931
"""The port that the gateway listens on unless told otherwise."""


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


DEEPEST = 512
"""Levels of JSON that may be allowed at most."""


@attrs.frozen(kw_only=True)
class Bounds:
    """What the fabric holds at most and waits at longest. Sizes are bytes, times seconds.

    Attributes:
        calls: calls in flight in the whole fabric.
        slots: calls in flight, for a source that does not say.
        message_in: one message from a peer; for a source that does not say, and for gateway clients.
        message_out: one request that is sent to a source.
        tools: tools of one source.
        list_pages: pages of one list.
        connect: connecting and greeting, for a source that does not say.
        first_list: the first list of tools, for a source that does not say.
        call: one call with all its attempts, for a source that does not say.
        call_longest: one call whose server keeps telling progress.
        drain: finishing accepted calls at the end, for a gateway that does not say.
        stop_close: how long a child has to end after its stdin is closed.
        stop_terminate: how long a child has to end after SIGTERM, before SIGKILL.
        backoff_first: the longest first wait before connecting again; doubles each time.
        backoff_longest: the longest wait before connecting again.
        starts: children that start at the same time; None for twice the number of processors.
        http_head: the head of an HTTP message.
        http_headers: headers of an HTTP message.
        http_head_time: how long a head may take to arrive.
        http_idle: how long an unused HTTP connection is kept.
        http_connections: connections that the gateway holds.
        parks: calls of one principal that wait for an answer of hers.
        park_time: how long such a call waits.
        interactive: sessions with one legacy source that may ask their callers, one for each call that is under
            way; further callers share one of theirs, or else the session that asks nobody.
        interactive_idle: how long such a session is kept that nobody uses.
        hops: handoffs that one ask may take.
        cache_entries: answers of one source that are kept.
        cache_bytes: of those.
        record_bytes: of a recording.
        outbox_bytes: that may wait for one peer which does not take them.
        outbox_messages: likewise.
        read_quantum: bytes of lines that are read of one peer before others have their turn.
        json_depth: levels of arrays and objects in a message.
        http_outbox: bytes that may wait for one client of the gateway; one with more is dropped.

    """

    calls: int = 1024
    slots: int = 32
    message_in: int = 16 * 1024 * 1024
    message_out: int = 16 * 1024 * 1024
    tools: int = 10_000
    list_pages: int = 1000
    connect: float = 10.0
    first_list: float = 30.0
    call: float = 60.0
    call_longest: float = 600.0
    drain: float = 10.0
    stop_close: float = 2.0
    stop_terminate: float = 2.0
    backoff_first: float = 0.2
    backoff_longest: float = 30.0
    starts: int | None = None
    http_head: int = 32 * 1024
    http_headers: int = 128
    http_head_time: float = 10.0
    http_idle: float = 75.0
    http_connections: int = 1024
    parks: int = 32
    park_time: float = 600.0
    interactive: int = 16
    interactive_idle: float = 600.0
    hops: int = 16
    cache_entries: int = 1024
    cache_bytes: int = 16 * 1024 * 1024
    record_bytes: int = 64 * 1024 * 1024
    outbox_bytes: int = 32 * 1024 * 1024
    outbox_messages: int = 4096
    read_quantum: int = 64 * 1024
    json_depth: int = 128
    http_outbox: int = 64 * 1024 * 1024

    def __attrs_post_init__(self) -> None:
        raise_problems("bounds", self._faults())

    def _faults(self) -> Iterator[Fault]:
        least: dict[str, int | float] = {}
        for field in attrs.fields(Bounds):
            least[field.name] = 0.0 if isinstance(field.default, float) else 1
        sizes = dict.fromkeys(("message_in", "message_out", "http_head", "outbox_bytes", "http_outbox"), 1024)
        yield from check_numbers(self, least | sizes | {"read_quantum": 4096, "json_depth": 4})
        if isinstance(self.json_depth, int) and self.json_depth > DEEPEST:
            yield "json_depth", "is too large", f"give {DEEPEST} or less"  # what decodes it is recursive


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """How the fabric is served.

    Attributes:
        host: the address to listen on; loopback only, until there is authentication.
        port: the port to listen on; 0 for any free one.
        grace: seconds that accepted calls have to finish when it drains.
        allowed_hosts: further `Host` headers to accept, beside the address itself.
        allowed_origins: further `Origin` headers to accept, beside loopback ones.
        page_size: tools in one page of a list.
        roots: folders that servers are told of that ask for roots, and whose callers have none: paths or `file:` URIs.
        sse: whether HTTP+SSE (2024-11-05) is served too, at `/sse`; it is deprecated.
        record: the file that `serve` records all calls in; "" for none.
        record_secrets: further parts of names whose values are kept out of a recording.

    """

    host: str = HTTP_HOST
    port: int = HTTP_PORT
    grace: float = 10.0
    allowed_hosts: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    allowed_origins: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    page_size: int = 1000
    sse: bool = False
    roots: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    record: str = ""
    record_secrets: tuple[str, ...] = attrs.field(default=(), converter=_texts)

    def __attrs_post_init__(self) -> None:
        raise_problems("gateway", self._faults())

    @property
    def http(self) -> str:
        """The address as it is written: `host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _faults(self) -> Iterator[Fault]:
        if not is_loopback(self.host):
            what = f"{self.host!r} is not a loopback address, and there is no authentication yet"
            yield "http", what, f"listen on {HTTP_HOST}:{HTTP_PORT} and put an authenticating proxy before it"
        if not 0 <= self.port <= 65535:
            yield "http", f"{self.port} is not a port", "give 0 to 65535"
        for place, root in enumerate(self.roots):
            if not root.strip() or not root.isprintable() or ("://" in root and not root.startswith("file://")):
                yield f"roots[{place}]", "is no folder of this machine", "give a path, or a file:// URI"
        yield from check_numbers(self, {"grace": 0.0, "page_size": 1})


@attrs.frozen(kw_only=True)
class ProfileConfig:
    """A named part of what is served, at a path of its own. What no glob names is not in it.

    Attributes:
        name: the last part of its path, `/mcp/NAME`.
        tools: globs over exported names.
        prompts: globs over exported names.
        resources: globs over exported URIs, those of templates included.

    """

    name: str
    tools: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    prompts: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    resources: tuple[str, ...] = attrs.field(default=(), converter=_texts)

    def __attrs_post_init__(self) -> None:
        raise_problems(f"profiles.{self.name}", self._faults())

    def _faults(self) -> Iterator[Fault]:
        if not AGENT_NAME.fullmatch(self.name):
            yield "", "the name cannot be a profile's", "use 1 to 64 letters, digits, `_` and `-`"
        if not (self.tools or self.prompts or self.resources):
            yield "", "nothing is in the profile", 'write tools = ["*"], or globs over names'


def _by_name(sources: Mapping[str, Source] | Iterable[Source]) -> Mapping[str, Source]:
    if isinstance(sources, Mapping):
        return dict(sources)
    named: dict[str, Source] = {}
    for source in sources:
        if source.name in named:
            raise ConfigError([Problem("", f"sources.{source.name}", "is given twice", "give each its own name")])
        named[source.name] = source
    return named


def _profiles_by_name(
    profiles: Mapping[str, ProfileConfig] | Iterable[ProfileConfig],
) -> Mapping[str, ProfileConfig]:
    return dict(profiles) if isinstance(profiles, Mapping) else {profile.name: profile for profile in profiles}


@attrs.frozen(kw_only=True)
class Config:
    """Everything that a fabric is made from.

    Attributes:
        sources: by name, in configured order; those that can be used, disabled ones included.
        agents: by name.
        supervisors: of agents, by name.
        gateway: how it is served.
        profiles: named parts of what is served, by name.
        bounds: what it holds at most.
        state_dir: where it keeps what outlives it; "" for `cord_trio` in the user's folder for such (XDG).
        mesh: how it is a node of a mesh; None for alone.
        problems: everything that is wrong with it and yet no reason to refuse it.
        broken: the sources that cannot be used, by name, each with its own problems.
        file: where it was read from; "" if built in code.

    """

    sources: Mapping[str, Source] = attrs.field(factory=dict, converter=_by_name)
    agents: Mapping[str, AgentConfig] = attrs.field(factory=dict, converter=agents_by_name)
    supervisors: Mapping[str, SupervisorConfig] = attrs.field(factory=dict, converter=supervisors_by_name)
    gateway: GatewayConfig = attrs.field(factory=GatewayConfig)
    profiles: Mapping[str, ProfileConfig] = attrs.field(factory=dict, converter=_profiles_by_name)
    bounds: Bounds = attrs.field(factory=Bounds)
    state_dir: str = ""
    mesh: MeshConfig | None = None
    problems: tuple[Problem, ...] = ()
    broken: Mapping[str, tuple[Problem, ...]] = attrs.field(factory=dict)
    file: str = ""

    def __attrs_post_init__(self) -> None:
        raise_problems("sources", shared_prefixes(self.sources.values()))
        raise_problems("", check_supervisors(self.agents, self.supervisors))

    @property
    def enabled(self) -> Mapping[str, Source]:
        """The sources to connect."""
        return {name: source for name, source in self.sources.items() if source.enabled}


def shared_prefixes(sources: Iterable[Source]) -> Iterator[Fault]:
    """For each source whose prefix an earlier enabled one has: its name, what is wrong, what to do."""
    first: dict[str, str] = {}
    for source in sources:
        prefix = source.export_prefix
        if not prefix or not source.enabled:
            continue
        if prefix in first:
            yield source.name, f"its prefix {prefix!r} is that of {first[prefix]!r} too", "set another prefix"
        else:
            first[prefix] = source.name


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPV6]:PORT`, `HOST` or `:PORT`.

    Raises:
        ValueError: it is none of these; says what to write.

    """
    expected = f"write HOST:PORT, such as {HTTP_HOST}:{HTTP_PORT}"
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text)
    plain = bracketed or re.fullmatch(r"([A-Za-z0-9._-]*)(?::([0-9]{1,5}))?", text)
    if plain is None or not text or text == ":":
        raise ValueError(expected)
    host, port = plain[1] or HTTP_HOST, int(plain[2]) if plain[2] else HTTP_PORT
    if port > 65535:
        raise ValueError("a port is 0 to 65535")
    return host, port
