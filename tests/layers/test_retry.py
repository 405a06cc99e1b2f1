from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import outcome
import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, Outcome
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import (
    BadReply,
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    HttpFailed,
    InputNeeded,
    Overloaded,
    Refused,
    SourceDown,
    ToolNotFound,
)
from cord_trio.layers import RetryBudget, retry
from cord_trio.protocol.mcp import Annotations

if TYPE_CHECKING:
    from trio.testing import MockClock

TOOL = Call("tools/call", "web__get")
DONE = Complete(Raw(b"{}"))


class Source:
    """Fails with `failures`, one an attempt, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.attempts: list[int] = []
        self.times: list[float] = []

    async def __call__(self, call: Call) -> Outcome:
        self.attempts.append(call.attempt)
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        return DONE


async def attempts(
    source: Source,
    call: Call = TOOL,
    *,
    trusted: bool = False,
    annotations: Annotations | None = None,
    budget: RetryBudget | None = None,
    counters: Counters | None = None,
    limit: int = 3,
    safe: bool = False,
) -> Outcome:
    timer = Timer()
    layer = retry(
        limit,
        budget=budget or RetryBudget(),
        rng=Random(1),
        timer=timer,
        counters=counters or Counters(),
        trusted=trusted,
        annotations=lambda _: annotations,
        safe=safe,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        result = await outcome.acapture(layer(source), call)
        assert len(timer) == 0
        nursery.cancel_scope.cancel("test over")
    return result.unwrap()


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionLost("not written", "no"),
        Refused("busy"),
        HttpFailed(408),
        Overloaded("web.waiting", 1),
        CallError("layer", "no"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_did_not_run_is_tried_again(failure: Exception, autojump_clock: MockClock) -> None:
    counters = Counters()
    source = Source(failure)
    assert await attempts(source, counters=counters) is DONE
    assert source.attempts == [1, 2]
    assert counters["retry.retry"] == 1


@pytest.mark.parametrize("failure", [ConnectionLost("mid-call"), DeadlineExceeded("attempt")], ids=str)
async def test_what_may_have_run_is_not_tried_again(failure: CallError) -> None:
    source = Source(failure)
    with pytest.raises(type(failure)):
        await attempts(source, trusted=True, annotations=Annotations())
    assert source.attempts == [1]


READ_ONLY = Annotations(read_only_hint=True)
IDEMPOTENT = Annotations(idempotent_hint=True)


@pytest.mark.parametrize("annotations", [READ_ONLY, IDEMPOTENT])
async def test_a_trusted_tool_that_says_so_is_tried_again(annotations: Annotations, autojump_clock: MockClock) -> None:
    source = Source(ConnectionLost("mid-call"))
    assert await attempts(source, trusted=True, annotations=annotations) is DONE


@pytest.mark.parametrize("annotations", [READ_ONLY, IDEMPOTENT, None])
async def test_a_tool_of_an_untrusted_source_is_not_tried_again(annotations: Annotations | None) -> None:
    source = Source(ConnectionLost("mid-call"))
    with pytest.raises(ConnectionLost):
        await attempts(source, trusted=False, annotations=annotations)
    assert source.attempts == [1]


@pytest.mark.parametrize(
    ("method", "repeated"),
    [
        ("tools/list", True),
        ("resources/templates/list", True),
        ("prompts/get", True),
        ("resources/read", True),
        ("completion/complete", True),
        ("server/discover", True),
        ("tools/call", False),
        ("resources/subscribe", False),
        ("logging/setLevel", False),
        ("tasks/cancel", False),
    ],
)
async def test_a_read_may_run_twice(method: str, repeated: bool, autojump_clock: MockClock) -> None:
    source = Source(ConnectionLost("mid-call"))
    try:
        await attempts(source, Call(method))
    except ConnectionLost:
        pass
    assert source.attempts == ([1, 2] if repeated else [1])


@pytest.mark.parametrize(
    "failure",
    [
        CallFailed(-32602, "no"),
        HttpFailed(401, "log in first"),
        HttpFailed(307, "redirects to itself"),
        CallFailed(-32000, "not run", executed="no"),
        BadReply("no"),
        InputNeeded("web", ["elicitation/create"]),
        ToolNotFound("web"),
        SourceDown("web", "exited"),
        Draining(),
        CallError("layer", "yes"),
        ValueError("ours"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_another_attempt_would_only_repeat_is_not_tried_again(failure: Exception) -> None:
    source = Source(failure)
    with pytest.raises(type(failure)):
        await attempts(source, Call("tools/list"))
    assert source.attempts == [1]


async def test_an_error_of_the_server_is_an_answer() -> None:
    async def answers(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        return Error(-32603, "broken")

    layer = retry(budget=RetryBudget(), rng=Random(1), timer=Timer(), counters=Counters())
    assert await layer(answers)(TOOL) == Error(-32603, "broken")


async def test_there_are_no_more_attempts_than_allowed(autojump_clock: MockClock) -> None:
    source = Source(*[Refused(f"busy {number}") for number in range(9)])
    with pytest.raises(Refused, match="busy 2"):
        await attempts(source)
    assert source.attempts == [1, 2, 3]


async def test_after_an_attempt_that_may_have_run_no_error_says_that_none_did(autojump_clock: MockClock) -> None:
    source = Source(ConnectionLost("mid-call"), Refused("busy"), Refused("busy"))
    with pytest.raises(Refused) as caught:
        await attempts(source, Call("tools/list"))
    assert caught.value.executed == "unknown"


async def test_retry_after_is_waited_for(autojump_clock: MockClock) -> None:
    source = Source(Refused("busy", retry_after=7))
    await attempts(source)
    first, second = source.times
    assert 7 <= second - first <= 7.06


async def test_an_attempt_that_could_only_begin_after_the_deadline_is_not_made(autojump_clock: MockClock) -> None:
    source = Source(Refused("busy", retry_after=7))
    begun = trio.current_time()
    with pytest.raises(Refused):
        await attempts(source, Call("ping", deadline=begun + 6))
    assert trio.current_time() - begun < 1


async def test_pauses_are_random_and_grow_to_a_bound(autojump_clock: MockClock) -> None:
    source = Source(*[Refused("busy")] * 12)
    await attempts(source, limit=20, budget=RetryBudget(reserve=100))
    pauses = [second - first for first, second in pairwise(source.times)]
    bounds = [min(2.0, 0.05 * 2**number) for number in range(12)]
    assert all(pause <= bound + 0.01 for pause, bound in zip(pauses, bounds, strict=True))
    assert len(set(pauses)) == 12


async def test_a_cancelled_pause_ends_the_call(autojump_clock: MockClock) -> None:
    source = Source(Refused("busy", retry_after=100))
    with trio.move_on_after(1) as scope:
        await attempts(source)
    assert scope.cancelled_caught
    assert source.attempts == [1]


async def test_an_outage_is_met_with_few_retries(autojump_clock: MockClock) -> None:
    now = [0.0]
    budget = RetryBudget(reserve=3, ratio=0.1, window=10, clock=lambda: now[0])
    counters = Counters()
    for _ in range(100):
        with pytest.raises(Refused):
            await attempts(Source(*[Refused("busy")] * 9), budget=budget, counters=counters)
    assert counters["retry.retry"] == 3 + 100 // 10
    assert counters["retry.over_budget"] > 80


def test_the_reserve_comes_back_after_the_window() -> None:
    now = [0.0]
    budget = RetryBudget(reserve=2, ratio=0, window=10, clock=lambda: now[0])
    budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    now[0] = 8.9
    assert not budget.withdraw()
    now[0] = 10.0
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_first_attempts_add_to_the_budget_while_they_are_in_the_window() -> None:
    now = [0.0]
    budget = RetryBudget(reserve=0, ratio=0.5, window=10, clock=lambda: now[0])
    for _ in range(4):
        budget.deposit()
    assert budget.withdraw()
    now[0] = 9.0
    assert budget.withdraw()
    assert not budget.withdraw()
    now[0] = 30.0
    assert not budget.withdraw()


async def test_a_tool_that_the_operator_calls_repeatable_is_tried_again(autojump_clock: MockClock) -> None:
    source = Source(ConnectionLost("mid-call"))
    assert await attempts(source, safe=True) is DONE
    other = Source(ConnectionLost("mid-call"))
    with pytest.raises(ConnectionLost):
        await attempts(other, Call("logging/setLevel"), safe=True)  # said of tools alone


async def test_no_attempt_is_made_that_would_only_be_cut_off(autojump_clock: MockClock) -> None:
    budget = RetryBudget()
    budget.times.last.extend([4.0, 5.0, 6.0])
    source = Source(Refused("busy"))
    with pytest.raises(Refused):
        await attempts(source, Call("tools/call", "web__get", deadline=trio.current_time() + 4.9), budget=budget)
    assert source.attempts == [1]
    assert await attempts(Source(Refused("busy")), Call("tools/call", "x", deadline=trio.current_time() + 6)) is DONE


async def test_how_long_attempts_take_is_kept_without_the_pauses(autojump_clock: MockClock) -> None:
    budget = RetryBudget()
    await attempts(Source(Refused("busy", retry_after=9.0)), budget=budget)
    assert list(budget.times.last) == [0.0]
