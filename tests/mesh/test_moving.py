"""Agents of which there is one that move from node to node, over a broker in this process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.agents import Mailbox, Supervisor
from cord_trio.errors import AgentError, AgentNotFound
from cord_trio.fabric import open_fabric
from cord_trio.mesh import moving
from cord_trio.mesh.keeping import Keeping
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh.singletons import locate, move
from cord_trio.mesh_errors import NoOwner, NotJson, OwnerRefused, StoreFailed
from cord_trio.nats.kv import Bucket, open_bucket
from tests.mesh.members import has, member

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.agents import Context
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.presence import Lease
    from cord_trio.mesh.singletons import Held
    from tests.mesh.members import Member


class Clerk:
    """Remembers what it did, and who is at work."""

    at_work: int = 0
    most: int = 0
    sound: bool = True

    def __init__(self) -> None:
        self.done: list[object] = []

    def state(self) -> object:
        if not Clerk.sound:
            raise ValueError("not now")
        return {"version": 1, "done": self.done}

    def restore(self, state: dict[str, list[object]]) -> None:
        self.done = state["done"]

    async def __call__(self, ctx: Context, payload: object) -> object:
        Clerk.at_work += 1
        Clerk.most = max(Clerk.most, Clerk.at_work)
        try:
            await trio.sleep(1)
            if payload is object:
                self.done.append(object())
            elif payload is not None:
                self.done.append(payload)
            return [*self.done]
        finally:
            Clerk.at_work -= 1


@pytest.fixture(autouse=True)
def nobody_is_at_work() -> None:
    Clerk.at_work = Clerk.most = 0
    Clerk.sound = True


async def stands_by(*members: Member, **options: object) -> Member:
    """Have the first own it, and the others stand by."""
    for one in members:
        one.fabric.singleton("clerk", Clerk, **options)
        await has(one, "clerk")
        await trio.sleep(2)
    assert "clerk" in members[0].fabric.agents
    return members[0]


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_a_conversation_goes_on_while_its_agent_moves_and_nothing_runs_twice_or_at_once(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            await stands_by(a, b, mailbox=mailbox)
            await has(c, "clerk")
            fence = a.fabric.agents["clerk"].fence
            answers: list[object] = []

            async def talk(of: Member, name: str) -> None:
                for number in range(4):
                    answer = await of.fabric.ask("clerk", f"{name}{number}")
                    assert isinstance(answer, list)
                    answers.append(answer[-1])

            async with trio.open_nursery() as nursery:
                for one in (a, b, c):
                    nursery.start_soon(talk, one, one.node.name)
                await trio.sleep(2.5)
                await a.fabric.move("clerk", "b")
                assert "clerk" not in a.fabric.agents
                assert b.fabric.agents["clerk"].fence > fence
                await trio.sleep(3.2)
                await c.fabric.move("clerk", "a")  # whoever has it does it
            done = await b.fabric.ask("clerk")
            assert isinstance(done, list)
            expected = sorted(f"{name}{number}" for name in "abc" for number in range(4))
            assert sorted(done) == sorted(map(str, answers)) == expected
            assert (Clerk.most, "clerk" in a.fabric.agents) == (1, True)
            assert (a.fabric.counters["mesh.agents_moved"], b.fabric.counters["mesh.agents_moved"]) == (1, 1)
            assert not any(one.fabric.agents.roots for one in (a, b, c))


async def test_messages_that_were_told_go_along_in_their_order(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b, mailbox=Mailbox(4))

        async def tell() -> None:
            for number in range(10):
                assert await a.fabric.tell("clerk", number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            await trio.sleep(1.5)
            await a.fabric.move("clerk", "b")
        await a.fabric.agents.wait_quiet()
        await b.fabric.agents.wait_quiet()
        done = await a.fabric.ask("clerk")
        assert isinstance(done, list)
        assert sorted(done) == [*range(10)]
        assert done[:5] == [0, 1, 2, 3, 4]


async def test_where_it_cannot_go_it_stays_with_what_it_knows(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c"):
            await stands_by(a, b)
            await a.fabric.ask("clerk", 1)
            await a.fabric.move("clerk", "a")
            for nowhere, error in (("gone", NoOwner), ("c", AgentNotFound)):
                with pytest.raises(error):
                    await a.fabric.move("clerk", nowhere)
            await b.fabric.drain(0)
            with pytest.raises(OwnerRefused, match="draining"):
                await a.fabric.move("clerk", "b")
            assert await a.fabric.ask("clerk", 2) == [1, 2]
            await a.fabric.ask("clerk", object)
            with pytest.raises(NotJson, match="the state of agent 'clerk'"):
                await a.fabric.move("clerk", "c")
            answer = await a.fabric.ask("clerk", 3)
            assert isinstance(answer, list)
            assert len(answer) == 4
            Clerk.sound = False
            with pytest.raises(AgentError, match="telling its state failed"):
                await a.fabric.move("clerk", "c")
            assert await a.fabric.ask("clerk", 4) == [4]  # as after a crash
            with pytest.raises(NoOwner):
                await a.fabric.move("nobody", "c")


async def test_what_has_no_state_that_can_be_told_or_shares_a_supervisor_does_not_move(
    autojump_clock: MockClock,
) -> None:
    class Mute:
        async def __call__(self, ctx: Context, payload: object) -> object:
            await trio.lowlevel.checkpoint()
            return payload

    async def plain(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return [payload, ctx.fence > 0]

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.singleton("mute", Mute)
        a.fabric.singleton("watched", plain, supervisor=Supervisor())
        a.fabric.singleton("plain", plain)
        await trio.sleep(3)
        b.fabric.singleton("plain", plain)
        with pytest.raises(AgentError, match="give its class"):
            await a.fabric.move("mute", "b")
        with pytest.raises(AgentError, match="its supervisor"):
            await a.fabric.move("watched", "b")
        assert await a.fabric.ask("mute", 1) == 1
        await trio.sleep(3)
        await a.fabric.move("plain", "b")
        assert await a.fabric.ask("plain", 1) == [1, True]
        assert "plain" in b.fabric.agents
    async with open_fabric() as fabric:
        with pytest.raises(AgentError, match="not in a mesh"):
            await fabric.move("plain", "b")


async def test_a_run_that_does_not_end_is_cut_off_after_half_a_minute(autojump_clock: MockClock) -> None:
    class Slow(Clerk):
        async def __call__(self, ctx: Context, payload: object) -> object:
            await trio.sleep(1000 if payload else 0)
            return "here"

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.singleton("slow", Slow)
        await trio.sleep(3)
        b.fabric.singleton("slow", Slow)
        await trio.sleep(3)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(AgentError):
                    await a.fabric.ask("slow", 1)

            nursery.start_soon(ask)
            await trio.sleep(1)
            began = trio.current_time()
            await a.fabric.move("slow", "b")
            assert trio.current_time() - began == pytest.approx(moving.PATIENCE, abs=1)
        assert await a.fabric.ask("slow") == "here"


@pytest.mark.parametrize("done", [False, True])
async def test_a_commit_whose_answer_is_lost_is_looked_at_again(
    done: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b)
        await a.fabric.ask("clerk", 1)
        put, lost = Bucket.put, [StoreFailed(0, "no answer", "unknown")]

        async def losing(self: Bucket, key: str, value: bytes, **options: int | None) -> int:
            if key == "ag.clerk" and lost:
                if done:
                    await put(self, key, value, **options)
                raise lost.pop()
            return await put(self, key, value, **options)

        monkeypatch.setattr(Bucket, "put", losing)
        await a.fabric.move("clerk", "b")
        assert await a.fabric.ask("clerk", 2) == [1, 2]
        assert "clerk" in b.fabric.agents


async def test_who_moves_it_and_dies_before_has_not_moved_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "c") as c, member(broker, "b") as b:
        async with member(broker, "a") as a:
            await stands_by(a, b)
            await a.fabric.ask("clerk", 1)

            async def never(*_: object) -> None:
                a.way.cut()
                await trio.sleep(20)
                raise StoreFailed(0, "no answer")

            monkeypatch.setattr(moving, "move", never)
            with pytest.raises(AgentError, match="let go of it"), trio.fail_after(60):
                await a.fabric.move("clerk", "b")
            await trio.sleep(30)
            assert await b.fabric.ask("clerk", 2) == [2]  # its copy was of one that went on elsewhere, perhaps
            assert "clerk" in b.fabric.agents
            async with c.way.open("x") as nats:
                held = await locate(await open_bucket(nats, "cord_cord"), "clerk")
            assert held is not None
            assert held.node == "b"


async def test_state_that_came_too_early_is_not_gone_on_with(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        await stands_by(a, b)
        await a.fabric.ask("clerk", 1)
        put, slow = move, [LEASE + 1]

        async def late(store: Store, held: Held, node: str, epoch: str) -> Held:
            await trio.sleep(slow.pop())
            return await put(store, held, node, epoch)

        monkeypatch.setattr(moving, "move", late)
        await a.fabric.move("clerk", "b")
        assert await a.fabric.ask("clerk", 2) == [2]
        assert b.fabric.counters["mesh.moved_without_state"] == 1


async def test_it_is_placed_by_labels_or_where_there_is_less_to_do(autojump_clock: MockClock) -> None:
    north, south = {"region": "north"}, {"region": "south"}
    async with open_broker(Random(1)) as broker, member(broker, "a", labels=north) as a:
        async with member(broker, "b", labels=south) as b, member(broker, "c", labels=south) as c:
            await stands_by(a, b)
            await has(c, "clerk")
            assert await c.fabric.move("clerk", "region=north") == "a"  # it stays
            assert await a.fabric.move("clerk", "region=north") == "a"
            assert await c.fabric.move("clerk", "region=south") == "b"
            assert "clerk" in b.fabric.agents
            await trio.sleep(2)
            assert await b.fabric.move("clerk") == "a"  # no other stands by
            c.fabric.singleton("clerk", Clerk)
            await trio.sleep(3)
            for busy, idle in ((b, c), (c, b)):
                asking = a.fabric.agents.elsewhere
                calling = a.node.calling
                for one, runs in ((busy, 9), (idle, 0)):
                    calling.peers.get(one.node.name, one.node.epoch).told(runs, 10)
                assert asking is not None
                assert await a.fabric.move("clerk") == idle.node.name
                await trio.sleep(2)
                assert await idle.fabric.move("clerk", "a") == "a"
                await trio.sleep(2)
            with pytest.raises(AgentError, match="no node that is region=west is known to stand by"):
                await b.fabric.move("clerk", "region=west")
            await b.fabric.remove("clerk")
            await c.fabric.remove("clerk")
            await trio.sleep(3)
            with pytest.raises(AgentError, match="no other node is known to stand by"):
                await a.fabric.move("clerk")
            assert await b.fabric.ask("clerk", 1) == [1]


async def test_what_belongs_to_its_node_is_not_moved_and_it_is_told_what_would(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("own", Clerk)
        await has(b, "own")
        for one in (a, b):
            with pytest.raises(AgentError, match=r"belongs to the node that has it.*`fabric.singleton`"):
                await one.fabric.move("own", "b")


async def test_of_two_moves_at_once_one_is_done_and_the_other_says_where_it_goes(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            await stands_by(a, b, c)
            said: list[str] = []

            async def go(of: Member, to: str) -> None:
                try:
                    said.append(await of.fabric.move("clerk", to))
                except AgentError as exc:
                    said.append(str(exc))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(c.fabric.ask, "clerk", 1)
                await trio.sleep(0.5)
                nursery.start_soon(go, a, "b")
                await trio.sleep(0.1)
                nursery.start_soon(go, b, "c")
            assert said == ["agent 'clerk' is on its way already, to node 'b'", "b"]
            assert await a.fabric.ask("clerk", 2) == [1, 2]
            assert Clerk.most == 1


@pytest.mark.parametrize("where", ["clerk", "clerk@a"])
async def test_who_asks_while_it_goes_to_a_node_that_is_lost_is_told_that_nothing_ran(
    where: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "c") as c:
        async with member(broker, "b") as b:
            await stands_by(a, b)
            await has(c, "clerk")
            put = move

            async def commits(store: Store, held: Held, node: str, epoch: str) -> Held:
                given = await put(store, held, node, epoch)
                b.way.cut()
                while "b" in a.node.roster.nodes:  # noqa: ASYNC110  # on a clock that jumps
                    await trio.sleep(0.1)
                return given

            monkeypatch.setattr(moving, "move", commits)
            failed: list[object] = []

            async def ask() -> None:
                with pytest.raises((AgentError, NoOwner)) as caught:
                    await c.fabric.ask(where, 2)
                failed.append((type(caught.value).__name__, getattr(caught.value, "executed", "")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.fabric.ask, "clerk", 1)
                await trio.sleep(0.2)
                nursery.start_soon(a.fabric.move, "clerk", "b")
                await trio.sleep(0.2)
                nursery.start_soon(ask)
            assert failed == [("NoOwner", "no")]
        await trio.sleep(2 * LEASE)
        assert await c.fabric.ask("clerk", 3) == [3]


async def test_who_asks_between_two_owners_waits_a_while_for_the_next(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "c") as c:
        async with member(broker, "b") as b:
            await stands_by(b, a)
            await has(c, "clerk")
            assert await c.fabric.ask("clerk", 1) == [1]
        assert await c.fabric.ask("clerk", 1) == [1]


async def test_who_is_asked_to_move_what_it_was_just_given_does_so_once_it_is_there(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            await stands_by(a, b)
            await has(c, "clerk")
            have = Keeping._have

            async def late(self: Keeping, held: Held, lease: Lease, given: tuple[object] | None) -> None:
                await trio.sleep(1)
                await have(self, held, lease, given)

            monkeypatch.setattr(Keeping, "_have", late)
            await a.fabric.ask("clerk", 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.fabric.move, "clerk", "b")
                await trio.sleep(0.5)
                nursery.start_soon(c.fabric.move, "clerk", "a")
            await trio.sleep(2)
            assert await c.fabric.ask("clerk", 2) == [1, 2]
            assert "clerk" in a.fabric.agents
