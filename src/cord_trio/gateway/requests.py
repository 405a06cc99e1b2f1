"""What the parameters of one request ask for, whatever the era. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.gateway.capabilities import NEEDED_DATA, NEEDS_TASKS, TASKS, lacks
from cord_trio.gateway.params import decode_string, is_object, token_text
from cord_trio.gateway.routing import invalid
from cord_trio.gateway.steps import ANSWERS, BAD_REQUEST, STATE, Level, List, Listen, Reply, Run, Subscribe
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.eras import INPUT_METHODS, MISSING_CAPABILITY
from cord_trio.protocol.jsonrpc import encode, encode_error
from cord_trio.protocol.mcp import HOP_LOCAL_META, META_LOG_LEVEL, PROGRESS_TOKEN
from cord_trio.trace import take_trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.gateway.steps import Kind, Step
    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Id

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of log notifications, the least severe first (RFC 5424)."""

MAX_URIS: Final = 1_000
"""Resources that one subscription names."""

MAX_TASKS: Final = 64
"""Tasks that one subscription names."""

LISTS: Final[Mapping[str, Kind]] = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "templates",
}
"""What each list is of."""

CALLS: Final = frozenset({"tools/call", "prompts/get", "resources/read", "completion/complete"})
"""The methods that are relayed to whoever owns what they name."""

TASK_CALLS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
"""The methods of the tasks extension, which is modern alone."""

_WANTED: Final = {
    "toolsListChanged": "tools",
    "promptsListChanged": "prompts",
    "resourcesListChanged": "resources",
}
_decode_texts = msgspec.json.Decoder(list[str]).decode


def read_run(
    id: Id,
    era: Era,
    method: str,
    params: dict[str, Raw],
    meta: Mapping[str, Raw],
    capabilities: bytes,
    principal: str,
    level: str | None = None,
) -> Step:
    """One of `CALLS`. `level` is that of a legacy client's session."""
    match method:
        case "resources/read":
            name = decode_string(params.pop("uri", None))
            if not name:
                return invalid(id, "resources/read needs uri, a string")
        case "completion/complete":
            found = _completed(params)
            if found is None:
                return invalid(id, "completion/complete needs ref, of a prompt or a resource, and argument, an object")
            name = found
        case _:
            name = decode_string(params.pop("name", None))
            if not name:
                return invalid(id, f"{method} needs name, a string")
            arguments = params.get("arguments")
            if arguments is not None and not is_object(arguments):
                if bytes(arguments) != b"null":
                    return invalid(id, "arguments is not an object")
                del params["arguments"]
    params.pop("task", None)  # asks for a legacy task, which we do not declare
    token = token_text(meta.get(PROGRESS_TOKEN))
    if era.modern and META_LOG_LEVEL in meta:
        level = decode_string(meta[META_LOG_LEVEL])
        if level not in LEVELS:
            return invalid(id, f"unknown log level; there are {', '.join(LEVELS)}")
    relayed = {key: value for key, value in meta.items() if key not in HOP_LOCAL_META}
    trace = take_trace(relayed) if relayed else ""
    state, answers = None, b""
    if STATE in params or ANSWERS in params:
        raw, given = params.pop(STATE, None), params.pop(ANSWERS, None)
        if era.modern and method in INPUT_METHODS:
            state = decode_string(raw)
            if state is None and raw is not None:
                return invalid(id, f"{STATE} is not a string")
            if given is not None and not is_object(given):
                return invalid(id, f"{ANSWERS} is not an object")
            answers = bytes(given or b"")
    return Run(
        id, era, method, name, params, relayed, capabilities, token, level, principal, state, answers, trace=trace
    )


def read_task(
    id: Id, era: Era, method: str, params: dict[str, Raw], meta: Mapping[str, Raw], capabilities: bytes, principal: str
) -> Step:
    """One of `TASK_CALLS`."""
    name = decode_string(params.pop("taskId", None))
    if not name:
        return invalid(id, f"{method} needs taskId, a string")
    relayed = {key: value for key, value in meta.items() if key not in HOP_LOCAL_META}
    trace = take_trace(relayed) if relayed else ""
    return Run(id, era, method, name, params, relayed, capabilities, principal=principal, trace=trace)


def read_list(id: Id, era: Era, kind: Kind, params: Mapping[str, Raw], principal: str) -> Step:
    """One of `LISTS`."""
    raw = params.get("cursor")
    if raw is None or bytes(raw) == b"null":
        return List(id, era, None, kind, principal)
    cursor = decode_string(raw)
    return invalid(id, "cursor is not a string") if cursor is None else List(id, era, cursor, kind, principal)


def read_listen(id: Id, era: Era, params: Mapping[str, Raw], capabilities: bytes, principal: str) -> Step:
    """`subscriptions/listen`. What we do not know of its filter is not honoured, and so not acknowledged."""
    raw = params.get("notifications")
    if raw is None or not is_object(raw):
        return invalid(id, "subscriptions/listen needs notifications, an object")
    wanted = jsonrpc.members(raw)
    kinds = []
    for name, kind in _WANTED.items():
        value = bytes(wanted.get(name, b"false"))
        if value not in (b"true", b"false"):
            return invalid(id, f"{name} is not a boolean")
        if value == b"true":
            kinds.append(kind)
    uris: list[str] = []
    if "resourceSubscriptions" in wanted:
        try:
            uris = _decode_texts(wanted["resourceSubscriptions"])
        except msgspec.DecodeError:
            return invalid(id, "resourceSubscriptions is not a list of URIs")
        if len(uris) > MAX_URIS:
            return invalid(id, f"resourceSubscriptions names more than {MAX_URIS} resources (gateway.uris)")
    tasks: list[str] = []
    if "taskIds" in wanted:
        if lacks(capabilities, NEEDS_TASKS):
            error = encode_error(id, MISSING_CAPABILITY, f"taskIds needs the extension {TASKS}", NEEDED_DATA)
            return Reply(error, BAD_REQUEST)
        try:
            tasks = _decode_texts(wanted["taskIds"])
        except msgspec.DecodeError:
            return invalid(id, "taskIds is not a list of ids")
        if len(tasks) > MAX_TASKS:
            return invalid(id, f"taskIds names more than {MAX_TASKS} tasks (gateway.tasks)")
    return Listen(
        id, era, tuple(kinds), tuple(dict.fromkeys(uris)), principal, tuple(dict.fromkeys(tasks)), capabilities
    )


def read_subscribe(id: Id, params: Mapping[str, Raw], *, wanted: bool) -> Step:
    """`resources/subscribe` and `resources/unsubscribe`."""
    uri = decode_string(params.get("uri"))
    return Subscribe(id, uri, wanted) if uri else invalid(id, "needs uri, a string")


def read_level(id: Id, params: Mapping[str, Raw]) -> Step:
    """`logging/setLevel`."""
    level = decode_string(params.get("level"))
    if level not in LEVELS:
        return invalid(id, f"unknown log level; there are {', '.join(LEVELS)}")
    return Level(id, level)


def _completed(params: dict[str, Raw]) -> str | None:
    """What is completed for, taken out of `ref`, of which the type alone remains; None if it makes no sense."""
    ref, argument = params.get("ref"), params.get("argument")
    if ref is None or not is_object(ref) or argument is None or not is_object(argument):
        return None
    parts = jsonrpc.members(ref)
    kind = decode_string(parts.get("type"))
    member = {"ref/prompt": "name", "ref/resource": "uri"}.get(kind or "")
    name = decode_string(parts.get(member)) if member else None
    if not name:
        return None
    params["ref"] = Raw(b'{"type":%b}' % encode(kind))
    return name
