from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import outcome
import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, InputRequired, Outcome
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CallFailed, ConnectionLost, DeadlineExceeded
from cord_trio.layers import Cache, cache, only_reads
from cord_trio.protocol.mcp import Annotations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from cord_trio.call import Handler

Json: TypeAlias = Any
READ_ONLY = Annotations(read_only_hint=True)


class Source:
    """Answers with `result` after `seconds`, or fails with one of `ends`."""

    def __init__(self, result: bytes = b'{"contents":[]}', seconds: float = 0.0, *ends: Exception) -> None:
        self.result = result
        self.seconds = seconds
        self.ends = list(ends)
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        self.calls.append(call)
        await trio.sleep(self.seconds)
        if self.ends:
            raise self.ends.pop(0)
        if call.events is not None:
            call.events("notifications/progress", Raw(b"{}"))
        return Complete(Raw(self.result))


@asynccontextmanager
async def cached(
    source: Handler,
    *,
    seconds: float = 100.0,
    hints: Annotations | None = READ_ONLY,
    trusted: bool = True,
    **more: Json,
) -> AsyncGenerator[tuple[Handler, Cache, Counters]]:
    counters, timer = Counters(), Timer()
    kept = Cache(counters=counters, **more)
    around = cache(
        kept, seconds=seconds, reads=only_reads(trusted=trusted, annotations=lambda _: hints),
        fails=lambda result: b"isError" in bytes(result), timer=timer, counters=counters,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        yield around(source), kept, counters
        assert (len(timer), kept.flights) == (0, {})
        nursery.cancel_scope.cancel("test over")


def page(uri: str = "a:b", **more: Json) -> Call:
    return Call("resources/read", uri, **more)


async def test_a_resource_is_kept_for_as_long_as_its_server_says(autojump_clock: MockClock) -> None:
    source = Source(b'{"contents":[],"ttlMs":9000}')
    async with cached(source) as (handler, _, counters):
        await handler(page())
        await trio.sleep(5)
        assert await handler(page()) == Complete(Raw(b'{"contents":[],"ttlMs":4000}'))  # what is left
        await trio.sleep(4)
        await handler(page())
        assert len(source.calls) == 2
        assert (counters["cache.hit"], counters["cache.miss"]) == (1, 2)


@pytest.mark.parametrize("result", [b'{"contents":[]}', b'{"ttlMs":0}', b'{"ttlMs":-1}', b"[]"])
async def test_a_resource_without_a_life_is_not_kept(result: bytes) -> None:
    source = Source(result)
    async with cached(source) as (handler, kept, _):
        await handler(page())
        await handler(page())
        assert (len(source.calls), len(kept)) == (2, 0)


@pytest.mark.parametrize(("scope", "calls"), [("private", 2), ("public", 1)])
async def test_only_what_is_public_is_shared_between_principals(scope: str, calls: int) -> None:
    source = Source(b'{"ttlMs":9000,"cacheScope":"%b"}' % scope.encode())
    async with cached(source) as (handler, _, _):
        await handler(page(principal="ann"))
        await handler(page(principal="bob"))
        await handler(page(principal="ann"))
        assert len(source.calls) == calls


async def test_a_tool_is_kept_as_long_as_the_operator_says(autojump_clock: MockClock) -> None:
    source = Source(b'{"content":[]}')
    call = Call("tools/call", "x__get", {"arguments": Raw(b"{}")})
    async with cached(source, seconds=3) as (handler, _, _):
        await handler(call)
        await trio.sleep(2)
        await handler(call)
        await handler(Call("tools/call", "x__get", {"arguments": Raw(b'{"a":1}')}))
        await handler(Call("tools/call", "x__get", {"arguments": Raw(b"{}")}, principal="bob"))
        assert len(source.calls) == 3
        await trio.sleep(1.5)
        await handler(call)
        assert len(source.calls) == 4


@pytest.mark.parametrize(
    ("hints", "trusted", "result"),
    [
        (Annotations(idempotent_hint=True), True, b"{}"),
        (READ_ONLY, False, b"{}"),
        (None, True, b"{}"),
        (READ_ONLY, True, b'{"isError":true}'),
    ],
    ids=["only idempotent", "not trusted", "says nothing", "failed"],
)
async def test_other_tools_are_not_kept(hints: Annotations | None, trusted: bool, result: bytes) -> None:
    source = Source(result)
    async with cached(source, hints=hints, trusted=trusted) as (handler, _, _):
        for _ in range(2):
            await handler(Call("tools/call", "x__get"))
        assert len(source.calls) == 2


async def test_the_answers_used_last_are_kept_within_the_bounds() -> None:
    source = Source(b'{"ttlMs":9000}')  # 14 bytes
    async with cached(source, entries=3, size=40) as (handler, kept, counters):
        for uri in "abac":
            await handler(page(uri))
        assert (len(kept), kept.bytes, counters["cache.evicted"]) == (2, 28, 1)
        await handler(page("a"))
        assert len(source.calls) == 3
        await handler(page("b"))
        assert len(source.calls) == 4
    async with cached(source, entries=1) as (handler, kept, _):
        for uri in "ab":
            await handler(page(uri))
        assert len(kept) == 1
    async with cached(source, size=13) as (handler, kept, _):
        await handler(page("a"))
        assert len(kept) == 0


async def test_news_of_the_source_end_what_is_kept_and_what_is_asked(autojump_clock: MockClock) -> None:
    source = Source(b'{"ttlMs":9000}', seconds=1.0)
    version = object()
    async with cached(source, version=lambda: version) as (handler, kept, _):
        await handler(page())
        version = object()
        await handler(page())
        assert len(source.calls) == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler, page("other"))
            await wait_all_tasks_blocked()
            kept.forget()  # while it is being answered
        assert len(kept) == 0


async def test_equal_calls_at_once_are_one(autojump_clock: MockClock) -> None:
    source = Source(b"{}", 1.0)
    heard: list[int] = []
    results: list[Outcome] = []

    async def ask(handler: Handler, number: int, uri: str = "a") -> None:
        sink = lambda method, params: heard.append(number)  # noqa: E731  # a sink is a function
        results.append(await handler(page(uri, events=sink)))

    async with cached(source, seconds=0) as (handler, kept, counters):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, handler, number)
            nursery.start_soon(ask, handler, 9, "b")
        assert (len(source.calls), len(results), counters["cache.shared"]) == (2, 4, 2)
        assert sorted(heard) == [0, 1, 2, 9]
        assert len(kept) == 0


async def test_an_error_is_shared_each_with_one_of_its_own(autojump_clock: MockClock) -> None:
    source = Source(b"{}", 1.0, ConnectionLost("gone"))
    ends: list[outcome.Outcome[Outcome]] = []

    async def ask(handler: Handler) -> None:
        ends.append(await outcome.acapture(handler, page()))

    async with cached(source) as (handler, _, _), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask, handler)
    errors = [end.error for end in ends if isinstance(end, outcome.Error)]
    assert len(source.calls) == 1
    assert len({id(error) for error in errors}) == 3
    assert {(str(error), error.reason, error.executed) for error in errors if isinstance(error, ConnectionLost)} == {
        ("connection lost: gone", "gone", "unknown")
    }


async def test_who_waits_survives_the_first_ones_cancellation(autojump_clock: MockClock) -> None:
    source = Source(b"{}", 2.0)
    results: list[Outcome] = []

    async def ask(handler: Handler) -> None:
        results.append(await handler(page()))

    async with cached(source) as (handler, _, _), trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            nursery.start_soon(ask, handler)  # it comes second
            await handler(page())
    assert (len(source.calls), len(results)) == (2, 1)


async def test_who_waits_survives_the_first_ones_deadline_and_keeps_to_its_own(autojump_clock: MockClock) -> None:
    calls = 0

    async def source(call: Call) -> Outcome:
        nonlocal calls
        calls += 1
        with trio.move_on_at(call.deadline):
            await trio.sleep(3)
            return Complete(Raw(b"{}"))
        raise DeadlineExceeded("late")

    ends: dict[float, str] = {}

    async def ask(handler: Handler, within: float) -> None:
        begun = trio.current_time()
        try:
            await handler(page(deadline=begun + within))
            ends[within] = "answered"
        except CallError as exc:
            ends[within] = f"{type(exc).__name__} {exc.executed} {trio.current_time() - begun:g}"

    async with cached(source) as (handler, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(ask, handler, 1.0)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, handler, 10.0)
        nursery.start_soon(ask, handler, 0.5)
    assert ends == {0.5: "DeadlineExceeded unknown 0.5", 1.0: "DeadlineExceeded unknown 1", 10.0: "answered"}
    assert calls == 2


async def test_who_has_more_time_does_not_share_what_failed_for_want_of_it(autojump_clock: MockClock) -> None:
    """All with no more time get the error; of the others one asks again, for all of them."""
    calls: list[float] = []

    async def source(call: Call) -> Outcome:
        calls.append(call.deadline)
        await trio.sleep(1)
        raise ConnectionLost("gone")

    ends: list[float] = []

    async def ask(handler: Handler, deadline: float) -> None:
        with pytest.raises(ConnectionLost):
            await handler(page(deadline=deadline))
        ends.append(trio.current_time() - began)

    async with cached(source) as (handler, _, _), trio.open_nursery() as nursery:
        began = trio.current_time()
        for more in (5, 4, 9, 20, 7):
            nursery.start_soon(ask, handler, began + more)
            await wait_all_tasks_blocked()
    assert calls == [began + 5, began + 20]
    assert ends == [1, 1, 2, 2, 2]


async def test_an_error_of_the_server_itself_is_shared_by_all(autojump_clock: MockClock) -> None:
    source = Source(b"{}", 1.0, CallFailed(-1, "no"))

    async def ask(handler: Handler, deadline: float) -> None:
        with pytest.raises(CallFailed):
            await handler(page(deadline=deadline))

    async with cached(source) as (handler, _, _), trio.open_nursery() as nursery:
        for more in (5, 9):
            nursery.start_soon(ask, handler, trio.current_time() + more)
            await wait_all_tasks_blocked()
    assert len(source.calls) == 1


@pytest.mark.parametrize(("member", "calls"), [("traceparent", 1), ("example.org/tenant", 2)])
async def test_what_else_a_caller_says_is_part_of_the_question(member: str, calls: int) -> None:
    source = Source(b'{"ttlMs":1000,"cacheScope":"public"}')
    async with cached(source) as (handler, _, _):
        for value in (b'"a"', b'"b"'):
            await handler(page(meta={member: Raw(value)}))
    assert len(source.calls) == calls


async def test_a_question_is_for_one_alone(autojump_clock: MockClock) -> None:
    calls = 0

    async def source(call: Call) -> Outcome:
        nonlocal calls
        calls += 1
        await trio.sleep(1)
        return InputRequired(Raw(b"{}"))

    async with cached(source) as (handler, kept, _):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(handler, page())
        assert (calls, len(kept)) == (3, 0)
        await handler(page(park="token"))
        await handler(Call("resources/read", "a:b", {"requestState": Raw(b'"x"')}))
        assert calls == 5
