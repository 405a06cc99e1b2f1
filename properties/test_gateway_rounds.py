"""Laws of questions: whoever asks, answers, cancels or leaves, each request ends once and nothing is held."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Call, InputRequired, Outcome
from cord_trio.errors import CallFailed
from cord_trio.gateway.state import digest
from cord_trio.gateway.steps import Run
from cord_trio.protocol.eras import ERAS
from cord_trio.protocol.jsonrpc import encode, parse
from cord_trio.testing.schedule import scheduled
from tests.gateway.fakes import CAPABILITIES, FakeFabric, answer, initialize, legacy, modern, notice, open_pipe, text

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json
    from tests.gateway.fakes import PipeClient

CAN: dict[str, Any] = {"elicitation": {}, "roots": {}}
QUESTIONS = [
    {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}},
    {"method": "roots/list"},
]


class Server:
    """Asks for as many rounds as the arguments say; parks its call meanwhile, as a legacy server does, or does not."""

    def __init__(self, *, parks: bool) -> None:
        self.parks = parks
        self.asked = 0
        self.held: dict[str, int] = {}
        self.minted = 0
        self.abandoned: list[str] = []

    async def __call__(self, call: Call) -> Outcome:
        self.asked += 1
        for _ in range(1 + self.asked % 3):
            await trio.lowlevel.checkpoint()
        if call.park:
            if call.park not in self.held:
                raise CallFailed(-32602, "unknown or expired requestState", executed="no")
            rounds = self.held.pop(call.park)
        elif "requestState" in call.params:
            rounds = int(parse(call.params["requestState"]))
        else:
            rounds = parse(call.params["arguments"])["rounds"]
        if not rounds:
            return text("done")
        asked = {f"q{number}": question for number, question in enumerate(QUESTIONS[: 1 + self.asked % 2])}
        parts: dict[str, Json] = {"resultType": "input_required", "inputRequests": asked}
        if not self.parks:
            return InputRequired(Raw(encode(parts | {"requestState": str(rounds - 1)})))
        self.minted += 1
        self.held[f"p{self.minted}"] = rounds - 1
        return InputRequired(Raw(encode(parts)), f"p{self.minted}")

    def abandon(self, park: str, _reason: str) -> None:
        self.abandoned.append(park)
        self.held.pop(park, None)


class LegacyClient:
    """What a legacy client has seen so far."""

    def __init__(self, pipe: PipeClient) -> None:
        self.pipe = pipe
        self.answered: set[int] = set()

    @property
    def open(self) -> list[int]:
        """The questions that wait for its answer."""
        asked = [each["id"] for each in self.pipe.got if "method" in each and "id" in each]
        assert len(asked) == len(set(asked))
        told = [each["params"] for each in self.pipe.got if each.get("method") == "notifications/cancelled"]
        over = {each["requestId"] for each in told} | self.answered
        return [id for id in asked if id not in over]

    @property
    def results(self) -> Counter[int]:
        """How often each of its calls was answered."""
        return Counter(each["id"] for each in self.pipe.got if "method" not in each)

    def reply(self, id: int, *, fine: bool = True) -> None:
        self.answered.add(id)
        said = {"action": "accept", "roots": []}
        self.pipe.send(answer(id, said) if fine else answer(id, error={"code": -1, "message": "no"}))


schedules = st.integers(0, 2**32).map(Random)
verbs = st.sampled_from(["call", "call", "answer", "answer", "refuse", "cancel"])
programs = st.lists(st.tuples(verbs, st.integers(0, 4), st.integers(0, 3)), max_size=30)


@settings(max_examples=40)
@given(program=programs, parks=st.booleans(), leaves=st.booleans(), rng=schedules)
def test_row_8_a_legacy_client_gets_one_answer_a_call_and_every_question_ends(
    program: list[tuple[str, int, int]], *, parks: bool, leaves: bool, rng: Random
) -> None:
    async def main() -> None:
        server = Server(parks=parks)
        fabric = FakeFabric(t=server)
        fabric.abandon = server.abandon  # type: ignore[method-assign]  # which knows its parks
        calls: set[int] = set()
        cancelled: set[int] = set()
        async with open_pipe(fabric) as pipe:
            await pipe.ask(initialize("i", capabilities=CAN))
            pipe.got.clear()
            client = LegacyClient(pipe)
            for verb, which, more in program:
                waiting = client.open
                if verb == "call" and which not in calls:
                    calls.add(which)
                    pipe.send(legacy(which, "tools/call", {"name": "t", "arguments": {"rounds": more}}))
                elif verb == "cancel" and which in calls:
                    cancelled.add(which)
                    pipe.send(notice("notifications/cancelled", {"requestId": which}))
                elif verb in ("answer", "refuse") and waiting:
                    client.reply(waiting[which % len(waiting)], fine=verb == "answer")
                for _ in range(more):
                    await trio.lowlevel.checkpoint()
            while not leaves:
                await trio.testing.wait_all_tasks_blocked()
                if not client.open:
                    assert calls - cancelled <= {*client.results} <= calls
                    assert set(client.results.values()) <= {1}
                    break
                for id in client.open:
                    client.reply(id)
        assert not server.held
        assert len(server.abandoned) == len(set(server.abandoned))

    with scheduled(rng):
        trio.run(main)


@settings(max_examples=40)
@given(
    program=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=20),
    parks=st.booleans(),
    rng=schedules,
)
def test_row_8_a_modern_client_goes_on_from_its_newest_state_alone(
    program: list[tuple[int, int, int]], *, parks: bool, rng: Random
) -> None:
    """Several operations at once; each retry brings any state that was ever given for any of them."""

    async def main() -> None:
        server = Server(parks=parks)
        given: list[tuple[int, int, str]] = []
        used: set[str] = set()
        async with open_pipe(FakeFabric(t=server)) as pipe:
            for number, (rounds, other, pick) in enumerate(program):
                params: dict[str, Any] = {"name": "t", "arguments": {"rounds": rounds}}
                source = given[pick % len(given)] if given and pick else None
                if source is not None:
                    params |= {"arguments": {"rounds": source[0] if pick % 3 else other}, "inputResponses": {}}
                    params["requestState"] = source[2]
                (reply,) = await pipe.ask(modern(number, "tools/call", params, {CAPABILITIES: CAN}))
                if source is None:
                    left = rounds
                elif params["arguments"]["rounds"] != source[0] or (parks and source[2] in used):
                    assert reply["error"]["code"] == -32602
                    continue
                else:
                    used.add(source[2])
                    left = source[1]
                if not left:
                    assert reply["result"]["content"][0]["text"] == "done"
                else:
                    assert reply["result"]["resultType"] == "input_required"
                    given.append((params["arguments"]["rounds"], left - 1, reply["result"]["requestState"]))

    with scheduled(rng):
        trio.run(main)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def run(arguments: Json) -> Run:
    return Run(1, ERAS["2026-07-28"], "tools/call", "t", {"arguments": Raw(json.dumps(arguments).encode())}, {}, b"{}")


@given(value=json_values, other=json_values)
def test_a_digest_is_the_same_however_the_same_arguments_are_written(value: Json, other: Json) -> None:
    assert digest(run(value)) == digest(run(rewritten(value)))
    if value != other:
        assert digest(run([value])) != digest(run([other]))


def rewritten(value: Json) -> Json:
    """The same JSON value as another writer has it."""
    if isinstance(value, dict):
        return {key: rewritten(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [rewritten(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@given(
    payload=st.binary(max_size=200),
    purpose=st.text(max_size=8),
    principal=st.text(max_size=8),
    other=st.text(max_size=8),
)
def test_a_seal_opens_for_its_purpose_and_principal_alone(
    payload: bytes, purpose: str, principal: str, other: str
) -> None:
    sealer = Sealer(bytes(32))
    sealed = sealer.seal(purpose, principal, payload, 10.0)
    assert sealer.open(purpose, principal, sealed, 9.0) == payload
    for pair in [(other, principal), (purpose, other), (purpose + principal, ""), ("", purpose + principal)]:
        if pair != (purpose, principal):
            try:
                sealer.open(*pair, sealed, 9.0)
            except ValueError:
                continue
            raise AssertionError(pair)
