"""Agents of which there is one that go on elsewhere with what they knew, over a broker in this process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.agents import Mailbox
from cord_trio.agents.resident import MAX_KEPT
from cord_trio.errors import AgentCrashed, AgentDown, AgentError
from cord_trio.fabric import open_fabric
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh.singletons import claim, keep, locate, move, release
from cord_trio.mesh_errors import AgentTaken, OwnerLost, StoreFailed
from cord_trio.nats.kv import Bucket, open_bucket
from tests.mesh.members import has, member

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.agents import Context
    from tests.mesh.members import Member


class Refused(Exception):
    """What the clerk answers to odd numbers."""


class Clerk:
    """Remembers the numbers that it was given."""

    def __init__(self) -> None:
        self.known: list[object] = []

    def state(self) -> object:
        return self.known

    def restore(self, state: list[object]) -> None:
        self.known = state

    async def __call__(self, ctx: Context, payload: object) -> object:
        await trio.sleep(0.1)
        match payload:
            case int():
                self.known.append(payload)
                if payload % 2:
                    raise Refused
            case "crash":
                self.known.append("half done")
                raise RuntimeError("crash")
            case "long":
                self.known.append("half done")
                await trio.sleep(1000)
            case "large":
                self.known.append("x" * MAX_KEPT)
            case "odd":
                self.known.append(object())
        return [*self.known]


async def stands_by(*members: Member, mailbox: Mailbox | None = None) -> None:
    """Have the first own it, and the others stand by."""
    for one in members:
        one.fabric.singleton("clerk", Clerk, restart="elsewhere", raises=(Refused,), mailbox=mailbox)
        await has(one, "clerk")
        await trio.sleep(2)
    assert "clerk" in members[0].fabric.agents


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_it_goes_on_elsewhere_with_what_it_answered_and_what_was_under_way_is_not_done_again(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "c") as c, member(broker, "b") as b:
        async with member(broker, "a") as a:
            await stands_by(a, b, mailbox=mailbox)
            await has(c, "clerk")
            assert await c.fabric.ask("clerk", 2) == [2]
            with pytest.raises((Refused, AgentCrashed)):
                await a.fabric.ask("clerk", 3)  # an answer, too
            with pytest.raises((RuntimeError, AgentCrashed)):
                await a.fabric.ask("clerk", "crash")
            assert await c.fabric.ask("clerk") == [2, 3]  # as it was before
            lost: list[str] = []

            async def ask() -> None:
                with pytest.raises(OwnerLost) as caught:
                    await c.fabric.ask("clerk", "long")
                lost.append(caught.value.executed)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(1)
                a.way.cut()
                with trio.fail_after(3 * LEASE):
                    while "clerk" not in b.fabric.agents:  # noqa: ASYNC110  # on a clock that jumps
                        await trio.sleep(0.1)
            assert lost == ["unknown"]
            assert await c.fabric.ask("clerk", 4) == [2, 3, 4]
            assert b.fabric.counters["mesh.moved_without_state"] == 0


async def test_what_it_knows_stays_when_it_moves_and_when_nobody_has_it(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "c") as c:
        async with member(broker, "a") as a, member(broker, "b") as b:
            await stands_by(a, b)
            await a.fabric.ask("clerk", 2)
            with trio.move_on_after(1):
                await a.fabric.ask("clerk", "long")
            await a.fabric.move("clerk", "b")
            assert await a.fabric.ask("clerk", 4) == [2, "half done", 4]
            b.way.cut()
            await trio.sleep(3 * LEASE)
            assert await a.fabric.ask("clerk", 6) == [2, "half done", 4, 6]
        await trio.sleep(3)
        await stands_by(c)
        assert await c.fabric.ask("clerk") == [2, "half done", 4, 6]


@pytest.mark.parametrize("done", [False, True])
async def test_nothing_is_answered_before_it_is_kept_also_where_the_store_does_not_say_so(
    done: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b)
        put, failing = Bucket.put, [True]

        async def losing(self: Bucket, key: str, value: bytes, **options: int | None) -> int:
            if key == "ag.clerk" and failing:
                if done:
                    await put(self, key, value, **options)
                raise StoreFailed(0, "no answer", "unknown")
            return await put(self, key, value, **options)

        monkeypatch.setattr(Bucket, "put", losing)
        with pytest.raises(trio.TooSlowError), trio.fail_after(10):
            await a.fabric.ask("clerk", 2)
        failing.clear()
        assert await b.fabric.ask("clerk", 4) == [2, 4]
        failing.append(True)
        with trio.move_on_after(10):
            await a.fabric.ask("clerk", 6)
        failing.clear()
        await a.fabric.move("clerk", "b")
        assert await b.fabric.ask("clerk") == [2, 4, 6]
        assert "clerk" in b.fabric.agents


async def test_what_cannot_be_kept_is_not_answered_and_it_begins_again_with_what_was(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        await stands_by(a)
        assert await a.fabric.ask("clerk", 2) == [2]
        for payload, why in (("large", f"and {MAX_KEPT} are the most"), ("odd", "cannot be kept: TypeError")):
            with pytest.raises(AgentError, match=why):
                await a.fabric.ask("clerk", payload)
            await trio.sleep(10)
            assert await a.fabric.ask("clerk") == [2]


async def test_what_has_no_state_that_is_whole_is_refused_at_once(autojump_clock: MockClock) -> None:
    class Mute:
        async def __call__(self, ctx: Context, payload: object) -> object:
            await trio.lowlevel.checkpoint()
            return payload

    async def plain(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return payload

    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        for function, options, why in (
            (plain, {}, "a function has no state"),
            (Mute, {}, r"takes a class with `state\(\) -> JSON`"),
            (Clerk, {"turn": 2}, "takes turn=1"),
            (Clerk, {"reentrant": True}, "takes turn=1, and no reentrant"),
        ):
            with pytest.raises(ValueError, match=why):
                a.fabric.singleton("clerk", function, restart="elsewhere", **options)
        with pytest.raises(ValueError, match="is for agents of which there is one: use `singleton`"):
            a.fabric.agent("clerk", Clerk, restart="elsewhere")
        assert not a.fabric.agents.singletons
    async with open_fabric() as fabric:  # where there is no elsewhere, it is made anew here
        fabric.singleton("clerk", Clerk, restart="elsewhere")
        await fabric.ask("clerk", 2)
        with pytest.raises(RuntimeError):
            await fabric.ask("clerk", "crash")
        assert await fabric.ask("clerk") == [2]


async def test_who_has_let_go_of_it_keeps_nothing_any_more(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with a.way.open("x") as nats:
            bucket = await open_bucket(nats, "cord_cord")
            leases = [one.node.presence.lease for one in (a, b)]
            assert leases[0] is not None
            assert leases[1] is not None
            first = await claim(bucket, leases[0], "clerk")
            former = await keep(bucket, first, b"[1]")
            assert (await keep(bucket, first, b"[1,2]")).revision > former.revision  # it did not learn of the other
            given = await move(bucket, former, "b", leases[1].epoch)
            assert given.state == b"[1]"
            for stale in (first, former):
                with pytest.raises(AgentTaken):
                    await keep(bucket, stale, b"[]")
                await release(bucket, stale)
            assert await locate(bucket, "clerk") == given
            await release(bucket, given)
            left = await locate(bucket, "clerk")
            assert left is not None
            assert (left.node, left.epoch, left.state) == ("", "", b"[1]")
            assert (await claim(bucket, leases[0], "clerk")).state == b"[1]"


async def test_a_run_whose_agent_is_anothers_when_it_ends_is_not_answered(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a)
        async with a.way.open("x") as nats:
            bucket = await open_bucket(nats, "cord_cord")
            held = await locate(bucket, "clerk")
            assert held is not None
            assert b.node.epoch
            await move(bucket, held, "b", b.node.epoch)
        with pytest.raises(AgentDown, match="what it knows since was not kept"):
            await a.fabric.ask("clerk", 2)
        await trio.sleep(1)
        assert "clerk" not in a.fabric.agents


async def test_a_run_that_ends_within_the_grace_of_its_leaving_node_is_answered_and_known_to_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b)
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def ask() -> None:
                answers.append(await a.fabric.ask("clerk", 2))

            nursery.start_soon(ask)
            await trio.sleep(0.05)
            await a.fabric.remove("clerk")
        assert answers == [[2]]
        while "clerk" not in b.fabric.agents:  # noqa: ASYNC110  # on a clock that jumps
            await trio.sleep(0.1)
        assert await b.fabric.ask("clerk", 4) == [2, 4]


async def test_who_does_not_keep_it_lets_nobody_go_on_with_what_is_stale(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        async with member(broker, "b") as b:
            await stands_by(a)
            b.fabric.singleton("clerk", Clerk)
            await trio.sleep(3)
            assert await a.fabric.ask("clerk", 2) == [2]
            await a.fabric.move("clerk", "b")
            assert await a.fabric.ask("clerk", 4) == [2, 4]
            b.way.cut()
            await trio.sleep(3 * LEASE)
        assert await a.fabric.ask("clerk", 6) == [6]


async def test_what_it_knew_when_it_was_given_away_is_known_if_the_next_is_lost_before_it_did_anything(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b)
        await a.fabric.ask("clerk", 2)
        with trio.move_on_after(1):
            await a.fabric.ask("clerk", "long")
        await a.fabric.move("clerk", "b")
        b.way.cut()
        await trio.sleep(3 * LEASE)
        assert await a.fabric.ask("clerk", 4) == [2, "half done", 4]
