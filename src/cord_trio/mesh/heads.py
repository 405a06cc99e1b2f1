"""Header blocks, written and read: those that nearly every call has at once, all others as `frames` says them. Pure.

A dictionary of headers for each message, made here and taken apart there, would cost more than all else that a call
between nodes is. What is written and read is the same either way.
"""

from __future__ import annotations

import re
from typing import Final

from cord_trio.mesh.frames import (
    MAX_SETTLED,
    Frame,
    Request,
    decode_frame,
    decode_request,
    encode_frame,
    encode_request,
    said,
)
from cord_trio.nats.wire import MAX_HEADERS, encode_headers

_USUAL_CALL: Final = re.compile(
    r"NATS/1\.0\r\nC-Ver: 1\r\nC-Op: call\r\nC-Id: ([0-9a-f]{32})\r\n"
    r"(?:C-Srv: ([!-$&-~]+)\r\n)?(?:C-Tool: ([!-$&-~]+)\r\n)?(?:C-Ttl: ([0-9]{1,12})\r\n)?"
    r"(?:C-Prin: ([!-$&-~]+)\r\n)?(?:C-Sig: ([!-$&-~]+)\r\n)?(?:traceparent: ([!-$&-~]+)\r\n)?"
    rf"(?:C-Settled: ([0-9a-f]{{32}}(?:,[0-9a-f]{{32}}){{0,{MAX_SETTLED - 1}}})\r\n)?(C-Events: 1\r\n)?"
    r"C-From-Epoch: ([0-9a-f]{8})\r\n\r\n"
)
_USUAL_END: Final = re.compile(rb"NATS/1\.0\r\nC-K: ok\r\n(?:C-Load: ([0-9]{1,12})/([0-9]{1,12})\r\n)?\r\n")


def write_request(request: Request) -> bytes:
    """The header block that says it; the body goes beside it.

    Raises:
        ValueError: it cannot be said.

    """
    if (
        request.op != "call" or request.method != "tools/call" or request.hop or request.window or request.park
        or request.behalf or request.bundle is not None or request.first or request.to or request.reason
        or not request.epoch
    ):  # fmt: skip
        return encode_headers(encode_request(request))
    text = "NATS/1.0\r\nC-Ver: 1\r\nC-Op: call\r\nC-Id: " + request.id
    if request.source:
        text += "\r\nC-Srv: " + said(request.source)
    if request.tool is not None:
        text += "\r\nC-Tool: " + said(request.tool)
    if request.ttl is not None:
        text += f"\r\nC-Ttl: {request.ttl}"
    if request.principal:
        text += "\r\nC-Prin: " + said(request.principal)
    if request.signature:
        text += "\r\nC-Sig: " + request.signature
    if request.trace:
        text += "\r\ntraceparent: " + said(request.trace)
    if request.settled:
        text += "\r\nC-Settled: " + ",".join(request.settled)
    if request.events:
        text += "\r\nC-Events: 1"
    text += f"\r\nC-From-Epoch: {request.epoch}\r\n\r\n"
    if len(text) > MAX_HEADERS:
        raise ValueError(f"headers of {len(text)} bytes, where {MAX_HEADERS} may be")
    return text.encode()


def read_request(head: bytes, body: bytes = b"") -> Request:
    """What a message to a node asks for. Raises as `decode_request` does."""
    found = _USUAL_CALL.fullmatch(head.decode("latin-1"))
    if found is None:
        return decode_request(head, body)
    id, source, tool, ttl, principal, signature, trace, settled, events, epoch = found.groups("")
    return Request(
        "call", id, body, source, tool or None, "tools/call", int(ttl) if ttl else None, epoch, 0, 0, principal,
        trace, "", "", tuple(settled.split(",")) if settled else (), bool(events),
        signature=signature,
    )  # fmt: skip


def write_frame(frame: Frame, busy: int, slots: int) -> bytes:
    """The header block that says it, and the load of who says it. Raises as `write_request` does."""
    if frame.kind == "ok" and frame.type == "complete" and not frame.id and not frame.park:
        return b"NATS/1.0\r\nC-K: ok\r\nC-Load: %d/%d\r\n\r\n" % (busy, slots)
    return encode_headers(encode_frame(frame) | {"C-Load": f"{busy}/{slots}"})


def read_frame(head: bytes, body: bytes = b"") -> Frame:
    """What a message to an inbox answers. Raises as `decode_frame` does."""
    found = _USUAL_END.fullmatch(head)
    if found is None:
        return decode_frame(head, body)
    return Frame("ok", "", body, int(found[1] or 0), int(found[2] or 0))
