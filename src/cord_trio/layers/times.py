"""How long calls took lately: what those layers know that must guess how long one will take."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.errors import DeadlineExceeded

KEPT: Final = 128
"""Durations that are kept, the newest."""

FAIR: Final = 1.0
"""Seconds that a caller of its own accord must give a server for it to be called slow."""


class Times:
    """The durations of the last calls that were answered, in seconds.

    Attributes:
        last: them, the oldest first.

    """

    __slots__ = ("_kept", "_last")

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._last: deque[float] | None = None  # an empty one takes 700 bytes

    @property
    def last(self) -> deque[float]:
        if self._last is None:
            self._last = deque(maxlen=self._kept)
        return self._last

    def quantile(self, part: float, least: int = 1) -> float:
        """The duration that `part` of the calls did not exceed; 0 if there were fewer than `least`."""
        count = len(self._last or ())
        if count < least:
            return 0.0
        return sorted(self.last)[min(count - 1, int(part * count))]


def timed(times: Times, *, clock: Callable[[], float]) -> Layer:
    """Calls that are answered add how long they took to `times`."""

    def layer(handler: Handler) -> Handler:
        async def measured(call: Call) -> Outcome:
            begun = clock()
            outcome = await handler(call)
            times.last.append(clock() - begun)
            return outcome

        return measured

    return layer


def is_too_slow(error: DeadlineExceeded, call: Call, begun: float, now: float) -> bool:
    """Whether a deadline that passed says something of the server, and not of whoever was that impatient.

    What is configured for the source always does: a deadline that moves on with progress is ours, and so is one of an
    attempt, which passes before the call's. A caller's own does if it left the server a fair time.
    """
    if error.executed == "no":
        return False  # it waited here
    return call.patience > 0 or now < call.deadline or now - begun >= FAIR
