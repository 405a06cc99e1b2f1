"""Budgets under random use by many tasks. The numbers are those of the contract's invariants."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.agents import Account, Budget
from cord_trio.agents.budget import COUNTERS
from cord_trio.errors import BudgetExceeded
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
    from random import Random

AMOUNTS = st.fixed_dictionaries(
    {},
    optional={
        "calls": st.integers(0, 3),
        "tokens": st.integers(0, 3),
        "money": st.decimals(0, 3, places=2),
        "hops": st.integers(0, 2),
    },
)
LIMITS = st.builds(
    Budget,
    calls=st.none() | st.integers(0, 6),
    tokens=st.none() | st.integers(0, 6),
    money=st.none() | st.decimals(0, 6, places=2),
    hops=st.none() | st.integers(0, 6),
)
ACTIONS = st.tuples(
    st.integers(0, 5),  # of which account
    st.sampled_from(["spend", "settle", "settle", "refund", "hop", "cancel"]),
    AMOUNTS,
    AMOUNTS,  # what it was in the end
    st.integers(0, 4),  # ticks that the reservation is held
)


def check(accounts: list[Account]) -> None:
    for account in accounts:
        children = [child for child in accounts if child.parent is account]
        for counter in COUNTERS:
            assert account.reserved[counter] >= 0
            assert account.spent[counter] >= sum(child.spent[counter] for child in children)
            used = account.spent[counter] + account.reserved[counter]
            assert used >= sum(child.spent[counter] + child.reserved[counter] for child in children)
            if account.parent is not None:
                assert account.left(counter) <= account.parent.left(counter)
            assert account.left(counter) >= 0


@proves(43)
@given(st.lists(st.tuples(st.integers(0, 5), LIMITS), max_size=5), st.lists(ACTIONS, max_size=8), schedules())
def test_invariant_43_children_use_of_their_parents_and_nothing_stays_reserved(
    tree: list[tuple[int, Budget]], actions: list[tuple[int, str, dict[str, Any], dict[str, Any], int]], rng: Random
) -> None:
    accounts: list[Account] = []

    async def act(
        at: int, how: str, asked: dict[str, Any], settled: dict[str, Any], ticks: int, scope: trio.CancelScope
    ) -> None:
        account = accounts[at % len(accounts)]
        left = {counter: account.left(counter) for counter in COUNTERS}
        refused: str | None = None
        try:
            if how == "hop":
                account.hop("me")
            elif how == "spend":
                account.spend(**asked)
            else:
                with account.reserve(**asked) as reserved:
                    check(accounts)
                    for _ in range(ticks):
                        await trio.lowlevel.checkpoint()
                    if how == "cancel":
                        scope.cancel("while it is reserved")
                        await trio.lowlevel.checkpoint()
                    if how == "settle":
                        # Within what was promised, so no limit may be passed.
                        reserved.settle(**{counter: min(settled.get(counter, 0), asked[counter]) for counter in asked})
        except BudgetExceeded as exc:
            refused = exc.counter
        if refused is not None:
            assert left[refused] < (1 if how == "hop" else Decimal(asked[refused]))
        check(accounts)
        for one in accounts:
            for counter in COUNTERS:
                limit = getattr(one.limits, counter)
                assert limit is None or one.spent[counter] + one.reserved[counter] <= limit

    async def main() -> None:
        accounts.append(Account(Budget(), "root"))
        for parent, limits in tree:
            accounts.append(Account(limits, "child", accounts[parent % len(accounts)]))
        async with trio.open_nursery() as nursery:

            async def one(action: tuple[int, str, dict[str, Any], dict[str, Any], int]) -> None:
                with trio.CancelScope() as scope:
                    await act(*action, scope)

            for action in actions:
                nursery.start_soon(one, action)

    with scheduled(rng):
        trio.run(main)
    check(accounts)
    assert all(not account.reserved[counter] for account in accounts for counter in COUNTERS)


@proves(6)
@given(st.lists(st.sampled_from([1.0, 3.0, math.inf]), min_size=1, max_size=4), st.lists(st.sampled_from([0.5, 2.0])))
def test_invariant_6_seconds_only_narrow(seconds: list[float], pauses: list[float]) -> None:
    async def main() -> None:
        account: Account | None = None
        earliest = math.inf
        waits = iter(pauses)
        for given_ in seconds:
            account = Account(Budget(seconds=None if given_ == math.inf else given_), "a", account)
            earliest = min(earliest, trio.current_time() + given_)
            assert account.deadline == earliest
            await trio.sleep(next(waits, 0))

    trio.run(main, clock=MockClock(autojump_threshold=0))
