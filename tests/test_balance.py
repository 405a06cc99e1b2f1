from __future__ import annotations

from random import Random

from cord_trio.balance import EJECT_LONGEST, EJECT_TIME, MEMORY, PENALTY, SLOWEST, Load, choose, may_eject


def loads(count: int) -> list[Load]:
    return [Load() for _ in range(count)]


def shares(of: list[Load], now: float = 0.0, calls: int = 2000) -> list[int]:
    rng, taken = Random(0), [0] * len(of)
    for _ in range(calls):
        taken[choose(of, now, rng)] += 1
    return taken


def test_like_servers_take_like_shares() -> None:
    assert all(400 < share < 600 for share in shares(loads(4)))


def test_the_one_with_more_to_do_is_spared() -> None:
    two = loads(2)
    two[0].in_flight = 1
    assert shares(two) == [0, 2000]


def test_the_slower_one_is_given_less_at_once() -> None:
    two = loads(2)
    two[0].answered(0.3, 0.0)
    two[1].answered(0.1, 0.0)
    two[1].in_flight = 1
    assert shares(two) == [0, 2000]
    two[1].in_flight = 3
    assert shares(two) == [2000, 0]


def test_one_of_which_nothing_is_known_is_not_flooded() -> None:
    two = loads(2)
    two[0].answered(0.1, 0.0)
    two[1].in_flight = 1
    assert shares(two) == [2000, 0]


def test_a_latency_rises_at_once_and_falls_with_time() -> None:
    load = Load()
    load.answered(1.0, 0.0)
    load.answered(0.1, 0.0)
    assert load.latency(0.0) == 1.0
    load.answered(5.0, 0.0)
    assert load.latency(0.0) == 5.0
    load.answered(0.1, 10 * MEMORY)
    assert load.latency(10 * MEMORY) < 0.11
    assert load.latency(100 * MEMORY) < 1e-9


def test_a_server_that_fails_at_once_does_not_look_quick() -> None:
    two = loads(2)
    two[0].failed(0.0)
    two[1].answered(0.2, 0.0)
    assert two[0].latency(0.0) == PENALTY
    assert shares(two) == [0, 2000]
    for _ in range(100):
        two[0].failed(0.0)
    assert two[0].latency(0.0) == SLOWEST


def test_an_ejection_is_longer_each_time_up_to_the_longest() -> None:
    load, rng, times = Load(), Random(1), []
    for _ in range(20):
        load.eject(0.0, rng)
        times.append(load.until)
    assert EJECT_TIME / 2 <= times[0] <= EJECT_TIME
    assert EJECT_TIME <= times[1] <= 2 * EJECT_TIME
    assert all(EJECT_LONGEST / 2 <= time <= EJECT_LONGEST for time in times[5:])
    load.answered(0.1, 0.0)
    load.eject(0.0, rng)
    assert load.until <= EJECT_TIME


def test_never_more_than_half_are_left_out() -> None:
    for count in range(1, 10):
        some = loads(count)
        while may_eject(some, 0.0):
            next(load for load in some if load.until <= 0).until = 5.0
        assert sum(load.until > 0 for load in some) == count // 2


def test_those_left_out_get_nothing_until_too_few_are_left() -> None:
    four = loads(4)
    four[0].until = four[1].until = 5.0
    assert shares(four)[:2] == [0, 0]
    assert all(share > 300 for share in shares(four, now=5.0))
    assert all(share > 300 for share in shares(four[:3]))  # one of the well ones is gone: all take part
