"""The stages of a life that ends in order: `RUNNING > DRAINING > CLOSING > CLOSED`, and no other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Stage: TypeAlias = Literal["running", "draining", "closing", "closed"]

STAGES: Final[tuple[Stage, ...]] = ("running", "draining", "closing", "closed")
"""In their order. Draining takes no new work and finishes what was accepted; closing ends what is left."""


class Stages:
    """Which stage something is in. Invariant: they follow each other in their order, and none is left out."""

    __slots__ = ("_reached", "stage")

    def __init__(self, reached: Callable[[Stage], None]) -> None:
        """Begin at running; `reached` is told of each stage after it. Must not block."""
        self.stage: Stage = "running"
        self._reached = reached

    def go_to(self, stage: Stage) -> bool:
        """Go on to `stage`, through those before it. Returns False, and does nothing, if that is behind us or here."""
        now, then = STAGES.index(self.stage), STAGES.index(stage)
        for each in STAGES[now + 1 : then + 1]:
            self.stage = each
            self._reached(each)
        return then > now
