"""What a call meets in the layer of faults, and what it is told."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, Outcome
from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded
from cord_trio.testing import Fault, faulty

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.call import Handler
    from cord_trio.testing.faults import CallFaultKind

DONE = Complete(Raw(b"{}"))


class Server:
    """Answers after a second, and keeps when it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def handle(self, call: Call) -> Outcome:
        self.asked.append(trio.current_time())
        await trio.sleep(1)
        return DONE


def met(server: Server, kind: CallFaultKind, seconds: float = 1.0) -> Handler:
    return faulty([Fault(kind, seconds)])(server.handle)


async def test_a_plan_says_what_each_call_meets_and_after_its_end_nothing_does(autojump_clock: MockClock) -> None:
    server = Server()
    told: list[tuple[str | None, str]] = []
    handler = faulty(
        [None, Fault("crash_before")], told=lambda call, fault: told.append((call.name, fault.kind))
    )(server.handle)  # fmt: skip
    assert await handler(Call("tools/call", "one")) == DONE
    with pytest.raises(ConnectionLost):
        await handler(Call("tools/call", "two"))
    assert await handler(Call("tools/call", "three")) == DONE
    assert len(server.asked) == 2
    assert told == [("two", "crash_before")]


async def test_a_delayed_call_is_asked_later(autojump_clock: MockClock) -> None:
    server, began = Server(), trio.current_time()
    assert await met(server, "delay", 3)(Call("tools/call", "one")) == DONE
    assert server.asked == [began + 3]


async def test_a_delay_beyond_the_deadline_ends_there_and_did_not_run(autojump_clock: MockClock) -> None:
    server, began = Server(), trio.current_time()
    with pytest.raises(DeadlineExceeded, match="one") as raised:
        await met(server, "delay", 9)(Call("tools/call", "one", deadline=began + 2))
    assert raised.value.executed == "no"
    assert trio.current_time() == began + 2
    assert server.asked == []


@pytest.mark.parametrize(("kind", "executed", "runs"), [("crash_before", "no", 0), ("crash_after", "unknown", 1)])
async def test_a_crash_says_what_can_be_known(
    kind: CallFaultKind, executed: str, runs: int, autojump_clock: MockClock
) -> None:
    server = Server()
    with pytest.raises(ConnectionLost) as raised:
        await met(server, kind)(Call("tools/call", "one"))
    assert raised.value.executed == executed
    assert len(server.asked) == runs


@pytest.mark.parametrize(("kind", "runs"), [("lose_request", 0), ("lose_reply", 1)])
async def test_what_is_lost_ends_at_the_deadline(kind: CallFaultKind, runs: int, autojump_clock: MockClock) -> None:
    server, began = Server(), trio.current_time()
    with pytest.raises(DeadlineExceeded) as raised:
        await met(server, kind)(Call("tools/call", "one", deadline=began + 5))
    assert raised.value.executed == "unknown"
    assert trio.current_time() == began + 5
    assert len(server.asked) == runs


async def test_a_lost_reply_without_a_deadline_ends_with_its_caller(autojump_clock: MockClock) -> None:
    with trio.move_on_after(7) as scope:
        await met(Server(), "lose_reply")(Call("tools/call", "one"))
    assert scope.cancelled_caught


async def test_an_error_is_an_outcome() -> None:
    server = Server()
    assert await met(server, "error")(Call("tools/call", "one")) == Error(-32603, "a fault on purpose")
    assert server.asked == []


async def test_a_seed_gives_the_same_faults_again(autojump_clock: MockClock) -> None:
    async def faults(seed: int) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []
        layer = faulty(
            random.Random(seed), chance=0.5, longest=4,
            told=lambda call, fault: seen.append((fault.kind, fault.seconds)),
        )  # fmt: skip
        handler = layer(Server().handle)
        for _ in range(40):
            try:
                await handler(Call("tools/call", "one", deadline=trio.current_time() + 2))
            except CallError:
                pass
        return seen

    first = await faults(1)
    assert first == await faults(1)
    assert first != await faults(2)
    assert {kind for kind, _ in first} == {
        *("delay", "crash_before", "crash_after", "lose_request", "lose_reply", "error")
    }
    assert all(0 <= seconds <= 4 for _, seconds in first)


async def test_no_chance_and_no_kinds_mean_no_faults(autojump_clock: MockClock) -> None:
    for layer in (faulty(random.Random(1), chance=0), faulty(random.Random(1), among=[], chance=1)):
        for _ in range(20):
            assert await layer(Server().handle)(Call("tools/call", "one")) == DONE
