"""A legacy server that asks at any moment, and callers who answer, refuse, leave, come twice or never come back.

Under searched schedules, with losses: no answer reaches a question of somebody else's call, no call is made twice,
each token is good for one retry, every call ends in one way, and nothing is held at the end.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.call import Call, Complete, Error, InputRequired, Outcome
from cord_trio.config import Bounds, Config
from cord_trio.errors import CallError, CallFailed
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.testing.schedule import scheduled
from properties.invariants import proves
from tests.full_server import FullServer, Request, text

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Json: TypeAlias = Any

SEEDS = st.integers(0, 2**16)
MOMENTS = (0.0, 0.01, 0.03, 1.0, 5.0)
CAPABILITIES = b'{"elicitation":{},"roots":{}}'


@attrs.frozen
class Script:
    """What the server does in one call: how long it waits, and how many questions it puts at once; then it answers.

    A negative number of questions is that many, of which the last is withdrawn a moment later.
    """

    steps: tuple[tuple[float, int], ...]


@attrs.frozen
class Caller:
    """One caller: who, when, what the server does, and what she does in each round."""

    principal: str
    at: float
    script: Script
    rounds: tuple[str, ...]
    thinks: float


SCRIPTS: SearchStrategy[Script] = st.builds(
    Script,
    st.lists(st.tuples(st.sampled_from(MOMENTS), st.sampled_from([0, 1, 1, 2, -1, -2])), max_size=3).map(tuple),
)
ROUNDS = st.sampled_from(["answer", "answer", "answer", "half", "twice", "nonsense", "steal", "leave", "never"])
CALLERS = st.builds(
    Caller,
    principal=st.sampled_from(["ada", "bob"]),
    at=st.sampled_from(MOMENTS),
    script=SCRIPTS,
    rounds=st.lists(ROUNDS, max_size=4).map(tuple),
    thinks=st.sampled_from(MOMENTS),
)


class World:
    """The server's side, which knows whose each question is."""

    def __init__(self, callers: list[Caller]) -> None:
        self.callers = callers
        self.server = FullServer()
        self.server.tools["ask"] = self.ask
        self.started: dict[int, int] = {}
        self.wrong: list[str] = []
        self.whose: dict[object, str] = {}
        """Whose calls a connection carries, beside the first one, on which nobody can be asked."""
        self.nursery: trio.Nursery | None = None

    def ask(self, request: Request) -> Json:
        number = request.arguments["number"]
        if request.connection is not self.server.connections[0]:
            principal = self.callers[number].principal
            if self.whose.setdefault(request.connection, principal) != principal:  # 32
                self.wrong.append(f"{number} came on a connection of another principal")
        self.started[number] = self.started.get(number, 0) + 1
        assert self.nursery is not None
        self.nursery.start_soon(self.run, request, number)
        return None

    async def run(self, request: Request, number: int) -> None:
        """The tool, as the script has it; a cancelled one goes on all the same."""
        asked = 0
        for pause, questions in self.callers[number].script.steps:
            await trio.sleep(pause)
            waiting = trio.Event()
            open: set[str] = set()
            for _ in range(abs(questions)):
                asked += 1
                name = f"{number}.{asked}"

                def replied(
                    reply: Json, name: str = name, open: set[str] = open, waiting: trio.Event = waiting
                ) -> None:
                    content = (reply.get("result") or {}).get("content") or {}
                    of = content.get("of", name)
                    if of != name:
                        self.wrong.append(f"{name} was answered {content}")
                    open.discard(name)
                    if not open:
                        waiting.set()

                open.add(name)
                id = request.ask("elicitation/create", {"message": name, "requestedSchema": {}}, replied)
            if questions < 0:
                request.connection.withdraw(id)
                open.discard(name)
            if open:
                with trio.move_on_after(60):  # the server's own patience
                    await waiting.wait()
        if not request.connection.over:
            request.answer(text(str(number)))


def answers(outcome: InputRequired, number: int, world: World, *, some: bool) -> Json:
    """An answer to each question, which names it; or to one of them."""
    given = {}
    for key, question in json.loads(bytes(outcome.result))["inputRequests"].items():
        name = question["params"]["message"]
        if int(name.partition(".")[0]) != number:
            world.wrong.append(f"{name} was put to the caller of {number}")
        given[key] = {"action": "accept", "content": {"of": name}}
        if some:
            break
    return given


async def play(fabric: Fabric, world: World, number: int, endings: dict[int, str]) -> None:
    """One caller from her call to its end."""
    caller = world.callers[number]
    await trio.sleep(caller.at)

    def retry(outcome: InputRequired, given: Json, principal: str) -> Call:
        params = {"inputResponses": Raw(json.dumps(given).encode())}
        return Call("tools/call", "x__ask", params, principal=principal, capabilities=CAPABILITIES, park=outcome.park)

    async def refused(call: Call) -> None:
        try:
            await fabric.handle(call)
        except CallFailed as exc:
            code = exc.code
        else:
            code = 0
        if code != -32602:
            world.wrong.append(f"a retry of {number} that should not have been taken was")

    arguments = {"arguments": Raw(b'{"number":%d}' % number)}
    call = Call("tools/call", "x__ask", arguments, principal=caller.principal, capabilities=CAPABILITIES)
    rounds = iter(caller.rounds)
    try:
        outcome: Outcome = await fabric.handle(call)
        while isinstance(outcome, InputRequired):
            given = answers(outcome, number, world, some=False)
            does = next(rounds, "answer")
            await trio.sleep(caller.thinks)
            if does == "never":
                endings[number] = "never"
                return
            if does == "nonsense" and given:
                await refused(retry(outcome, {key: {"action": "maybe"} for key in given}, caller.principal))
            if does == "steal":
                await refused(retry(outcome, given, "eve"))
            again = retry(outcome, answers(outcome, number, world, some=does == "half"), caller.principal)
            if does == "leave":
                with trio.move_on_after(0.005):
                    outcome = await fabric.handle(again)
                    continue
                endings[number] = "left"
                return
            if does == "twice":
                token = outcome
                outcome = await fabric.handle(again)
                await refused(retry(token, given, caller.principal))
            else:
                outcome = await fabric.handle(again)
        if isinstance(outcome, Complete):
            said = json.loads(bytes(outcome.result))["content"][0]["text"]
            if said != str(number):
                world.wrong.append(f"{number} got the result of {said}")
            endings[number] = "result"
        elif isinstance(outcome, Error):
            endings[number] = f"error {outcome.code}"
    except CallError as exc:
        endings[number] = type(exc).__name__


@proves(1, 32)
@settings(max_examples=60)
@given(
    st.lists(CALLERS, min_size=1, max_size=5),
    st.lists(st.sampled_from([0.02, 0.04, 1.5, 6.0]), max_size=2),
    st.sampled_from([1, 2, 16]),
    SEEDS,
)
def test_answers_reach_their_own_questions_and_nothing_is_held(
    callers: list[Caller], losses: list[float], sessions: int, seed: int
) -> None:
    world = World(callers)
    endings: dict[int, str] = {}
    start = 0.0

    async def lose() -> None:
        for moment in sorted(losses):
            await trio.sleep_until(start + moment)
            for connection in world.server.connections[1:]:
                connection.transport.lose("server exited (signal 9)")

    async def main() -> None:
        nonlocal start
        with trio.fail_after(100_000):
            bounds = Bounds(interactive=sessions, park_time=200.0, interactive_idle=300.0)
            source = world.server.source(deadline=500.0)
            async with trio.open_nursery() as tools:
                world.nursery = tools
                async with open_fabric(Config(sources=[source], bounds=bounds), rng=random.Random(0)) as fabric:
                    await fabric.wait_started()
                    start = trio.current_time()
                    async with trio.open_nursery() as people:
                        people.start_soon(lose)
                        for number in range(len(callers)):
                            people.start_soon(play, fabric, world, number, endings)
                    await trio.sleep(1_000)
                    assert len(fabric._parks) == 0
                    assert not fabric.links["x"].pool.sessions  # type: ignore[union-attr]  # it is one server
                    assert fabric.links["x"].in_flight == 0
                    assert fabric._running == 0
                assert len(fabric.timer) == 0
                tools.cancel_scope.cancel("all is seen")

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world.wrong == []
    assert sorted(endings) == list(range(len(callers)))
    assert all(count == 1 for count in world.started.values()), "a call was made again"
    for ending in set(endings.values()):
        event(ending)
