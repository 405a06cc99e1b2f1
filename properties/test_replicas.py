"""One source with several servers under searched schedules and faults: each call ends once, and runs at most once."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.config import Bounds, Config, InProcess, ToolSettings
from cord_trio.errors import CallError
from cord_trio.fabric import open_fabric
from cord_trio.replicas import Replicas
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.fabric import Fabric
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.transports.memory import MemoryTransport

SLOTS = 4
DEADLINE = 5.0

TIMES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 60.0])

CALLS = st.lists(st.tuples(TIMES, st.sampled_from([None, 0.05, 0.3, 2.0])), max_size=16)
"""When each call is made, and after how long it is cancelled, if it is."""

FAULTS = st.lists(st.tuples(TIMES, st.integers(0, 3), st.sampled_from(["lose", "hang", "heal"])), max_size=8)
"""When something happens to which server: its connection is lost, its tools hang, or answer again."""


@proves(1, 8, 24, "layers.once", "layers.rest")
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

    async def call(fabric_call: object, id: int, at: float, patience: float | None) -> None:
        await trio.sleep(at)
        begun = trio.current_time()
        with trio.move_on_after(1e6 if patience is None else patience):
            try:
                await fabric_call("x__work", {"id": id})  # type: ignore[operator]  # the fabric's own
                answered[id] += 1
            except CallError as exc:
                event(type(exc).__name__)
        # Also a call of what is not listed yet, which waits for the list before.
        assert trio.current_time() - begun <= DEADLINE + 1e-6
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
                        nursery.start_soon(call, fabric.call, id, at, patience)
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


HEDGED = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0]),
        st.sampled_from(["safe", "unsafe"]),
        st.sampled_from([None, None, 0.2, 0.35]),
    ),
    max_size=10,
)
"""When each call is made, whether it may run twice, and after how long it is cancelled, if it is."""


@proves(1, 8, 27, "layers.hedge", "layers.once", "layers.rest")
@given(
    st.integers(2, 3), HEDGED, st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 60.0]), min_size=3), st.integers(0, 999)
)
def test_of_two_attempts_one_is_answered_the_other_told_once_and_only_what_is_safe_runs_twice(
    count: int, calls: list[tuple[float, str, float | None]], seconds: list[float], seed: int
) -> None:
    """The ledger has, for each call, the servers that ran it, and every answer that somebody got."""
    ran: dict[int, list[int]] = {id: [] for id in range(len(calls))}
    answers: dict[int, list[int]] = {id: [] for id in range(len(calls))}
    ended: Counter[int] = Counter()
    due: dict[int, list[float]] = {id: [] for id in range(len(calls))}
    left: dict[int, float] = {}
    began = 0

    def server_of(place: int) -> ToolServer:
        def work(arguments: Json) -> str:
            nonlocal began
            if arguments["id"] >= 0:
                ran[arguments["id"]].append(place)
                began += 1
                servers[place].options.slow = seconds[began % len(seconds)]  # of this answer
                due[arguments["id"]].append(trio.current_time() + servers[place].options.slow)
            return str(place)

        return ToolServer({"safe": work, "unsafe": work}, slow=0.1)

    servers = [server_of(place) for place in range(count)]
    free = list(range(count))

    async def serve(transport: MemoryTransport) -> None:
        await servers[free.pop()].serve(transport)

    async def call(fabric: Fabric, id: int, at: float, tool: str, patience: float | None) -> None:
        await trio.sleep(at)
        with trio.move_on_after(1e6 if patience is None else patience):
            try:
                answers[id].append(int((await fabric.call(f"x__{tool}", {"id": id})).text))
            except CallError as exc:
                event(type(exc).__name__)
        left[id] = trio.current_time()
        ended[id] += 1

    async def main() -> None:
        source = InProcess(
            name="x", serve=serve, replicas=count, deadline=5.0, era="legacy", hedge=True,
            tool={"safe": ToolSettings(repeatable=True)},
        )  # fmt: skip
        with trio.fail_after(10_000):
            async with open_fabric([source], rng=random.Random(seed)) as fabric:
                replicas = fabric.links["x"]
                assert isinstance(replicas, Replicas)
                for link in replicas.links:
                    await link.wait_tried()
                for tool in ("safe", "unsafe"):
                    async with trio.open_nursery() as nursery:
                        for _ in range(50):
                            nursery.start_soon(fabric.call, f"x__{tool}", {"id": -1})
                await trio.sleep(30)
                async with trio.open_nursery() as nursery:
                    for id, (at, tool, patience) in enumerate(calls):
                        nursery.start_soon(call, fabric, id, at, tool, patience)
                await trio.sleep(1)
                assert [link.load.in_flight for link in replicas.links] == [0] * count
                assert (fabric.slots["x"].taken, len(fabric.timer)) == (0, 0)
                for _ in range(fabric.counters["hedge.first"]):
                    event("the second was first")
                # Whoever works for nobody is told once; whose answer comes in that very moment may be, or not.
                told = sum(server.received.get("notifications/cancelled", 0) for server in servers)
                late = sum(when > left[id] + 1e-6 for id, whens in due.items() for when in whens)
                assert late <= told <= sum(map(len, ran.values())) - sum(map(len, answers.values()))

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ended == Counter(range(len(calls)))
    for id, (_, tool, _) in enumerate(calls):
        assert len(answers[id]) <= 1
        assert set(answers[id]) <= set(ran[id])
        assert len(ran[id]) == len(set(ran[id])), "both attempts went to one server"
        assert len(ran[id]) <= (2 if tool == "safe" else 1)
