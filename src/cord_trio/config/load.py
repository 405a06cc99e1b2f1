"""A configuration file → `Config`: our own TOML, and what is pasted from other clients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from cord_trio.config.agents import check_supervisors, read_agents, read_supervisors
from cord_trio.config.documents import MAX_FILE, decode_document, decode_text, guess_format
from cord_trio.config.expand import expand
from cord_trio.config.layering import LAYER_MEMBERS, Layered, read_layers
from cord_trio.config.mesh import read_mesh
from cord_trio.config.settings import (
    Bounds,
    Config,
    GatewayConfig,
    ProfileConfig,
    parse_address,
    shared_prefixes,
)
from cord_trio.config.sources import COMMON_MEMBERS, Dialect, read_source
from cord_trio.config.table import Member, Report, Table, below, kind, move, nearest
from cord_trio.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cord_trio.config.values import Source
    from cord_trio.protocol.jsonrpc import Json

DEFAULT_FILES = ("cord.toml", ".mcp.json")
"""Looked for in the working folder, in this order."""

OUR_TABLES = ("sources", "layers", "gateway", "profiles", "agents", "supervisors", "bounds", "mesh")

CONTAINERS: tuple[tuple[tuple[str, ...], Dialect], ...] = (
    (("sources",), "ours"),
    (("mcpServers",), "plain"),
    (("servers",), "vscode"),
    (("mcp", "servers"), "vscode"),
    (("context_servers",), "zed"),
    (("mcp_servers",), "codex"),
)
"""Where sources are, and in whose words."""

_CONNECTS = ("command", "url", "httpUrl", "serverUrl")
_GEMINI_MEMBERS = ("httpUrl", "includeTools", "excludeTools")


def load_config(path: str | Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in `path`, by default in `cord.toml`, else `.mcp.json`, of the working folder.

    Raises:
        ConfigError: the file cannot be used; holds every problem. A problem of one source alone is no
            reason: it is in `Config.problems`, and the source in `Config.broken`.

    """
    if path is None:
        path = next((name for name in DEFAULT_FILES if os.path.lexists(name)), None)
    if path is None:
        remedy = "write one, paste your mcpServers block into .mcp.json, or name a file"
        raise ConfigError([Problem("", "", f"no {' or '.join(DEFAULT_FILES)} in this folder", remedy)])
    file = str(path)
    text = decode_text(_read(file), file=file)
    return parse_config(text, format=guess_format(file, text), file=file, environ=environ)


def parse_config(
    text: str, *, format: Literal["toml", "json"], file: str = "", environ: Mapping[str, str] = os.environ
) -> Config:
    """The configuration that `text` is; pure.

    Args:
        text: of the file.
        format: what it is written in.
        file: what problems call it.
        environ: where variables are looked up.

    Raises:
        ConfigError: see `load_config`.

    """
    document = decode_document(text, format=format, file=file)
    containers = list(_containers(document))
    report = Report(file)
    top = Table(document, "", report)
    foreign = any(dialect != "ours" for _, dialect, _ in containers)
    ours = not foreign or any(name in document for name in ("sources", "gateway", "bounds", "layers", "mesh"))
    if ours:
        _check_names(document, containers, report)
    bounds = _bounds(top if ours else Table({}, "", report))
    layers = _layers(top) if ours else {}
    gateway = _gateway(top if ours else Table({}, "", report), bounds)
    profiles = _profiles(top) if ours else {}
    state_dir = _state_dir(top, environ) if ours else ""
    mesh = read_mesh(top, environ) if ours else None
    agents = read_agents(top) if ours or _holds_agents(document.get("agents")) else {}
    supervisors = read_supervisors(top) if ours or agents else {}
    for path, what, remedy in check_supervisors(agents, supervisors):
        report.add(path, what, remedy)
    sources: dict[str, Source] = {}
    broken: dict[str, list[Problem]] = {}
    problems = report.problems
    seen: dict[str, str] = {}
    for path, dialect, entries in containers:
        if not isinstance(entries, Mapping):
            report.add(path, f"is {kind(entries)}, not a table", "give each source a table of its own")
            continue
        Table(entries, path, report)
        for name, entry in entries.items():
            place = below(path, name)
            if name in seen:
                report.note(place, f"is configured at {seen[name]} already; that one is used", "remove one")
                continue
            seen[name] = place
            words: Dialect = "gemini" if dialect == "plain" and _is_gemini(entries, file) else dialect
            source, found = read_source(
                name, entry, path=place, dialect=words, bounds=bounds, layers=layers, environ=environ, file=file
            )
            problems += found
            if source is not None:
                sources[name] = source
            elif any(problem.source is not None for problem in found):
                broken[name] = [problem for problem in found if problem.source is not None]
    for name, what, remedy in list(shared_prefixes(sources.values())):
        problem = Problem(file, seen[name], what, remedy, fatal=False, source=name)
        problems.append(problem)
        broken[name] = [problem]
        del sources[name]
    if any(problem.fatal for problem in problems):
        raise ConfigError(problems)
    if not sources and not broken and not agents and mesh is None:
        report.note("", "configures no source and no agent", "add one")
    for name in () if mesh is None else mesh.groups:
        if name not in seen:
            remedy = nearest(name, seen) if seen else "configure it"
            report.note(f"mesh.groups.{name}", "names no source of this file, so nothing is in that group", remedy)
    return Config(
        sources=sources,
        agents=agents,
        supervisors=supervisors,
        gateway=gateway,
        profiles=profiles,
        bounds=bounds,
        state_dir=state_dir,
        mesh=mesh,
        problems=tuple(problems),
        broken={name: tuple(found) for name, found in broken.items()},
        file=file,
    )


def _read(file: str) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(MAX_FILE + 1)
    except FileNotFoundError as exc:
        raise ConfigError([Problem(file, "", "does not exist", "name a file that does")]) from exc
    except IsADirectoryError as exc:
        raise ConfigError([Problem(file, "", "is a folder", f"name a file, such as {file}/cord.toml")]) from exc
    except PermissionError as exc:
        raise ConfigError([Problem(file, "", "may not be read", "give this user the right to")]) from exc
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "the name is not a file's"
        raise ConfigError([Problem(file, "", f"cannot be read: {reason}", "name another file")]) from exc


def _containers(document: Mapping[str, Member]) -> Iterator[tuple[str, Dialect, Member]]:
    found = False
    for names, dialect in CONTAINERS:
        value: Member = document
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found = True
            yield ".".join(names), dialect, value
    if not found and document and all(_connects(entry) for entry in document.values()):
        yield "", "plain", document  # a block pasted without what is around it


def _connects(entry: Member) -> bool:
    return isinstance(entry, Mapping) and any(name in entry for name in _CONNECTS)


def _is_gemini(entries: Mapping[str, Member], file: str) -> bool:
    if ".gemini/" in file.replace("\\", "/"):
        return True
    return any(
        isinstance(entry, Mapping) and any(key in entry for key in _GEMINI_MEMBERS) for entry in entries.values()
    )


def _holds_agents(value: Member) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(agent, Mapping) and "handler" in agent for agent in value.values()
    )


def _check_names(document: Mapping[str, Member], containers: list[tuple[str, Dialect, Member]], report: Report) -> None:
    known = {*OUR_TABLES, "state_dir", *(names[0] for names, _ in CONTAINERS), "inputs", "$schema"}
    for name in document:
        if name not in known and not any(path == "" for path, _, _ in containers):
            report.add(below("", name), "is not known", nearest(name, [*OUR_TABLES, "mcpServers"]))


def _bounds(top: Table) -> Bounds:
    table = top.table("bounds")
    if table is None:
        return Bounds()
    fields = attrs.fields(Bounds)
    table.only(field.name for field in fields)
    given: dict[str, Json] = {}
    for field in fields:
        value = table.number(field.name) if isinstance(field.default, float) else table.count(field.name)
        if value is not None:
            given[field.name] = value
    try:
        return Bounds(**given)
    except ConfigError as exc:
        move(exc, "bounds", table)
        return Bounds()


def _layers(top: Table) -> dict[str, Json]:
    """What sources are surrounded with that do not say."""
    table = top.table("layers")
    if table is None:
        return {}
    mine = [name for name in table.members if name in COMMON_MEMBERS and name not in LAYER_MEMBERS]
    for name in mine:
        table.report.add(table.at(name), "is of one source", "write it into [sources.NAME]")
    table.only((*LAYER_MEMBERS, *mine))
    given = read_layers(table, LAYER_MEMBERS)
    try:
        Layered(**given)
    except ConfigError as exc:
        move(exc, "layers", table)
        return {}
    return given


def _gateway(top: Table, bounds: Bounds) -> GatewayConfig:
    table = top.table("gateway") or Table({}, "gateway", top.report)
    table.only(
        ("http", "grace", "allowed_hosts", "allowed_origins", "page_size", "sse", "roots", "record", "record_secrets")
    )
    given: dict[str, Json] = {
        "grace": table.number("grace"),
        "allowed_hosts": table.texts("allowed_hosts"),
        "allowed_origins": table.texts("allowed_origins"),
        "page_size": table.count("page_size"),
        "sse": table.flag("sse"),
        "roots": table.texts("roots"),
        "record": table.text("record"),
        "record_secrets": table.texts("record_secrets"),
    }
    given = {"grace": bounds.drain, **{name: value for name, value in given.items() if value is not None}}
    address = table.text("http")
    if address is not None:
        try:
            given["host"], given["port"] = parse_address(address)
        except ValueError as exc:
            table.report.add(table.at("http"), "is not an address to listen on", str(exc))
    try:
        return GatewayConfig(**given)
    except ConfigError as exc:
        move(exc, "gateway", table)
        return GatewayConfig()


def _state_dir(top: Table, environ: Mapping[str, str]) -> str:
    text, faults = expand(top.text("state_dir") or "", environ, home=True)
    for what, remedy in faults:
        top.report.add("state_dir", what, remedy)
    return text


def _profiles(top: Table) -> dict[str, ProfileConfig]:
    table = top.table("profiles")
    profiles: dict[str, ProfileConfig] = {}
    for name in table.members if table else ():
        entry = table.table(name) if table else None
        if entry is None:
            continue
        entry.only(("tools", "prompts", "resources"))
        given = {part: entry.texts(part) or () for part in ("tools", "prompts", "resources")}
        try:
            profiles[name] = ProfileConfig(name=name, **given)
        except ConfigError as exc:
            move(exc, f"profiles.{name}", entry)
    return profiles
