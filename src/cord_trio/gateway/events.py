"""Progress and log notifications of one call, handed to its client in its own terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from cord_trio.errors import Malformed
from cord_trio.gateway.requests import LEVELS
from cord_trio.protocol.jsonrpc import encode, encode_notification, members, object_of
from cord_trio.protocol.mcp import HOP_LOCAL_META, PROGRESS_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from cord_trio.counters import Counters

PROGRESS: Final = "notifications/progress"
LOG: Final = "notifications/message"

_SEVERITY: Final = {level: number for number, level in enumerate(LEVELS)}


class _Step(msgspec.Struct, gc=False):
    progress: int | float


class _Log(msgspec.Struct, gc=False):
    level: str


_decode_step = msgspec.json.Decoder(_Step).decode
_decode_log = msgspec.json.Decoder(_Log).decode


@attrs.define(eq=False)
class Events:
    """What is told of one call while it runs.

    Invariants: the numbers of progress rise strictly, also over several rounds; nothing comes after `over` is
    set (MCP 2026-07-28, progress); log notifications below the wanted level stay here; never blocks, never raises.

    Attributes:
        token: the client's own progress token as JSON text; empty if it wants no progress.
        level: the least severe log notification that it wants; None for none.
        emit: takes each notification.
        counters: counts what is dropped.
        over: whether the call is answered.

    """

    token: bytes
    level: str | None
    emit: Callable[[bytes], None]
    counters: Counters
    over: bool = False
    _last: float | None = None

    def __call__(self, method: str, params: Raw, /) -> None:
        """Take one notification of the call."""
        if method == PROGRESS:
            self._progress(params)
        elif method == LOG:
            self._log(params)

    def tick(self) -> None:
        """Tell of progress that is none, so that a client which waits for a person does not lose patience."""
        if self.token and not self.over:
            self._last = 0 if self._last is None else self._last + TICK
            parts = {PROGRESS_TOKEN: self.token, "progress": encode(self._last)}
            self.emit(encode_notification(PROGRESS, object_of(parts)))

    def _progress(self, params: Raw) -> None:
        if not self.token:
            return  # not asked for by the client, only by us
        try:
            value = _decode_step(params).progress
            parts: dict[str, Raw | bytes] = {**members(params)}
        except (msgspec.DecodeError, Malformed):
            self.counters.add("gateway.progress_bad")
            return
        if self.over or (self._last is not None and value <= self._last):
            self.counters.add("gateway.progress_late" if self.over else "gateway.progress_falling")
            return
        self._last = value
        parts.pop("_meta", None)
        parts[PROGRESS_TOKEN] = self.token
        self.emit(encode_notification(PROGRESS, object_of(parts)))

    def _log(self, params: Raw) -> None:
        if self.level is None or self.over:
            return
        try:
            level = _decode_log(params).level
            parts: dict[str, Raw | bytes] = {**members(params)}
            if "_meta" in parts:
                kept = {key: value for key, value in members(parts["_meta"]).items() if key not in HOP_LOCAL_META}
                parts["_meta"] = object_of(kept)
        except (msgspec.DecodeError, Malformed):
            self.counters.add("gateway.log_bad")
            return
        severity = _SEVERITY.get(level)
        if severity is None:
            self.counters.add("gateway.log_bad")
        elif severity >= _SEVERITY[self.level]:
            self.emit(encode_notification(LOG, object_of(parts)))


TICK: Final = 1e-6
"""How much a tick adds to the progress that was told last: as good as nothing, and yet more."""
