"""What a modern client brings back to go on with an operation: sealed, and opened again with suspicion.

The seal binds it to who asked and to what was asked, since whoever holds a state could otherwise answer for
another (MCP 2026-07-28, input required, security). That each is used once is seen to where the call waits.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import CallFailed
from cord_trio.gateway.places import bare
from cord_trio.gateway.steps import ANSWERS, STATE
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Call, EventSink
    from cord_trio.gateway.steps import Run
    from cord_trio.protocol.jsonrpc import Json

STATE_LIFE: Final = 3600.0
"""Seconds after which a state no longer opens, however long the server behind it would wait."""

MAX_ROUNDS: Final = 10
"""Rounds of questions in one operation."""

_EXACT: Final = 2**53
_sorted = msgspec.json.Encoder(order="deterministic").encode


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is inside a seal.

    Attributes:
        digest: of what was asked.
        round: how many rounds of questions there were.
        park: under which the call waits with us.
        state: the server's own state, if it gave one.
        urls: ids of the pages that the client was sent to.

    """

    digest: str
    round: int = 1
    park: str = ""
    state: str | None = None
    urls: tuple[str, ...] = ()


_decode_kept = msgspec.json.Decoder(Kept).decode


def seal_state(sealer: Sealer, run: Run, kept: Kept, now: float) -> str:
    """`kept` as the `requestState` for the client of `run`."""
    return sealer.seal("state", run.principal, encode(kept), now + STATE_LIFE)


def open_state(sealer: Sealer, run: Run, now: float) -> Kept:
    """What the state of a retry says.

    Raises:
        CallFailed: it is not for this client and this request, or not any more.

    """
    assert run.state is not None
    try:
        kept = _decode_kept(sealer.open("state", run.principal, bare(run.state), now))
        if kept.digest == digest(run):
            return kept
    except (ValueError, msgspec.DecodeError):
        pass
    raise CallFailed(INVALID_PARAMS, "unknown or expired requestState", executed="no")


def next_call(run: Run, kept: Kept, answers: bytes, events: EventSink | None) -> Call:
    """The call that brings `answers` (JSON text, empty for none) to whoever asked."""
    params: Mapping[str, Raw]
    if kept.park:
        params = {ANSWERS: Raw(answers or b"{}")}
    else:
        more = {ANSWERS: Raw(answers)} if answers else {}
        if kept.state is not None:
            more[STATE] = Raw(encode(kept.state))
        params = {**run.params, **more}
    return msgspec.structs.replace(run.call(events), params=params, park=kept.park)


def digest(run: Run) -> str:
    """A digest of what was asked, the same however a client writes the same JSON the second time."""
    asked = [run.method, run.name, {key: _plain(parse(value)) for key, value in run.params.items()}]
    return hashlib.blake2b(_sorted(asked), digest_size=16).hexdigest()


def _plain(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # 1.0 comes back as 1 from half of all JSON writers
    return value
