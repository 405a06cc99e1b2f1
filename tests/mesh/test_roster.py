from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.counters import Counters
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.presence import LEASE, MAX_RECORD, NodeRecord
from cord_trio.mesh.roster import Members, Roster
from cord_trio.mesh_errors import NotPermitted
from cord_trio.nats.kv import Bucket, open_bucket
from cord_trio.nats.watch import Change, Reset, Synced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from trio.testing import MockClock

    from cord_trio.nats.kv import Entry
    from cord_trio.nats.watch import WatchEvent


class Script:
    """A store whose watchers are told what the test says."""

    def __init__(self, *events: WatchEvent | Exception) -> None:
        self.events = deque(events)
        self.watched: list[str] = []
        self._more = trio.Event()

    def tell(self, *events: WatchEvent) -> None:
        self.events.extend(events)
        self._more.set()

    async def receive(self) -> WatchEvent:
        await trio.lowlevel.checkpoint()
        while not self.events:
            self._more = trio.Event()
            await self._more.wait()
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        return event

    @contextmanager
    def watch(self, pattern: str = ">") -> Generator[Script, None, None]:
        self.watched.append(pattern)
        yield self

    async def put(self, key: str, value: bytes, *, revision: int | None = None, ttl: int | None = None) -> int:
        raise NotImplementedError

    async def create(self, key: str, value: bytes, *, ttl: int | None = None) -> int:
        raise NotImplementedError

    async def get(self, key: str) -> Entry | None:
        raise NotImplementedError

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        raise NotImplementedError


def up(name: str, epoch: str = "00000001", revision: int = 1, **told: object) -> Change:
    return Change(f"up.{name}", msgspec.json.encode({"epoch": epoch, **told}), revision)


def down(name: str) -> Change:
    return Change(f"up.{name}", None, 1)


@asynccontextmanager
async def running(script: Script, counters: Counters | None = None, max_nodes: int = 2000) -> AsyncGenerator[Roster]:
    roster = Roster(script, counters=counters, max_nodes=max_nodes)
    async with trio.open_nursery() as nursery:
        await nursery.start(roster.run)
        yield roster
        nursery.cancel_scope.cancel("the test is over")


async def test_the_nodes_that_are_there_are_known_once_it_has_started() -> None:
    script = Script(up("a"), up("b", "00000002", servers={"time": "d1"}), Synced())
    async with running(script) as roster:
        assert script.watched == ["up.>"]
        assert roster.nodes == {
            "a": NodeRecord(epoch="00000001"),
            "b": NodeRecord(epoch="00000002", servers={"time": "d1"}),
        }
        assert (roster.epoch("b"), roster.epoch("c")) == ("00000002", None)


async def test_a_value_that_was_read_stays_as_it_was() -> None:
    script = Script(up("a"), Synced())
    async with running(script) as roster:
        before = roster.members
        assert roster.members is before
        script.tell(down("a"), up("b"))
        await wait_all_tasks_blocked()
        assert (list(before.nodes), list(roster.nodes)) == (["a"], ["b"])
        assert (before.number, roster.number, roster.members.number) == (1, 3, 3)
        with pytest.raises(TypeError):
            before.nodes["c"] = NodeRecord()  # type: ignore[index]  # that it cannot be done is the claim


async def test_who_waits_for_a_change_gets_the_latest_and_at_once_if_there_was_one(autojump_clock: MockClock) -> None:
    script = Script(Synced())
    async with running(script) as roster, trio.open_nursery() as nursery:
        got: list[Members] = []

        async def wait() -> None:
            got.append(await roster.changed(roster.number))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        script.tell(up("a"))
        await wait_all_tasks_blocked()
        assert [list(members.nodes) for members in got] == [["a"]]
        assert (await roster.changed(0)).number == 1
        script.tell(up("a"))  # says nothing new
        with trio.move_on_after(1) as nothing:
            await roster.changed(1)
        assert nothing.cancelled_caught


async def test_after_a_gap_those_who_were_not_told_again_are_no_more() -> None:
    script = Script(up("a"), up("b"), up("c"), Synced())
    async with running(script) as roster:
        ended: list[tuple[str, str]] = []
        anew: list[list[str]] = []
        with roster.hearing(
            lambda node, epoch: ended.append((node, epoch)), anew=lambda: anew.append(sorted(roster.nodes))
        ):
            script.tell(Reset(), up("b"), up("c", "00000009"))
            await wait_all_tasks_blocked()
            assert sorted(roster.nodes) == ["a", "b", "c"]  # not all is known yet
            script.tell(Synced())
            await wait_all_tasks_blocked()
            assert sorted(roster.nodes) == ["b", "c"]
        assert ended == [("c", "00000001"), ("a", "00000001")]
        assert anew == [["b", "c"]]


async def test_of_whom_the_store_lost_the_record_nothing_is_known_for_a_lease(autojump_clock: MockClock) -> None:
    script = Script(up("a"), up("b"), up("c"), up("d"), Synced())
    async with running(script) as roster:
        ended: list[tuple[str, str]] = []
        with roster.hearing(lambda node, epoch: ended.append((node, epoch))):
            script.tell(Reset(lost=True), Reset(), up("d"), Synced())  # the second: it was not told whole at first
            await wait_all_tasks_blocked()
            number = roster.number
            assert [roster.is_unsaid(node) for node in "abcd"] == [True, True, True, False]
            await trio.sleep(LEASE / 2)
            script.tell(up("a"), up("b", "00000002"))
            await wait_all_tasks_blocked()
            assert (sorted(roster.nodes), roster.number) == (["a", "b", "c", "d"], number + 2)
            script.tell(Reset(), up("a"), Synced())  # nor does a gap take away whom it cannot tell of
            await wait_all_tasks_blocked()
            assert sorted(roster.nodes) == ["a", "c"]
            await trio.sleep(LEASE / 2 + 0.1)
            assert sorted(roster.nodes) == ["a"]
            script.tell(Reset(), Synced())
            await wait_all_tasks_blocked()
        assert sorted(ended) == [
            ("a", "00000001"),
            ("b", "00000001"),
            ("b", "00000002"),
            ("c", "00000001"),
            ("d", "00000001"),
        ]
        assert not roster.nodes


async def test_the_end_of_each_incarnation_is_told_once_and_not_where_only_the_record_changes() -> None:
    script = Script(up("a"), up("b"), Synced())
    async with running(script) as roster:
        ended: list[tuple[str, str, str | None]] = []
        with roster.hearing(lambda node, epoch: ended.append((node, epoch, roster.epoch(node)))):
            script.tell(up("a", draining=True), up("a", "00000002"), down("b"), down("b"))
            await wait_all_tasks_blocked()
            assert ended == [("a", "00000001", "00000002"), ("b", "00000001", None)]
        script.tell(down("a"))
        await wait_all_tasks_blocked()
        assert len(ended) == 2


async def test_one_that_hears_and_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(up("a"), Synced())
    async with running(script) as roster:
        heard: list[str] = []

        def fail(node: str, epoch: str) -> None:
            raise RuntimeError("seven")

        with roster.hearing(fail), roster.hearing(lambda node, epoch: heard.append(node)):
            script.tell(down("a"))
            await wait_all_tasks_blocked()
        assert (heard, "seven" in caplog.text) == (["a"], True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("up.b", b"["),
        ("up.b", b"\xff"),
        ("up.b", b"{}"),
        ("up.b", b'{"epoch":"00000001","later":%b}' % (b"[" * 1500 + b"]" * 1500)),
        ("up.b", b'{"epoch":"00000001","servers":{"a\\n":"x"}}'),
        ("up.b", b'{"epoch":"00000001","groups":{"a":"\\u0000"}}'),
        ("up.b", b'{"epoch":"0000000g"}'),
        ("up.b", b'{"epoch":"00000001","labels":{"x":"%s"}}' % (b"y" * MAX_RECORD)),
        ("up.B", b'{"epoch":"00000001"}'),
        ("up.b.c", b'{"epoch":"00000001"}'),
        (f"up.{'b' * 49}", b'{"epoch":"00000001"}'),
    ],
)
async def test_a_record_that_is_of_no_use_is_none_and_told_once(
    key: str, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    script = Script(up("a"), up("b"), Change(key, value, 2), Change(key, value, 3), Synced())
    async with running(script, counters) as roster:
        assert list(roster.nodes) == (["a"] if key == "up.b" else ["a", "b"])
        assert counters["mesh.bad_record"] == 2
        assert caplog.text.count("is of no use") == 1


async def test_nodes_past_the_bound_are_not_known_until_there_is_room(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    script = Script(up("a"), up("b"), up("c"), up("d"), Synced())
    async with running(script, counters, max_nodes=2) as roster:
        assert list(roster.nodes) == ["a", "b"]
        assert counters["mesh.roster_full"] == 2
        assert caplog.text.count("more nodes than are known") == 1
        script.tell(up("a", "00000002"), down("b"))
        await trio.sleep(2)
        assert (list(roster.nodes), len(script.watched)) == (["a"], 2)
        script.tell(up("a", "00000002"), up("c"), up("d"), Synced())
        await trio.sleep(2)
        assert (list(roster.nodes), len(script.watched)) == (["a", "c"], 2)


async def test_where_watching_is_not_permitted_it_says_so_and_who_waits_is_told() -> None:
    script = Script(Synced())
    roster = Roster(script)
    ends: list[type[BaseException]] = []

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await roster.changed(roster.number)
        ends.append(trio.BrokenResourceError)

    async def run(task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # the roster calls it
        with pytest.raises(NotPermitted):
            await roster.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        script.events.append(NotPermitted("$KV", "no"))
        script.tell()
    assert len(ends) == 1
    with pytest.raises(trio.BrokenResourceError):
        await roster.changed(0)


async def test_two_who_watch_one_store_know_the_same_after_one_was_cut_off(autojump_clock: MockClock) -> None:
    async def fill(broker: LocalBroker, bucket: Bucket) -> None:
        for number in range(20):
            await bucket.put(f"up.n{number % 7}", b'{"epoch":"%08x"}' % number)
            if number % 3 == 0:
                await bucket.delete(f"up.n{(number + 2) % 7}")
            await trio.sleep(10)

    async with open_broker(Random(1)) as broker:
        here, there = broker.way(), broker.way()
        async with here.open() as near, there.open() as far, trio.open_nursery() as nursery:
            bucket = await open_bucket(near, "cord_m")
            rosters = [Roster(bucket), Roster(await open_bucket(far, "cord_m"))]
            for roster in rosters:
                await nursery.start(roster.run)
            there.cut()
            await fill(broker, bucket)
            assert rosters[0].nodes != rosters[1].nodes
            there.mend()
            await trio.sleep(60)
            assert rosters[0].nodes == rosters[1].nodes
            nursery.cancel_scope.cancel("the test is over")
