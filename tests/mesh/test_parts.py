"""Large bodies cross in parts, whole or not at all."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from random import Random

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, ConnectionLost, MessageTooLong
from cord_trio.mesh import parts as parts_module
from cord_trio.mesh.frames import Bundle, Frame, encode_frame
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.parts import ABOVE, ANSWERED, ASKED, LINE, MAX_BODY, PART, POOL, WINDOW, Parts
from cord_trio.mesh_errors import OwnerFailed, OwnerRefused
from tests.mesh.ring import Names, node, tool_call

LARGE = b'"%b"' % b"".join(b"%08d" % number for number in range(100_000))


async def large(_: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    return Complete(Raw(LARGE))


async def test_a_large_result_and_large_arguments_cross_whole(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            assert await here.calling.call(tool_call(LARGE), ["b"]) == Complete(Raw(LARGE))
            assert here.counters["mesh.parts_sent"] == there.counters["mesh.parts_sent"] == 25
            await wait_all_tasks_blocked()
            tenure = there.owning._tenure
            assert tenure is not None
            assert tenure._kept_bytes == 0  # it was said to have come
            assert (here.parts.fetching, there.parts.fetching) == (0, 0)
            small = b'"%b"' % bytes(ABOVE - 20).replace(b"\0", b"x")
            await here.calling.call(tool_call(small), ["b"])
            assert here.counters["mesh.parts_sent"] == 25


async def test_a_large_result_survives_lost_connections_of_both_kinds(autojump_clock: MockClock) -> None:
    names = Names()
    begun: list[int] = []

    async def handler(call: Call) -> Outcome:
        begun.append(1)
        return await large(call)

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", handler) as there:
            for way in (here.bulk, there.bulk, here.way, there.way):
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        assert await here.calling.call(tool_call(), ["b"]) == Complete(Raw(LARGE))

                    here.bulk.cut()
                    nursery.start_soon(ask)
                    await wait_all_tasks_blocked()
                    assert here.parts.fetching == 1
                    here.bulk.mend()
                    way.reset()
            assert len(begun) == 4
            assert here.counters["mesh.parts_stalled"] >= 1


async def test_a_slow_reader_is_sent_no_more_than_its_window(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            body = bytes(100 * PART)
            asked: list[tuple[int, int]] = []
            most = 0
            bundle = await there.parts.bundle(body)

            def want(first: int, count: int, to: str) -> None:
                nonlocal most
                asked.append((first, count))
                incoming = next(iter(here.parts._incoming.values()))
                most = max(most, first + count - incoming.missing)
                there.parts.send(body, first, count, to)

            async with trio.open_nursery() as nursery:
                here.bulk.is_cut = True
                nursery.start_soon(here.parts.fetch, bundle, want)
                await wait_all_tasks_blocked()
                assert asked == [(0, ASKED)]
                assert there.counters["mesh.parts_sent"] == ASKED
                here.bulk.mend()
            assert max(count for _, count in asked) == ASKED
            assert most <= WINDOW
            assert there.counters["mesh.parts_sent"] == 100


async def test_bodies_that_come_at_once_share_what_is_under_way(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            body = bytes(40 * PART)
            bundle = await there.parts.bundle(body)
            most = 0

            def want(first: int, count: int, to: str) -> None:
                nonlocal most
                most = max(most, sum(one.asked - one.missing for one in here.parts._incoming.values()))
                there.parts.send(body, first, count, to)

            async with trio.open_nursery() as nursery:
                for _ in range(WINDOW // ASKED):
                    nursery.start_soon(here.parts.fetch, bundle, want)
            assert WINDOW - ASKED < most <= WINDOW
            assert there.counters["mesh.parts_sent"] == 40 * WINDOW // ASKED


async def test_each_part_has_a_turn_of_the_loop_to_itself(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            body = bytes(3 * WINDOW * PART)
            for first in range(0, 3 * WINDOW, ANSWERED):
                there.parts.send(body, first, 100, here.parts._inbox)  # it is sent no more than `ANSWERED` of them
            sent = [0]
            while sent[-1] < 3 * WINDOW:
                await trio.lowlevel.checkpoint()
                sent.append(there.counters["mesh.parts_sent"])
            assert all(after - before <= 2 for before, after in pairwise(sent))  # it ran before us, then after us
            assert len(sent) >= 3 * WINDOW
            for _ in range(LINE):
                there.parts.send(body, 0, 2, here.parts._inbox)
            assert len(there.parts._wanted) == LINE
            assert there.counters["mesh.parts_unsent"] == LINE // 2


@pytest.mark.parametrize("end", [b"]", b'","injected":"', b'"\n\n"', b"\xff", b""])
async def test_what_comes_in_parts_and_is_no_json_goes_no_further(end: bytes, autojump_clock: MockClock) -> None:
    names = Names()
    spoilt = LARGE[:-1] + end

    async def spoiling(_: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(Raw(spoilt))

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", spoiling) as there:
            with pytest.raises(OwnerFailed, match="what came in parts cannot be read: not JSON") as failed:
                await here.calling.call(tool_call(), ["b"])
            assert failed.value.executed == "yes"
            with pytest.raises(OwnerFailed, match="what came in parts cannot be read: not JSON") as failed:
                await there.calling.call(tool_call(spoilt), ["a"])
            assert failed.value.executed == "no"


async def test_line_breaks_of_what_comes_in_parts_are_spaces(autojump_clock: MockClock) -> None:
    names = Names()

    async def broken(_: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b"[\r\n" + b'"a\\n",\n' * 100_000 + b"1\n]"))

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", broken):
            found = await here.calling.call(tool_call(), ["b"])
            assert found == Complete(Raw(b"[  " + b'"a\\n", ' * 100_000 + b"1 ]"))


async def test_what_is_under_way_to_a_node_is_bounded_and_the_rest_waits_its_turn(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here:
            wanted: list[int] = []
            at_once = POOL // (WINDOW * PART)

            async def fetch(number: int) -> None:
                await here.parts.fetch(Bundle(2, 2 * PART, "0" * 64), lambda *_: wanted.append(number))

            with pytest.raises(ExceptionGroup) as caught:  # noqa: ASYNC401  # its members are looked at
                async with trio.open_nursery() as nursery:
                    for number in range(at_once + 2):
                        nursery.start_soon(fetch, number)
                        await wait_all_tasks_blocked()
                    with trio.move_on_after(0.5):
                        await here.parts.fetch(Bundle(2, 2 * PART, "0" * 64), lambda *_: wanted.append(99))
                    assert wanted == list(range(at_once))
                    assert here.counters["mesh.credit_stalls"] == 3
            assert caught.group_contains(ConnectionLost, match="no part of a large body came for 30 s")
            assert (here.parts.fetching, here.parts._taken, here.parts._fetches) == (0, 0, 0)


async def test_what_does_not_fit_beside_others_waits_and_fits_alone(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here:
            with trio.move_on_after(1):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(here.parts.fetch, Bundle(1000, MAX_BODY, "0" * 64), lambda *_: None)
                    await wait_all_tasks_blocked()
                    assert here.parts.fetching == 2
                    nursery.cancel_scope.cancel("enough was seen")
            assert (here.parts._taken, here.parts._fetches) == (0, 0)


@pytest.mark.parametrize(
    ("bundle", "error"),
    [
        (Bundle(1, MAX_BODY + 1, "0" * 64), MessageTooLong),
        (Bundle(10**9, 5, "0" * 64), MessageTooLong),
        (Bundle(1, 3, "0" * 64), BadReply),
        (Bundle(1, 4, hashlib.sha256(b"abc").hexdigest()), BadReply),
    ],
)
async def test_what_is_not_as_announced_is_refused(
    bundle: Bundle, error: type[CallError], autojump_clock: MockClock
) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b") as there:
            with pytest.raises(error):
                await here.parts.fetch(bundle, lambda first, count, to: there.parts.send(b"abc", first, count, to))


async def test_parts_that_nobody_asked_for_are_thrown_away(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as one, broker.way().open() as other:
        counters = Counters()
        parts = Parts(one, counters=counters)
        await one.flush()
        body = b"x" * 10
        bundle = await parts.bundle(body)

        def want(first: int, _: int, to: str) -> None:
            for seq, data in ((5, b"z"), (first, bytes(11)), (first, body), (first, body)):
                other.publish(to, data, headers=encode_frame(Frame("part", seq=seq)))
            other.publish(to, b"garbage")
            other.publish(to, body, headers={"C-K": "ok"})

        assert await parts.fetch(bundle, want) == body
        other.publish(f"{parts._inbox}.1", body, headers={"C-K": "part"})
        await other.flush()
        await one.flush()
        assert (counters["mesh.parts_unwanted"], counters["mesh.bad_frames"]) == (5, 1)
        parts.close()


async def test_what_is_too_large_for_any_node_is_refused_and_is_known_to_have_run(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(parts_module, "MAX_BODY", ABOVE)
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", large):
            with pytest.raises(MessageTooLong, match="mesh_body") as caught:
                await here.calling.call(tool_call(), ["b"])
            assert caught.value.executed == "yes"
            with pytest.raises(MessageTooLong, match="mesh_body") as caught:
                await here.calling.call(tool_call(LARGE), ["b"])
            assert caught.value.executed == "no"


async def test_a_node_without_parts_refuses_what_comes_in_them(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", large) as there:
            here.calling._parts = None
            with pytest.raises(OwnerFailed, match="its answer comes in parts") as failed:
                await here.calling.call(tool_call(), ["b"])
            assert failed.value.executed == "yes"
            here.calling._parts = here.parts
            there.owning._parts = None
            with pytest.raises(OwnerRefused, match="unsupported"):
                await here.calling.call(tool_call(LARGE), ["b"])


async def test_a_result_that_nobody_fetches_is_let_go_of(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", large) as there:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    here.bulk.cut()
                    nursery.start_soon(here.calling.call, tool_call(), ["b"])
                    await wait_all_tasks_blocked()
                    assert here.parts.fetching == 1
                    scope.cancel("the test wants it")
            await wait_all_tasks_blocked()
            tenure = there.owning._tenure
            assert tenure is not None
            assert tenure._kept_bytes == 0
            assert here.parts.fetching == 0
