"""Faults to order or by chance, and `faulty`, a layer that makes calls meet them. `wire` has those of messages.

What goes wrong is either a plan, a fault or None for each call in turn, or drawn from a seeded `random.Random`.
In a Hypothesis test draw the plan, or a seed: a source of `st.randoms` may end an example in the middle of a run.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar, get_args

import attrs
import trio

from cord_trio.call import Error
from cord_trio.errors import ConnectionLost, DeadlineExceeded
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cord_trio.call import Call, Handler, Layer, Outcome

CallFaultKind: TypeAlias = Literal["delay", "crash_before", "crash_after", "lose_request", "lose_reply", "error"]
"""`delay` by `seconds`; `crash_before` or `crash_after` it ran; its request or reply is lost; a JSON-RPC `error`."""

WireFaultKind: TypeAlias = Literal["delay", "lose", "duplicate", "reorder", "garbage", "flood", "slow", "cut"]
"""What befalls a message, see `FaultyTransport`."""

CHANCE: Final = 0.1
"""Part of the calls or messages that a fault befalls, unless said."""

LONGEST: Final = 2.0
"""Seconds that a drawn fault takes at most, unless said."""

Kind = TypeVar("Kind", bound=str)


@attrs.frozen
class Fault(Generic[Kind]):
    """One fault.

    Attributes:
        kind: which.
        seconds: how long, for those that take time.
        count: how many, for a flood.

    """

    kind: Kind
    seconds: float = 1.0
    count: int = 100


CallFault: TypeAlias = Fault[CallFaultKind]
WireFault: TypeAlias = Fault[WireFaultKind]

CALL_FAULTS: Final[tuple[CallFaultKind, ...]] = get_args(CallFaultKind)
WIRE_FAULTS: Final[tuple[WireFaultKind, ...]] = get_args(WireFaultKind)


class Faults(Generic[Kind]):
    """Says what goes wrong next.

    Attributes:
        happened: the faults so far.

    """

    def __init__(
        self, source: Random | Iterable[Fault[Kind] | None], kinds: Sequence[Kind], *,
        chance: float = CHANCE, longest: float = LONGEST,
    ) -> None:  # fmt: skip
        """Args are a plan or a random source; and what it draws from, how often, and for how many seconds at most."""
        self.happened: list[Fault[Kind]] = []
        self._next: Iterator[Fault[Kind] | None] = (
            _drawn(source, kinds, chance, longest) if isinstance(source, Random) else iter(source)
        )

    def next(self) -> Fault[Kind] | None:
        """The fault of the next call or message; None after the end of a plan."""
        fault = next(self._next, None)
        if fault is not None:
            self.happened.append(fault)
        return fault


def _drawn(rng: Random, kinds: Sequence[Kind], chance: float, longest: float) -> Iterator[Fault[Kind] | None]:
    while True:
        if kinds and rng.random() < chance:
            yield Fault(rng.choice(kinds), round(rng.uniform(0.0, longest), 3))
        else:
            yield None


def faulty(
    source: Random | Iterable[CallFault | None], *,
    among: Sequence[CallFaultKind] = CALL_FAULTS, chance: float = CHANCE, longest: float = LONGEST,
    told: Callable[[Call, CallFault], object] | None = None,
) -> Layer:  # fmt: skip
    """Calls meet faults, as from a server that is far away, and mortal.

    The errors say of `executed` what a real transport would know: "no" for `crash_before`, "unknown" for
    `crash_after` and what is lost. A lost request or reply ends at the call's deadline, or never.

    Args:
        source: a plan, a fault or None for each call in turn; or a seeded random source.
        among: the kinds that are drawn.
        chance: how often one is drawn.
        longest: seconds that a drawn delay takes at most.
        told: called with each call that a fault befalls.

    """
    faults = Faults(source, among, chance=chance, longest=longest)

    def layer(handler: Handler) -> Handler:
        async def stricken(call: Call) -> Outcome:
            fault = faults.next()
            if fault is None:
                return await handler(call)
            if told is not None:
                told(call, fault)
            return await _meet(fault, handler, call)

        return stricken

    return layer


async def _meet(fault: CallFault, handler: Handler, call: Call) -> Outcome:
    match fault.kind:
        case "delay":
            await _sleep(fault.seconds, call, "no")
            return await handler(call)
        case "crash_before":
            await trio.lowlevel.checkpoint()
            raise ConnectionLost("crashed before the call (a fault on purpose)", "no")
        case "crash_after":
            await handler(call)
            raise ConnectionLost("crashed after the call (a fault on purpose)", "unknown")
        case "lose_request":
            await _sleep(math.inf, call, "unknown")
        case "lose_reply":
            await handler(call)
            await _sleep(math.inf, call, "unknown")
        case "error":
            await trio.lowlevel.checkpoint()
            return Error(jsonrpc.INTERNAL_ERROR, "a fault on purpose")
    raise AssertionError(fault)


async def _sleep(seconds: float, call: Call, executed: Literal["no", "unknown"]) -> None:
    """Sleep, and keep to the call's deadline meanwhile."""
    with trio.move_on_at(call.deadline) as scope:
        await trio.sleep(seconds)
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"{call.name or call.method} (a fault on purpose)", executed)
