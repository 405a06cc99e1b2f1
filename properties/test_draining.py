"""The drain as a state machine: `RUNNING > DRAINING > CLOSING > CLOSED`, of a fabric and of each of its sources.

Whatever is asked, lost, disconnected or drained, in any order and under any schedule: no other transition, no
accepted call without an end, nothing connected anew, and an end in time.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents.agent import GRACE
from cord_trio.config import Bounds, Config, GatewayConfig
from cord_trio.errors import AgentError, CallError, ConnectionLost, Draining, DrainTimeout, SourceDown, ToolNotFound
from cord_trio.fabric import LAST_CALLS, open_fabric
from cord_trio.stages import STAGES
from cord_trio.testing import ToolServer
from cord_trio.testing.machine import TrioMachine
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.agents import Context
    from cord_trio.fabric import Fabric
    from cord_trio.replicas import Kept

Json: TypeAlias = Any

NAMES = "abc"
GRACES = st.sampled_from([0.0, 0.5, 2.0, 8.0])
RUNS = st.sampled_from([5.0, 100.0, 0.3, 1.0, 0.0])
END: tuple[str, ...] = STAGES[1:]
"""The last states of a link."""


class Looks(trio.abc.Instrument):
    """Looks after every step of every task at the stage of the fabric and the state of its links."""

    def __init__(self) -> None:
        self.fabric: Fabric | None = None
        self.stages: list[str] = []
        self.states: dict[Kept, list[str]] = {}
        self.starts: dict[Kept, int] = {}
        self.wrong: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.fabric is None:
            return
        if self.stages[-1:] != [self.fabric.stage]:
            self.stages.append(self.fabric.stage)
        for link in (*self.fabric.links.values(), *self.fabric.retiring, *self.states):
            states = self.states.setdefault(link, [])
            if states[-1:] != [link.state]:
                states.append(link.state)
            if link.drains or self.fabric.stage != "running":
                # One that had begun to connect may become ready for those who wait.
                most = self.starts.setdefault(link, link.starts + (states[-2:-1] == ["starting"]))
                if link.starts > most:
                    self.wrong.append(f"{link.name} was started again")


async def relay(ctx: Context, payload: Json) -> object:
    """An agent that rests, then calls: while it rests the fabric may begin to drain."""
    name, runs = payload
    await trio.sleep(runs / 2)
    return (await ctx.call(f"{name}__sleep", {"seconds": runs / 2})).text


@proves(38, 40, 41)
class DrainMachine(TrioMachine):
    """Work, losses and drains of sources and of all, in any order."""

    @initialize(seed=st.integers(0, 2**16), eras=st.tuples(*[st.sampled_from(["modern", "legacy"])] * len(NAMES)))
    def start(self, seed: int, eras: tuple[Any, ...]) -> None:
        """Open a fabric over in-memory sources."""
        self.explore(random.Random(seed))
        self.servers = {name: ToolServer(era=era) for name, era in zip(NAMES, eras, strict=True)}
        self.looks = Looks()
        self.ended: list[tuple[str, object, bool]] = []
        self.asked = 0
        self.calls = 0
        self.lost: set[str] = set()
        self.due = self.left_at = 0.0
        self.graces: list[float] = []
        self.left = trio.Event()
        self.closed = trio.Event()
        self.call(self.open)

    async def open(self) -> None:
        opened = trio.Event()
        trio.lowlevel.add_instrument(self.looks)

        async def keep() -> None:
            sources = [self.servers[name].in_process(name=name, slots=2, deadline=60.0) for name in NAMES]
            config = Config(
                sources=sources,
                bounds=Bounds(backoff_first=0.2, backoff_longest=1.0),
                gateway=GatewayConfig(grace=3.0),
            )
            async with open_fabric(config, rng=random.Random(0)) as fabric:
                self.fabric = self.looks.fabric = fabric
                fabric.agent("relay", relay, turn=2)
                await fabric.wait_started()
                opened.set()
                await self.left.wait()
                if fabric.stage in ("running", "draining"):
                    self.drains(3.0)
            self.closed.set()

        self.nursery.start_soon(keep)
        await opened.wait()

    def drains(self, grace: float) -> None:
        """From now on it must be over within `grace`, unless it must be sooner already."""
        until = self.clock.current_time() + grace
        if not self.graces or until < self.due:
            self.due = until
        self.graces.append(grace)

    @rule(works=st.lists(st.tuples(st.sampled_from(NAMES), RUNS, st.booleans()), min_size=1, max_size=5))
    def ask(self, works: list[tuple[str, float, bool]]) -> None:
        """Ask for something, and do not wait for it."""
        self.call(self._begin, works)

    async def _begin(self, works: list[tuple[str, float, bool]]) -> None:
        for name, runs, directly in works:
            self.asked += 1
            self.calls += directly
            self.nursery.start_soon(self._ask, name, runs, directly)
        await wait_all_tasks_blocked()

    async def _ask(self, name: str, runs: float, directly: bool) -> None:
        fabric = self.fabric
        accepted = fabric.stage == "running"
        try:
            if directly:
                end: object = (await fabric.call(f"{name}__sleep", {"seconds": runs})).text
            else:
                end = await fabric.ask("relay", (name, runs))
        except (CallError, AgentError) as exc:
            end = exc
        self.ended.append((name, end, accepted))
        self.calls -= directly

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name: str) -> None:
        """Lose the connections of a source."""
        self.call(self._lose, name)

    async def _lose(self, name: str) -> None:
        self.lost.add(name)
        self.servers[name].break_connections()
        await wait_all_tasks_blocked()

    @precondition(lambda self: self.fabric.stage == "running")
    @rule(name=st.sampled_from(NAMES), grace=GRACES)
    def disconnect(self, name: str, grace: float) -> None:
        """Drain one source."""
        if name in self.fabric.links:
            self.call(self._aside, self.fabric.disconnect, name, grace)

    async def _aside(self, disconnect: Json, name: str, grace: float) -> None:
        async def run() -> None:
            link, began = self.fabric.links[name], trio.current_time()
            by_itself = await disconnect(name, grace=grace)
            assert link.state == "closed"
            assert trio.current_time() - began <= grace + 0.06
            assert by_itself is (link.cut is None)

        self.nursery.start_soon(run)
        await wait_all_tasks_blocked()

    @precondition(lambda self: self.asked)
    @rule(grace=GRACES)
    def drain(self, grace: float) -> None:
        """Drain the whole."""
        self.call(self._drain, grace)

    async def _drain(self, grace: float) -> None:
        if self.fabric.stage in ("running", "draining"):
            self.drains(grace)
        self.nursery.start_soon(self.fabric.drain, grace)
        await wait_all_tasks_blocked()

    @precondition(lambda self: self.fabric.stage != "running" or len(self.ended) > 2)
    @rule()
    def leave(self) -> None:
        """Leave the fabric's block, which drains."""
        self.call(self._leave)

    async def _leave(self) -> None:
        if not self.left.is_set():
            self.left_at = trio.current_time()
        self.left.set()
        await wait_all_tasks_blocked()

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.call(trio.sleep, seconds)

    @invariant()
    def in_order(self) -> None:
        """The stages were passed in their order, and each told once; a link's end has the same ones."""
        fabric = getattr(self, "fabric", None)
        if fabric is None:
            return
        assert self.looks.stages == sorted(set(self.looks.stages), key=STAGES.index)
        for place, stage in enumerate(STAGES[1:], 1):
            assert fabric.counters[f"fabric.{stage}"] == (STAGES.index(fabric.stage) >= place)
        for states in self.looks.states.values():
            last = [state for state in states if state in END]
            assert last == sorted(set(last), key=END.index)
            assert states[len(states) - len(last) :] == last, states
        assert not self.looks.wrong, self.looks.wrong
        assert fabric.draining.is_set() is (fabric.stage != "running")

    @invariant()
    def in_time(self) -> None:
        """It goes on once its grace is over, and is closed soon after it was left."""
        fabric = getattr(self, "fabric", None)
        if fabric is None or not self.graces or self.clock.current_time() <= self.due + 0.001:
            return
        assert fabric.stage in ("closing", "closed")
        if self.left.is_set() and self.clock.current_time() > max(self.due, self.left_at) + GRACE + LAST_CALLS:
            assert self.closed.is_set()

    @invariant()
    def none_is_dropped(self) -> None:
        """Whoever was accepted got an answer, or hears which grace was over; whoever was not, that it drains."""
        fabric = getattr(self, "fabric", None)
        if fabric is None:
            return
        for name, end, accepted in self.ended:
            match end:
                case "slept":
                    pass
                case Draining():
                    assert not accepted
                case DrainTimeout(what="the fabric", grace=grace):
                    assert grace in self.graces
                case DrainTimeout(what=what):
                    assert what == f"source {name!r}"
                case ConnectionLost() | SourceDown() | ToolNotFound():
                    assert accepted
                    assert name in self.lost or name not in fabric.links or fabric.stage == "closed", end
                case _:
                    raise AssertionError(end)
        assert self.asked - len(self.ended) == fabric._running
        if fabric.stage in ("closing", "closed"):
            assert not self.calls  # of asks, an agent may rest in the task of its asker, which is not ours to end

    def teardown(self) -> None:
        """Let it end: then every ask has, too."""
        try:
            if hasattr(self, "fabric"):
                self.call(self._leave)
                self.call(trio.sleep, 200.0)
                assert self.fabric.stage == "closed"
                assert len(self.ended) == self.asked
                assert self.fabric._running == len(self.fabric.timer) == 0
                self.none_is_dropped()
                self.in_order()
        finally:
            super().teardown()


TestDrainMachine = DrainMachine.TestCase
TestDrainMachine.settings = settings(max_examples=settings().max_examples, stateful_step_count=12, deadline=None)
