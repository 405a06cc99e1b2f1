"""Trace context as W3C writes it: which trace a piece of work belongs to, and which span it is done in.

It goes along with calls and asks, and costs one number for each hop: the texts are made for who reads them.
Whoever exports spans makes them of these; nothing here sends anything anywhere.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
"""Members of `_meta` that carry the trace context (MCP 2026-07-28, SEP-414); unprefixed by exception."""

LONGEST_STATE: Final = 512
"""Characters of `tracestate` that must be carried (W3C Trace Context, tracestate limits)."""

LONGEST_BAGGAGE: Final = 8192
"""Bytes of `baggage` that must be carried (W3C Baggage, limits)."""

SAMPLED: Final = "01"
"""The flags of a trace that we begin: someone wants to see it."""

Over: TypeAlias = "Callable[[object], None]"
"""Is told how a run ended, once: its answer, or the exception that ended it. Must not block and must not raise."""

RunWatch: TypeAlias = "Callable[[str, TraceContext | None], tuple[TraceContext, Over]]"
"""Is told of the agent whose run begins, and of the span that caused it, if one did; returns the run's own span."""

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(msgspec.Struct, frozen=True):
    """One span of a trace. As a text it is the `traceparent` for whoever is asked within it.

    Attributes:
        id: of the trace, 32 hexadecimal digits.
        span: 16 hexadecimal digits.
        flags: 2 hexadecimal digits; the last bit says that the trace is sampled.
        state: what the tracing systems along the way noted, `tracestate`; empty for nothing.
        baggage: what travels with the trace, `baggage`; empty for nothing.

    """

    id: str
    span: str
    flags: str = SAMPLED
    state: str = ""
    baggage: str = ""

    def __str__(self) -> str:
        return f"00-{self.id}-{self.span}-{self.flags}"

    @property
    def meta(self) -> Mapping[str, Raw]:
        """The members of `_meta` beside `traceparent`."""
        given = {TRACESTATE: self.state, BAGGAGE: self.baggage}
        return {name: Raw(msgspec.json.encode(text)) for name, text in given.items() if text}

    def at(self, span: int) -> TraceContext:
        """Another span of the same trace."""
        return TraceContext(self.id, f"{span:016x}", self.flags, self.state, self.baggage)


def read_trace(traceparent: str, state: str = "", baggage: str = "") -> TraceContext | None:
    """The context that these texts say; None if the first is no `traceparent`: then the others mean nothing.

    Of a version that is not ours the parts that ours has are read (W3C Trace Context, versioning).
    """
    found = _PARENT.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return TraceContext(
        found[2],
        found[3],
        found[4],
        state if len(state) <= LONGEST_STATE else "",
        baggage if len(baggage.encode()) <= LONGEST_BAGGAGE else "",
    )


def take_trace(meta: dict[str, Raw]) -> str:
    """The `traceparent` of a request, taken out of its `_meta`; empty if there is none.

    What is none is dropped, and the `tracestate` with it (W3C Trace Context, processing).
    """
    raw = meta.pop(TRACEPARENT, None)
    if raw is None:
        return ""
    trace = read_trace(_text(raw))
    if trace is None:
        meta.pop(TRACESTATE, None)
        return ""
    return str(trace)


def trace_of(traceparent: str, meta: Mapping[str, Raw]) -> TraceContext | None:
    """The context of a call that has these; None if it has none."""
    if not traceparent:
        return None
    return read_trace(traceparent, *(_text(meta[name]) if name in meta else "" for name in (TRACESTATE, BAGGAGE)))


def with_traceparent(meta: Mapping[str, Raw], traceparent: str) -> Mapping[str, Raw]:
    """`meta` as it is sent to whoever is asked in a trace."""
    return {**meta, TRACEPARENT: Raw(msgspec.json.encode(traceparent))}


def within(traceparent: str, span: int) -> str:
    """The `traceparent` of `span` in the trace of a sound one."""
    return f"{traceparent[:36]}{span:016x}{traceparent[52:]}"


def new_trace(bits: Callable[[int], int], span: int) -> TraceContext:
    """A trace that begins with `span`; `bits` draws its id."""
    return TraceContext(f"{bits(128) or 1:032x}", f"{span:016x}")


def span_ids(bits: Callable[[int], int]) -> Iterator[int]:
    """Ids of spans: counted up from one that `bits` draws, so a hop draws nothing."""
    return count(bits(63) + 1)


def _text(raw: Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return ""
