from __future__ import annotations

import math

import pytest

from cord_trio.call import Call, Complete, Outcome
from cord_trio.layers import attempt, deadline

NOW = 10.0


async def told(call: Call) -> tuple[float, float, float]:
    """Deadline, patience and latest moment of an attempt of 2 seconds."""
    seen: list[Call] = []

    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        seen.append(call)
        return Complete(b"{}")  # type: ignore[arg-type]  # nobody looks

    await attempt(2, clock=lambda: NOW)(handler)(call)
    [got] = seen
    return got.deadline, got.patience, got.latest


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call("tools/call"), (12.0, 2, math.inf)),
        (Call("tools/call", deadline=11.0), (11.0, 0.0, math.inf)),
        (Call("tools/call", deadline=40.0), (12.0, 2, 40.0)),
        (Call("tools/call", deadline=40.0, patience=30.0, latest=70.0), (12.0, 2, 70.0)),
    ],
    ids=["unbounded", "earlier", "fixed", "moved by progress"],
)
async def test_an_attempt_only_tightens(call: Call, expected: tuple[float, float, float]) -> None:
    assert await told(call) == expected


async def test_progress_moves_an_attempt_as_far_as_its_call() -> None:
    seen: list[Call] = []

    async def handler(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        seen.append(call)
        return Complete(b"{}")  # type: ignore[arg-type]  # nobody looks

    layered = deadline(30, longest=600, clock=lambda: NOW)(attempt(2, clock=lambda: NOW)(handler))
    await layered(Call("tools/call", deadline=400.0))
    assert (seen[0].deadline, seen[0].latest) == (12.0, 400.0)
