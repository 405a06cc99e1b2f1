from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Outcome
from cord_trio.layers import META_DEADLINE, tell_deadline

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.mark.parametrize(
    ("own", "scope", "told"),
    [(math.inf, 5, b"5000"), (2.5, 5, b"2500"), (2.5, math.inf, b"2500"), (-1, 5, b"0"), (0.0015, 5, b"1")],
)
async def test_a_call_says_how_many_milliseconds_are_left(
    own: float, scope: float, told: bytes, autojump_clock: MockClock
) -> None:
    seen: list[Call] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        seen.append(call)
        return Complete(Raw(b"{}"))

    with trio.move_on_after(scope):
        call = Call("tools/call", meta={"x": Raw(b"1")}, deadline=trio.current_time() + own)
        await tell_deadline()(handler)(call)
    assert {name: bytes(value) for name, value in seen[0].meta.items()} == {"x": b"1", META_DEADLINE: told}


def test_a_call_without_a_deadline_says_nothing() -> None:
    async def main() -> None:
        async def handler(call: Call) -> Outcome:
            await trio.lowlevel.checkpoint()
            assert call.meta == {}
            return Complete(Raw(b"{}"))

        await tell_deadline()(handler)(Call("tools/call"))

    trio.run(main)
