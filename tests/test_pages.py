from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from msgspec import Raw

from cord_trio.pages import KEPT, MAX_KEPT, Pages

if TYPE_CHECKING:
    from trio.testing import MockClock


def done(pages: Pages, id: str) -> None:
    pages.told(Raw(b'{"elicitationId":"%b"}' % id.encode()))


async def test_who_waits_learns_when_all_are_done_with(autojump_clock: MockClock) -> None:
    pages = Pages()
    done(pages, "a")
    assert await pages.wait(["a"], 5)
    assert not await pages.wait(["a", "b"], 5)
    assert trio.current_time() == 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pages.wait, ["a", "b"], 5)
        await trio.sleep(1)
        done(pages, "b")
    assert trio.current_time() == 6
    assert await pages.wait([], 5)


async def test_pages_are_forgotten(autojump_clock: MockClock) -> None:
    pages = Pages()
    for number in range(MAX_KEPT + 5):
        done(pages, str(number))
    assert len(pages) == MAX_KEPT
    await trio.sleep(KEPT + 1)
    done(pages, "last")
    assert len(pages) == 1
    with pytest.raises(msgspec.DecodeError):
        pages.told(Raw(b"{}"))
