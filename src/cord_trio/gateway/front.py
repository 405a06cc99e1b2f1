"""What one message asks of the gateway, in either era. Pure: bytes in, a step out, nothing remembered.

The era is decided for each message by its body, never by an earlier message (MCP 2026-07-28, versioning):
clients probe with a modern request and then initialize on the same pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.errors import Malformed
from cord_trio.gateway.catalogue import HINTS
from cord_trio.gateway.params import check_params, decode_string, is_integer, is_object, token_text
from cord_trio.gateway.steps import (
    ACCEPTED,
    BAD_REQUEST,
    NOT_FOUND,
    Batch,
    Cancel,
    Client,
    List,
    Listen,
    Open,
    Reply,
    Run,
    Step,
)
from cord_trio.protocol import eras, jsonrpc
from cord_trio.protocol.eras import ERAS, HEADER_MISMATCH, MODERN, NAME_MEMBER, UNSUPPORTED_VERSION
from cord_trio.protocol.headers import decode_header_value
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, encode_error, encode_result
from cord_trio.protocol.mcp import (
    HOP_LOCAL_META,
    META_CAPABILITIES,
    META_LOG_LEVEL,
    META_SERVER_INFO,
    META_VERSION,
    PROGRESS_TOKEN,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Raw

    from cord_trio.gateway.ports import Lines, Snapshot
    from cord_trio.gateway.steps import Caller
    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Envelope, Id

SESSION_HEADER: Final = "Mcp-Session-Id"
VERSION_HEADER: Final = "MCP-Protocol-Version"
METHOD_HEADER: Final = "Mcp-Method"
NAME_HEADER: Final = "Mcp-Name"

MAX_BATCH: Final = 64
"""Messages in one array."""

MAX_REASON: Final = 200
"""Characters kept of a client's reason for a cancellation."""

NOT_INITIALIZED: Final = -32002
"""What legacy servers answer before `initialize`; the same number as a missing resource, in another context."""

LEVELS: Final = frozenset({"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"})

CAPABILITIES: Final = b'{"tools":{"listChanged":true}}'
"""What we serve, and no more."""

_ROUTING: Final = tuple(name.lower().encode() for name in (VERSION_HEADER, METHOD_HEADER, NAME_HEADER))
_SUPPORTED = jsonrpc.encode(list(MODERN))
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_WHITESPACE: Final = b" \t\r\n"
_NOTHING: Final = Reply(None, ACCEPTED)


class Front:
    """Reads messages. Knows who we are and, for headers that repeat arguments, which tools exist.

    Args:
        identity: our `serverInfo` as JSON text.
        snapshot: the newest snapshot.
        instructions: for models; may be empty.

    """

    def __init__(self, identity: bytes, snapshot: Callable[[], Snapshot], instructions: str = "") -> None:
        self.identity = identity
        self.signature = b'"_meta":{"%b":%b}' % (META_SERVER_INFO.encode(), identity)
        """The `_meta` member of a modern result of our own."""
        self._snapshot = snapshot
        more = b',"instructions":%b' % jsonrpc.encode(instructions) if instructions else b""
        self._greeting = b'"capabilities":%b,"serverInfo":%b%b' % (CAPABILITIES, identity, more)
        self._discovery = b'{"resultType":"complete","supportedVersions":%b,"capabilities":%b%b,%b,%b}' % (
            _SUPPORTED,
            CAPABILITIES,
            more,
            HINTS,
            self.signature,
        )

    def read(self, message: bytes, caller: Caller) -> Step:
        """What to do about `message`. Never raises."""
        if message[:1] != b"{" and message.lstrip(_WHITESPACE)[:1] == b"[":
            return self._batch(message, caller)
        id: Id | None = None
        try:
            envelope = jsonrpc.check(jsonrpc.decode(message))
            if envelope.is_request:
                id = envelope.id  # type: ignore[assignment]  # that is what a request is
                return self._request(id, envelope, caller)  # type: ignore[arg-type]  # as above
            if envelope.method is None:
                return _reply(caller)
            return self._notice(envelope.method, envelope, caller)
        except Malformed as exc:
            return Reply(encode_error(id if exc.id is None else exc.id, exc.code, str(exc)), BAD_REQUEST)

    def attend(self, caller: Caller) -> Reply | None:
        """Why a legacy client's request without a message (GET, DELETE) cannot be; None if it can."""
        headers = caller.headers
        if caller.client is None:
            return _reply(caller)
        if headers is not None and (fault := _bad_version(headers)):
            return _refuse(None, INVALID_REQUEST, fault)
        return None

    def _batch(self, message: bytes, caller: Caller) -> Step:
        client = caller.client
        if client is None or not client.era.batches or (caller.headers is not None and says_modern(caller.headers)):
            return _refuse(None, INVALID_REQUEST, "an array of messages exists in revision 2025-03-26 alone")
        try:
            jsonrpc.decode(b'{"params":%b}' % message)  # one check of encoding and depth for the whole
            members = _decode_list(message)
        except (Malformed, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            return _refuse(None, jsonrpc.PARSE_ERROR, f"not JSON: {exc}")
        if not members or len(members) > MAX_BATCH:
            return _refuse(None, INVALID_REQUEST, f"an array has 1 to {MAX_BATCH} messages (gateway.batch)")
        steps: list[Step] = []
        for member in members:
            if bytes(member)[:1] != b"{":
                steps.append(_refuse(None, INVALID_REQUEST, "not a message"))
                continue
            step = self.read(bytes(member), caller)
            if isinstance(step, Open | Listen | Batch):
                step = _refuse(_id_of(member), INVALID_REQUEST, "not allowed within an array")
            steps.append(step)
        return Batch(steps)

    def _request(self, id: Id, envelope: Envelope, caller: Caller) -> Step:
        method = envelope.method or ""
        params = jsonrpc.members(envelope.params)
        meta, sound = _meta(params)
        headers = caller.headers
        if META_VERSION in meta:
            return self._modern(id, method, params, meta, headers)
        if method == "initialize":
            # Whatever the header says: it is defined for what comes after (MCP 2025-11-25, transports).
            return self._initialize(id, params)
        if headers is not None and says_modern(headers):
            return _doubled(id, headers) or _refuse(id, INVALID_PARAMS, f"params._meta needs {META_VERSION}")
        if not sound:
            return _refuse(id, INVALID_PARAMS, "params._meta is not an object")
        return self._legacy(id, method, params, meta, caller)

    # --- modern -------------------------------------------------------------------------------------------

    def _modern(self, id: Id, method: str, params: dict[str, Raw], meta: dict[str, Raw], headers: Lines | None) -> Step:
        """Check in the order that the official servers use, since clients and suites rely on it."""
        if headers is not None and (refusal := _doubled(id, headers)):
            return refusal
        version = decode_string(meta[META_VERSION])
        if version is None:
            return _refuse(id, INVALID_PARAMS, f"params._meta: {META_VERSION} is not a string")
        capabilities = meta.get(META_CAPABILITIES)
        if capabilities is None or not is_object(capabilities):
            return _refuse(id, INVALID_PARAMS, f"params._meta needs {META_CAPABILITIES}, an object")
        if headers is not None and (fault := _unequal(version, method, params, headers)):
            return _refuse(id, HEADER_MISMATCH, fault)
        if version not in MODERN:
            data = b'{"supported":%b,"requested":%b}' % (_SUPPORTED, jsonrpc.encode(version))
            text = f"revision {version!r} is not served in this form"
            return Reply(encode_error(id, UNSUPPORTED_VERSION, text, data), BAD_REQUEST)
        era = ERAS[version]
        match method:
            case "tools/call":
                level = meta.get(META_LOG_LEVEL)
                if level is not None and decode_string(level) not in LEVELS:
                    return _invalid(id, f"unknown log level; there are {', '.join(sorted(LEVELS))}")
                step = _call(id, era, params, meta, bytes(capabilities))
                if headers is not None and isinstance(step, Run) and (fault := self._param_fault(step, headers)):
                    return _refuse(id, HEADER_MISMATCH, fault)
                return step
            case "tools/list":
                return _list(id, era, params)
            case "server/discover":
                return Reply(encode_result(id, self._discovery))
            case "subscriptions/listen":
                return _listen(id, era, params)
        return _refuse(id, METHOD_NOT_FOUND, f"method {method!r} is not served", NOT_FOUND)

    def _param_fault(self, run: Run, headers: Lines) -> str | None:
        route = self._snapshot().tools.get(run.name)
        if route is None or not route.tool.headers:
            return None
        return check_params(route.tool.headers, run.params.get("arguments", b""), headers)

    # --- legacy -------------------------------------------------------------------------------------------

    def _initialize(self, id: Id, params: dict[str, Raw]) -> Step:
        requested = decode_string(params.get("protocolVersion"))
        if requested is None:
            return _refuse(id, INVALID_PARAMS, "initialize needs protocolVersion, a string")
        revision = eras.choose_legacy(requested)
        result = b'{"protocolVersion":%b,%b}' % (jsonrpc.encode(revision), self._greeting)
        capabilities, info = params.get("capabilities"), params.get("clientInfo")
        client = Client(
            ERAS[revision],
            bytes(capabilities) if capabilities is not None and is_object(capabilities) else b"{}",
            bytes(info) if info is not None and is_object(info) else b"{}",
        )
        return Open(id, encode_result(id, result), client)

    def _legacy(self, id: Id, method: str, params: dict[str, Raw], meta: dict[str, Raw], caller: Caller) -> Step:
        client = caller.client
        if client is None:
            if caller.named:
                return _unknown_session(id)
            if method == "ping":
                return Reply(encode_result(id, b"{}"))  # exempt from the order (MCP 2025-11-25, lifecycle)
            if caller.headers is None:
                return _refuse(id, NOT_INITIALIZED, "not initialized: send initialize, or a modern request")
            return _refuse(id, INVALID_REQUEST, _NO_SESSION)
        if caller.headers is not None and (fault := _bad_version(caller.headers)):
            return _refuse(id, INVALID_REQUEST, fault)
        match method:
            case "tools/call":
                return _call(id, client.era, params, meta, client.capabilities)
            case "tools/list":
                return _list(id, client.era, params)
            case "ping":
                return Reply(encode_result(id, b"{}"))
        return Reply(encode_error(id, METHOD_NOT_FOUND, f"method {method!r} is not served"))

    # --- notifications ------------------------------------------------------------------------------------

    def _notice(self, method: str, envelope: Envelope, caller: Caller) -> Step:
        params = jsonrpc.members(envelope.params)
        meta, _ = _meta(params)
        headers = caller.headers
        if headers is not None:
            if META_VERSION in meta or says_modern(headers):
                return _NOTHING  # a modern HTTP client cancels by closing its stream
            if caller.client is None:
                return _reply(caller)
            if fault := _bad_version(headers):
                return _refuse(None, INVALID_REQUEST, fault)
        if method == "notifications/cancelled":
            id = params.get("requestId")
            if id is not None and (is_integer(id) or decode_string(id) is not None):
                reason = decode_string(params.get("reason")) or "no reason given"
                return Cancel(jsonrpc.parse(id), reason[:MAX_REASON])
        return _NOTHING


_NO_SESSION: Final = f"no {SESSION_HEADER}: send initialize first, or a modern request"


def _call(id: Id, era: Era, params: dict[str, Raw], meta: dict[str, Raw], capabilities: bytes) -> Step:
    name = decode_string(params.pop("name", None))
    if not name:
        return _invalid(id, "tools/call needs name, a string")
    arguments = params.get("arguments")
    if arguments is not None and not is_object(arguments):
        if bytes(arguments) != b"null":
            return _invalid(id, "arguments is not an object")
        del params["arguments"]
    params.pop("task", None)  # asks for a legacy task, which we do not declare
    token = token_text(meta.get(PROGRESS_TOKEN))
    relayed = {key: value for key, value in meta.items() if key not in HOP_LOCAL_META}
    return Run(id, era, name, params, relayed, capabilities, token)


def _list(id: Id, era: Era, params: Mapping[str, Raw]) -> Step:
    raw = params.get("cursor")
    if raw is None or bytes(raw) == b"null":
        return List(id, era, None)
    cursor = decode_string(raw)
    return _invalid(id, "cursor is not a string") if cursor is None else List(id, era, cursor)


def _listen(id: Id, era: Era, params: Mapping[str, Raw]) -> Step:
    raw = params.get("notifications")
    if raw is None or not is_object(raw):
        return _invalid(id, "subscriptions/listen needs notifications, an object")
    wanted = bytes(jsonrpc.members(raw).get("toolsListChanged", b"false"))
    if wanted not in (b"true", b"false"):
        return _invalid(id, "toolsListChanged is not a boolean")
    return Listen(id, era, wanted == b"true")


def _meta(params: dict[str, Raw]) -> tuple[dict[str, Raw], bool]:
    """The members of `_meta`, taken out of `params`, and whether it was sound."""
    raw = params.pop("_meta", None)
    if raw is None:
        return {}, True
    return (jsonrpc.members(raw), True) if is_object(raw) else ({}, False)


def says_modern(headers: Lines) -> bool:
    """Whether the version header names a modern revision, served or not."""
    version = headers.get(VERSION_HEADER)
    return version is not None and version[:4].isdecimal() and version >= "2026"


def _bad_version(headers: Lines) -> str | None:
    """Why a legacy request's version header cannot be (MCP 2025-11-25, transports); None if it can."""
    version = headers.get(VERSION_HEADER)
    if version is None or version in eras.LEGACY:
        return None
    return f"{VERSION_HEADER} {version[:40]!r} is not served; there are {', '.join(eras.LEGACY)}"


def _doubled(id: Id, headers: Lines) -> Reply | None:
    names = [name.lower() for name, _ in headers.raw]
    for name in _ROUTING:
        if names.count(name) > 1:
            return _refuse(id, HEADER_MISMATCH, f"header {name.decode()} occurs more than once")
    return None


def _unequal(version: str, method: str, params: Mapping[str, Raw], headers: Lines) -> str | None:
    """Which header is not what the body says; None if all are."""
    for header, value in ((VERSION_HEADER, version), (METHOD_HEADER, method)):
        said = headers.get(header)
        if said is None:
            return f"header {header} is missing"
        if said.strip(" \t") != value:
            return f"header {header} is not what the body says"
    member = NAME_MEMBER.get(method)
    if member is None:
        return None
    name, said = decode_string(params.get(member)), headers.get(NAME_HEADER)
    if said is None:
        return None if name is None else f"header {NAME_HEADER} is missing"
    try:
        return None if decode_header_value(said) == name else f"header {NAME_HEADER} is not what the body says"
    except Malformed as exc:
        return f"header {NAME_HEADER}: {exc}"


def _refuse(id: Id | None, code: int, text: str, status: int = BAD_REQUEST) -> Reply:
    return Reply(encode_error(id, code, text), status)


def _invalid(id: Id, text: str) -> Reply:
    return Reply(encode_error(id, INVALID_PARAMS, text))


def _unknown_session(id: Id | None) -> Reply:
    # 404 and nothing else makes a client initialize anew (MCP 2025-11-25, transports).
    return _refuse(id, INVALID_REQUEST, "session not found: it ended, or never was", NOT_FOUND)


def _reply(caller: Caller) -> Reply:
    """About a message that gets no answer: taken from whoever may send it, else refused."""
    if caller.headers is None or caller.client is not None:
        return _NOTHING
    if caller.named:
        return _unknown_session(None)
    return _refuse(None, INVALID_REQUEST, _NO_SESSION)


def _id_of(member: Raw) -> Id | None:
    value = jsonrpc.parse(jsonrpc.members(member).get("id", b"null"))
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
