"""Supervision: which agents are made anew after a crash, how soon, and when it is enough.

A group has a task only while there is something to do. It stops in reverse, starts in order, and counts.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import trio

from cord_trio.agents.monitor import Notice
from cord_trio.errors import RestartIntensity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from cord_trio.agents.directory import Agents
    from cord_trio.agents.life import Life
    from cord_trio.agents.resident import Resident

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

    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    within: float = 5.0
    backoff: Backoff = Backoff()
    gives_up: Literal["fail", "stop"] = "fail"

    def __post_init__(self) -> None:
        if self.strategy not in ("one_for_one", "one_for_all", "rest_for_one"):
            raise ValueError(f"{self.strategy!r} is no strategy: use one_for_one, one_for_all or rest_for_one")
        if self.gives_up not in ("fail", "stop"):
            raise ValueError(f"gives_up={self.gives_up!r}: use fail or stop")
        if self.max_restarts < 0 or self.within <= 0:
            raise ValueError("max_restarts is at least 0, within more than 0 seconds")


class Group:
    """The agents of one supervisor in one fabric.

    Invariants: within any `within` seconds there are at most `max_restarts` restarts; it gives up once;
    nothing is restarted once the fabric drains.

    Attributes:
        supervisor: the rules.
        members: in the order in which they were added.
        given_up: why, if it has.

    """

    def __init__(self, agents: Agents, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.members: list[Resident] = []
        self.given_up: RestartIntensity | None = None
        self._agents = agents
        self._starts: deque[Resident] = deque()
        self._ended: deque[tuple[Resident, Life]] = deque()
        self._restarts: deque[float] = deque()
        self._busy = False

    def add(self, resident: Resident) -> None:
        """Take one more member, and start it after those before."""
        self.members.append(resident)
        if self.given_up is not None:
            resident.go_down(str(self.given_up), self.given_up)
        else:
            self._starts.append(resident)
            self._wake()

    async def remove(self, resident: Resident) -> None:
        """Stop a member for good."""
        self.members.remove(resident)
        await resident.retire("it was removed")

    def ended(self, resident: Resident, life: Life) -> None:
        """A life ended that nobody had stopped."""
        self._ended.append((resident, life))
        self._wake()

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            assert self._agents.nursery is not None
            self._agents.nursery.start_soon(self._run)

    async def _run(self) -> None:
        while self._starts or self._ended:
            if self._starts:
                await self._start(self._starts.popleft())
            else:
                await self._recover(*self._ended.popleft())
        self._busy = False

    async def _start(self, resident: Resident) -> None:
        assert self._agents.nursery is not None
        if resident.down is None:
            await self._agents.nursery.start(resident.live)

    async def _recover(self, resident: Resident, life: Life) -> None:
        agent = resident.agent
        if resident.down is not None or life.generation != agent.generation:
            return  # it is down, or was made anew with another since
        if self._agents.draining.is_set():
            resident.go_down("the fabric drains", life.cause)
            return
        if agent.restart == "temporary" or (agent.restart == "transient" and life.cause is None):
            resident.go_down(life.reason, life.cause)
            return
        now = trio.current_time()
        while self._restarts and self._restarts[0] <= now - self.supervisor.within:
            self._restarts.popleft()
        if len(self._restarts) >= self.supervisor.max_restarts:
            await self._give_up(resident, life)
            return
        affected = self._affected(resident)
        for other in reversed(affected):
            await other.stop(f"it is restarted with {agent.name}")
        await trio.sleep(self.supervisor.backoff.seconds(len(self._restarts), self._agents.rng))
        if not self._agents.draining.is_set():
            self._restarts.append(trio.current_time())
        for other in affected:
            if self._agents.draining.is_set():
                other.go_down("the fabric drains", life.cause)
            elif other is not resident and other.agent.restart == "temporary":
                other.go_down(f"it was stopped with {agent.name}, and is temporary")
            else:
                await self._start(other)

    def _affected(self, resident: Resident) -> Sequence[Resident]:
        match self.supervisor.strategy:
            case "one_for_one":
                return [resident]
            case "one_for_all":
                return [one for one in self.members if one.down is None]
            case "rest_for_one":
                rest = self.members[self.members.index(resident) :]
                return [one for one in rest if one.down is None]

    async def _give_up(self, resident: Resident, life: Life) -> None:
        agents = self._agents
        failure = RestartIntensity(
            f"{resident.agent.name}#{life.generation}", len(self._restarts), self.supervisor.within
        )
        failure.__cause__ = life.cause
        self.given_up = failure
        agents.counters.add("agents.gave_up")
        agents.monitors.tell(Notice(resident.agent.name, life.generation, "gave_up", failure))
        if self.supervisor.gives_up == "fail":
            agents.fail(failure)
        for member in reversed(self.members):
            await member.retire(str(failure), failure)
