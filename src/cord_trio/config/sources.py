"""One entry of a document → one source, in our own words or in those of another client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from cord_trio.config.expand import UNSET, expand
from cord_trio.config.layering import LAYER_MEMBERS, read_layers, read_tools
from cord_trio.config.table import Member, Report, Table, below, kind, nearest
from cord_trio.config.values import EVERY_TOOL, Http, Source, Stdio, ToolFilter, WebSocket
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from cord_trio.config.settings import Bounds
    from cord_trio.errors import Problem
    from cord_trio.protocol.jsonrpc import Json

Dialect: TypeAlias = Literal["ours", "plain", "gemini", "vscode", "zed", "codex"]

STDIO_MEMBERS = ("command", "args", "env", "cwd", "replicas")
HTTP_MEMBERS = ("url", "urls", "headers", "redirects")
COMMON_MEMBERS = (
    "prefix", "connect", "first_list", "trust", "era", "asks", "tools", "tool", "start", "idle",
    "hedge", "enabled", "max_message",
    *LAYER_MEMBERS,
)  # fmt: skip
OUR_MEMBERS = (*STDIO_MEMBERS, *HTTP_MEMBERS, *COMMON_MEMBERS, "type", "transport")

ALIASES: Mapping[str, str] = {
    "serverUrl": "url",
    "httpUrl": "url",
    "http_headers": "headers",
    "workingDirectory": "cwd",
    "includeTools": "allow",
    "enabled_tools": "allow",
    "excludeTools": "deny",
    "disabled_tools": "deny",
    "disabledTools": "deny",
    "tool_timeout_sec": "deadline",
    "startup_timeout_sec": "connect",
    "transportType": "transport",
}
"""What other clients call our members."""

PASSED_OVER = frozenset(
    {
        "alwaysAllow", "auth", "authProviderType", "autoApprove", "autoStart", "default_tools_approval_mode",
        "description", "dev", "gallery", "icon", "id", "metadata", "note", "oauth", "oauth_resource", "registry",
        "remote", "required", "sandbox", "sandboxEnabled", "scopes", "settings", "source", "timeout", "trust",
        "version",
    }
)  # fmt: skip
"""Members of other clients that mean nothing here. Their `trust` skips questions; ours believes annotations."""

KINDS: Mapping[str, str] = {
    "stdio": "stdio",
    "local": "stdio",
    "http": "http",
    "https": "http",
    "remote": "http",
    "streamable": "http",
    "streamablehttp": "http",
    "sse": "sse",
    "ws": "ws",
    "websocket": "ws",
}
"""What a `type` or `transport` says, in lower case without marks → how to connect."""

_MARKS = re.compile(r"[-_ ]")


def read_source(
    name: str,
    entry: Member,
    *,
    path: str,
    dialect: Dialect,
    bounds: Bounds,
    layers: Mapping[str, Json],
    environ: Mapping[str, str],
    file: str,
) -> tuple[Source | None, list[Problem]]:
    """The source that `entry` describes, None if it cannot be used, and what is wrong or was passed over.

    A disabled source that cannot be used is left out with notes, of variables that are not set without. `layers` are
    those of a source that does not say.
    """
    report = Report(file, name)
    if not isinstance(entry, Mapping):
        report.add(path, f"is {kind(entry)}, not a table", "give it a command or a url")
        return None, report.problems
    table = Table(entry, path, report) if dialect == "ours" else _translate(entry, path, dialect, report, environ)
    if dialect == "ours":
        table.only(OUR_MEMBERS)
    source = _build(name, table, {**_bounded(bounds), **layers}, environ)
    if table.members.get("enabled") is False and any(problem.source for problem in report.problems):
        # It is left out anyhow. What is not set may be so for that reason; what is wrong is worth a word.
        told = [problem for problem in report.problems if not problem.what.endswith(UNSET)]
        return None, [attrs.evolve(problem, fatal=False, source=None) for problem in told]
    return source, report.problems


def _translate(
    entry: Mapping[str, Member], path: str, dialect: Dialect, report: Report, environ: Mapping[str, str]
) -> Table:
    """Another client's entry in our words."""
    members: dict[str, Member] = {}
    origins: dict[str, str] = {}

    def put(ours: str, value: Member, theirs: str) -> None:
        members[ours] = value
        if ours != theirs:
            origins[ours] = theirs

    for theirs, value in entry.items():
        match theirs, value:
            case ("url", _) if entry.get("httpUrl") is not None:
                pass
            case "command", Mapping():  # Zed, before 2025-11
                for inner, ours in (("path", "command"), ("args", "args"), ("env", "env")):
                    if inner in value:
                        put(ours, value[inner], f"command.{inner}")
            case "disabled", bool():
                put("enabled", not value, theirs)
            case "disabled", _:
                put("enabled", value, theirs)
            case "startup_timeout_ms", int() | float() if not isinstance(value, bool) and abs(value) < 1e12:
                put("connect", value / 1000, theirs)
            case "tools", Mapping() if not value.keys() & {"allow", "deny", "rename"}:
                pass
            case (("bearer_token_env_var" | "env_http_headers" | "env_vars"), _):
                pass
            case "envFile", str():
                report.add(below(path, theirs), "is not read", "put its variables under env")
            case _ if theirs in PASSED_OVER or theirs[:1] in ("_", "$", "/", "#"):
                pass
            case _:
                ours = ALIASES.get(theirs, theirs)
                if ours in OUR_MEMBERS or ours in ("allow", "deny"):
                    put(ours, value, theirs)
                else:
                    remedy = nearest(theirs, ("command", "args", "env", "cwd", "url", "headers", "type", "disabled"))
                    report.note(below(path, theirs), "is not known, and was passed over", remedy)
    _add_from_environment(entry, members, origins, path, report, environ)
    if dialect == "gemini" and entry.get("httpUrl") is None and entry.get("type") is None and "url" in members:
        members["transport"] = "sse"
    return Table(members, path, report, origins=origins)


def _add_from_environment(
    entry: Mapping[str, Member],
    members: dict[str, Member],
    origins: dict[str, str],
    path: str,
    report: Report,
    environ: Mapping[str, str],
) -> None:
    """Codex names variables instead of writing `${VAR}`: put that into headers and env."""
    table = Table(entry, path, report)
    named = dict(table.pairs("env_http_headers") or {})
    headers = {header: ("env_http_headers." + header, f"${{{variable}}}") for header, variable in named.items()}
    if bearer := table.text("bearer_token_env_var"):
        headers["Authorization"] = ("bearer_token_env_var", f"Bearer ${{{bearer}}}")
    given = members.get("headers")
    if headers and (given is None or isinstance(given, Mapping)):
        members["headers"] = {**(given or {}), **{name: value for name, (_, value) in headers.items()}}
        origins.update({f"headers.{name}": origin for name, (origin, _) in headers.items()})
    listed = entry.get("env_vars")
    items: list[Member] = listed if isinstance(listed, list) else []
    names = [item.get("name") if isinstance(item, Mapping) else item for item in items]
    forwarded = {name: f"${{{name}}}" for name in names if isinstance(name, str) and name in environ}
    variables = members.get("env")
    if forwarded and (variables is None or isinstance(variables, Mapping)):
        members["env"] = {**forwarded, **(variables or {})}


def _build(name: str, table: Table, defaults: Mapping[str, Json], environ: Mapping[str, str]) -> Source | None:
    urls = table.members.get("urls")
    if table.members.get("url") is None and isinstance(urls, list) and urls:  # the first is as good as any
        members = {**table.members, "url": urls[0], "urls": urls[1:]}
        origins = {"url": "urls[0]", **{f"urls[{place}]": f"urls[{place + 1}]" for place in range(len(urls) - 1)}}
        table = Table(members, table.path, table.report, origins=origins)
    how = _kind(table)
    common = _common(name, table, defaults)
    expander = _Expander(table, environ)
    try:
        match how:
            case "http" | "sse" | "ws":
                redirects = table.flag("redirects")
                url = expander.text("url", trim=True) or ""
                headers = {key: value.strip(" \t\r\n") for key, value in expander.pairs("headers").items()}
                if how == "ws":
                    return _settled(table, WebSocket(url=url, headers=headers, **common))
                transport: Literal["streamable", "sse"] = "sse" if how == "sse" else "streamable"
                source = Http(
                    url=url, urls=expander.texts("urls"), headers=headers, redirects=redirects is not False,
                    transport=transport, **common,
                )  # fmt: skip
                return _settled(table, source)
            case "stdio":
                command, cwd = expander.text("command", home=True), expander.text("cwd", home=True)
                args, env = expander.texts("args"), expander.pairs("env")
                replicas = 1 if (given := table.count("replicas")) is None else given
                return _settled(
                    table, Stdio(command=command or "", args=args, env=env, cwd=cwd, replicas=replicas, **common)
                )
            case _:
                Stdio(command="-", **common)  # for what else is wrong
                return None
    except ConfigError as exc:
        _relocate(exc, f"sources.{name}", table)
        return None


def _settled(table: Table, source: Source) -> Source | None:
    return None if any(problem.source for problem in table.report.problems) else source


def _relocate(error: ConfigError, place: str, table: Table) -> None:
    """Report the problems of a value where the user wrote its members, unless that place is reported already."""
    reported = {problem.path for problem in table.report.problems if problem.source}
    for problem in error.problems:
        path = table.at(problem.path[len(place) :].removeprefix("."))
        if path == table.path or not any(_covers(known, path) for known in reported):
            table.report.add(path, problem.what, problem.remedy)


def _covers(known: str, path: str) -> bool:
    return path == known or (path.startswith(known) and path[len(known)] in ".[")


def _kind(table: Table) -> str | None:
    """How to connect; None, reported, if that cannot be told."""
    members, report = table.members, table.report
    command, url = members.get("command") is not None, members.get("url") is not None
    said = None
    for name in ("type", "transport"):
        text = table.text(name)
        if text is not None:
            said = KINDS.get(_MARKS.sub("", text.lower()))
            if said is None:
                report.add(table.at(name), "is no way to connect", 'write "stdio", "http", "sse" or "ws"')
                return None
            break
    if command and url:
        report.add(table.path, "has both a command and a url", "keep one of them")
    elif not command and not url:
        report.add(table.path, "has neither a command nor a url", "give it one of them")
    elif said and (said == "stdio") != command:
        report.add(table.path, f"is said to be {said}, but has a {'command' if command else 'url'}", "correct one")
    else:
        _tell_misplaced(table, STDIO_MEMBERS if url else HTTP_MEMBERS, "url" if url else "command")
        if command:
            return "stdio"
        address = members.get("url")
        if said in ("sse", "ws"):
            return said
        return "ws" if isinstance(address, str) and re.match(r"\s*wss?://", address, re.IGNORECASE) else "http"
    return None


def _tell_misplaced(table: Table, others: tuple[str, ...], has: str) -> None:
    for name in others:
        if table.members.get(name) not in (None, [], {}):
            table.report.note(table.at(name), f"means nothing for a source with a {has}", "remove it")


def _bounded(bounds: Bounds) -> dict[str, Json]:
    return {
        "deadline": bounds.call,
        "connect": bounds.connect,
        "first_list": bounds.first_list,
        "slots": bounds.slots,
        "max_message": bounds.message_in,
    }


def _common(name: str, table: Table, defaults: Mapping[str, Json]) -> dict[str, Json]:
    given = {
        "prefix": table.text("prefix"),
        "trust": table.flag("trust"),
        "asks": table.flag("asks"),
        "hedge": table.flag("hedge"),
        "enabled": table.flag("enabled"),
        "era": table.text("era"),
        "max_message": table.count("max_message"),
        **{member: table.number(member) for member in ("connect", "first_list", "idle")},
        **read_layers(table, LAYER_MEMBERS),
        "start": table.text("start"),
    }
    options = {**defaults, **{member: value for member, value in given.items() if value is not None}}
    return {"name": name, "tools": _tools(table), "tool": read_tools(table), **options}


def _tools(table: Table) -> ToolFilter:
    chosen: dict[str, Json] = {"allow": table.texts("allow"), "deny": table.texts("deny")}
    if isinstance(table.members.get("tools"), list):
        chosen["allow"] = table.texts("tools")
    elif inner := table.table("tools"):
        inner.only(("allow", "deny", "rename"))
        chosen |= {"allow": inner.texts("allow"), "deny": inner.texts("deny"), "rename": inner.pairs("rename")}
    try:
        return ToolFilter(**{name: value for name, value in chosen.items() if value is not None})
    except ConfigError as exc:
        _relocate(exc, "", table)
        return EVERY_TOOL


@attrs.frozen
class _Expander:
    """Members of a table with their variables replaced; what could not be is reported at its own path."""

    table: Table
    environ: Mapping[str, str]

    def text(self, name: str, *, home: bool = False, trim: bool = False) -> str | None:
        text = self.table.text(name)
        if text is None:
            return None
        value = self._expand(name, text, home=home)
        return value.strip() if trim else value

    def texts(self, name: str) -> tuple[str, ...]:
        texts = self.table.texts(name) or ()
        return tuple(self._expand(f"{name}[{index}]", text, home=True) for index, text in enumerate(texts))

    def pairs(self, name: str) -> dict[str, str]:
        pairs = self.table.pairs(name) or {}
        return {key: self._expand(f"{name}.{key}", text) for key, text in pairs.items()}

    def _expand(self, path: str, text: str, *, home: bool = False) -> str:
        value, faults = expand(text, self.environ, home=home)
        for what, remedy in faults:
            self.table.report.add(self.table.at(path), what, remedy)
        return value
