"""Whatever the order of changes, reads and cancellations, versions and epochs only rise, and nothing published changes.

The numbers are those of the invariants in the agents' contract.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.config import Stdio
from cord_trio.protocol.mcp import Tool, decode_tools_page
from cord_trio.registry import Registry, Snapshot, Update
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
    from random import Random

SOURCES = {
    name: Stdio(name=name, command="server", prefix=prefix) for name, prefix in (("a", "x"), ("b", "x"), ("c", ""))
}
"""Two of them share a prefix, so that their tools can clash."""


def tool_list(names: list[str]) -> tuple[Tool, ...]:
    listed = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
    return decode_tools_page(msgspec.Raw(msgspec.json.encode({"tools": listed}))).tools


UPDATES = st.builds(
    Update,
    source=st.sampled_from(sorted(SOURCES)),
    epoch=st.integers(1, 6),
    state=st.sampled_from(["starting", "ready", "down", "draining"]),
    tools=st.none() | st.lists(st.sampled_from("pqr"), max_size=4).map(tool_list),
)


@attrs.frozen
class Step:
    """One change, the ticks before it, and whether its sender is cancelled soon after."""

    update: Update
    pause: int
    cancelled: bool


PROGRAMS = st.lists(
    st.lists(st.builds(Step, UPDATES, st.integers(0, 3), st.booleans()), max_size=6), min_size=1, max_size=4
)


@proves(19, 20, 21, 22, 23)
@given(PROGRAMS, st.integers(1, 4), schedules())
def test_19_to_23_versions_have_no_gap_epochs_rise_and_readers_see_what_was_acknowledged(
    programs: list[list[Step]], bound: int, rng: Random
) -> None:
    published: list[tuple[Snapshot, bytes, dict[str, int]]] = []
    watched: list[int] = []

    class Recorded(Registry):
        """Notes each snapshot in the moment that it is published."""

        @property
        def snapshot(self) -> Snapshot:
            return self._newest

        @snapshot.setter
        def snapshot(self, new: Snapshot) -> None:
            self._newest = new
            published.append((new, new.encoded_tools, {name: view.epoch for name, view in new.sources.items()}))

    async def send(registry: Registry, steps: list[Step]) -> None:
        for step in steps:
            for _ in range(step.pause):
                await trio.lowlevel.checkpoint()
            with trio.CancelScope() as scope:
                if step.cancelled:
                    scope.cancel("the plan says so")
                seen = await registry.update(step.update)
                assert seen.sources[step.update.source].epoch >= step.update.epoch
                assert registry.snapshot.version >= seen.version  # 22

    async def watch(registry: Registry) -> None:
        version = 0
        while True:
            snapshot = await registry.changed(version)
            version = snapshot.version
            watched.append(version)

    async def main() -> None:
        registry = Recorded(SOURCES, bound=bound)
        with trio.fail_after(1000):
            async with trio.open_nursery() as background:
                await background.start(registry.run)
                background.start_soon(watch, registry)
                async with trio.open_nursery() as senders:
                    for steps in programs:
                        senders.start_soon(send, registry, steps)
                await wait_all_tasks_blocked()
                assert len(registry._watchers) == 1  # those that were told are forgotten
                background.cancel_scope.cancel("the program is over")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))

    versions = [snapshot.version for snapshot, _, _ in published]
    assert versions == list(range(len(published)))  # 19
    for (_, _, before), (_, _, after) in pairwise(published):
        assert all(before[name] <= after[name] for name in before)  # 20
        assert before != after
    for snapshot, encoded, _ in published:
        again = Snapshot(merged=snapshot.merged)
        assert again.encoded_tools == encoded == snapshot.encoded_tools  # 21
        check(snapshot)
    assert watched == sorted(set(watched))  # 23
    assert watched[-1:] == versions[1:][-1:]


def check(snapshot: Snapshot) -> None:
    """The list of `snapshot` is what its sources say, the first owner of a name first."""
    assert list(snapshot.sources) == list(SOURCES)
    owners: dict[str, str] = {}
    for view in snapshot.sources.values():
        prefix = SOURCES[view.name].export_prefix
        for tool in view.tools:
            owners.setdefault(f"{prefix}__{tool.name}" if prefix else tool.name, view.name)
    assert {public: route.source for public, route in snapshot.tools.items()} == owners
    order = {name: place for place, name in enumerate(SOURCES)}
    places = [order[route.source] for route in snapshot.tools.values()]
    assert places == sorted(places)
    assert [tool["name"] for tool in msgspec.json.decode(snapshot.encoded_tools)] == list(snapshot.tools)
    listed = sum(len(view.tools) for view in snapshot.sources.values())
    assert len(snapshot.problems) == listed - len(snapshot.tools)


@given(st.lists(UPDATES, max_size=12))
def test_listed_names_the_version_since_which_the_list_is_the_same(updates: list[Update]) -> None:
    snapshots: list[Snapshot] = []

    async def main() -> None:
        registry = Registry(SOURCES)
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.run)
            snapshots.append(registry.snapshot)
            snapshots.extend([await registry.update(update) for update in updates])
            nursery.cancel_scope.cancel("the program is over")

    trio.run(main)
    for before, after in pairwise(snapshots):
        if before.listed_tools == after.listed_tools:
            assert dict(before.tools) == dict(after.tools)
        else:
            assert after.listed_tools == after.version
    assert all(snapshot.listed_tools <= snapshot.version for snapshot in snapshots)
