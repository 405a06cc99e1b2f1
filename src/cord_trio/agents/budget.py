"""Budgets: a tree of counters. What is asked for is reserved first, in every account up to the root.

So a child can only narrow what its parent has, and two that share a parent cannot both be promised its last.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio

from cord_trio.call import Complete
from cord_trio.errors import BudgetExceeded, CallError

if TYPE_CHECKING:
    from types import TracebackType

    from cord_trio.call import Call, Handler, Layer, Outcome

COUNTERS: Final = ("calls", "tokens", "money", "bytes", "hops")
"""What is counted. Seconds are no count: they are a deadline."""

Amount: TypeAlias = int | Decimal


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How much one ask and all below it may use; None for as much as whoever asks has.

    Attributes:
        calls: tool calls that may have run.
        seconds: from the ask to its end.
        tokens: of language models, as the agents tell.
        money: in the unit that the agents tell it in; kept as a `Decimal`, which is exact.
        bytes: arguments and results of tool calls.
        hops: handoffs.

    """

    calls: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    money: Decimal | float | None = None
    bytes: int | None = None
    hops: int | None = None

    def __post_init__(self) -> None:
        if self.money is not None:
            msgspec.structs.force_setattr(self, "money", Decimal(str(self.money)))
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"a budget of {value} {name} is none: give 0 or more, or None for no limit")


UNLIMITED: Final = Budget()
"""The budget that only counts."""


class Amounts:
    """An amount of each counter, by its name: `amounts["calls"]`.

    Fields and no dict, since a handoff counts in every account up to the root.
    """

    __slots__ = COUNTERS

    def __init__(self) -> None:
        self.calls: Amount = 0
        self.tokens: Amount = 0
        self.money: Amount = 0
        self.bytes: Amount = 0
        self.hops: Amount = 0

    def __getitem__(self, counter: str) -> Amount:
        return getattr(self, counter)  # type: ignore[no-any-return]  # they are all amounts

    def __setitem__(self, counter: str, amount: Amount) -> None:
        setattr(self, counter, amount)

    def __repr__(self) -> str:
        return repr({counter: self[counter] for counter in COUNTERS})


class Account:
    """What of one budget is spent and reserved.

    Invariants: for each counter, an account's spent and reserved are at least the sum of its children's;
    reserved is never negative, and zero once nobody holds a reservation; nothing is reserved beyond a limit.

    Attributes:
        limits: the budget.
        owner: who is named when there is not enough: whom it was opened for, or whoever uses it.
        last: the agent of the last run with it, once an ask has ended.
        parent: the account that this one narrows.
        most_hops: the limit of hops, which is looked at most; None if there is none.
        deadline: Trio time at which its seconds, and those above, are used up.
        spent: by counter.
        reserved: by counter.

    """

    __slots__ = ("deadline", "last", "limits", "most_hops", "owner", "parent", "reserved", "spent")

    def __init__(self, limits: Budget, owner: str, parent: Account | None = None) -> None:
        self.limits = limits
        self.owner = self.last = owner
        self.parent = parent
        self.most_hops = limits.hops
        self.deadline: float = math.inf if parent is None else parent.deadline
        if limits.seconds is not None:
            self.deadline = min(self.deadline, trio.current_time() + limits.seconds)
        self.spent = Amounts()
        self.reserved = Amounts()

    def seen_by(self, agent: str) -> Account:
        """The same account, in which `agent` is named as who asks for more than there is."""
        seen = Account.__new__(Account)
        seen.limits, seen.most_hops, seen.deadline = self.limits, self.most_hops, self.deadline
        seen.parent, seen.spent, seen.reserved = self.parent, self.spent, self.reserved
        seen.owner = seen.last = agent
        return seen

    def left(self, counter: str) -> float | Decimal:
        """What may still be asked for, `math.inf` if there is no limit; of seconds too."""
        if counter == "seconds":
            return self.deadline - trio.current_time()
        least: float | Decimal = math.inf
        account: Account | None = self
        while account is not None:
            limit = getattr(account.limits, counter)
            if limit is not None:
                least = min(least, max(0, limit - account.spent[counter] - account.reserved[counter]))
            account = account.parent
        return least

    def reserve(
        self,
        *,
        by: str = "",
        calls: int = 0,
        tokens: int = 0,
        money: float | Decimal = 0,
        bytes: int = 0,
        hops: int = 0,
    ) -> Reservation:
        """A promise that this much may be spent: use it in a `with` block, and settle it there.

        Args:
            by: the agent that asks, for the error.
            calls: as in `Budget`.
            tokens: likewise.
            money: likewise.
            bytes: likewise.
            hops: likewise.

        Raises:
            BudgetExceeded: there is not that much; nothing is reserved then.

        """
        return Reservation(self, by or self.owner, _amounts(calls, tokens, money, bytes, hops))

    def spend(
        self,
        *,
        by: str = "",
        calls: int = 0,
        tokens: int = 0,
        money: float | Decimal = 0,
        bytes: int = 0,
        hops: int = 0,
    ) -> None:
        """Reserve and settle at once. Raises as `reserve` does."""
        amounts = _amounts(calls, tokens, money, bytes, hops)
        self._require(amounts, by or self.owner)
        self._spend(amounts)

    def hop(self, by: str) -> None:
        """Spend one handoff; as `spend`, without its cost."""
        account: Account | None = self
        while account is not None:
            spent = account.spent
            hops = spent.hops
            most = account.most_hops
            if most is not None and hops + account.reserved.hops >= most:
                self._unhop(account)
                raise BudgetExceeded("hops", most, by)
            spent.hops = hops + 1
            account = account.parent

    def _unhop(self, refused: Account) -> None:
        """Take back what `hop` has spent below the account that has none left."""
        account = self
        while account is not refused:
            account.spent.hops -= 1
            assert account.parent is not None
            account = account.parent

    def _require(self, amounts: dict[str, Amount], by: str) -> None:
        for counter, amount in amounts.items():
            account: Account | None = self
            while account is not None:
                limit = getattr(account.limits, counter)
                if limit is not None and account.spent[counter] + account.reserved[counter] + amount > limit:
                    raise BudgetExceeded(counter, limit, by)
                account = account.parent

    def _spend(self, amounts: dict[str, Amount]) -> None:
        for counter, amount in amounts.items():
            account: Account | None = self
            while account is not None:
                account.spent[counter] += amount
                account = account.parent

    def _reserve(self, amounts: dict[str, Amount], sign: int) -> None:
        for counter, amount in amounts.items():
            account: Account | None = self
            while account is not None:
                account.reserved[counter] += sign * amount
                account = account.parent


class Reservation:
    """Part of an account that is promised to someone. What is not settled goes back when its block ends."""

    __slots__ = ("_account", "_amounts")

    def __init__(self, account: Account, by: str, amounts: dict[str, Amount]) -> None:
        account._require(amounts, by)
        account._reserve(amounts, 1)
        self._account: Account | None = account
        self._amounts = amounts

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refund()

    @trio.lowlevel.enable_ki_protection
    def settle(
        self, *, calls: int = 0, tokens: int = 0, money: float | Decimal = 0, bytes: int = 0, hops: int = 0
    ) -> None:
        """What was spent in the end, which may be more than was reserved: it is the truth. Only once."""
        account = self._account
        if account is None:
            raise RuntimeError("this reservation is settled already")
        self.refund()
        account._spend(_amounts(calls, tokens, money, bytes, hops))

    @trio.lowlevel.enable_ki_protection
    def refund(self) -> None:
        """Give back what was not settled."""
        account, self._account = self._account, None
        if account is not None:
            account._reserve(self._amounts, -1)


def charge(account: Account, agent: str) -> Layer:
    """Tool calls count against `account`, with their bytes; one that provably did not run costs nothing."""

    def layer(handler: Handler) -> Handler:
        async def charged(call: Call) -> Outcome:
            size = sum(map(len, map(bytes, call.params.values())))
            goes_on = call.park or "inputResponses" in call.params or "requestState" in call.params
            calls = 0 if goes_on else 1  # however often it asks
            with account.reserve(by=agent, calls=calls, bytes=size) as reserved:
                try:
                    outcome = await handler(call)
                except CallError as exc:
                    if exc.executed != "no":
                        reserved.settle(calls=calls, bytes=size)
                    raise
                except BaseException:
                    reserved.settle(calls=calls, bytes=size)  # cancelled: it may have run
                    raise
                if type(outcome) is Complete:
                    size += len(bytes(outcome.result))
                reserved.settle(calls=calls, bytes=size)
                return outcome

        return charged

    return layer


def _amounts(calls: int, tokens: int, money: float | Decimal, bytes: int, hops: int) -> dict[str, Amount]:
    given: dict[str, Amount] = {"calls": calls, "tokens": tokens, "bytes": bytes, "hops": hops}
    given["money"] = Decimal(str(money)) if money else 0
    if any(amount < 0 for amount in given.values()):
        raise ValueError("nobody spends less than nothing")
    return {counter: amount for counter, amount in given.items() if amount}
