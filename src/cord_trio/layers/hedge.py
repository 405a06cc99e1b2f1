"""Asking a second time before the first answer is there, where a slow answer is worse than a second question.

Only what may run twice is asked so, and only where somebody else may answer: a second copy for the same process would
just stand in its queue. One more for each call, paid for like a retry, and only while retries are not needed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace

from cord_trio.errors import CallError
from cord_trio.layers.times import Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters
    from cord_trio.layers.retry import RetryBudget

SAMPLES: Final = 50
"""Answers that must have been seen before it is known what slow means."""

SLOW: Final = 0.95
"""The part of the calls that are not slow."""

NAMES: Final = 1024
"""Tools and resources whose durations are kept, those called last."""


def hedge(
    *,
    may: Callable[[Call], bool],
    budget: RetryBudget,
    counters: Counters,
    samples: int = SAMPLES,
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """A call that takes longer than 19 of 20 like it is made once more, and the first answer is the answer.

    The other one is cancelled. If both fail, the failure of the first attempt counts, and says of both whether they
    may have run. Only the first tells of its progress. Both have one list `apart`: so they go to different servers.

    Args:
        may: whether a call may be made twice, and there is another who could answer it now. Asked again when it is
            made once more.
        budget: of retries; a hedge costs one, and half of them are left to those who need them.
        counters: counts hedges, and those that were first.
        samples: answers of its kind that must have been seen.
        clock: Trio's time.

    """
    known: OrderedDict[str | None, Times] = OrderedDict()

    def times_of(call: Call) -> Times:
        times = known.get(call.name)
        if times is None:
            times = known[call.name] = Times()
            if len(known) > NAMES:
                known.popitem(last=False)
        else:
            known.move_to_end(call.name)
        return times

    def layer(handler: Handler) -> Handler:
        async def hedged(call: Call) -> Outcome:
            if not may(call):
                return await handler(call)
            times, begun = times_of(call), clock()
            delay = times.quantile(SLOW, samples)
            if not delay or begun + delay >= call.deadline:
                outcome = await handler(call)
            else:
                outcome = await _race(handler, replace(call, apart=[]), delay, may, budget, counters)
            times.last.append(clock() - begun)
            return outcome

        return hedged

    return layer


async def _race(
    handler: Handler, call: Call, delay: float, may: Callable[[Call], bool], budget: RetryBudget, counters: Counters
) -> Outcome:
    answers: list[Outcome] = []
    failures: dict[bool, Exception] = {}
    racing = 1

    async def run(second: bool) -> None:
        nonlocal racing
        try:
            outcome = await handler(replace(call, events=None) if second else call)
        except Exception as exc:  # what fails here must not end the other
            failures[second] = exc
            racing -= 1
            if not racing:
                nursery.cancel_scope.cancel("each attempt has failed")
            return
        if not answers:
            answers.append(outcome)
            if second:
                counters.add("hedge.first")
            nursery.cancel_scope.cancel("the other attempt was answered first")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, False)
        await trio.sleep(delay)
        # It may have ended in this very moment, and the others may have been lost.
        if racing and not answers and may(call) and budget.withdraw(0.5):
            counters.add("hedge.hedged")
            racing += 1
            nursery.start_soon(run, True)
    if answers:
        return answers[0]
    error, other = failures[False], failures.get(True)
    if isinstance(error, CallError) and error.executed == "no" and isinstance(other, CallError):
        error.executed = other.executed
    raise error
