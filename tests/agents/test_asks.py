"""Who waits for whom, as the tree shows it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Budget, Mailbox
from cord_trio.agents.asks import DEEPEST, NAMED, ask_nodes
from cord_trio.agents.turn import Branch
from cord_trio.fabric import open_fabric

if TYPE_CHECKING:
    from cord_trio.agents import Context, Handoff
    from cord_trio.fabric import Fabric
    from cord_trio.observe import Node


async def park(ctx: Context, payload: object) -> None:
    await trio.sleep_forever()


async def ask_desk(ctx: Context, payload: object) -> object:
    return await ctx.ask("desk", payload)


async def hand_to_desk(ctx: Context, payload: object) -> Handoff:
    await trio.lowlevel.checkpoint()
    return ctx.handoff("desk", payload)


def asks(fabric: Fabric) -> list[Node]:
    return [node for node in fabric.tree().children if node.kind == "ask"]


def told(node: Node) -> dict[str, object]:
    """What is known of it, without the limit of the test itself."""
    facts = {name: fact for name, fact in node.facts.items() if fact is not None}
    if isinstance(limit := facts.get("deadline_in"), float) and limit > 1000:
        del facts["deadline_in"]
    return facts


async def test_the_tree_shows_who_waits_for_whom_and_how_long(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("desk", park)
        fabric.agent("triage", ask_desk)
        fabric.agent("clerk", hand_to_desk)
        nursery.start_soon(fabric.ask, "desk")
        await wait_all_tasks_blocked()
        nursery.start_soon(fabric.ask, "triage")
        await wait_all_tasks_blocked()
        nursery.start_soon(fabric.ask, "clerk")
        await wait_all_tasks_blocked()
        first, triage, clerk = asks(fabric)
        assert (first.name, first.state, told(first)) == ("desk", "running", {})
        assert (triage.name, triage.state, told(triage)) == ("triage", "running", {})
        (below,) = triage.children
        assert (below.name, below.state) == ("triage > desk", "waiting")
        assert told(below) == {"waits_for": "desk", "held_by": "desk"}
        assert (clerk.name, clerk.state) == ("clerk > desk", "waiting")
        assert told(clerk) == {"waits_for": "desk", "held_by": "desk", "hops": 1}
        nursery.cancel_scope.cancel("seen")
    assert asks(fabric) == []


async def test_an_ask_shows_its_deadline_and_what_is_left_of_its_budget(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("desk", park, turn=9)
        fabric.agent("hasty", park, deadline=5.0)
        fabric.agent("rich", park, budget=Budget(money=Decimal("1.5"), seconds=4.0))

        async def within(name: str, seconds: float, budget: Budget | None = None) -> None:
            with trio.fail_after(seconds):
                await fabric.ask(name, budget=budget)

        nursery.start_soon(within, "desk", 30.0)
        await wait_all_tasks_blocked()
        nursery.start_soon(within, "hasty", 30.0)
        await wait_all_tasks_blocked()
        nursery.start_soon(within, "rich", 30.0, Budget(calls=7, tokens=100, money=2.0))
        await wait_all_tasks_blocked()
        autojump_clock.jump(1.0)
        assert [told(node) for node in asks(fabric)] == [
            {"deadline_in": 29.0},
            {"deadline_in": 4.0},
            {"deadline_in": 3.0, "calls_left": 7, "tokens_left": 100, "money_left": 1.5, "seconds_left": 3.0},
        ]
        nursery.cancel_scope.cancel("seen")


async def test_a_message_that_waits_in_a_mailbox_waits_for_the_agent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("desk", park, mailbox=Mailbox(3))
        for _ in range(2):
            nursery.start_soon(fabric.ask, "desk")
            await wait_all_tasks_blocked()
        assert [(node.state, told(node)) for node in asks(fabric)] == [
            ("running", {}),
            ("waiting", {"waits_for": "desk", "held_by": "desk"}),
        ]
        (desk,) = [node for node in fabric.tree().children if node.kind == "agent"]
        assert desk.facts["mailbox"] == "1/3"
        nursery.cancel_scope.cancel("seen")


async def test_a_started_conversation_is_named_by_its_ask(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fabric() as fabric:
        fabric.agent("desk", park)
        job = await fabric.start("desk")
        await wait_all_tasks_blocked()
        (ask,) = asks(fabric)
        assert told(ask)["conversation"] == job.id
        job.cancel("seen")


async def test_the_tree_has_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        for number in range(5):
            fabric.agent(f"idle-{number}", park)
        fabric.agent("desk", park, turn=8)
        for _ in range(6):
            nursery.start_soon(fabric.ask, "desk")
        await wait_all_tasks_blocked()
        tree = fabric.tree(most=3)
        assert [node.name for node in tree.children if node.kind == "agent"] == ["desk#1", "idle-0#1", "idle-1#1"]
        assert len([node for node in tree.children if node.kind == "ask"]) == 3
        assert tree.facts["left_out"] == 3 + 3
        assert fabric.tree().facts["left_out"] is None
        nursery.cancel_scope.cancel("seen")


async def test_many_holders_are_counted_not_named(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("desk", park, turn=NAMED + 2)
        for _ in range(NAMED + 3):
            nursery.start_soon(fabric.ask, "desk")
        await wait_all_tasks_blocked()
        (waiting,) = [node for node in asks(fabric) if node.state == "waiting"]
        assert waiting.facts["held_by"] == ", ".join(["desk"] * NAMED + ["2 more"])
        nursery.cancel_scope.cancel("seen")


async def test_a_deep_chain_is_cut_off() -> None:
    await trio.lowlevel.checkpoint()
    top = last = Branch(None, ("a",), 0)
    for _ in range(2 * DEEPEST):
        below = Branch(last, ("a",), 0)
        last.children[below] = None
        last = below
    (node,), left_out = ask_nodes([top])
    depth = 1
    while node.children:
        (node,) = node.children
        depth += 1
    assert (depth, left_out) == (DEEPEST, 1)
