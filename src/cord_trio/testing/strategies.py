"""Hypothesis strategies for what goes over the wire, and for the order in which tasks run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from hypothesis import strategies as st

from cord_trio.testing.faults import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

Json: TypeAlias = Any

LARGEST_INTEGER = 2**63 - 1
"""Ids beyond it are read as floats by many peers."""


def schedules() -> st.SearchStrategy[Random]:
    """Random sources for `scheduled` and `TrioMachine.explore`: searched, shrunk and replayed by Hypothesis."""
    return st.randoms(use_true_random=False)


def texts(*, max_size: int = 20) -> st.SearchStrategy[str]:
    """Texts as UTF-8 can hold them; line separators, quotes, NUL and astral characters come often."""
    nasty = st.sampled_from(["\u2028", "\x85", "\r\n", "\0", '"', "\\", "é", "\U0001f600", "\ufeff", "data: "])
    plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)
    return plain | st.lists(nasty | plain, max_size=4).map(lambda parts: "".join(parts)[:max_size])


def json_values(*, max_leaves: int = 12) -> st.SearchStrategy[Json]:
    """Any JSON value; numbers are finite."""
    numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | texts()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | json_objects(inner, max_size=4), max_leaves=max_leaves
    )


def json_objects(values: st.SearchStrategy[Json] | None = None, *, max_size: int = 4) -> st.SearchStrategy[Json]:
    """JSON objects, with `values` or any."""
    return st.dictionaries(texts(max_size=10), json_values() if values is None else values, max_size=max_size)


def ids() -> st.SearchStrategy[int | str]:
    """JSON-RPC ids: strings and integers, also strings that look like integers."""
    numbers = st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    return st.integers(0, 9) | numbers | st.integers(0, 9).map(str) | texts()


def requests() -> st.SearchStrategy[Json]:
    """JSON-RPC requests of any method."""
    return _message({"id": ids(), "method": texts()}, {"params": json_objects()})


def notifications() -> st.SearchStrategy[Json]:
    return _message({"method": texts()}, {"params": json_objects()})


def replies() -> st.SearchStrategy[Json]:
    """Results and errors."""
    error = st.fixed_dictionaries(
        {"code": st.integers(-40000, 40000), "message": texts()}, optional={"data": json_values()}
    )
    return _message({"id": ids(), "result": json_objects()}, {}) | _message({"id": ids(), "error": error}, {})


def messages() -> st.SearchStrategy[Json]:
    """Any JSON-RPC message; sometimes with members that no specification knows."""
    return requests() | notifications() | replies()


def encoded(values: st.SearchStrategy[Json]) -> st.SearchStrategy[bytes]:
    """`values` as one line of JSON each: compact or spaced, characters escaped or as they are."""
    return st.builds(_encoded, values, st.booleans(), st.booleans())


def tools() -> st.SearchStrategy[Json]:
    """Tools as servers list them: names within and beyond the rules, members that nobody knows."""
    plain_names = st.text("abcXYZ019_-.", min_size=1, max_size=80)
    schemas = st.fixed_dictionaries({"type": st.just("object")}, optional={"properties": json_objects()})
    optional = {
        "title": texts(),
        "description": texts(),
        "annotations": st.dictionaries(
            st.sampled_from(["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"]), st.booleans()
        ),
        "outputSchema": schemas,
        "_meta": json_objects(),
        "x-unknown": json_values(),
    }
    return st.fixed_dictionaries(
        {"name": plain_names | texts().filter(bool), "inputSchema": schemas}, optional=optional
    )


def plans(
    kinds: Sequence[Kind], *, max_size: int = 20, longest: float = 5.0
) -> st.SearchStrategy[list[Fault[Kind] | None]]:
    """Plans for `faulty` and `FaultyTransport`, of `faults.CALL_FAULTS` or `WIRE_FAULTS`; they shrink to no faults."""
    fault = st.builds(Fault[Kind], st.sampled_from(kinds), st.floats(0, longest), st.integers(1, 20))
    return st.lists(st.none() | fault, max_size=max_size)


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces, as a stream may deliver it; now and then byte by byte."""
    if draw(st.booleans()) and len(data) <= 200:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _message(
    members: dict[str, st.SearchStrategy[Json]], optional: dict[str, st.SearchStrategy[Json]]
) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({"jsonrpc": st.just("2.0"), **members}, optional={**optional, "x-more": json_values()})


def _encoded(value: Json, compact: bool, ascii: bool) -> bytes:
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps(value, ensure_ascii=ascii, separators=separators).encode()
