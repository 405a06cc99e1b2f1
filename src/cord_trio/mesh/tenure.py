"""What one incarnation of a node knows of the calls of others: what runs, and what came of what ran. No I/O."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.mesh.admission import Admission
from cord_trio.mesh.frames import Request
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.counters import Counters
    from cord_trio.mesh.frames import Frame
    from cord_trio.mesh.presence import Lease

ACCEPT: Final = 0.005
"""Seconds after which a caller is told that its call runs, if it has not ended."""

KEEP_ALIVE: Final = 1.0
"""Seconds after which a caller is told again that its call runs."""

REMEMBERED: Final = 4.0 * LEASE
"""Seconds that a call is known after its end: its caller asks no more after half of that without a word from us."""

MAX_REMEMBERED: Final = 65536
"""Calls that are known, at most: those that run, and those that have ended."""

MAX_KEPT: Final = 128 * 1024 * 1024
"""Bytes of results that are kept for callers who ask again; past it the oldest are let go of."""

MAX_PARKS: Final = 4096
"""Questions to callers that are known, so that they are let go of when their caller is no more."""

MAX_STANDING: Final = 4096
"""Calls of others that only wait, such as for a resource to change."""

MAX_OVER: Final = 1024
"""Incarnations of callers that are known to be no more: what comes late of them does not run."""

_FORGOTTEN: Final = Request("call", "")


@attrs.define(eq=False)
class Owned:
    """One call of another node, from its arrival until nobody can ask for it any more.

    Attributes:
        caller: the node that it is from.
        request: what came first; forgotten once it has ended.
        reply: where its caller listens now.
        deadline: Trio time.
        scope: what ends it; None while it does not run.
        state: waiting, running or done.
        why: it was ended from outside: "" if it was not.
        joined: whether its caller waits for its end all the same.
        end: the frame that ended it; None while it has not ended, or if its result was let go of.
        large: its result, where that goes in parts.
        began: Trio time at which it ran.
        due: Trio time at which its caller is told next that it runs.
        standing: whether it only waits, and has no slot.

    """

    caller: str
    request: Request
    reply: str
    deadline: float
    scope: trio.CancelScope | None = None
    state: str = "waiting"
    why: str = ""
    joined: bool = False
    end: Frame | None = None
    large: bytes | memoryview = b""
    began: float = 0.0
    due: float = math.inf
    standing: bool = False

    @property
    def size(self) -> int:
        """Bytes of its result."""
        return len(self.large) or (0 if self.end is None else len(self.end.body))


class Tenure:
    """What is known in one incarnation.

    Invariants: a call is known by caller and id until `REMEMBERED` after its end, or until its caller says that it
    will not ask again; no more than `MAX_REMEMBERED` are, and no more than `MAX_KEPT` bytes of results, or one.

    Attributes:
        lease: which.
        admission: who may run.
        workers: run it.
        known: all calls.
        standing: how many run that only wait.
        next: Trio time at which somebody is to be told that its call runs.
        sleeping: the scope that ends then.

    """

    def __init__(
        self, lease: Lease, slots: int, line: int, run: Callable[[Tenure, Owned], Awaitable[None]], counters: Counters
    ) -> None:
        self.lease = lease
        self.admission: Admission[Owned] = Admission(slots, line)
        self.workers: Workers[Owned] = Workers(lease.nursery, partial(run, self))
        self.known: dict[tuple[str, str], Owned] = {}
        self.standing = 0
        self.next = math.inf
        self.sleeping = trio.CancelScope()
        self._counters = counters
        self._ended: OrderedDict[tuple[str, str], float] = OrderedDict()  # when they are forgotten, the first first
        self._kept: OrderedDict[Owned, None] = OrderedDict()  # whose results are kept, the oldest first
        self._kept_bytes = 0
        self._parks: OrderedDict[str, tuple[str, str]] = OrderedDict()  # node and epoch of who is asked a question
        self._over: OrderedDict[tuple[str, str], None] = OrderedDict()  # incarnations of callers that are no more
        self._new: deque[Owned] = deque()  # who are told that they run, in the order in which that is due
        self._old: deque[Owned] = deque()  # who are told so again

    def runs(self, owned: Owned, now: float) -> None:
        """It is to be told that it runs."""
        owned.due = now + ACCEPT
        if owned.request.trace:
            self.lease.recent.came(owned.request, owned.caller, self.lease.epoch, now)
        self._new.append(owned)
        if owned.due < self.next:
            self.next = self.sleeping.deadline = owned.due

    def stand(self, owned: Owned, now: float) -> bool:
        """Let it run without a slot, since it only waits; False if too many do."""
        if self.standing >= MAX_STANDING:
            self._counters.add("mesh.standing_full")
            return False
        self.standing += 1
        owned.standing = True
        self.runs(owned, now)
        return True

    def due(self, now: float) -> list[tuple[Owned, str]]:
        """Who is to be told now that it runs, and by which frame; `next` is when to ask again."""
        told: list[tuple[Owned, str]] = []
        self.next = math.inf
        for line, kind in ((self._new, "acc"), (self._old, "hb")):
            while line and (line[0].state == "done" or line[0].due <= now):
                owned = line.popleft()
                if owned.state != "done":
                    told.append((owned, kind))
                    owned.due = now + KEEP_ALIVE
                    self._old.append(owned)
            if line:
                self.next = min(self.next, line[0].due)
        return told

    def end(self, owned: Owned, frame: Frame, now: float) -> None:
        """It ended so. What its caller said to be over is forgotten, and what nobody can ask for any more."""
        self.make_room(owned.caller, owned.request.settled, now)
        owned.state = "done"
        owned.scope = None
        request = owned.request
        if request.trace:
            self.lease.recent.ran(request, owned.caller, self.lease.epoch, frame, now)
        owned.request = Request("call", request.id, hop=request.hop) if request.hop else _FORGOTTEN
        self._ended[owned.caller, request.id] = now + REMEMBERED
        owned.end = frame
        size = owned.size
        if size:
            self._kept[owned] = None
            self._kept_bytes += size
            while self._kept_bytes > MAX_KEPT and len(self._kept) > 1:
                self._counters.add("mesh.results_dropped")
                self.let_go(next(iter(self._kept)))
        if request.park:
            self._parks.pop(request.park, None)
        if frame.park:
            self._parks[frame.park] = (owned.caller, request.epoch)
            if len(self._parks) > MAX_PARKS:
                self._parks.popitem(last=False)

    def let_go(self, owned: Owned) -> None:
        """Forget the result, not that there was one."""
        if owned in self._kept:
            del self._kept[owned]
            self._kept_bytes -= owned.size
            owned.end, owned.large = None, b""

    def settle(self, caller: str, id: str) -> None:
        """Its caller asks no more for it."""
        owned = self.known.get((caller, id))
        if owned is not None and owned.state == "done":
            self.let_go(owned)
            del self.known[caller, id], self._ended[caller, id]

    def make_room(self, caller: str, settled: tuple[str, ...], now: float) -> None:
        """Forget what `caller` has `settled`, and what nobody can ask for any more."""
        for id in settled:
            self.settle(caller, id)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Know no more of those that nobody can ask for."""
        while self._ended:
            key, until = next(iter(self._ended.items()))
            if until > now:
                return
            del self._ended[key]
            self.let_go(self.known.pop(key))

    def unpark(self, park: str) -> bool:
        """Nobody will answer the question; whether one was asked."""
        return self._parks.pop(park, None) is not None

    def is_over(self, caller: str, epoch: str) -> bool:
        """Whether that incarnation of a caller is known to be no more."""
        return (caller, epoch) in self._over

    def over(self, caller: str, epoch: str) -> tuple[list[Owned], list[str]]:
        """It is no more: what runs of it, and the questions that it was asked."""
        self._over[caller, epoch] = None
        if len(self._over) > MAX_OVER:
            self._over.popitem(last=False)
        parks = [park for park, asked in self._parks.items() if asked == (caller, epoch)]
        running = [one for one in self.known.values() if one.state != "done" and one.caller == caller]
        return [one for one in running if one.request.epoch == epoch], parks
