"""Whatever happens to nodes, their ways, the broker and the bucket: once it is over, all know who is there, no others.

And a node that dies while nothing else happens is gone in time.
"""

from __future__ import annotations

from random import Random

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.counters import Counters
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh.watchers import chosen
from cord_trio.nats.kv import open_bucket
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves
from properties.mesh_world import BUCKET, HEALED, VANISHED, World, open_world

NAMES = ["a", "b", "c", "d", "e"]
FEW = settings(max_examples=max(4, settings().max_examples // 10))

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "mend", "reset", "crash", "stop", "start", "kill", "up", "lose", "ghost", "garble"]),
        st.sampled_from(NAMES),
        st.sampled_from([0.0, 0.3, 4.0, LEASE * 0.95, 40.0]),
    ),
    max_size=10,
)


async def write(world: World, key: str, value: bytes) -> None:
    """Write as somebody who should not."""
    if not world.broker.down:
        async with world.broker.way().open("stranger") as nats:
            await (await open_bucket(nats, BUCKET)).put(key, value)


async def do(world: World, what: str, name: str) -> None:
    place = world.places[name]
    match what:
        case "cut" | "mend" | "reset":
            getattr(place.way, what)()
        case "crash" | "stop" | "start":
            getattr(place, what)()
        case "kill":
            world.broker.kill()
        case "up":
            world.broker.start()
        case "lose":
            if not world.broker.down:
                world.broker.streams.lose(BUCKET)
        case "ghost":
            await write(world, f"up.{name}", b'{"epoch":"0badcafe"}')
        case _:
            await write(world, f"up.{name}", b"[")
    await trio.lowlevel.checkpoint()


@given(schedules(), STEPS, st.integers(0, 9))
@FEW
def test_after_all_healed_every_view_is_what_is_stored(
    rng: Random, steps: list[tuple[str, str, float]], seed: int
) -> None:
    most: list[int] = []

    async def main() -> None:
        async with open_world(NAMES, seed, Counters(), spread=3.0) as world:
            await trio.sleep(5)
            for what, name, pause in steps:
                await do(world, what, name)
                await trio.sleep(pause)
            world.heal()
            await trio.sleep(HEALED)
            await world.check_healed()
            most.append(world.most)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert most == [1]


@given(schedules(), st.sets(st.sampled_from(NAMES), min_size=1, max_size=2), st.integers(0, 9), st.booleans())
@FEW
def test_nodes_that_die_are_gone_for_all_within_a_lease(rng: Random, dying: set[str], seed: int, cut: bool) -> None:
    async def main() -> None:
        async with open_world(NAMES, seed, Counters(), spread=3.0) as world:
            await trio.sleep(10 + seed / 3)
            epochs = {name: node.epoch for name, node in world.living().items()}
            began = trio.current_time()
            for name in sorted(dying):
                if cut:
                    world.places[name].way.cut()
                else:
                    world.places[name].crash()
            await trio.sleep(VANISHED + 0.1)
            for name in dying:
                told = world.gone[epochs[name]]
                assert len(told) == len(NAMES) - len(dying)
                assert max(told) - began <= VANISHED
            for name, node in world.living().items():
                if name not in dying:
                    assert set(node.roster.nodes) == set(NAMES) - dying

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))


@given(schedules(), st.integers(0, 9))
@example(Random(0), 3)  # who watched once, and does no more, must not believe what it knew then
@FEW
def test_when_all_who_watch_die_at_once_the_others_notice(rng: Random, seed: int) -> None:
    async def main() -> None:
        async with open_world(NAMES, seed, Counters(), spread=3.0) as world:
            await trio.sleep(10)
            dying = chosen("m", next(iter(world.living().values())).roster.nodes)
            for name in dying:
                world.places[name].crash()
            await trio.sleep(4 * LEASE)
            for name, node in world.living().items():
                assert name not in dying
                assert set(node.roster.nodes) == set(NAMES) - set(dying)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))


@proves("mesh.9")
@given(
    schedules(),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([LEASE + 0.0, LEASE + 1.7, 20.0])),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 9),
)
@FEW
def test_a_store_that_is_lost_ends_no_incarnation(rng: Random, losses: list[tuple[float, float]], seed: int) -> None:
    # Not again within a lease: a store that was lost twice may let somebody prove what is not so.
    counters = Counters()

    async def main() -> None:
        async with open_world(NAMES, seed, counters, spread=3.0) as world:
            await trio.sleep(10)
            epochs = {name: node.epoch for name, node in world.living().items()}
            for away, pause in losses:
                if away:
                    world.broker.kill()
                world.broker.streams.lose(BUCKET)
                await trio.sleep(away)
                world.broker.start()
                await trio.sleep(pause)
                for node in world.living().values():
                    assert {name: node.roster.epoch(name) for name in NAMES} == epochs
            await trio.sleep(HEALED)
            await world.check_healed()

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert (counters["mesh.fences"], counters["mesh.epochs_ended"]) == (0, 0)
