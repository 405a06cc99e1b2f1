"""Of one name there is one holder at a time, whatever happens to the ways between the nodes and the broker."""

from __future__ import annotations

from random import Random

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.errors import CordError
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE, Lease, join
from cord_trio.nats.kv import open_bucket
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "mend", "reset", "kill", "start", "leave"]),
        st.integers(0, 2),
        st.sampled_from([0.0, 1.0, 4.0, LEASE * 0.9, LEASE * 1.0, 40.0]),
    ),
    max_size=10,
)


@proves("mesh.5")
@given(schedules(), STEPS, st.integers(0, 5))
@settings(max_examples=max(10, settings().max_examples // 5))
def test_of_one_name_there_is_one_holder_at_a_time(rng: Random, steps: list[tuple[str, int, float]], seed: int) -> None:
    holding: set[str] = set()
    most: list[int] = []

    async def hold(lease: Lease) -> None:
        holding.add(lease.epoch)
        most.append(len(holding))
        try:
            await trio.sleep_forever()
        finally:
            holding.discard(lease.epoch)

    async def main() -> None:
        async with open_broker(Random(seed)) as broker, trio.open_nursery() as nursery:
            ways = [broker.way() for _ in range(3)]
            scopes = [trio.CancelScope() for _ in ways]

            async def contend(number: int) -> None:
                """Be a process that a supervisor starts again and again."""
                rng = Random(seed * 3 + number)
                while True:
                    with scopes[number]:
                        try:
                            async with ways[number].open() as nats:
                                bucket = await open_bucket(nats, "cord_m")
                                async with join(nats, bucket, mesh="m", node="a", begun=begun, rng=rng):
                                    await trio.sleep_forever()
                        except CordError:
                            pass
                    scopes[number] = trio.CancelScope()
                    await trio.sleep(rng.uniform(0.1, 3))

            def begun(lease: Lease) -> None:
                lease.nursery.start_soon(hold, lease)

            for number in range(len(ways)):
                nursery.start_soon(contend, number)
            for what, number, pause in steps:
                way = ways[number]
                match what:
                    case "leave":
                        scopes[number].cancel("the test wants it")
                    case "kill" | "start":
                        getattr(broker, what)()
                    case _:
                        getattr(way, what)()
                await trio.sleep(pause)
            broker.start()
            for way in ways:
                way.mend()
            await trio.sleep(6 * LEASE)
            # After all healed somebody has the name.
            assert len(holding) == 1
            nursery.cancel_scope.cancel("enough was seen")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert max(most) == 1
