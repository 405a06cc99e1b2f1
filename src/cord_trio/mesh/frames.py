"""What nodes say to each other about calls: requests to one incarnation of a node, and the frames that answer. Pure.

All is in the headers of a message, in visible ASCII; its payload is MCP's own JSON, or a part of it. What is not
known is skipped where it is a header, and refused where it is an operation, so that versions can be mixed: each of
them says the first header, and later ones only add.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.mesh_errors import BadFrame

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
"""Of what is said here. A peer with another first number is not understood."""

OPS: Final = frozenset({"call", "cancel", "ping", "credit", "done", "drop"})
"""Call; end one; ask for one; ask for parts of a result; its parts are here; its question gets no answer."""

KINDS: Final = frozenset({"acc", "prog", "hb", "part", "end", "ok", "err", "rej", "moved", "pong", "credit"})
"""Accepted; progress; still at it; a part; a result in parts; a result; an error; refused; ask another; the answer to
a ping; parts of the arguments are wanted."""

REASONS: Final = frozenset({"busy", "draining", "fenced", "nosuch", "unsupported", "denied", "expired"})
"""Why a call is refused before it ran."""

STATES: Final = frozenset({"running", "done", "unknown"})
"""What is known of the call that a ping asks for."""

TYPES: Final = frozenset({"complete", "input_required", "task"})
"""What a result is."""

CHANGES: Final = "cord/changes"
"""Method of a call that tells of resources which change, for as long as it is not cancelled."""

MOOT: Final = "cord/moot"
"""Method of a call that ends once a question needs no answer any more."""

PAGES: Final = "cord/pages"
"""Method of a call that ends once a server told that pages are done with which people were sent to."""

TRUST: Final = "cord/trust"
"""Method of a call that says for how long lists can be trusted."""

READ: Final = "cord/read"
"""Method of a call that ends once what an agent emitted was looked at, but for a little."""

STANDING: Final = frozenset({CHANGES, MOOT, PAGES, TRUST, READ})
"""Methods of calls that only wait, and so take no slot."""

MAX_HOPS: Final = 8
"""Nodes that a call goes through at most."""

MAX_SETTLED: Final = 16
"""Calls that one message says to be over, at most."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_EPOCH: Final = re.compile(r"[0-9a-f]{8}")
_NODE: Final = re.compile(r"[a-z0-9_-]{1,48}")
_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_INBOX: Final = re.compile(r"_INBOX[A-Za-z0-9_-]*(?:\.[!-)+\-/-=?-~]{1,128}){1,8}")  # each part visible, no wildcard
_PLAIN: Final = re.compile(r"[!-$&-~]*")
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class Bundle(msgspec.Struct, frozen=True, gc=False):
    """A body that is not in the message, but comes in parts.

    Attributes:
        parts: how many.
        size: bytes of all together.
        sha256: of all together, in hexadecimal digits.

    """

    parts: int
    size: int
    sha256: str


class Request(msgspec.Struct, frozen=True, gc=False):
    """What is asked of one incarnation of a node.

    Attributes:
        op: one of `OPS`.
        id: of the call, 32 hexadecimal digits that its caller drew.
        body: the call's `params`.
        source: whose object it is about; "" for the owner to find out.
        tool: what it is about; None for nothing.
        method: such as `tools/call`.
        ttl: milliseconds that are left of its deadline; None for no deadline.
        epoch: the caller's incarnation.
        hop: nodes that it went through before.
        window: parts that may be under way.
        principal: who calls.
        trace: its `traceparent`.
        park: the token of the parked call that it answers, or lets go of.
        behalf: the node that the call is from, where another hands it on.
        settled: ids of earlier calls that their caller will not ask for again.
        events: whether progress and log notifications are wanted.
        bundle: set if the body comes in parts.
        first: the first part that is wanted.
        to: where parts are wanted.
        reason: why a call is ended.
        signature: of the call; see `signing`.

    """

    op: str
    id: str
    body: bytes = b""
    source: str = ""
    tool: str | None = None
    method: str = "tools/call"
    ttl: int | None = None
    epoch: str = ""
    hop: int = 0
    window: int = 0
    principal: str = ""
    trace: str = ""
    park: str = ""
    behalf: str = ""
    settled: tuple[str, ...] = ()
    events: bool = False
    bundle: Bundle | None = None
    first: int = 0
    to: str = ""
    reason: str = ""
    signature: str = ""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One answer to a request.

    Attributes:
        kind: one of `KINDS`.
        id: of the call; "" where the subject says it.
        body: what goes with it: a result, an error, the `params` of a notification, a part.
        busy: calls that the owner runs, or that wait there.
        slots: that it runs at once; 0 if it does not say.
        type: what the result is, one of `TYPES`.
        park: the token under which the call goes on waiting.
        method: of the notification.
        reason: why it is refused, one of `REASONS`.
        text: that in words.
        state: what is known of the call, one of `STATES`.
        seq: the number of the part, or of the first that is wanted; of a call whose signature is over, the time of
            whoever judges that, in milliseconds.
        window: parts that are wanted.
        to: where they are wanted.
        bundle: the body that comes in parts.
        node: who has the call now.
        epoch: which incarnation of it.

    """

    kind: str
    id: str = ""
    body: bytes = b""
    busy: int = 0
    slots: int = 0
    type: str = "complete"
    park: str = ""
    method: str = ""
    reason: str = ""
    text: str = ""
    state: str = ""
    seq: int = 0
    window: int = 0
    to: str = ""
    bundle: Bundle | None = None
    node: str = ""
    epoch: str = ""


def is_inbox(subject: str) -> bool:
    """Whether answers may go there.

    To any other subject a node publishes nothing because another wants it: what it may say itself, and may say since
    it was asked, that one may not.
    """
    return _INBOX.fullmatch(subject) is not None


def encode_request(request: Request) -> dict[str, str]:
    """The headers that say it; the body goes beside them."""
    headers = {"C-Ver": "1", "C-Op": request.op, "C-Id": request.id}
    if request.op == "call":
        if request.source:
            headers["C-Srv"] = said(request.source)
        if request.tool is not None:
            headers["C-Tool"] = said(request.tool)
        if request.method != "tools/call":
            headers["C-Method"] = said(request.method)
        if request.ttl is not None:
            headers["C-Ttl"] = str(request.ttl)
        if request.hop:
            headers["C-Hop"] = str(request.hop)
        if request.principal:
            headers["C-Prin"] = said(request.principal)
        if request.signature:
            headers["C-Sig"] = request.signature
        if request.trace:
            headers["traceparent"] = said(request.trace)
        if request.settled:
            headers["C-Settled"] = ",".join(request.settled)
        if request.events:
            headers["C-Events"] = "1"
        if request.bundle is not None:
            _say_bundle(request.bundle, headers)
    if request.behalf:
        headers["C-For"] = request.behalf
    if request.epoch:
        headers["C-From-Epoch"] = request.epoch
    if request.park:
        headers["C-Park"] = said(request.park)
    if request.window:
        headers["C-Win"] = str(request.window)
    if request.first:
        headers["C-Seq"] = str(request.first)
    if request.to:
        headers["C-To"] = request.to
    if request.reason:
        headers["C-Why"] = said(request.reason)
    return headers


def decode_request(head: bytes, body: bytes = b"") -> Request:
    """What a message to a node asks for.

    Raises:
        BadFrame: it is none. Its `id` is the call's, where that could be read.

    """
    fields = _fields(head)
    id = _required(fields, "C-Id", _ID)
    try:
        op = _text(fields, "C-Op")
        if _required(fields, "C-Ver", _NUMBER) != "1":
            raise BadFrame("a version that is not ours", "unsupported")
        if op not in OPS:
            raise BadFrame(f"an operation that is not known: {op[:40]!r}", "unsupported")
        if op != "call":
            return Request(
                op, id, body, epoch=_match(fields, "C-From-Epoch", _EPOCH), window=_number(fields, "C-Win"),
                park=_text(fields, "C-Park"), first=_number(fields, "C-Seq"), to=_match(fields, "C-To", _INBOX),
                reason=_text(fields, "C-Why"), behalf=_match(fields, "C-For", _NODE), method="",
            )  # fmt: skip
        settled = fields.get("C-Settled")
        return Request(
            op,
            id,
            body,
            source=_text(fields, "C-Srv"),
            tool=_text(fields, "C-Tool") if "C-Tool" in fields else None,
            method=_text(fields, "C-Method") or "tools/call",
            ttl=_number(fields, "C-Ttl") if "C-Ttl" in fields else None,
            epoch=_required(fields, "C-From-Epoch", _EPOCH),
            hop=_number(fields, "C-Hop"),
            window=_number(fields, "C-Win"),
            principal=_text(fields, "C-Prin"),
            trace=_text(fields, "traceparent"),
            park=_text(fields, "C-Park"),
            behalf=_match(fields, "C-For", _NODE),
            settled=() if settled is None else _ids(settled),
            events="C-Events" in fields,
            bundle=_bundle(fields),
            signature=fields.get("C-Sig", ""),
        )
    except BadFrame as exc:
        exc.id = id
        raise


def encode_frame(frame: Frame) -> dict[str, str]:
    """The headers that say it; the body goes beside them."""
    headers = {"C-K": frame.kind}
    if frame.id:
        headers["C-Id"] = frame.id
    if frame.slots:
        headers["C-Load"] = f"{frame.busy}/{frame.slots}"
    if frame.type != "complete":
        headers["C-Type"] = frame.type
    for name, text in (
        ("C-Park", frame.park), ("C-Method", frame.method), ("C-Why", frame.reason), ("C-Text", frame.text),
        ("C-State", frame.state), ("C-To", frame.to), ("C-Node", frame.node), ("C-Epoch", frame.epoch),
    ):  # fmt: skip
        if text:
            headers[name] = said(text)
    if frame.seq:
        headers["C-Seq"] = str(frame.seq)
    if frame.window:
        headers["C-Win"] = str(frame.window)
    if frame.bundle is not None:
        _say_bundle(frame.bundle, headers)
    return headers


def decode_frame(head: bytes, body: bytes = b"") -> Frame:
    """What a message to an inbox answers.

    Raises:
        BadFrame: it is none.

    """
    fields = _fields(head)
    kind = _text(fields, "C-K")
    if kind not in KINDS:
        raise BadFrame(f"a frame of no known kind: {kind[:40]!r}", "unsupported")
    busy, slots = _load(fields.get("C-Load"))
    if len(fields) == 1 + ("C-Load" in fields) and kind in ("ok", "err", "acc", "hb"):
        return Frame(kind, "", body, busy, slots)
    bundle = _bundle(fields)
    if (bundle is None) == (kind == "end"):
        raise BadFrame(f"a frame {kind} that comes in parts, or should")
    return Frame(
        kind,
        _match(fields, "C-Id", _ID),
        body,
        busy,
        slots,
        type=_one_of(fields, "C-Type", TYPES, kind in ("ok", "end"), "complete"),
        park=_text(fields, "C-Park"),
        method=_text(fields, "C-Method"),
        reason=_one_of(fields, "C-Why", REASONS, kind == "rej", ""),
        text=_text(fields, "C-Text"),
        state=_one_of(fields, "C-State", STATES, kind == "pong", "unknown"),
        seq=_number(fields, "C-Seq"),
        window=_number(fields, "C-Win"),
        to=_match(fields, "C-To", _INBOX),
        bundle=bundle,
        node=_match(fields, "C-Node", _NODE),
        epoch=_match(fields, "C-Epoch", _EPOCH),
    )


def _say_bundle(bundle: Bundle, headers: dict[str, str]) -> None:
    headers["C-Parts"] = str(bundle.parts)
    headers["C-Size"] = str(bundle.size)
    headers["C-Sha"] = bundle.sha256


def said(text: str) -> str:
    """`text` as a header carries it: visible ASCII, all else as `%` and two digits for each byte."""
    if _PLAIN.fullmatch(text):
        return text
    octets = text.encode(errors="replace")
    return "".join(chr(one) if 0x21 <= one <= 0x7E and one != 0x25 else f"%{one:02X}" for one in octets)


def _fields(head: bytes) -> Mapping[str, str]:
    """The headers of a block; of two with one name the first."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and name not in fields:
            fields[name] = value.strip(" \t")
    return fields


def _text(fields: Mapping[str, str], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not value.isascii():
        raise _unreadable(name, value)
    if "%" not in value:
        return value
    try:
        return _ESCAPED.sub(_octet, value.encode()).decode()
    except UnicodeDecodeError:
        raise _unreadable(name, value) from None


def _octet(found: re.Match[bytes]) -> bytes:
    return bytes((int(found[1], 16),))


def _match(fields: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if pattern.fullmatch(value) is None:
        raise _unreadable(name, value)
    return value


def _required(fields: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    if name not in fields:
        raise BadFrame(f"a message without {name}")
    return _match(fields, name, pattern)


def _number(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name)
    if value is None:
        return 0
    if _NUMBER.fullmatch(value) is None:
        raise _unreadable(name, value)
    return int(value)


def _one_of(fields: Mapping[str, str], name: str, known: frozenset[str], meant: bool, otherwise: str) -> str:
    """A word of a set that may grow: one that is not known is taken for `otherwise`."""
    if not meant:
        return "complete" if name == "C-Type" else ""
    word = _text(fields, name)
    if not word:
        return otherwise
    if word not in known:
        if name == "C-Type":  # a result that is not understood must not be taken for another
            raise BadFrame(f"a result of no known type: {word[:40]!r}", "unsupported")
        return otherwise
    return word


def _ids(value: str) -> tuple[str, ...]:
    ids = tuple(value.split(","))
    if len(ids) > MAX_SETTLED or not all(_ID.fullmatch(each) for each in ids):
        raise _unreadable("C-Settled", value)
    return ids


def _load(value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 0
    busy, _, slots = value.partition("/")
    if _NUMBER.fullmatch(busy) is None or _NUMBER.fullmatch(slots) is None:
        raise _unreadable("C-Load", value)
    return int(busy), int(slots)


def _bundle(fields: Mapping[str, str]) -> Bundle | None:
    if "C-Parts" not in fields:
        return None
    sha = _required(fields, "C-Sha", _SHA)
    return Bundle(_number(fields, "C-Parts"), _number(fields, "C-Size"), sha)


def _unreadable(name: str, value: str) -> BadFrame:
    return BadFrame(f"header {name} cannot be read: {value[:60]!r}")
