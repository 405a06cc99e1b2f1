from __future__ import annotations

import pytest
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import ConnectionLost
from cord_trio.layers import trace

DONE = Complete(Raw(b"{}"))


class Watched:
    """What a watch was told."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, call: Call) -> tuple[Call, object]:
        self.seen.append(call.name)
        return replace(call, trace="ours"), self.seen.append


async def source(call: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    assert call.trace == "ours"
    if call.name == "lost":
        raise ConnectionLost("gone")
    return DONE


async def test_calls_are_told_of_once_when_they_begin_and_once_when_they_end() -> None:
    watched = Watched()
    handler = trace(watched)(source)  # type: ignore[arg-type]  # a list's append takes anything
    assert await handler(Call("tools/call", "well")) is DONE
    with pytest.raises(ConnectionLost):
        await handler(Call("tools/call", "lost"))
    with trio.CancelScope() as scope:
        scope.cancel("test")
        await handler(Call("tools/call", "cancelled"))
    assert watched.seen[:3] == ["well", DONE, "lost"]
    assert [type(each) for each in watched.seen[3:]] == [ConnectionLost, str, trio.Cancelled]
