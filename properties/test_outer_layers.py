"""What judges, bounds and watches each call, under searched schedules: `policy`, `attempt` and `trace`."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace
from trio.testing import MockClock

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Call, Complete, InputRequired, Outcome, stack
from cord_trio.cell import Timer
from cord_trio.config import Rule
from cord_trio.counters import Counters
from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded, Denied
from cord_trio.layers import Policy, RetryBudget, attempt, deadline, policy, retry, trace
from cord_trio.protocol.jsonrpc import members
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
    from random import Random

    from cord_trio.layers import Ended, Watch

DONE = Complete(Raw(b"{}"))
FORMS = b'{"elicitation":{"form":{}}}'
APPROVAL = 2.0

SECONDS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
PATIENCE = st.sampled_from([math.inf, math.inf, 0.5, 1.0, 2.0])


@proves("layers.policy")
@given(
    st.lists(
        st.tuples(st.sampled_from("ad?"), st.sampled_from(["yes", "no", "silent", "breaks"]), SECONDS, PATIENCE),
        max_size=8,
    ),
    schedules(),
)
def test_only_what_is_allowed_or_approved_in_time_reaches_the_source_and_once(
    asks: list[tuple[str, str, float, float]], rng: Random
) -> None:
    reached: Counter[str] = Counter()
    ends: dict[str, list[str]] = {}

    async def source(call: Call) -> Outcome:
        reached[call.principal] += 1
        await trio.sleep(0.5)
        return DONE

    async def approve(call: Call) -> bool:
        _, word, seconds, _ = asks[int(call.principal)]
        await trio.sleep(math.inf if word == "silent" else seconds)
        if word == "breaks":
            raise ValueError("nobody is there")
        return word == "yes"

    rules = (Rule(tools="a", then="allow"), Rule(tools="d", then="deny"), Rule(then="ask"))
    judge = Policy(rules, name="x", own_name=lambda name: name, annotations=lambda _: None, trusted=False)
    counters = Counters()
    handler = policy(
        judge, approve=approve, sealer=Sealer(bytes(32)), seconds=APPROVAL, counters=counters
    )(source)  # fmt: skip

    async def ask(number: int, tool: str, patience: float) -> None:
        ended = ends[str(number)] = list[str]()
        with trio.move_on_after(patience) as scope:
            try:
                await handler(Call("tools/call", tool, principal=str(number)))
                ended.append("answered")
            except (Denied, ValueError) as exc:
                ended.append(type(exc).__name__)
        if scope.cancelled_caught:
            ended.append("cancelled")

    async def main() -> None:
        with trio.fail_after(1_000):
            async with trio.open_nursery() as nursery:
                for number, (tool, _, _, patience) in enumerate(asks):
                    nursery.start_soon(ask, number, tool, patience)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    for number, (tool, word, seconds, patience) in enumerate(asks):
        [end] = ends[str(number)]
        event(end)
        times = reached[str(number)]
        if tool == "a":
            assert (times, end) in ((1, "answered"), (1, "cancelled"))
        elif tool == "d":
            assert (times, end) == (0, "Denied")
        elif word != "yes" or seconds > APPROVAL or seconds > patience:
            assert times == 0
            assert end in ("Denied", "ValueError", "cancelled")
        elif seconds < min(APPROVAL, patience):
            assert times == 1
            assert end in ("answered", "cancelled")
        else:  # the yes came in the very moment in which it was too late
            assert times <= 1
    assert counters["policy.denied"] == sum(end == ["Denied"] for end in ends.values())


@proves("layers.policy")
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), SECONDS), min_size=1, max_size=12),
    schedules(),
)
def test_a_yes_counts_for_the_call_and_the_caller_that_were_asked_and_not_for_ever(
    retries: list[tuple[int, int, int, float]], rng: Random
) -> None:
    """Whoever is asked brings the question's state back: for her call or another one's, as herself or as another."""
    reached: list[tuple[str, bytes]] = []

    async def source(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        reached.append((call.principal, bytes(call.params["arguments"])))
        assert "requestState" not in call.params
        return DONE

    judge = Policy(
        (Rule(then="ask"),), name="x", own_name=lambda name: name, annotations=lambda _: None, trusted=False
    )  # fmt: skip
    handler = policy(judge, approve=None, sealer=Sealer(bytes(32)), seconds=APPROVAL, counters=Counters())(source)
    yes = Raw(b'{"cord_trio/approve":{"action":"accept","content":{"approve":true}}}')

    def call(who: int, what: int) -> Call:
        arguments = {"arguments": Raw(b'{"n":%d}' % what)}
        return Call("tools/call", "t", arguments, principal=f"p{who}", capabilities=FORMS)

    async def play(asker: int, who: int, what: int, after: float) -> None:
        asked = await handler(call(asker, 0))
        assert isinstance(asked, InputRequired)
        state = members(asked.result)["requestState"]
        await trio.sleep(after)
        again = call(who, what)
        before = len(reached)
        outcome = await handler(
            replace(again, params={**again.params, "requestState": state, "inputResponses": yes})
        )  # fmt: skip
        fits = who == asker and what == 0
        event(f"fits {fits}, in time {after <= APPROVAL}")
        if not fits or after > APPROVAL:
            assert isinstance(outcome, InputRequired)  # it is asked anew
        elif after < APPROVAL:
            assert outcome is DONE
            assert (f"p{who}", b'{"n":0}') in reached[before:]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for each in retries:
                nursery.start_soon(play, *each)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(reached) <= sum(who == asker and what == 0 for asker, who, what, _ in retries)


@proves(6, "layers.attempts")
@given(
    st.lists(st.tuples(SECONDS, st.sampled_from([0.5, 1.5, 4.0, 9.0]), SECONDS), min_size=1, max_size=8),
    st.sampled_from([0.5, 1.0, 2.5]),
    schedules(),
)
def test_6_an_attempt_ends_within_its_time_never_after_its_call_and_leaves_time_for_another(
    asks: list[tuple[float, float, float]], seconds: float, rng: Random
) -> None:
    attempts: dict[str, list[tuple[float, float, float]]] = {}

    async def main() -> None:
        timer = Timer()

        async def source(call: Call) -> Outcome:
            now = trio.current_time()
            number = int(call.principal)
            attempts.setdefault(call.principal, []).append((now, call.deadline, call.latest))
            assert now <= call.deadline <= now + seconds
            with trio.move_on_at(call.deadline) as scope:
                await trio.sleep(asks[number][2] * len(attempts[call.principal]))
            if scope.cancelled_caught:
                raise DeadlineExceeded("the attempt took too long", executed="no")
            return DONE

        handler = stack(
            source,
            deadline(5.0),
            retry(3, budget=RetryBudget(reserve=99), rng=rng, trusted=False, annotations=lambda _: None,
                  safe=True, clock=trio.current_time, timer=timer, counters=Counters()),
            attempt(seconds),
        )  # fmt: skip

        async def ask(number: int, at: float, within: float) -> None:
            await trio.sleep(at)
            until = trio.current_time() + within
            try:
                await handler(Call("tools/call", "t", principal=str(number), deadline=until))
                event("answered")
            except CallError as exc:
                event(type(exc).__name__)
            assert trio.current_time() <= until + 1e-9
            for begun, end, _ in attempts.get(str(number), []):
                assert begun <= end <= until
            assert len(attempts.get(str(number), [])) <= 3

        with trio.fail_after(1_000):
            async with trio.open_nursery() as background:
                await background.start(timer.run)
                async with trio.open_nursery() as nursery:
                    for number, (at, within, _) in enumerate(asks):
                        nursery.start_soon(ask, number, at, within)
                assert len(timer) == 0
                background.cancel_scope.cancel("the program is over")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert set(attempts) == {str(number) for number in range(len(asks))}


@proves(1, "layers.pass", "layers.trace")
@given(
    st.lists(
        st.tuples(SECONDS, st.sampled_from(["answer", "lose", "break"]), st.sampled_from([math.inf, 0.0, 0.5, 1.0])),
        max_size=8,
    ),
    st.integers(1, 3),
    schedules(),
)
def test_each_call_is_watched_from_its_begin_to_its_one_end_which_is_what_the_caller_gets(
    asks: list[tuple[float, str, float]], watches: int, rng: Random
) -> None:
    seen: dict[tuple[int, str], list[object]] = {}
    got: dict[str, object] = {}
    marks: dict[str, str] = {}

    def watching(place: int) -> Watch:
        def watch(call: Call) -> tuple[Call, Ended]:
            ends = seen.setdefault((place, call.principal), [])
            return replace(call, trace=f"{call.trace}{place}"), ends.append

        return watch

    async def source(call: Call) -> Outcome:
        seconds, how, _ = asks[int(call.principal)]
        marks[call.principal] = call.trace
        await trio.sleep(seconds)
        if how == "lose":
            raise ConnectionLost("gone")
        if how == "break":
            raise ValueError("a bug")
        return DONE

    handler = stack(source, *(trace(watching(place)) for place in range(watches)))

    async def ask(number: int, patience: float) -> None:
        with trio.move_on_after(patience) as scope:
            try:
                got[str(number)] = await handler(Call("tools/call", "t", principal=str(number)))
            except (CallError, ValueError) as exc:
                got[str(number)] = exc
        if scope.cancelled_caught:
            got[str(number)] = trio.Cancelled

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number, (_, _, patience) in enumerate(asks):
                nursery.start_soon(ask, number, patience)

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    for number in range(len(asks)):
        end = got[str(number)]
        event(getattr(end, "__name__", type(end).__name__))
        assert marks[str(number)] == "".join(map(str, range(watches)))  # the outermost first
        for place in range(watches):
            [told] = seen[place, str(number)]
            assert told is end or (end is trio.Cancelled and isinstance(told, trio.Cancelled))
