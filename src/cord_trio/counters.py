"""Counts of what happened, by name. Plain integers: cheap to add to, cheap to read, never reset."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Counters:
    """A growing count for each name. One instance a fabric; parts of it share the instance.

    Invariant: counts never fall. Names are `<room>.<event>`, such as `peer.late_reply`.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count `amount` more of `name`."""
        self._counts[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def snapshot(self) -> Mapping[str, int]:
        """All counts at this moment, sorted by name."""
        return dict(sorted(self._counts.items()))
