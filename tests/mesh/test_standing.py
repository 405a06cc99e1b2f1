"""What nodes tell each other while nothing is called, when it is garbled, late, or cannot be had."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.counters import Counters
from cord_trio.errors import SourceDown
from cord_trio.following import LEAST_TRUST, Subscriptions
from cord_trio.handshake import Greeting
from cord_trio.mesh.standing import AGAIN, UPDATED, Hearing, Trusting, wait_moot_there

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.call import Outcome

BEAT = "notifications/cord/beat"


async def test_what_is_garbled_or_old_tells_nothing_and_what_is_missing_everything(autojump_clock: MockClock) -> None:
    said = [
        (BEAT, b'{"n":0}'), (UPDATED, b'{"n":1,"uri":"a"}'), (UPDATED, b'{"n":1,"uri":"b"}'), (UPDATED, b"\xff"),
        (UPDATED, b"{}"), (BEAT, b'{"n":0}'), (UPDATED, b'{"n":3,"uri":"b"}'), (BEAT, b'{"n":3}'), (BEAT, b'{"n":4}'),
    ]  # fmt: skip
    calls = 0

    async def carry(call: Call) -> Outcome:
        nonlocal calls
        calls += 1
        assert call.events is not None
        if calls == 1:
            for method, params in said:
                call.events(method, Raw(params))
        else:
            call.events(UPDATED, Raw(b'{"n":1,"uri":"a"}'))  # its first beat was lost
            await trio.sleep_forever()
        await trio.sleep(1)
        raise SourceDown("x", "it went", None)

    told: list[str] = []
    wanted: list[Subscriptions] = [Subscriptions()]
    for uri in "ab":
        wanted[0].add(uri, 1, told.append)
    counters = Counters()
    async with trio.open_nursery() as nursery:
        hearing = Hearing(carry, lambda: wanted[0] if wanted else None, Random(1), counters)
        nursery.start_soon(hearing.run)
        await trio.sleep(0.5)
        assert told == ["a", "a", "b", "a", "b"]  # one, all for what was left out before 3, and before 4
        assert (counters["mesh.bad_frames"], counters["mesh.changes_missed"]) == (2, 2)
        await trio.sleep(3)
        assert told[5:] == ["a", "b"]
        subscriptions = wanted.pop()  # no node has it any more
        subscriptions.stir()
        await trio.sleep(1)
        assert not nursery.child_tasks


async def test_how_long_a_list_can_be_trusted_is_asked_once_for_a_while(autojump_clock: MockClock) -> None:
    answers: list[Outcome | None] = [None, Complete(Raw(b'"x"')), Complete(Raw(b'{"tools":30.0,"prompts":null}'))]
    asked = []

    async def carry(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        asked.append(bytes(call.params["kinds"]))
        answer = answers.pop(0)
        if answer is None:
            raise SourceDown("x", "it went", None)
        return answer

    trusting = Trusting(carry, "x")
    trusting.greeted(
        Greeting("2025-11-25", False, {"tools": {}, "prompts": {}, "resources": {"listChanged": True}}, {}, None)
    )
    assert trusting.trust("resources") == math.inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trusting.run)
        for _ in range(2):
            assert (trusting.trust("tools"), trusting.trust("prompts"), trusting.trust("tools")) == (0, 0, 0)
            await trio.sleep(LEAST_TRUST + 1)
        assert (trusting.trust("tools"), trusting.trust("prompts")) == (0, 0)
        await trio.sleep(1)
        assert trusting.trust("tools") == pytest.approx(29.0)
        assert trusting.trust("prompts") == math.inf
        assert asked == [b'["prompts","tools"]'] * 3
        nursery.cancel_scope.cancel("the test is over")


async def test_whether_a_question_is_moot_is_asked_until_its_node_says_so_or_is_gone(
    autojump_clock: MockClock,
) -> None:
    fails = 3

    async def carry(call: Call) -> Outcome:
        nonlocal fails
        await trio.lowlevel.checkpoint()
        fails -= 1
        if fails >= 0:
            raise SourceDown("x", "it went", None)
        return Complete(Raw(b"{}"))

    with trio.fail_after(3):
        await wait_moot_there(carry, "p", lambda: True, Random(1))
    assert fails == -1
    fails = 1000
    began = trio.current_time()
    await wait_moot_there(carry, "p", lambda: trio.current_time() < began + 300, Random(1))
    assert 1000 - fails < 300 / AGAIN[1] * 2 + 10
