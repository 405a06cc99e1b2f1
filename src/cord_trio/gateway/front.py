"""What one message asks of the gateway, in either era. Pure: bytes in, a step out, nothing remembered.

The era is decided for each message by its body, never by an earlier message (MCP 2026-07-28, versioning):
clients probe with a modern request and then initialize on the same pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.counters import Counters
from cord_trio.errors import Malformed, TooDeep
from cord_trio.gateway.capabilities import askable
from cord_trio.gateway.catalogue import HINTS
from cord_trio.gateway.greeting import capabilities_of, instructions_of
from cord_trio.gateway.params import check_params, decode_string, is_integer, is_object
from cord_trio.gateway.requests import (
    CALLS,
    LISTS,
    TASK_CALLS,
    read_level,
    read_list,
    read_listen,
    read_run,
    read_subscribe,
    read_task,
)
from cord_trio.gateway.routing import SESSION_HEADER, bad_version, doubled, refuse, says_modern, unequal
from cord_trio.gateway.steps import (
    ACCEPTED,
    BAD_REQUEST,
    NOT_FOUND,
    Answered,
    Batch,
    Cancel,
    Client,
    Listen,
    Open,
    Reply,
    Run,
    Step,
)
from cord_trio.protocol import eras, jsonrpc
from cord_trio.protocol.eras import ERAS, HEADER_MISMATCH, MODERN, UNSUPPORTED_VERSION
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, encode_error, encode_result
from cord_trio.protocol.mcp import META_CAPABILITIES, META_SERVER_INFO, META_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from cord_trio.gateway.ports import Lines, Snapshot
    from cord_trio.gateway.steps import Caller
    from cord_trio.protocol.jsonrpc import Envelope, Id

MAX_BATCH: Final = 64
"""Messages in one array."""

MAX_REASON: Final = 200
"""Characters kept of a client's reason for a cancellation."""

NOT_INITIALIZED: Final = -32002
"""What legacy servers answer before `initialize`; the same number as a missing resource, in another context."""

_SUPPORTED = jsonrpc.encode(list(MODERN))
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_WHITESPACE: Final = b" \t\r\n"
_NOTHING: Final = Reply(None, ACCEPTED)


class Front:
    """Reads messages. Knows who we are and, for headers that repeat arguments, which tools exist.

    Args:
        identity: our `serverInfo` as JSON text.
        snapshot: the newest snapshot.
        depth: levels of JSON in one message.
        counters: counts messages with more of them.

    """

    def __init__(
        self, identity: bytes, snapshot: Callable[[], Snapshot], *, depth: int = jsonrpc.MAX_DEPTH,
        counters: Counters | None = None,
    ) -> None:  # fmt: skip
        self.identity = identity
        self.signature = b'"_meta":{"%b":%b}' % (META_SERVER_INFO.encode(), identity)
        """The `_meta` member of a modern result of our own."""
        self._snapshot = snapshot
        self._decode = jsonrpc.decoder(depth)
        self._counters = counters or Counters()
        self._said = (-1, b"", b"")

    def read(self, message: bytes, caller: Caller) -> Step:
        """What to do about `message`. Never raises."""
        if message[:1] != b"{" and message.lstrip(_WHITESPACE)[:1] == b"[":
            return self._batch(message, caller)
        id: Id | None = None
        try:
            envelope = jsonrpc.check(self._decode(message))
            if envelope.is_request:
                id = envelope.id  # type: ignore[assignment]  # that is what a request is
                return self._request(id, envelope, caller)  # type: ignore[arg-type]  # as above
            if envelope.method is None:
                return self._answered(envelope, caller)
            return self._notice(envelope.method, envelope, caller)
        except Malformed as exc:
            self._note(exc)
            return Reply(encode_error(id if exc.id is None else exc.id, exc.code, str(exc)), BAD_REQUEST)

    def _note(self, error: Exception) -> None:
        if isinstance(error, TooDeep):
            self._counters.add("gateway.too_deep")

    def attend(self, caller: Caller) -> Reply | None:
        """Why a legacy client's request without a message (GET, DELETE) cannot be; None if it can."""
        headers = caller.headers
        if caller.client is None:
            return _reply(caller)
        if headers is not None and (fault := bad_version(headers)):
            return refuse(None, INVALID_REQUEST, fault)
        return None

    def _batch(self, message: bytes, caller: Caller) -> Step:
        client = caller.client
        if client is None or not client.era.batches or (caller.headers is not None and says_modern(caller.headers)):
            return refuse(None, INVALID_REQUEST, "an array of messages exists in revision 2025-03-26 alone")
        try:
            self._decode(b'{"params":%b}' % message)  # one check of encoding and depth for the whole
            members = _decode_list(message)
        except (Malformed, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            self._note(exc)
            return refuse(None, jsonrpc.PARSE_ERROR, f"not JSON: {exc}")
        if not members or len(members) > MAX_BATCH:
            return refuse(None, INVALID_REQUEST, f"an array has 1 to {MAX_BATCH} messages (gateway.batch)")
        if caller.headers is not None:
            caller = msgspec.structs.replace(caller, askable=False)  # an array of answers has no place for questions
        steps: list[Step] = []
        for member in members:
            if bytes(member)[:1] != b"{":
                steps.append(refuse(None, INVALID_REQUEST, "not a message"))
                continue
            step = self.read(bytes(member), caller)
            if isinstance(step, Open | Listen | Batch):
                step = refuse(_id_of(member), INVALID_REQUEST, "not allowed within an array")
            steps.append(step)
        return Batch(steps)

    def _request(self, id: Id, envelope: Envelope, caller: Caller) -> Step:
        method = envelope.method or ""
        params = jsonrpc.members(envelope.params)
        meta, sound = _meta(params)
        headers = caller.headers
        if META_VERSION in meta:
            return self._modern(id, method, params, meta, caller)
        if method == "initialize":
            # Whatever the header says: it is defined for what comes after (MCP 2025-11-25, transports).
            return self._initialize(id, params)
        if headers is not None and says_modern(headers):
            return doubled(id, headers) or refuse(id, INVALID_PARAMS, f"params._meta needs {META_VERSION}")
        if not sound:
            return refuse(id, INVALID_PARAMS, "params._meta is not an object")
        return self._legacy(id, method, params, meta, caller)

    # --- modern -------------------------------------------------------------------------------------------

    def _modern(self, id: Id, method: str, params: dict[str, Raw], meta: dict[str, Raw], caller: Caller) -> Step:
        """Check in the order that the official servers use, since clients and suites rely on it."""
        headers = caller.headers
        if headers is not None and (refusal := doubled(id, headers)):
            return refusal
        version = decode_string(meta[META_VERSION])
        if version is None:
            return refuse(id, INVALID_PARAMS, f"params._meta: {META_VERSION} is not a string")
        capabilities = meta.get(META_CAPABILITIES)
        if capabilities is None or not is_object(capabilities):
            return refuse(id, INVALID_PARAMS, f"params._meta needs {META_CAPABILITIES}, an object")
        if headers is not None and (fault := unequal(version, method, params, headers)):
            return refuse(id, HEADER_MISMATCH, fault)
        if version not in MODERN:
            data = b'{"supported":%b,"requested":%b}' % (_SUPPORTED, jsonrpc.encode(version))
            text = f"revision {version!r} is not served in this form"
            return Reply(encode_error(id, UNSUPPORTED_VERSION, text, data), BAD_REQUEST)
        era = ERAS[version]
        if method in CALLS:
            step = read_run(id, era, method, params, meta, bytes(capabilities), caller.principal)
            if headers is not None and isinstance(step, Run) and (fault := self._param_fault(step, headers)):
                return refuse(id, HEADER_MISMATCH, fault)
            return step
        if method in TASK_CALLS:
            return read_task(id, era, method, params, meta, bytes(capabilities), caller.principal)
        if method in LISTS:
            return read_list(id, era, LISTS[method], params, caller.principal)
        match method:
            case "server/discover":
                return Reply(encode_result(id, self._discovery()))
            case "subscriptions/listen":
                return read_listen(id, era, params, bytes(capabilities), caller.principal)
        return refuse(id, METHOD_NOT_FOUND, f"method {method!r} is not served", NOT_FOUND)

    def _param_fault(self, run: Run, headers: Lines) -> str | None:
        route = self._snapshot().tools.get(run.name) if run.method == "tools/call" else None
        if route is None or not route.tool.headers:
            return None
        return check_params(route.tool.headers, run.params.get("arguments", b""), headers)

    def _discovery(self) -> bytes:
        return b'{"resultType":"complete","supportedVersions":%b,%b,%b,%b}' % (
            _SUPPORTED,
            self._of_us(modern=True),
            HINTS,
            self.signature,
        )

    def _of_us(self, *, modern: bool) -> bytes:
        """`capabilities` and `instructions`, as they are with the newest snapshot."""
        snapshot = self._snapshot()
        version, *said = self._said
        if version != snapshot.version:
            text = instructions_of(snapshot)
            more = b',"instructions":%b' % jsonrpc.encode(text) if text else b""
            said = [b'"capabilities":%b%b' % (capabilities_of(snapshot, modern=era), more) for era in (False, True)]
            self._said = snapshot.version, said[0], said[1]
        return said[modern]

    # --- legacy -------------------------------------------------------------------------------------------

    def _initialize(self, id: Id, params: dict[str, Raw]) -> Step:
        requested = decode_string(params.get("protocolVersion"))
        if requested is None:
            return refuse(id, INVALID_PARAMS, "initialize needs protocolVersion, a string")
        revision = eras.choose_legacy(requested)
        result = b'{"protocolVersion":%b,"serverInfo":%b,%b}' % (
            jsonrpc.encode(revision),
            self.identity,
            self._of_us(modern=False),
        )
        capabilities, info = params.get("capabilities"), params.get("clientInfo")
        client = Client(
            ERAS[revision],
            askable(ERAS[revision], bytes(capabilities)) if capabilities is not None else b"{}",
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
                return refuse(id, NOT_INITIALIZED, "not initialized: send initialize, or a modern request")
            return refuse(id, INVALID_REQUEST, _NO_SESSION)
        if caller.headers is not None and (fault := bad_version(caller.headers)):
            return refuse(id, INVALID_REQUEST, fault)
        if method in CALLS:
            capabilities = client.capabilities if caller.askable else b"{}"
            return read_run(id, client.era, method, params, meta, capabilities, caller.principal, caller.level)
        if method in LISTS:
            return read_list(id, client.era, LISTS[method], params, caller.principal)
        match method:
            case "ping":
                return Reply(encode_result(id, b"{}"))
            case "resources/subscribe" | "resources/unsubscribe":
                return read_subscribe(id, params, wanted=method == "resources/subscribe")
            case "logging/setLevel":
                return read_level(id, params)
        return Reply(encode_error(id, METHOD_NOT_FOUND, f"method {method!r} is not served"))

    def _answered(self, envelope: Envelope, caller: Caller) -> Step:
        """An answer to a question of ours, which only a legacy client is asked."""
        headers = caller.headers
        if caller.client is None or (headers is not None and says_modern(headers)):
            return _reply(caller)
        if headers is not None and (fault := bad_version(headers)):
            return refuse(None, INVALID_REQUEST, fault)
        id = envelope.id
        return Answered(id, bytes(envelope.result), bytes(envelope.error)) if isinstance(id, int | str) else _NOTHING

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
            if fault := bad_version(headers):
                return refuse(None, INVALID_REQUEST, fault)
        if method == "notifications/cancelled":
            id = params.get("requestId")
            if id is not None and (is_integer(id) or decode_string(id) is not None):
                reason = decode_string(params.get("reason")) or "no reason given"
                return Cancel(jsonrpc.parse(id), reason[:MAX_REASON])
        return _NOTHING


_NO_SESSION: Final = f"no {SESSION_HEADER}: send initialize first, or a modern request"


def _meta(params: dict[str, Raw]) -> tuple[dict[str, Raw], bool]:
    """The members of `_meta`, taken out of `params`, and whether it was sound."""
    raw = params.pop("_meta", None)
    if raw is None:
        return {}, True
    return (jsonrpc.members(raw), True) if is_object(raw) else ({}, False)


def _unknown_session(id: Id | None) -> Reply:
    # 404 and nothing else makes a client initialize anew (MCP 2025-11-25, transports).
    return refuse(id, INVALID_REQUEST, "session not found: it ended, or never was", NOT_FOUND)


def _reply(caller: Caller) -> Reply:
    """About a message that gets no answer: taken from whoever may send it, else refused."""
    if caller.headers is None or caller.client is not None:
        return _NOTHING
    if caller.named:
        return _unknown_session(None)
    return refuse(None, INVALID_REQUEST, _NO_SESSION)


def _id_of(member: Raw) -> Id | None:
    value = jsonrpc.parse(jsonrpc.members(member).get("id", b"null"))
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
