"""Subscriptions under searched schedules and losses: the server tells of exactly what somebody wants to hear of."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any, TypeAlias

import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.fabric import open_fabric
from cord_trio.testing.schedule import scheduled
from tests.full_server import FullServer

Json: TypeAlias = Any

SEEDS = st.integers(0, 2**16)
URIS = ("file:///a", "file:///b", "file:///a/part")
ACTIONS = st.one_of(
    st.tuples(st.just("wants"), st.integers(0, 2), st.lists(st.sampled_from(URIS), max_size=2).map(tuple)),
    st.tuples(st.just("leaves"), st.integers(0, 2), st.just(())),
    st.tuples(st.just("lost"), st.just(0), st.just(())),
    st.tuples(st.just("time"), st.sampled_from([0, 1, 40]), st.just(())),
)


def subscribed(server: FullServer) -> set[str]:
    """What the server tells of on its newest connection."""
    connection = server.connections[-1]
    if not server.modern:
        return connection.subscribed
    return {uri for listening in connection.listening.values() for uri in listening.get("resourceSubscriptions", ())}


@settings(max_examples=50)
@given(st.booleans(), st.lists(ACTIONS, max_size=10), SEEDS)
def test_the_server_tells_of_exactly_what_somebody_wants(modern: bool, actions: list[Json], seed: int) -> None:
    server = FullServer(modern=modern)
    told: dict[int, list[str]] = {0: [], 1: [], 2: []}

    async def main() -> None:
        async with open_fabric([server.source()], rng=random.Random(0)) as fabric:
            await fabric.wait_started()
            people = {number: ExitStack() for number in told}
            wanted: dict[int, tuple[str, ...]] = dict.fromkeys(told, ())
            missed: set[int] = set()

            async def settle() -> None:
                await trio.sleep(200)
                assert subscribed(server) == {uri for uris in wanted.values() for uri in uris}
                assert set(fabric.links["x"].subscriptions.uris) == subscribed(server)
                for number, uris in wanted.items():
                    if number in missed:  # what may have changed meanwhile is told once
                        assert set(told[number]) >= {f"cord://x/{uri}" for uri in uris}
                    told[number].clear()
                missed.clear()
                for uri in URIS:
                    server.connections[-1].tell("notifications/resources/updated", {"uri": uri})
                await trio.sleep(1)
                for number, uris in wanted.items():
                    direct = {f"cord://x/{uri}" for uri in uris}
                    parts = {"cord://x/file:///a/part"} if "file:///a" in uris else set()
                    assert direct <= set(told[number]) <= direct | parts
                    assert len(told[number]) == len(set(told[number]))
                    told[number].clear()

            for action, number, uris in actions:
                if action == "time":
                    await trio.sleep(number)
                elif action == "lost":
                    missed |= {each for each in wanted if wanted[each]}
                    server.connections[-1].transport.lose("server exited (signal 9)")
                else:
                    people[number].close()
                    wanted[number] = uris
                    missed.discard(number)
                    public = [f"cord://x/{uri}" for uri in uris]
                    people[number].enter_context(fabric.subscribe("who", public, told[number].append))
                if action == "time" and number == 40:
                    await settle()
            await settle()
            for person in people.values():
                person.close()
            await trio.sleep(1)
            assert subscribed(server) == set()
            assert fabric.links["x"].subscriptions.uris == ()

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    event(f"{sum(action[0] == 'lost' for action in actions)} losses")
