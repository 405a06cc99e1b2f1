"""Started conversations that are cut off at any tick and gone on with. Promise 4: nothing runs twice silently."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.agents import Agents, Context, MemoryJournal, Saved, open_agents
from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import ConnectionLost
from cord_trio.registry import Snapshot
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.agents import Job

Do: TypeAlias = Literal["call", "ask", "two", "refused", "then refused", "pause", "checkpoint", "hand"]

SCRIPTS: st.SearchStrategy[list[Do]] = st.lists(
    st.sampled_from(["call", "ask", "two", "refused", "then refused", "pause", "checkpoint", "hand"]),
    min_size=2,
    max_size=7,
)


class SlowJournal(MemoryJournal):
    """Takes a few ticks to write, and may be cut off before or after."""

    async def put(self, saved: Saved) -> None:
        await trio.lowlevel.checkpoint()
        await super().put(saved)
        await trio.lowlevel.checkpoint()


@attrs.define
class World:
    """What really happened."""

    script: list[Do]
    effects: Counter[str] = attrs.field(factory=Counter)
    steps: list[int] = attrs.field(factory=list)

    async def source(self, call: Call) -> Outcome:
        """Runs a call at some moment of it; a refused one never."""
        await trio.lowlevel.checkpoint()
        if b"refused" in bytes(call.params["arguments"]):
            raise ConnectionLost("before it was sent", "no")
        self.effects[str(call.name)] += 1
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b'{"content":[]}'))

    async def works(self, ctx: Context, at: int) -> object:
        at = ctx.restored if isinstance(ctx.restored, int) else at
        for number in range(at, len(self.script)):
            self.steps.append(number)
            match self.script[number]:
                case "call":
                    await ctx.call(f"tool{number}")
                case "ask":
                    await ctx.ask("below", number * 100 + 50)
                case "two":
                    async with ctx.open_nursery() as crew:
                        crew.spawn("below", number * 100)
                        crew.spawn("below", number * 100 + 1)
                case "refused":
                    try:
                        await ctx.call(f"tool{number}", {"how": "refused"})
                    except ConnectionLost:
                        pass
                case "then refused":
                    await ctx.call(f"tool{number}")
                    try:
                        await ctx.call(f"tool{number}", {"how": "refused"})
                    except ConnectionLost:
                        pass
                case "pause":
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()
                case "checkpoint":
                    await ctx.checkpoint(number + 1)
                case "hand":
                    return ctx.handoff("works", number + 1)
        return "done"

    async def below(self, ctx: Context, number: int) -> None:
        await ctx.call(f"below{number}")

    def add(self, agents: Agents) -> None:
        agents.add("works", self.works)
        agents.add("below", self.below, turn=2)


@given(SCRIPTS, st.lists(st.integers(4, 40), min_size=1, max_size=2), schedules())
def test_promise_4_a_call_that_may_have_run_is_not_run_again_unasked(
    script: list[Do], cuts: list[int], rng: Random
) -> None:
    world = World(script)
    journal = SlowJournal()
    jobs: Sequence[Job] = ()

    async def live(cut: int | None) -> None:
        nonlocal jobs
        async with (
            open_agents(world.source, Snapshot, rng=Random(len(world.steps)), journal=journal) as agents,
            trio.open_nursery() as nursery,
        ):
            world.add(agents)
            if cut is not None:
                nursery.start_soon(cut_off, cut, nursery.cancel_scope)
            jobs = await agents.jobs.resume()
            if not jobs and not world.steps:
                jobs = [await agents.jobs.start("works", 0)]
            for job in jobs:
                await job.wait()
            await agents.jobs.wait_quiet()
            nursery.cancel_scope.cancel("it has ended by itself")

    async def cut_off(ticks: int, scope: trio.CancelScope) -> None:
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        scope.cancel("the crash point")

    async def main() -> None:
        for cut in [*cuts, None]:
            await live(cut)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert all(count == 1 for count in world.effects.values())
    for job in jobs:
        assert job.state in ("done", "in_doubt")
        assert (job.state == "in_doubt") == bool(job.saved.calls and job.state != "done")
