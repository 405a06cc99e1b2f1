from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.counters import Counters
from cord_trio.mesh import tenure as tenure_module
from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh.presence import Lease
from cord_trio.mesh.tenure import ACCEPT, KEEP_ALIVE, REMEMBERED, Owned, Tenure

if TYPE_CHECKING:
    from trio.testing import MockClock


async def nothing(_tenure: Tenure, _owned: Owned) -> None:
    await trio.lowlevel.checkpoint()


async def made(counters: Counters | None = None) -> Tenure:
    async with trio.open_nursery() as nursery:
        lease = Lease("b", "0badcafe", nursery)
    return Tenure(lease, 2, 2, nothing, counters or Counters())


def known(tenure: Tenure, number: int, caller: str = "a", epoch: str = "e") -> Owned:
    request = Request("call", f"{number:032x}", b"params", epoch=epoch)
    owned = Owned(caller, request, "inbox", math.inf)
    tenure.known[caller, request.id] = owned
    return owned


async def test_of_results_the_oldest_are_let_go_of_at_the_bound(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(tenure_module, "MAX_KEPT", 10)
    counters = Counters()
    tenure = await made(counters)
    ended = [known(tenure, number) for number in range(4)]
    for owned, size in zip(ended, (4, 4, 4, 20), strict=True):
        tenure.end(owned, Frame("ok", body=bytes(size)), 0.0)
    assert [owned.size for owned in ended] == [0, 0, 0, 20]  # one is kept, however long it is
    assert [owned.end is None for owned in ended] == [True, True, True, False]
    assert len(tenure.known) == 4
    assert counters["mesh.results_dropped"] == 3


async def test_what_ended_is_known_for_a_minute_unless_its_caller_settles_it(autojump_clock: MockClock) -> None:
    tenure = await made()
    for number in range(3):
        tenure.end(known(tenure, number), Frame("ok", body=b"x"), float(number))
    running = known(tenure, 9)
    tenure.settle("a", f"{1:032x}")
    tenure.settle("a", f"{9:032x}")  # it runs
    tenure.settle("a", f"{7:032x}")  # it never was
    assert [int(id, 16) for _, id in tenure.known] == [0, 2, 9]
    tenure.forget(REMEMBERED)
    assert [int(id, 16) for _, id in tenure.known] == [2, 9]
    tenure.forget(REMEMBERED + 2)
    assert list(tenure.known.values()) == [running]


async def test_callers_are_told_after_5_ms_and_then_every_second_that_it_runs(autojump_clock: MockClock) -> None:
    tenure = await made()
    first, second = known(tenure, 1), known(tenure, 2)
    tenure.runs(first, 0.0)
    tenure.runs(second, 0.001)
    assert tenure.next == ACCEPT
    assert tenure.due(0.0055) == [(first, "acc")]
    assert tenure.next == pytest.approx(0.006)
    tenure.end(second, Frame("ok"), 0.006)
    assert tenure.due(0.007) == []
    assert tenure.next == pytest.approx(0.0055 + KEEP_ALIVE)
    assert tenure.due(1.01) == [(first, "hb")]
    tenure.end(first, Frame("ok"), 1.5)
    assert tenure.due(3.0) == []
    assert tenure.next == math.inf


async def test_the_end_of_a_caller_concerns_its_own_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(tenure_module, "MAX_PARKS", 2)
    monkeypatch.setattr(tenure_module, "MAX_OVER", 1)
    tenure = await made()
    mine, older, others = known(tenure, 1), known(tenure, 2, epoch="d"), known(tenure, 3, "c")
    for number, park in enumerate(("p1", "p2", "p3")):
        tenure.end(known(tenure, 10 + number), Frame("ok", type="input_required", park=park), 0.0)
    assert tenure.over("a", "e") == ([mine], ["p2", "p3"])
    assert tenure.unpark("p2")
    assert not tenure.unpark("p1")
    assert tenure.over("a", "d") == ([older], [])
    assert (tenure.is_over("a", "d"), tenure.is_over("a", "e")) == (True, False)
    assert tenure.over("c", "e") == ([others], [])


async def test_a_call_that_ends_lets_go_of_those_that_it_said_to_be_over(autojump_clock: MockClock) -> None:
    tenure = await made()
    before = known(tenure, 1)
    tenure.end(before, Frame("ok", body=b"x"), 0.0)
    request = Request("call", f"{2:032x}", settled=(f"{1:032x}",))
    after = tenure.known["a", request.id] = Owned("a", request, "inbox", math.inf)
    tenure.end(after, Frame("ok", body=b"x"), 0.0)
    assert list(tenure.known.values()) == [after]
