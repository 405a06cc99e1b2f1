"""JSON-RPC 2.0 messages and their bytes. Payloads stay unparsed: whoever looks inside decodes them."""

from __future__ import annotations

import re
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cord_trio.errors import Malformed, TooDeep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Id: TypeAlias = int | str
Json: TypeAlias = Any
"""What a JSON decoder returns; kept opaque."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

MAX_DEPTH: Final = 128
"""Levels of arrays and objects a message may have, itself included."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a decoder raises of a text that somebody else wrote."""

NOTHING: Final = Raw(b"")
"""A member that is absent."""


class RpcError(msgspec.Struct, gc=False):
    """The `error` member of a reply. `data` is empty if absent."""

    code: int
    message: str = ""
    data: Raw = NOTHING


class Envelope(msgspec.Struct, gc=False):
    """One message, its payloads unparsed. What kind it is: `is_request`, `is_notification`, else a reply."""

    jsonrpc: str | UnsetType = UNSET
    id: int | str | UnsetType | None = UNSET
    method: str | None = None
    params: Raw = NOTHING
    result: Raw = NOTHING
    error: Raw = NOTHING

    @property
    def is_request(self) -> bool:
        return self.method is not None and self.id is not UNSET and self.id is not None

    @property
    def is_notification(self) -> bool:
        return self.method is not None and self.id is UNSET


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_error = msgspec.json.Decoder(RpcError).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_json = msgspec.json.Decoder().decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_id = msgspec.json.Decoder(int | str).decode
_encode = msgspec.json.Encoder().encode
encode: Final = _encode
"""JSON text of plain values, structs and `Raw`; never NaN (`null` instead), never a raw newline."""
_LONG: Final = 64 * 1024
"""Bytes of a text from which on its brackets are not counted: in one of 12 MB that took 11 ms."""
_OPEN: Final = ord("[")
_LF: Final = 10
_CR: Final = 13
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ID: Final = rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\]{0,100}")(?:\.0+)?\s*'
_REPLY_HEAD: Final = re.compile(rb'\s*\{(?:\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*|%b),)*\s*"(?:result|error)"\s*:' % _ID)
_REPLY_TAIL: Final = re.compile(rb',\s*%b(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z' % _ID)
_TAIL_LENGTH: Final = 200


def decode(line: bytes, depth: int = MAX_DEPTH) -> Envelope:
    """The message in `line`, which is one JSON text; line breaks between its tokens become spaces.

    Raises:
        Malformed: not UTF-8 or not JSON or too deep (-32700), or not one message: an array, an id that is
            a float or a bool, a member of the wrong type (-32600).

    """
    try:
        if not line.isascii():
            line.decode()  # payloads stay unparsed, so this is where their UTF-8 is checked
        envelope = _decode_envelope(line)
    except msgspec.ValidationError as exc:
        raise Malformed(INVALID_REQUEST, f"not a JSON-RPC message: {exc}", _readable_id(line)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        foreign = line[:15].lower() == b"content-length:"
        what = "a Content-Length header; a message is one line of JSON here" if foreign else str(exc)
        raise Malformed(PARSE_ERROR, f"not JSON: {what}") from exc
    if len(line) > 2 * depth and too_deep(line, depth):
        id = envelope.id
        what = f"JSON is nested deeper than bounds.json_depth = {depth} levels"
        raise TooDeep(PARSE_ERROR, what, id if isinstance(id, int | str) else None)
    if _LF in line or _CR in line:  # as numbers: bytes in bytes costs an exception that CPython raises and drops
        # Between tokens, as was just checked. Payloads are relayed as they are, also to peers that end a message there.
        return _decode_envelope(line.replace(b"\r", b" ").replace(b"\n", b" "))
    return envelope


def payload_of(text: bytes, depth: int = MAX_DEPTH) -> Raw:
    """`text` as a payload to be relayed; line breaks between its tokens become spaces.

    Raises:
        Malformed: not UTF-8, not one JSON text, or too deep (-32700).

    """
    try:
        if not text.isascii():
            text.decode()
        payload = _decode_raw(text)
    except UNREADABLE as exc:
        raise Malformed(PARSE_ERROR, f"not JSON: {exc}") from exc
    if len(text) > 2 * depth and too_deep(text, depth):
        raise TooDeep(PARSE_ERROR, f"JSON is nested deeper than {depth} levels")
    return payload if (line := spaced(text)) is text else Raw(line)


def spaced(text: bytes) -> bytes:
    """JSON `text` with line breaks between its tokens as spaces; itself if it has none."""
    if _LF in text or _CR in text:
        return text.replace(b"\r", b" ").replace(b"\n", b" ")
    return text


def check(envelope: Envelope) -> Envelope:
    """`envelope` again, if it is strictly a JSON-RPC 2.0 message; for those who answer requests.

    Raises:
        Malformed: wrong version, an id that is null, `params` that is no object, or neither request nor reply.

    """
    id = envelope.id
    readable = id if isinstance(id, int | str) else None
    if envelope.jsonrpc != "2.0":
        raise Malformed(INVALID_REQUEST, 'jsonrpc is not "2.0"', readable)
    if envelope.method is not None:
        if id is None:
            raise Malformed(INVALID_REQUEST, "a request's id must not be null")
        params = bytes(envelope.params)
        if params and not params.startswith(b"{"):
            raise Malformed(
                INVALID_PARAMS if readable is not None else INVALID_REQUEST, "params is not an object", readable
            )
        if envelope.result or envelope.error:
            raise Malformed(INVALID_REQUEST, "both a request and a reply", readable)
    elif id is UNSET and not envelope.error:
        raise Malformed(INVALID_REQUEST, "neither a request nor a reply")
    elif bool(bytes(envelope.result)) == bool(bytes(envelope.error)):
        raise Malformed(INVALID_REQUEST, "a reply has exactly one of result and error", readable)
    return envelope


def decoder(depth: int) -> Callable[[bytes], Envelope]:
    """`decode` for messages of up to `depth` levels."""
    return decode if depth == MAX_DEPTH else partial(decode, depth=depth)


def too_deep(text: bytes, depth: int = MAX_DEPTH) -> bool:
    """Whether JSON `text` has more than `depth` levels. Linear, and quick for plain data."""
    if len(text) > _LONG:
        if _few(text, depth):
            return False
    elif text.count(b"{") + text.count(b"[") <= depth:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # What is left of a string without brackets is a pair of quotes; removing pairs moves no bracket in or out.
    brackets = text.translate(_SQUARE, _NOT_STRUCTURE).replace(b'""', b"")
    if b'"' in brackets:
        brackets = b"".join(brackets.split(b'"')[::2])
    # Each pass takes the innermost level away, so plain data is gone after a few, without a step per byte.
    for _ in range(min(8, depth)):
        brackets = brackets.replace(b"[]", b"")
        depth -= 1
        if not brackets:
            return False
    level = 0
    for bracket in brackets:
        level += 1 if bracket == _OPEN else -1
        if level > depth:
            return True
    return False


def _few(text: bytes, most: int) -> bool:
    """Whether there are at most so many opening brackets. CPython finds ten times as fast as it counts."""
    for bracket in (b"{", b"["):
        at = text.find(bracket)
        while at >= 0:
            if not most:
                return False
            most -= 1
            at = text.find(bracket, at + 1)
    return True


def decode_error(raw: Raw) -> RpcError:
    """The error in a reply; a wrong shape becomes an internal error that shows it."""
    try:
        return _decode_error(raw)
    except msgspec.ValidationError:
        return RpcError(INTERNAL_ERROR, f"malformed error: {bytes(raw)[:200].decode(errors='replace')}")


def members(raw: Raw | bytes) -> dict[str, Raw]:
    """The members of a JSON object, each unparsed. Empty for absent.

    Raises:
        Malformed: it is not an object (-32602).

    """
    if not bytes(raw):
        return {}
    try:
        return _decode_members(raw)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Malformed(INVALID_PARAMS, f"not an object: {exc}") from exc


def parse(raw: Raw | bytes) -> Json:
    """Plain Python values of JSON text.

    Raises:
        msgspec.DecodeError: it is not JSON.

    """
    return _decode_json(raw)


def encode_finite(value: object) -> bytes:
    """As `encode`, but what JSON has no word for is refused rather than told as `null`.

    Raises:
        ValueError: there is NaN or an infinity in it.

    """
    text = _encode(value)
    if b"null" in text and _holds_no_json(value):
        raise ValueError("it holds NaN or an infinity, which JSON cannot say")
    return text


def _holds_no_json(value: object) -> bool:
    left = [msgspec.to_builtins(value, enc_hook=_as_said)]
    while left:
        each = left.pop()
        if isinstance(each, float):
            if not isfinite(each):
                return True
        elif isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list | tuple | set | frozenset):
            left.extend(each)
    return False


def _as_said(_value: object) -> None:
    """What is JSON text already is what somebody said."""


def encode_request(id: Id, method: str, params: bytes = b"{}") -> bytes:
    # Joined, here and below: each `%b` would copy once more, which of 4 MB took a millisecond.
    return b"".join(
        (b'{"jsonrpc":"2.0","id":', _encode(id), b',"method":', _encode(method), b',"params":', params, b"}")
    )


def encode_notification(method: str, params: bytes = b"") -> bytes:
    if not params:
        return b'{"jsonrpc":"2.0","method":%b}' % _encode(method)
    return b"".join((b'{"jsonrpc":"2.0","method":', _encode(method), b',"params":', params, b"}"))


def encode_result(id: Id, result: bytes | Raw) -> bytes:
    return b"".join((b'{"jsonrpc":"2.0","id":', _encode(id), b',"result":', result, b"}"))


def encode_error(id: Id | None, code: int, message: str, data: bytes = b"") -> bytes:
    """An error reply. `id` None: it could not be read, and then there is none in the message."""
    identity = b"" if id is None else b'"id":%b,' % _encode(id)
    more = b',"data":%b' % data if data else b""
    return b'{"jsonrpc":"2.0",%b"error":{"code":%d,"message":%b%b}}' % (identity, code, _encode(message), more)


def object_of(fields: Mapping[str, Raw | bytes]) -> bytes:
    """JSON text of an object from members that are JSON text already."""
    if not fields:
        return b"{}"
    pieces: list[bytes] = []
    for name, value in fields.items():
        pieces += (b",", _encode(name), b":", value)
    pieces[0] = b"{"
    pieces.append(b"}")
    return b"".join(pieces)


def _readable_id(line: bytes) -> Id | None:
    """The id of a message that is otherwise wrong, if there is one to answer to."""
    try:
        id = _decode_json(line)["id"]
    except Exception:  # whatever is wrong with it, there is no id to read
        return None
    return id if isinstance(id, int | str) and not isinstance(id, bool) else None


def spoilt_reply_id(line: bytes) -> Id | None:
    """Which request a line that is no JSON was to answer, if it begins, or begins and ends, as a reply does.

    What some servers write within a result (NaN, half of a surrogate pair, Latin-1) spoils the whole message.
    """
    head = _REPLY_HEAD.match(line)
    if head is None:
        return None
    found = head if head[1] else _REPLY_TAIL.search(line[-_TAIL_LENGTH:])
    try:
        return None if found is None else _decode_id(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
