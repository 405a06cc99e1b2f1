"""What is kept of event streams: how much, how long, and that no stream shows another's."""

from __future__ import annotations

import random

from cord_trio.counters import Counters
from cord_trio.gateway import trail
from cord_trio.gateway.trail import KEPT_BYTES, KEPT_EVENTS, KEPT_FOR, MAX_TRAILS, Store, Trail, Trails


def store(limit: int = trail.KEPT_IN_ALL) -> Store:
    return Store(Counters(), limit)


def test_events_are_numbered_and_replayed_after_a_number() -> None:
    kept = Trail(7, store())
    assert kept.begin() == b""
    assert not kept.begun
    events = [kept.add(b"[%d]" % number) for number in range(3)]
    assert events[1] == b"event: message\nid: 7-2\ndata: [1]\n\n"
    assert kept.since(0) == events
    assert kept.since(2) == events[2:]
    assert kept.since(3) == []
    assert kept.since(4) is None


def test_a_primed_stream_begins_with_an_id_alone() -> None:
    kept = Trail(1, store(), primed=True)
    assert kept.begin() == b"event: message\nid: 1-1\ndata: \n\n"
    event = kept.add(b"{}")
    assert kept.since(1) == [event]


def test_the_oldest_events_go_first() -> None:
    kept = Trail(1, store())
    events = [kept.add(b"{}") for _ in range(KEPT_EVENTS + 3)]
    assert kept.since(2) is None
    assert kept.since(3) == events[3:]


def test_bytes_are_bounded_but_the_newest_event_is_kept() -> None:
    budget = store()
    kept = Trail(1, budget)
    kept.add(b"x" * (KEPT_BYTES // 2))
    second = kept.add(b"y" * (KEPT_BYTES // 2))
    assert kept.since(0) is None
    assert kept.since(1) == [second]
    third = kept.add(b"z" * (2 * KEPT_BYTES))
    assert kept.since(2) == [third]
    assert budget.used == len(third)
    kept.clear()
    assert budget.used == 0
    assert kept.since(3) == []


def test_what_all_streams_keep_is_bounded_and_counted() -> None:
    budget = store(100)
    one, other = Trail(1, budget), Trail(2, budget)
    one.add(b"x" * 40)
    other.add(b"y" * 40)
    assert other.since(0) is None
    assert other.since(1) == []
    assert one.since(0) is not None
    assert budget.counters["gateway.events_not_kept"] == 1


def test_a_stream_is_found_by_its_events_until_a_while_after_its_answer() -> None:
    trails: Trails[str] = Trails(store(), primed=False)
    kept = trails.begin("way", primed=False)
    kept.add(b"{}")
    trails.end(kept, 10.0)
    assert trails.find("1-1", 10.0 + KEPT_FOR - 1) == ("way", kept, 1)
    assert trails.find("1-1", 10.0 + KEPT_FOR) is None
    assert len(trails) == 0


def test_a_stream_whose_client_knows_no_id_is_forgotten_with_its_answer() -> None:
    trails: Trails[str] = Trails(store(), primed=False)
    trails.end(trails.begin("way", primed=False), 0.0)
    assert len(trails) == 0


def test_ids_that_were_never_given_find_nothing() -> None:
    trails: Trails[str] = Trails(store(), primed=False)
    trails.begin("way", primed=False)
    for rubbish in ("", "1", "-", "1-", "-1", "2-1", "1-1-1", "١-1", "1-" + "9" * 16, "x-1", " 1-1", "+1-1"):  # noqa: RUF001  # on purpose
        assert trails.find(rubbish, 0.0) is None, rubbish


def test_the_standing_stream_is_found_without_a_way() -> None:
    trails: Trails[str] = Trails(store(), primed=False)
    event = trails.standing.add(b"{}")
    assert trails.find("0-1", 0.0) == (None, trails.standing, 1)
    assert trails.standing.since(0) == [event]


def test_streams_of_a_session_are_bounded_and_answered_ones_go_first() -> None:
    budget = store()
    trails: Trails[int] = Trails(budget, primed=False)
    kept = [trails.begin(number, primed=False) for number in range(MAX_TRAILS)]
    for each in kept:
        each.add(b"{}")
    trails.end(kept[5], 1.0)
    trails.begin(-1, primed=False)
    assert trails.find("6-1", 0.0) is None
    assert trails.find("1-1", 0.0) is not None
    trails.clear()
    assert (len(trails), budget.used) == (0, 0)


def test_the_store_counts_exactly_whatever_happens() -> None:
    rng = random.Random(1)
    budget = store(KEPT_BYTES * 2)
    trails: Trails[None] = Trails(budget, primed=True)
    open_ones = [trails.standing]
    for step in range(2000):
        match rng.randrange(4):
            case 0:
                open_ones.append(trails.begin(None, primed=bool(step % 2)))
            case 1 if len(open_ones) > 1:
                trails.end(open_ones.pop(rng.randrange(1, len(open_ones))), step)
            case 2:
                trails.sweep(step)
            case _:
                rng.choice(open_ones).add(b"x" * rng.choice([1, 100, 50_000, KEPT_BYTES]))
        assert 0 <= budget.used <= budget.limit
    trails.clear()
    assert budget.used == 0
