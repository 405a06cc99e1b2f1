"""Reconfiguring a running fabric under searched schedules: what stays is not disturbed, what goes is not dropped."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.config import Config, GatewayConfig
from cord_trio.errors import CallError, ConnectionLost, SourceDown, ToolNotFound
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.config import Source
    from cord_trio.fabric import Fabric

NAMES = "abcd"

CHOICES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1, 2, 8]), max_size=4)
"""A configuration: sources, each with its slots; other slots make it another source."""

CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 1.0, 4.0])),
    max_size=12,
)
"""Which source is called, when, and for how long its tool runs."""

GRACE = 2.0


@proves(1, 40)
@given(st.lists(CHOICES, min_size=1, max_size=4), CALLS, st.integers(0, 2**16))
def test_untouched_sources_lose_no_call_and_others_have_the_grace(
    choices: list[dict[str, int]], calls: list[tuple[str, float, float]], seed: int
) -> None:
    servers = {name: ToolServer() for name in NAMES}
    ended = 0

    def config(slots: dict[str, int]) -> Config:
        sources: list[Source] = [servers[name].in_process(name=name, slots=count) for name, count in slots.items()]
        return Config(sources=sources, gateway=GatewayConfig(grace=GRACE))

    async def call(fabric: Fabric, name: str, at: float, runs: float) -> None:
        nonlocal ended
        await trio.sleep(at)
        link, begun = fabric.links.get(name), trio.current_time()
        end: object
        try:
            end = (await fabric.call(f"{name}__sleep", {"seconds": runs})).text
        except CallError as exc:
            end = exc
        match end:
            case ToolNotFound() | SourceDown():
                assert link is None or link.retired, "it is configured"
            case ConnectionLost(executed=executed):
                assert link is not None
                assert link.retired, "it stayed the same"
                assert trio.current_time() - begun >= GRACE or executed == "no", "the grace was not given"
            case _:
                assert end == "slept"
        event(type(end).__name__)
        ended += 1

    async def main() -> None:
        with trio.fail_after(10_000):
            async with open_fabric(config(choices[0]), rng=random.Random(0)) as fabric:
                await fabric.wait_started()
                async with trio.open_nursery() as nursery:
                    for name, at, runs in calls:
                        nursery.start_soon(call, fabric, name, at, runs)
                    for choice in choices[1:]:
                        await trio.sleep(0.5)
                        before, links = fabric.config.enabled, dict(fabric.links)
                        fabric.reconfigure(config(choice))
                        assert list(fabric.links) == list(fabric.registry.snapshot.sources) == list(choice)
                        for name, source in fabric.config.enabled.items():
                            assert (fabric.links[name] is links.get(name)) == (before.get(name) == source)
                await trio.sleep(GRACE + 1)
                assert not fabric.retiring
                assert {name: slots.taken for name, slots in fabric.slots.items()} == dict.fromkeys(choices[-1], 0)
            assert len(fabric.timer) == 0

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ended == len(calls)
