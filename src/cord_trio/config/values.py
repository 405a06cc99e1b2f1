"""Sources as frozen values: what a server is, how to reach it, and what of it is exported.

A value that exists is valid: building a wrong one raises `ConfigError` with every problem at once, also
in code. Secrets (environment, headers, arguments, the query of a URL) are in no `repr`.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from cord_trio.config.checks import check_numbers, glob_faults, raise_problems, texts
from cord_trio.config.layering import Layered, ToolSettings, in_order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from cord_trio.call import Layer
    from cord_trio.config.checks import Fault
    from cord_trio.config.rules import Shown

MAX_PREFIX = 40
"""Characters of a prefix: an exported name has 64 in all, and must leave room to tell tools apart."""

MAX_REPLICAS = 64
"""Like servers that stand for one source."""

RESERVED_PREFIXES = frozenset({"agent", "cord"})
"""Prefixes of the fabric's own tools."""

TRANSPORT_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect",
        "host", "keep-alive", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that the transport writes itself, lower case."""

_NAME_CHARACTERS = re.compile(r"[A-Za-z0-9_-]+")
_OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _copied(values: Mapping[str, str]) -> Mapping[str, str]:
    return dict(values)


def _copied_settings(values: Mapping[str, ToolSettings]) -> Mapping[str, ToolSettings]:
    return dict(values)


def _only_names(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: ***" for name in values) + "}"


def _only_count(values: tuple[str, ...]) -> str:
    return f"<{len(values)}>"


def public_url(url: str) -> str:
    """`url` without what may be secret in it: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    hidden = "?***" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{hidden}"


def _public_repr(url: str) -> str:
    return repr(public_url(url))


@attrs.frozen
class ToolFilter:
    """Which tools of a source are exported, and under which base names.

    The same predicate decides when tools are listed and when one is called.

    Attributes:
        allow: globs over the server's names, in its own case.
        deny: globs over the server's names and over the renamed ones; wins over `allow`.
        rename: the server's name → the name to export it as (before the prefix).

    """

    allow: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    deny: tuple[str, ...] = attrs.field(default=(), converter=texts)
    rename: Mapping[str, str] = attrs.field(factory=dict, converter=_copied)

    def __attrs_post_init__(self) -> None:
        raise_problems("tools", self._faults())

    def exports(self, tool: str) -> str | None:
        """The base name under which the server's `tool` is exported; None if it is not."""
        base = self.rename.get(tool, tool)
        if not any(fnmatchcase(tool, pattern) for pattern in self.allow):
            return None
        if any(fnmatchcase(tool, pattern) or fnmatchcase(base, pattern) for pattern in self.deny):
            return None
        return base

    def _faults(self) -> Iterator[Fault]:
        yield from glob_faults("allow", self.allow)
        yield from glob_faults("deny", self.deny)
        first: dict[str, str] = {}
        for tool, base in self.rename.items():
            if not _NAME_CHARACTERS.fullmatch(base) or len(base) > 64:
                remedy = "use 1 to 64 letters, digits, `_` and `-`"
                yield f"rename.{tool}", "the new name cannot be exported", remedy
            elif base in first:
                yield f"rename.{tool}", f"{first[base]!r} is renamed to the same name", "give each its own"
            first.setdefault(base, tool)


EVERY_TOOL = ToolFilter()


@attrs.frozen(kw_only=True)
class Common(Layered):
    """What every source has, beside its layers.

    Attributes:
        name: what the user calls it.
        prefix: of its exported names; None for the name itself, "" to export names unchanged.
        connect: seconds to connect and greet.
        first_list: seconds for the first list of tools.
        trust: whether the annotations of its tools are believed.
        asks: whether it may show some tools only to those who can be asked, and is listed as one of them too.
        era: which protocol era to speak; "auto" finds out.
        tools: which tools are exported, and as what.
        tool: settings of single tools: globs over the server's names; the first that matches counts.
        layers: of the user's own, around its calls, the first of them outermost; in code only.
        start: when it is started: "eager" at once; "lazy" when somebody first lists or calls; "manifest" when its
            tools are first called, which are listed from what it listed the last time.
        idle: seconds without use after which it is stopped until it is called again; None for never.
        hedge: whether a call that may run twice, and takes longer than most, is also made of another of its servers.
        enabled: False to leave it out.
        max_message: bytes of one message from it.

    """

    name: str
    prefix: str | None = None
    connect: float = 10.0
    first_list: float = 30.0
    trust: bool = False
    asks: bool = False
    era: Literal["auto", "modern", "legacy"] = "auto"
    tools: ToolFilter = EVERY_TOOL
    tool: Mapping[str, ToolSettings] = attrs.field(factory=dict, converter=_copied_settings)
    layers: tuple[Layer, ...] = attrs.field(default=(), converter=in_order)
    start: Literal["eager", "lazy", "manifest"] = "eager"
    idle: float | None = None
    hedge: bool = False
    enabled: bool = True
    max_message: int = 16 * 1024 * 1024

    def __attrs_post_init__(self) -> None:
        raise_problems(f"sources.{self.name}", self.faults())

    @property
    def export_prefix(self) -> str:
        """What its exported names begin with, before `__`; "" if they go out unchanged."""
        return _OTHER_CHARACTERS.sub("_", self.name) if self.prefix is None else self.prefix

    def settings_of(self, tool: str) -> ToolSettings | None:
        """The settings of the server's `tool`, if it has any of its own."""
        return next((each for glob, each in self.tool.items() if fnmatchcase(tool, glob)), None)

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this value; nothing, once it exists."""
        if not self.name or not self.name.isprintable():
            yield "", "the name is empty or holds control characters", "give it a plain name"
        yield from self._prefix_faults()
        yield from self.layer_faults()
        yield from check_numbers(self, {"connect": 0.0, "first_list": 0.0, "idle": 1, "max_message": 1024})
        if self.era not in ("auto", "modern", "legacy"):
            yield "era", "is not an era", 'write "auto", "modern" or "legacy"'
        if self.start not in ("eager", "lazy", "manifest"):
            yield "start", "is not a way to start", 'write "eager", "lazy" or "manifest"'

    def _hedge_faults(self, lacks: str) -> Iterator[Fault]:
        """`lacks`: what gives the source a second server; "" if it has one."""
        if self.hedge and lacks:
            yield "hedge", "asks a second server, and the source has one", f"give it {lacks}, or remove it"
        elif self.hedge and self.retries == 0:
            yield "hedge", "costs a retry, and the source has none", "set retries to 1 or more, or remove it"

    def _prefix_faults(self) -> Iterator[Fault]:
        prefix, path = self.export_prefix, "" if self.prefix is None else "prefix"
        remedy = f"set prefix to 1 to {MAX_PREFIX} letters, digits, `_` and `-`"
        if self.prefix is None and not any(character.isalnum() for character in prefix):
            yield path, "the name cannot be the prefix of tools", remedy
        elif self.prefix and not _NAME_CHARACTERS.fullmatch(prefix):
            yield path, "holds characters that a tool's name may not have", remedy
        elif len(prefix) > MAX_PREFIX:
            yield path, f"{'the name' if self.prefix is None else 'it'} is too long for a prefix", remedy
        elif prefix.lower() in RESERVED_PREFIXES:
            yield path, f"the prefix {prefix!r} is kept for the fabric's own tools", "set another prefix"


@attrs.frozen(kw_only=True)
class Stdio(Common):
    """A server that is our child process and speaks over its standard streams.

    Attributes:
        command: a path, or a name that is looked up on PATH.
        args: its arguments.
        env: variables that it gets beside the allow-listed ones.
        cwd: its working folder; None for ours.
        replicas: how many of it run, each of which takes its share of the calls.

    """

    command: str
    replicas: int = 1
    args: tuple[str, ...] = attrs.field(default=(), converter=texts, repr=_only_count)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_copied, repr=_only_names)
    cwd: str | None = None

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this value; nothing, once it exists."""
        yield from super().faults()
        if not self.command.strip():
            yield "command", "is empty", "name the program to start"
        elif not self.args and "/" not in self.command and len(self.command.split()) > 1:
            yield "command", "holds a whole command line", "put the program in command, each argument in args"
        texts = {"command": self.command, "cwd": self.cwd or ""}
        texts |= {f"args[{index}]": arg for index, arg in enumerate(self.args)}
        texts |= {f"env.{name}": value for name, value in self.env.items()}
        for path, text in texts.items():
            if not _fits_a_process(text):
                yield path, "holds a character that no process can be given", "remove it"
        for name in self.env:
            if not name or "=" in name or not _fits_a_process(name):
                yield "env", "holds a name that no variable can have", "use letters, digits and `_`"
        yield from _replica_faults(self.replicas)
        yield from self._hedge_faults("replicas = 2" if self.replicas == 1 else "")


@attrs.frozen(kw_only=True)
class Http(Common):
    """A server behind HTTP.

    Attributes:
        url: the endpoint.
        headers: sent with each request.
        redirects: whether redirects within the same origin are followed; others never are.
        transport: "streamable" (MCP Streamable HTTP) or "sse" (the HTTP+SSE of 2024-11-05).
        urls: further endpoints of like servers, each of which takes its share of the calls.

    """

    url: str = attrs.field(repr=_public_repr)
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=_copied, repr=_only_names)
    redirects: bool = True
    transport: Literal["streamable", "sse"] = "streamable"
    urls: tuple[str, ...] = attrs.field(default=(), converter=texts, repr=_only_count)

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this value; nothing, once it exists."""
        yield from super().faults()
        yield from _url_faults(self.url, ("http", "https"))
        for place, url in enumerate(self.urls):
            for _, what, remedy in _url_faults(url, ("http", "https")):
                yield f"urls[{place}]", what, remedy
            if url in (self.url, *self.urls[:place]):
                yield f"urls[{place}]", "is given twice", "keep one"
        if len(self.urls) >= MAX_REPLICAS:
            yield "urls", "are too many", f"give {MAX_REPLICAS} or fewer"
        yield from self._hedge_faults("" if self.urls else "another endpoint in urls")
        yield from _header_faults(self.headers)
        if self.transport not in ("streamable", "sse"):
            yield "transport", "is not a transport", 'write "streamable" or "sse"'
        elif self.transport == "sse" and self.era == "modern":
            yield "era", "is modern, which HTTP+SSE never is", 'leave it out, or set transport to "streamable"'


@attrs.frozen(kw_only=True)
class WebSocket(Common):
    """A server behind a WebSocket: `url` as `ws://` or `wss://`, `headers` of the opening request."""

    url: str = attrs.field(repr=_public_repr)
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=_copied, repr=_only_names)

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this value; nothing, once it exists."""
        yield from super().faults()
        yield from _url_faults(self.url, ("ws", "wss"))
        yield from _header_faults(self.headers)
        for name in self.headers:
            if name.lower().startswith("sec-websocket-"):
                yield f"headers.{name}", "is written by the transport", "remove it"
        if self.hedge:
            yield "hedge", "asks a second server, and a WebSocket source has one", "remove it"


@attrs.frozen(kw_only=True)
class InProcess(Common):
    """A server in this process, given in code only.

    Attributes:
        serve: called with its end of an in-memory transport at each connect; runs until cancelled.
        replicas: to how many of it calls go.

    """

    serve: Callable[..., Awaitable[object]]
    replicas: int = 1

    def faults(self) -> Iterator[Fault]:
        """What is wrong with this value; nothing, once it exists."""
        yield from super().faults()
        yield from _replica_faults(self.replicas)
        yield from self._hedge_faults("replicas = 2" if self.replicas == 1 else "")


async def _nowhere(*_: object) -> None:  # noqa: ASYNC124  # async by contract
    raise NotImplementedError("a source of another node is kept by who brought it")


@attrs.frozen(kw_only=True)
class Foreign(InProcess):
    """A server that another node of the mesh keeps. The fabric calls it as if it were its own.

    Attributes:
        keeper: makes what stands for it here: called with the source and what `Link` takes.
        digest: of what it lists; the source is another once that is.
        shown: what its node's rules say of who may see what of it.

    """

    keeper: Callable[..., object] = attrs.field(eq=False, repr=False)
    digest: str
    shown: tuple[Shown, ...] = attrs.field(default=(), eq=False, repr=False)
    serve: Callable[..., Awaitable[object]] = attrs.field(default=_nowhere, eq=False, repr=False)


Source: TypeAlias = Stdio | Http | WebSocket | InProcess


def several(source: Source) -> tuple[Source, ...]:
    """The like servers that stand for `source`, each as a source of its own; none if it is one server."""
    alone: list[Source] = []
    match source:
        case Http(urls=urls) if urls:
            alone = [attrs.evolve(source, url=url, urls=(), hedge=False) for url in (source.url, *urls)]
        case Stdio(replicas=count) | InProcess(replicas=count) if count > 1:
            alone = [attrs.evolve(source, replicas=1, hedge=False)] * count
        case _:
            return ()
    prefix = source.export_prefix
    return tuple(attrs.evolve(each, name=f"{source.name}#{n}", prefix=prefix) for n, each in enumerate(alone, 1))


def _replica_faults(count: int) -> Iterator[Fault]:
    if isinstance(count, bool) or not isinstance(count, int):
        yield "replicas", "is no whole number", f"give 1 to {MAX_REPLICAS}"
    elif not 1 <= count <= MAX_REPLICAS:
        yield "replicas", "is out of range", f"give 1 to {MAX_REPLICAS}"


def _fits_a_process(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _url_faults(url: str, schemes: tuple[str, str]) -> Iterator[Fault]:
    expected = f"write {schemes[0]}://host/path or {schemes[1]}://host/path"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        yield "url", "holds characters that a URL may not have", "percent-encode them"
        return
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        yield "url", "is not a URL", expected
        return
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        yield "url", "is not a URL that can be reached", expected
    if "@" in parts.netloc:
        yield "url", "holds a user or password", "put credentials into headers.Authorization"


def _header_faults(headers: Mapping[str, str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            yield "headers", "holds a name that no header can have", "use letters, digits and `-`"
        elif name.lower() in TRANSPORT_HEADERS:
            yield f"headers.{name}", "is written by the transport", "remove it"
        elif name.lower() in seen:
            yield f"headers.{name}", "is given twice", "keep one"
        elif any((character < " " and character != "\t") or not "\0" < character < "\x7f" for character in value):
            yield f"headers.{name}", "its value holds characters that a header may not have", "remove them"
        seen.add(name.lower())
