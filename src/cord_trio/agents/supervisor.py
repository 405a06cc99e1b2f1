"""Supervision: which agents are made anew after a crash, how soon, and when it is enough.

A group has a task only while there is something to do. It stops in reverse, starts in order, and counts.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec
import trio

from cord_trio.agents.monitor import Notice
from cord_trio.errors import RestartIntensity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from cord_trio.agents.directory import Agents

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait before a restart: a random part of a span that doubles each time.

    Attributes:
        first: seconds of the first span.
        longest: seconds of the longest.

    """

    first: float = 0.1
    longest: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.longest:
            raise ValueError("a back-off goes from 0 or more up to longest")

    def seconds(self, restarts: int, rng: Random) -> float:
        """How long to wait when there were so many restarts lately."""
        return rng.uniform(0.0, min(self.longest, self.first * 2 ** min(restarts, 64)))


class Supervisor(msgspec.Struct, frozen=True, eq=False):
    """Agents that belong together: those that are given the same supervisor.

    Attributes:
        strategy: what a crash of one makes anew: it, all, or it and those added after it.
        max_restarts: as many in `within` seconds are made; one more crash, and it gives up.
        within: seconds.
        backoff: between a crash and the restart.
        gives_up: "fail" ends the fabric's block with `RestartIntensity`; "stop" leaves these agents down.
        parent: another supervisor, to which giving up is a crash of the whole group; `gives_up` is not used then.

    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    within: float = 5.0
    backoff: Backoff = Backoff()
    gives_up: Literal["fail", "stop"] = "fail"
    parent: Supervisor | None = None

    def __post_init__(self) -> None:
        if self.strategy not in ("one_for_one", "one_for_all", "rest_for_one"):
            raise ValueError(f"{self.strategy!r} is no strategy: use one_for_one, one_for_all or rest_for_one")
        if self.gives_up not in ("fail", "stop"):
            raise ValueError(f"gives_up={self.gives_up!r}: use fail or stop")
        if self.max_restarts < 0 or self.within <= 0:
            raise ValueError("max_restarts is at least 0, within more than 0 seconds")


class Member(Protocol):
    """What a group starts and stops: an agent with a task, or a group below it."""

    @property
    def name(self) -> str:
        """For reasons, and for whoever reads them."""

    @property
    def down(self) -> str | None:
        """Why it will not be started again; None if it may be."""

    @property
    def temporary(self) -> bool:
        """Whether it is never started again."""

    @property
    def incarnation(self) -> int:
        """Counted up with each start."""

    async def start(self) -> None:
        """Start it, unless it is down, and return when it is up, or has failed."""

    async def stop(self, reason: str) -> None:
        """End it, within its grace. It may be started again."""

    async def retire(self, reason: str, cause: Exception | None = None) -> None:
        """End it for good."""

    def go_down(self, reason: str, cause: Exception | None = None) -> None:
        """As `retire`, where it has ended already."""


class End(msgspec.Struct, frozen=True):
    """A member ended that nobody had stopped.

    Attributes:
        member: which.
        incarnation: of it.
        again: whether it is one to be made anew.
        reason: why, in words.
        cause: the crash, if it was one.

    """

    member: Member
    incarnation: int
    again: bool
    reason: str
    cause: Exception | None


class Group:
    """The members of one supervisor in one fabric. It is a member of its parent's group.

    Invariants: within any `within` seconds there are at most `max_restarts` restarts; it gives up once;
    nothing is restarted once the fabric drains.

    Attributes:
        supervisor: the rules.
        parent: the group above.
        members: in the order in which they were added.
        down: why nothing is started again; None if it may be.
        incarnation: counted up when the parent starts it anew.

    """

    temporary = False

    def __init__(self, agents: Agents, supervisor: Supervisor, parent: Group | None = None) -> None:
        self.supervisor = supervisor
        self.parent = parent
        self.members: list[Member] = []
        self.down: str | None = None
        self.incarnation = 0
        self._down_cause: Exception | None = None
        self._agents = agents
        self._starts: deque[Member] = deque()
        self._ended: deque[End] = deque()
        self._restarts: deque[float] = deque()
        self._stopped = False
        self._busy = False
        self._scope = trio.CancelScope()
        self._quiet = trio.Event()
        if parent is not None:
            parent.members.append(self)

    @property
    def name(self) -> str:
        """Those whose supervisor it is."""
        return f"the group of {', '.join(member.name for member in self.members)}"

    def add(self, member: Member) -> None:
        """Take one more member, and start it after those before."""
        self.members.append(member)
        if self.down is not None:
            member.go_down(self.down, self._down_cause)
        elif not self._stopped:
            self._starts.append(member)
            self._wake()

    async def remove(self, member: Member) -> None:
        """Stop a member for good."""
        self.members.remove(member)
        await member.retire("it was removed")

    def ended(self, end: End) -> None:
        """A member ended that nobody had stopped."""
        if not self._stopped:
            self._ended.append(end)
            self._wake()

    # As a member of the group above

    async def start(self) -> None:
        """Start all members, in order, with nothing held against them; return when they are up, or it gave up."""
        if self.down is not None:
            return
        self.incarnation += 1
        self._restarts.clear()
        self._stopped = False
        self._starts.extend(self.members)  # by its own task, which alone starts and stops them
        self._wake()
        while self._busy:
            await self._quiet.wait()

    async def stop(self, reason: str) -> None:
        """Stop all members, in reverse, and what it was about to do with them."""
        self._stopped = True
        self._starts.clear()
        self._ended.clear()
        self._scope.cancel(reason)
        while self._busy:
            await self._quiet.wait()
        for member in reversed(self.members):
            await member.stop(reason)

    async def retire(self, reason: str, cause: Exception | None = None) -> None:
        """Stop all members for good."""
        self.down, self._down_cause = reason, cause
        await self.stop(reason)
        for member in reversed(self.members):
            await member.retire(reason, cause)

    def go_down(self, reason: str, cause: Exception | None = None) -> None:
        """As `retire`, where nothing runs."""
        self.down, self._down_cause = reason, cause
        for member in reversed(self.members):
            member.go_down(reason, cause)

    # Inside

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self._quiet = trio.Event()
            self._scope = trio.CancelScope()
            assert self._agents.nursery is not None
            self._agents.nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self._scope:
            while self._starts or self._ended:
                if self._starts:
                    await self._starts.popleft().start()
                else:
                    await self._recover(self._ended.popleft())
        self._busy = False
        self._quiet.set()

    async def _recover(self, end: End) -> None:
        member = end.member
        if member.down is not None or end.incarnation != member.incarnation:
            return  # it is down, or was made anew with another since
        if self._agents.draining.is_set():
            member.go_down("the fabric drains", end.cause)
            return
        if not end.again:
            member.go_down(end.reason, end.cause)
            return
        now = trio.current_time()
        while self._restarts and self._restarts[0] <= now - self.supervisor.within:
            self._restarts.popleft()
        if len(self._restarts) >= self.supervisor.max_restarts:
            await self._give_up(end)
            return
        affected = self._affected(member)
        for other in reversed(affected):
            await other.stop(f"it is restarted with {member.name}")
        await trio.sleep(self.supervisor.backoff.seconds(len(self._restarts), self._agents.rng))
        if not self._agents.draining.is_set():
            self._restarts.append(trio.current_time())
        for other in affected:
            if self._agents.draining.is_set():
                other.go_down("the fabric drains", end.cause)
            elif other is not member and other.temporary:
                other.go_down(f"it was stopped with {member.name}, and is temporary")
            else:
                await other.start()

    def _affected(self, member: Member) -> Sequence[Member]:
        match self.supervisor.strategy:
            case "one_for_one":
                return [member]
            case "one_for_all":
                return [one for one in self.members if one.down is None]
            case "rest_for_one":
                rest = self.members[self.members.index(member) :]
                return [one for one in rest if one.down is None]

    async def _give_up(self, end: End) -> None:
        agents, name = self._agents, end.member.name
        failure = RestartIntensity(name, len(self._restarts), self.supervisor.within)
        failure.__cause__ = end.cause
        agents.counters.add("agents.gave_up")
        agents.monitors.tell(Notice(name.partition("#")[0], end.incarnation, "gave_up", failure))
        self._starts.clear()
        self._ended.clear()
        self._stopped = True
        if self.parent is not None:
            for member in reversed(self.members):
                await member.stop(str(failure))
            self.parent.ended(End(self, self.incarnation, True, str(failure), failure))
            return
        self.down, self._down_cause = str(failure), failure
        if self.supervisor.gives_up == "fail":
            agents.fail(failure)
        for member in reversed(self.members):
            await member.retire(str(failure), failure)
