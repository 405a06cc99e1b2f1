from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from cord_trio.call import Call, Complete, Outcome
from cord_trio.layers import deadline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def recorded(seen: list[float]) -> Callable[[Call], Awaitable[Outcome]]:
    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        seen.append(call.deadline)
        return Complete(Raw(b"{}"))

    return handler


@pytest.mark.parametrize(("own", "effective"), [(math.inf, 15.0), (100.0, 15.0), (12.0, 12.0)])
async def test_a_deadline_only_tightens(own: float, effective: float) -> None:
    seen: list[float] = []
    handler = deadline(5, clock=lambda: 10.0)(recorded(seen))
    await handler(Call("tools/call", deadline=own))
    assert seen == [effective]


async def test_what_a_call_has_spent_before_counts() -> None:
    seen: list[float] = []
    handler = deadline(5, clock=lambda: 10.0)(recorded(seen))
    await handler(Call("tools/call", spent=3.0))
    assert seen == [12.0]
