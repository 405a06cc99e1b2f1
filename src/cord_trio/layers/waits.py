"""Where the calls of one source wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from cord_trio.layers.limit import Slots
    from cord_trio.layers.rate import Meter
    from cord_trio.layers.retry import RetryBudget


@attrs.frozen
class Waits:
    """What keeps the calls of one source.

    Attributes:
        slots: of the source.
        budget: of its retries, with the pauses before them.
        meters: its rate, and those of its tools.
        own: the slots of single tools.

    """

    slots: Slots
    budget: RetryBudget
    meters: list[Meter] = attrs.field(factory=list)
    own: list[Slots] = attrs.field(factory=list)

    @property
    def busy(self) -> bool:
        """Whether a call runs or waits."""
        return (
            any(slots.taken or slots.queue for slots in (self.slots, *self.own))
            or bool(self.budget.pausing)
            or any(meter.waiting for meter in self.meters)
        )

    def hurry(self) -> None:
        """Let all of them go on at once: what they wait for has ended, and they are to learn that."""
        self.budget.hurry()
        for meter in self.meters:
            meter.lift()
