"""The plain case: a legacy client calls a tool, and says nothing else. Its message is read in one piece.

`Front` reads it just as well, member by member, for a fifth of the instructions that the gateway takes for a call. What
is not quite plain, or not quite right, is its business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Raw

from cord_trio.gateway.steps import Run
from cord_trio.protocol.jsonrpc import MAX_DEPTH, NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.gateway.steps import Client

LONGEST: Final = 16 * 1024
"""Bytes of a message that is read so; with a long one it makes no difference."""

CALL: Final = "tools/call"
NO_META: Final[Mapping[str, Raw]] = {}


class _Params(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename={"meta": "_meta"}):
    name: str
    arguments: Raw = NOTHING
    meta: Raw = NOTHING


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    jsonrpc: Literal["2.0"]
    id: int | str
    method: Literal["tools/call"]
    params: _Params


_decode = msgspec.json.Decoder(_Message).decode


def read_plain(message: bytes, client: Client, *, askable: bool, level: str | None, principal: str) -> Run | None:
    """The step of a plain call by a legacy client whose headers are in order; None for `Front` to read it.

    For the rest see `steps.Caller`, which is not made for this: what it says is needed here alone.
    """
    # What needs a second look (not ASCII, perhaps too deep, of several lines) gets it from `jsonrpc.decode`.
    if len(message) > LONGEST or not message.isascii():
        return None
    if message.count(b"{") + message.count(b"[") > MAX_DEPTH or message.count(b"\n") or message.count(b"\r"):
        return None
    try:
        plain = _decode(message)
    except (msgspec.DecodeError, RecursionError):
        return None
    params = plain.params
    arguments = params.arguments
    if params.meta or not params.name:
        return None
    if not arguments:
        given: Mapping[str, Raw] = {}
    elif bytes(arguments).startswith(b"{"):
        given = {"arguments": arguments}
    else:
        return None
    return Run(
        plain.id, client.era, CALL, params.name, given, NO_META, client.capabilities if askable else b"{}",
        level=level, principal=principal,
    )  # fmt: skip
