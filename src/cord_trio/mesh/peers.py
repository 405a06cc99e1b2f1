"""Which of several nodes that have the same takes a call, and how often another may be tried. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.mesh.frames import MAX_SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

DOUBTS: Final = 3
"""Calls in a row whose end is not known, after which a node is avoided where there is another."""

AVOIDED: Final = 5.0
"""Seconds for which it is."""

RESERVE: Final = 10.0
"""Calls that may be made elsewhere at once."""

PART: Final = 0.1
"""Of all calls, those that may be made elsewhere in the long run."""


class Peer:
    """One incarnation of another node, as its caller knows it.

    Attributes:
        epoch: which.
        in_flight: our calls there.
        busy: its calls when it said so last.
        slots: those that it runs at once.
        ahead: seconds by which its clock is ahead of ours; None while it has not said so.
        until: Trio time up to which it is avoided.
        absent: whether nobody listened there for as long as that is waited for, and nothing was heard of it since.

    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.in_flight = 0
        self.busy = 0
        self.slots = 1
        self.ahead: float | None = None
        self.until = 0.0
        self.absent = False
        self._doubts = 0
        self._settled: list[str] = []

    @property
    def load(self) -> float:
        """What it has to do, in parts of what it can do at once."""
        return (self.busy + self.in_flight) / self.slots

    def told(self, busy: int, slots: int) -> None:
        """It said what it has to do."""
        self.busy, self.slots = busy, slots

    def answered(self, id: str) -> None:
        """A call ended; `id` if its owner may forget it."""
        self._doubts = 0
        if id:
            self.settle(id)

    def settle(self, id: str) -> None:
        """The owner of a call may forget it."""
        if len(self._settled) < MAX_SETTLED:
            self._settled.append(id)

    def doubted(self, now: float) -> None:
        """A call ended, nobody knows how."""
        self._doubts += 1
        if self._doubts >= DOUBTS:
            self.until = now + AVOIDED

    def missed(self, now: float, *, long: bool) -> None:
        """Nobody listens there: just now, or for as `long` as that is waited for."""
        self.until = now + AVOIDED
        self.absent = self.absent or long

    def take_settled(self) -> tuple[str, ...]:
        """What it may forget, told once."""
        if not self._settled:
            return ()
        settled, self._settled = tuple(self._settled), []
        return settled


class Budget:
    """How often a call may be made elsewhere: a part of all of them, and some at once."""

    def __init__(self) -> None:
        self._left = RESERVE

    def earn(self) -> None:
        """Count a call."""
        self._left = min(RESERVE, self._left + PART)

    @property
    def some(self) -> bool:
        """Whether one more may be made elsewhere."""
        return self._left >= 1

    def spend(self) -> bool:
        """Whether one more may be made elsewhere; counts it."""
        if not self.some:
            return False
        self._left -= 1
        return True


class Peers:
    """All that calls went to lately.

    Args:
        rng: draws.

    Attributes:
        near: whether a node is where we are; None where that makes no difference.

    """

    def __init__(self, rng: Random) -> None:
        self.budget = Budget()
        self.near: Callable[[str], bool] | None = None
        self._rng = rng
        self._peers: dict[str, Peer] = {}

    def get(self, node: str, epoch: str) -> Peer:
        """What is known of an incarnation."""
        peer = self._peers.get(node)
        if peer is None or peer.epoch != epoch:
            peer = self._peers[node] = Peer(epoch)
        return peer

    def forget(self, node: str, epoch: str) -> None:
        """It is no more."""
        peer = self._peers.get(node)
        if peer is not None and peer.epoch == epoch:
            del self._peers[node]

    def choose(self, there: Sequence[tuple[str, str]], now: float) -> tuple[str, str]:
        """Of two drawn at random the one with less to do; whoever is avoided only if all are.

        Of those that are near first, unless the one that would be has more to do than it can do at once.
        """
        if len(there) == 1:
            return there[0]
        well = [each for each in there if self.get(*each).until <= now] or there
        if self.near is not None:
            near = [each for each in well if self.near(each[0])]
            if 0 < len(near) < len(well):
                found = self._lighter(near)
                if self.get(*found).load <= 1:
                    return found
        return self._lighter(well)

    def _lighter(self, of: Sequence[tuple[str, str]]) -> tuple[str, str]:
        if len(of) == 1:
            return of[0]
        one, other = self._rng.sample(of, 2)
        return one if self.get(*one).load <= self.get(*other).load else other
