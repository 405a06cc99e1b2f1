from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.agents import Account, Agents, Budget, Context, Mailbox
from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import BudgetExceeded, ConnectionLost
from cord_trio.registry import Snapshot
from tests.agents.world import echo, hang, no_tools, world

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.errors import Executed

RESULT = Raw(b'{"content":[]}')


def tools_that_end(*endings: Executed | None) -> Agents:
    """Agents whose tool calls are lost so, one after the other; None for an answer."""
    left = list(endings)

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        ending = left.pop(0)
        if ending is not None:
            raise ConnectionLost("so it goes", ending)
        return Complete(RESULT)

    return Agents(handler, Snapshot)


async def test_a_reservation_is_settled_or_given_back() -> None:  # noqa: ASYNC124  # async by contract
    account = Account(Budget(tokens=10), "a")
    with account.reserve(tokens=8) as reserved:
        assert (account.left("tokens"), account.reserved["tokens"]) == (2, 8)
        with pytest.raises(BudgetExceeded):
            account.reserve(tokens=3)
        reserved.settle(tokens=5)
        with pytest.raises(RuntimeError, match="settled"):
            reserved.settle()
    assert (account.spent["tokens"], account.reserved["tokens"], account.left("tokens")) == (5, 0, 5)
    with account.reserve(tokens=5):
        pass
    assert account.left("tokens") == 5
    assert account.left("calls") == math.inf


async def test_a_child_has_no_more_than_its_parent_and_spends_of_it() -> None:  # noqa: ASYNC124  # async by contract
    parent = Account(Budget(money=1), "parent")
    child = Account(Budget(money=5), "child", parent)
    child.spend(money=0.7)
    assert parent.spent["money"] == Decimal("0.7")
    with pytest.raises(BudgetExceeded, match="budget of 1 money does not hold what agent 'child' asks for"):
        child.spend(money=0.4)
    child.spend(money=Decimal("0.3"))
    assert child.left("money") == 0
    for amount in (-1, 0.5):
        with pytest.raises((ValueError, BudgetExceeded)):
            child.spend(money=amount)


async def test_what_was_spent_beyond_a_reservation_is_recorded() -> None:  # noqa: ASYNC124  # async by contract
    account = Account(Budget(tokens=10), "a")
    with account.reserve(tokens=1) as reserved:
        reserved.settle(tokens=15)
    assert (account.spent["tokens"], account.left("tokens")) == (15, 0)


async def test_a_budget_bounds_the_calls_of_an_ask_and_of_what_it_asks() -> None:
    async def calls(ctx: Context, payload: int) -> object:
        for _ in range(payload):
            await ctx.call("web__get")
        return ctx.budget.left("calls")

    async def desk(ctx: Context, payload: object) -> object:
        with pytest.raises(BudgetExceeded):
            await ctx.ask("calls", 2, budget=Budget(calls=1))
        assert await ctx.ask("calls", 1) == 1
        return await ctx.ask("calls", 2)

    agents = tools_that_end(*[None] * 9)
    agents.add("calls", calls)
    agents.add("desk", desk)
    with pytest.raises(BudgetExceeded) as caught:
        await agents.ask_within(Budget(calls=3), "desk", None)
    assert (caught.value.counter, caught.value.limit, caught.value.agent) == ("calls", 3, "calls")
    assert agents.account.spent["calls"] == 3
    assert await agents.converse("calls", 1) == math.inf


@pytest.mark.parametrize(("executed", "spent"), [("no", 0), ("unknown", 1), ("yes", 1), (None, 1)])
async def test_a_call_that_provably_did_not_run_costs_nothing(executed: Executed | None, spent: int) -> None:
    async def calls(ctx: Context, payload: object) -> object:
        try:
            await ctx.call("web__get", {"a": 1})
        except ConnectionLost:
            pass
        return ctx.budget.spent["calls"], ctx.budget.spent["bytes"], ctx.budget.reserved["calls"]

    agents = tools_that_end(executed)
    agents.add("calls", calls)
    size = spent * len(b'{"a":1}') + (len(bytes(RESULT)) if executed is None else 0)
    assert await agents.ask_within(Budget(calls=1, bytes=100), "calls", None) == (spent, size, 0)


async def test_a_cancelled_call_may_have_run(autojump_clock: MockClock) -> None:
    async def never(call: Call) -> Outcome:
        await trio.sleep_forever()

    async def calls(ctx: Context, payload: object) -> object:
        with trio.move_on_after(1):
            await ctx.call("web__get")
        return ctx.budget.left("calls")

    agents = Agents(never, Snapshot)
    agents.add("calls", calls)
    assert await agents.ask_within(Budget(calls=1), "calls", None) == 0


async def test_a_budget_bounds_the_hops() -> None:
    async def ping(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        assert ctx.can_handoff("ping") == (ctx.budget.left("hops") > 0)
        return ctx.handoff("ping", payload)

    agents = Agents(no_tools, Snapshot)
    agents.add("ping", ping)
    with pytest.raises(BudgetExceeded) as caught:
        await agents.ask_within(Budget(hops=2), "ping", None)
    assert (caught.value.counter, caught.value.agent) == ("hops", "ping")
    assert caught.value.__notes__ == ["ping > ping > ping#1"]


async def test_a_hop_that_an_account_above_refuses_is_spent_nowhere() -> None:  # noqa: ASYNC124  # async by contract
    above = Account(Budget(hops=1), "above")
    between = Account(Budget(), "between", above)
    below = Account(Budget(hops=9), "below", between)
    below.hop("giver")
    with pytest.raises(BudgetExceeded, match="giver"):
        below.hop("giver")
    assert [account.spent["hops"] for account in (above, between, below)] == [1, 1, 1]


async def test_a_budget_bounds_the_seconds(autojump_clock: MockClock) -> None:
    async def slow(ctx: Context, payload: object) -> object:
        assert ctx.deadline == trio.current_time() + 2
        await trio.sleep(5)
        return None

    agents = Agents(no_tools, Snapshot)
    agents.add("slow", slow)
    agents.add("bounded", slow, budget=Budget(seconds=2))
    with pytest.raises(BudgetExceeded) as caught:
        await agents.ask_within(Budget(seconds=2), "slow", None)
    assert caught.value.counter == "seconds"
    with pytest.raises(BudgetExceeded) as caught:
        await agents.converse("bounded", None)
    assert (caught.value.counter, caught.value.agent) == ("seconds", "bounded")
    assert trio.current_time() == 4


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_an_agents_own_budget_is_for_each_run_and_not_for_its_taker(mailbox: Mailbox | None) -> None:
    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        ctx.budget.spend(tokens=3)
        assert ctx.budget.left("tokens") == 0
        return ctx.handoff("taker")

    async def taker(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.budget.left("tokens")

    async with world() as agents:
        agents.add("giver", giver, budget=Budget(tokens=3), mailbox=mailbox)
        agents.add("taker", taker, mailbox=mailbox)
        for _ in range(2):
            assert await agents.converse("giver", None) == math.inf
        assert agents.account.spent["tokens"] == 6
        assert await agents.ask_within(Budget(tokens=5), "giver", None) == 2


async def test_seconds_left_are_those_of_the_nearest_deadline(autojump_clock: MockClock) -> None:
    outer = Account(Budget(seconds=5), "outer")
    inner = Account(Budget(seconds=9), "inner", outer)
    await trio.sleep(1)
    assert inner.left("seconds") == 4
    assert Account(Budget(), "free").left("seconds") == math.inf


@pytest.mark.parametrize("wrong", [{"calls": -1}, {"seconds": math.inf}, {"money": "-0.1"}])
def test_a_budget_of_less_than_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Budget(**wrong)


async def test_an_agent_asks_only_whom_it_is_granted() -> None:
    from cord_trio.errors import AgentNotGranted, HandoffRefused

    async def tries(ctx: Context, target: str) -> object:
        assert ctx.can_handoff(target) == (target == "desk-1")
        for verb in (ctx.ask, ctx.tell, ctx.start):
            with pytest.raises(AgentNotGranted) as caught:
                await verb("ledger", 1)
            assert (caught.value.agent, caught.value.name, caught.value.granted) == ("tries", "ledger", ("desk-*",))
        with pytest.raises(AgentNotGranted):
            ctx.monitor("ledger")
        assert await ctx.ask("desk-1", 7) == 7
        return ctx.handoff(target, 8)

    async with world() as agents:
        agents.add("tries", tries, agents=("desk-*",))
        agents.add("ledger", echo, mailbox=Mailbox())
        agents.add("desk-1", echo)
        assert await agents.converse("tries", "desk-1") == 8
        with pytest.raises(HandoffRefused, match=r"granted desk-\*"):
            await agents.converse("tries", "ledger")


async def test_after_a_handoff_the_error_names_who_asked_for_too_much() -> None:
    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        ctx.budget.spend(tokens=1)
        return ctx.handoff("taker", payload)

    async def taker(ctx: Context, payload: object) -> object:
        if payload == "spend":
            ctx.budget.spend(tokens=2)
        if payload == "reserve":
            ctx.budget.reserve(tokens=2)
        await trio.sleep(1)
        return ctx.budget.spent["tokens"], ctx.budget.left("tokens")

    agents = Agents(no_tools, Snapshot)
    agents.add("giver", giver)
    agents.add("taker", taker)
    for payload in ("spend", "reserve"):
        with pytest.raises(BudgetExceeded) as caught:
            await agents.ask_within(Budget(tokens=2), "giver", payload)
        assert (caught.value.agent, caught.value.counter) == ("taker", "tokens")
    assert await agents.ask_within(Budget(tokens=2), "giver", "look") == (1, 1)


async def test_when_the_seconds_are_over_the_error_names_who_ran(autojump_clock: MockClock) -> None:
    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("taker", payload)

    async def taker(ctx: Context, payload: object) -> object:
        return await ctx.ask("other", payload)

    agents = Agents(no_tools, Snapshot)
    agents.add("giver", giver)
    agents.add("taker", taker)
    agents.add("other", hang)
    with pytest.raises(BudgetExceeded) as caught:
        await agents.ask_within(Budget(seconds=1), "giver", None)
    assert (caught.value.agent, caught.value.counter) == ("taker", "seconds")
