"""The scripted server keeps the protocol's promises whatever it is sent, so that a failing test blames the client."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.testing import ToolServer, scheduled
from cord_trio.testing.conversation import Conversation
from cord_trio.testing.script import Options, World
from cord_trio.testing.strategies import encoded, ids, messages, schedules

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from cord_trio.errors import CallError, ConnectionLost

Json: TypeAlias = Any
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(id: int | str, tool: str, **arguments: Json) -> Json:
    params = {"name": tool, "arguments": arguments, "_meta": ENVELOPE}
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}


def cancel(id: int | str) -> Json:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}


def key(id: int | str) -> tuple[bool, int | str]:
    return isinstance(id, str), id


@given(lines=st.lists(encoded(messages()) | st.binary(max_size=20), max_size=10))
def test_every_request_is_answered_once_and_nothing_raises(lines: list[bytes]) -> None:
    conversation = Conversation(World(Options()))
    asked: Counter[tuple[bool, int | str]] = Counter()
    answered: Counter[tuple[bool, int | str]] = Counter()
    for line in lines:
        try:
            message = json.loads(line.decode())
        except ValueError:
            message = None
        if isinstance(message, dict) and "method" in message and "id" in message:
            asked[key(message["id"])] += 1
        for answer in map(json.loads, conversation.answer(line, 0.0)):
            if "id" in answer:
                answered[key(answer["id"])] += 1
    assert answered == asked


@given(
    rng=schedules(),
    calls=st.lists(st.tuples(st.floats(0, 9), st.none() | st.floats(0, 9)), min_size=1, max_size=6),
    names=st.lists(ids(), min_size=6, max_size=6, unique_by=key),
)
def test_a_call_cancelled_in_time_is_never_answered(
    rng: random.Random, calls: list[tuple[float, float | None]], names: list[int | str]
) -> None:
    server = ToolServer()
    answers: list[int | str] = []

    class Client:
        def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
            answers.extend(json.loads(message)["id"] for message in messages)

        def fail(self, id: int | str, error: CallError, /) -> None: ...

        def lost(self, error: ConnectionLost, /) -> None: ...

    async def main() -> None:
        async with server.open() as transport, trio.open_nursery() as nursery:
            await nursery.start(transport.run, Client())

            async def one(id: int | str, seconds: float, until: float | None) -> None:
                transport.send(json.dumps(request(id, "sleep", seconds=seconds)).encode())
                if until is not None:
                    await trio.sleep(until)
                    transport.send(json.dumps(cancel(id)).encode())

            for id, (seconds, until) in zip(names, calls, strict=False):
                nursery.start_soon(one, id, seconds, until)
            await trio.sleep(20)
            nursery.cancel_scope.cancel("every call has had its time")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    found = {key(id) for id in answers}
    assert len(found) == len(answers)
    for id, (seconds, until) in zip(names, calls, strict=False):
        if until is None or until > seconds:
            assert key(id) in found
        elif until < seconds:
            assert key(id) not in found
