"""Which of several like servers takes a call: of two drawn at random, the one with less to do and quicker to do it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

MEMORY: Final = 10.0
"""Seconds in which what was seen of a server's latency loses most of its weight."""

PENALTY: Final = 1.0
"""Seconds that a failure counts as, at least: a server that fails at once must not look quick."""

QUICKEST: Final = 1e-4
"""Seconds that a latency counts as, at least: 0 is that of one of which nothing is known."""

SLOWEST: Final = 3600.0
"""Seconds that a latency counts as, at most."""

EJECT_AFTER: Final = 5
"""Failures one after the other after which a server gets no calls for a while."""

EJECT_TIME: Final = 30.0
"""Seconds for which it gets none the first time, at most; doubled each time after that."""

EJECT_LONGEST: Final = 300.0
"""Seconds for which it gets none, at most."""


class Load:
    """What one of them has to do, and how it does it.

    Attributes:
        in_flight: calls that it was given, and has not ended.
        answers: to its calls so far.
        failures: since its last answer.
        until: Trio time up to which it gets no calls, while enough others can take them.

    """

    __slots__ = ("_at", "_ejections", "_latency", "answers", "failures", "in_flight", "until")

    def __init__(self) -> None:
        self.in_flight = 0
        self.answers = 0
        self.failures = 0
        self.until = -math.inf
        self._latency = 0.0
        self._at = -math.inf
        self._ejections = 0

    def latency(self, now: float) -> float:
        """Seconds that it takes for a call, as far as is remembered; 0 if nothing is."""
        return self._latency * math.exp(-max(0.0, now - self._at) / MEMORY)

    def answered(self, seconds: float, now: float) -> None:
        """Count an answer: a slower one at once, a quicker one little by little (peak EWMA)."""
        self.answers += 1
        self.failures = self._ejections = 0
        seconds = max(QUICKEST, seconds)
        weight = math.exp(-max(0.0, now - self._at) / MEMORY)
        self._latency = max(seconds, self._latency * weight + seconds * (1.0 - weight))
        self._at = now

    def unanswered(self, seconds: float, now: float) -> None:
        """Count a call that nobody waits for any more: its answer would have taken longer."""
        if seconds > self.latency(now):
            self._latency, self._at = min(SLOWEST, seconds), now

    def failed(self, now: float) -> None:
        """Count a failure."""
        self.failures += 1
        self._latency = min(SLOWEST, max(PENALTY, 2.0 * self.latency(now)))
        self._at = now

    def eject(self, now: float, rng: Random) -> None:
        """Give it no calls for a while. Then the next failure is enough to do so again, for longer."""
        longest = min(EJECT_LONGEST, EJECT_TIME * 2.0**self._ejections)
        self._ejections = min(self._ejections + 1, 16)
        self.until = now + rng.uniform(longest / 2, longest)


def may_eject(loads: Sequence[Load], now: float) -> bool:
    """Whether one more of them may be left out: never more than half are."""
    return 2 * (1 + sum(load.until > now for load in loads)) <= len(loads)


def choose(loads: Sequence[Load], now: float, rng: Random) -> int:
    """The place of the one that takes a call. Where more than half are left out, all take part."""
    well = [place for place, load in enumerate(loads) if load.until <= now]
    places = well if 2 * len(well) >= len(loads) else range(len(loads))
    if len(places) == 1:
        return places[0]
    first = rng.randrange(len(places))
    second = rng.randrange(len(places) - 1)
    one, other = places[first], places[second + (second >= first)]
    slow, quick = loads[one].latency(now), loads[other].latency(now)
    # One of which nothing is known is taken to be like the other, lest all calls go there at once.
    cost = (loads[one].in_flight + 1) * (slow or quick or 1.0)
    return one if cost <= (loads[other].in_flight + 1) * (quick or slow or 1.0) else other
