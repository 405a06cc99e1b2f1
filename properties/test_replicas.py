"""One source with several servers under searched schedules and faults: each call ends once, and runs at most once."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.config import Bounds, Config, InProcess
from cord_trio.errors import CallError
from cord_trio.fabric import open_fabric
from cord_trio.replicas import Replicas
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.transports.memory import MemoryTransport

SLOTS = 4
DEADLINE = 5.0

TIMES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 60.0])

CALLS = st.lists(st.tuples(TIMES, st.sampled_from([None, 0.05, 0.3, 2.0])), max_size=16)
"""When each call is made, and after how long it is cancelled, if it is."""

FAULTS = st.lists(st.tuples(TIMES, st.integers(0, 3), st.sampled_from(["lose", "hang", "heal"])), max_size=8)
"""When something happens to which server: its connection is lost, its tools hang, or answer again."""


@given(st.integers(2, 4), CALLS, FAULTS, st.sampled_from(["eager", "lazy"]), st.integers(0, 2**16))
def test_each_call_ends_once_runs_at_most_once_and_none_goes_to_a_dead_replica(
    count: int, calls: list[tuple[float, float | None]], faults: list[tuple[float, int, str]], start: str, seed: int
) -> None:
    ran: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    dead: set[int] = set()

    def server_of(place: int) -> ToolServer:
        def work(arguments: Json) -> str:
            assert place not in dead, "a dead replica was called"
            ran[arguments["id"]] += 1
            return "done"

        return ToolServer({"work": work}, slow=0.2)

    servers = [server_of(place) for place in range(count)]
    taken: set[int] = set()

    async def serve(transport: MemoryTransport) -> None:
        place = min(set(range(count)) - taken)
        taken.add(place)
        dead.discard(place)
        try:
            await servers[place].serve(transport)
        finally:
            taken.discard(place)

    async def call(fabric_call: object, replicas: Replicas, id: int, at: float, patience: float | None) -> None:
        await trio.sleep(at)
        begun = trio.current_time()
        with trio.move_on_after(1e6 if patience is None else patience):
            try:
                await fabric_call("x__work", {"id": id})  # type: ignore[operator]  # the fabric's own
                answered[id] += 1
            except CallError as exc:
                event(type(exc).__name__)
        assert trio.current_time() - begun <= DEADLINE
        ended[id] += 1

    async def fault(replicas: Replicas, at: float, place: int, what: str) -> None:
        await trio.sleep(at)
        place %= count
        if what == "lose":
            if place in taken:
                dead.add(place)
            servers[place].break_connections("gone")
        else:
            servers[place].options.silent_on = "tools/call" if what == "hang" else ""

    async def main() -> None:
        source = InProcess(
            name="x", serve=serve, replicas=count, slots=SLOTS, deadline=DEADLINE, start=start,  # type: ignore[arg-type]
            idle=20.0,
        )  # fmt: skip
        config = Config(sources=[source], bounds=Bounds(backoff_first=1.0, backoff_longest=4.0))
        with trio.fail_after(10_000):
            async with open_fabric(config, rng=random.Random(seed)) as fabric:
                replicas = fabric.links["x"]
                assert isinstance(replicas, Replicas)
                async with trio.open_nursery() as nursery:
                    for id, (at, patience) in enumerate(calls):
                        nursery.start_soon(call, fabric.call, replicas, id, at, patience)
                    for at, place, what in faults:
                        nursery.start_soon(fault, replicas, at, place, what)
                    for _ in range(40):
                        await trio.sleep(0.1)
                        assert sum(link.load.in_flight for link in replicas.links) <= SLOTS
                        now = trio.current_time()
                        assert 2 * sum(link.load.until > now for link in replicas.links) <= count
                await trio.sleep(100)
                assert [link.load.in_flight for link in replicas.links] == [0] * count
                assert (len(replicas.waiting), replicas.in_flight if replicas.resting else 0) == (0, 0)
                states = {link.state for link in replicas.links}
                assert states <= {"manifest", "configured", "down"}, "nobody uses it"
            assert all(link.open() == [] for link in replicas.links)
            assert len(fabric.timer) == 0
        assert not taken

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ended == Counter(range(len(calls)))
    assert all(times == 1 for times in answered.values())
    assert all(times == 1 for times in ran.values()), "a call ran twice"
    assert set(answered) <= set(ran)
