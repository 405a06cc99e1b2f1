"""Rounds of questions for legacy clients: what a server asks becomes real requests during the held call.

A modern client gets `input_required` and calls again; a legacy one is asked (MCP 2026-07-28, input required).
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio.call import Complete, InputRequired
from cord_trio.errors import CallError, InputNeeded
from cord_trio.gateway.capabilities import ELICIT, lacking
from cord_trio.gateway.params import is_object
from cord_trio.gateway.questions import CannotAsk, put, read_round, with_origin
from cord_trio.gateway.state import Kept, next_call
from cord_trio.protocol.jsonrpc import encode_notification, object_of, parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from cord_trio.call import Call, Outcome
    from cord_trio.gateway.asking import Channel
    from cord_trio.gateway.events import Events
    from cord_trio.gateway.questions import Question
    from cord_trio.gateway.steps import Answered, Run
    from cord_trio.protocol.jsonrpc import Json

ROUNDS: Final = 8
"""Rounds of questions in one call of a legacy client."""

WAITS: Final = 30
"""Times that a server may say, without a question, to come back later."""

FIRST_WAIT: Final = 0.05
"""Seconds before coming back the first time; doubles each time."""

LONGEST_WAIT: Final = 1.0
"""Seconds between two such visits at most."""

_CANCELLED: Final = b'{"action":"cancel"}'


async def wait_always(_park: str) -> None:
    """For whom nothing is ever moot."""
    await trio.sleep_forever()


async def go_round(
    handle: Callable[[Call], Awaitable[Outcome]],
    run: Run,
    first: InputRequired,
    channel: Channel | None,
    events: Events | None,
    abandon: Callable[[str, str], None],
    origin: str = "",
    wait_moot: Callable[[str], Awaitable[None]] = wait_always,
) -> Outcome:
    """How `run` ended, after the client was asked all that `first` and what follows want to know.

    `wait_moot` returns once a parked call wants no answer any more: then its client is not kept asked.

    Raises:
        InputNeeded: the client cannot be asked.
        CallError: it refuses, or is asked too often; or as `handle` does.

    """
    outcome: Outcome = first
    rounds = waits = 0
    opened: list[str] = []
    while isinstance(outcome, InputRequired):
        with _or_abandon(outcome.park, abandon):
            questions, state = read_round(with_origin(outcome.result, origin))
            answers = b""
            if questions:
                rounds += 1
                if rounds > ROUNDS:
                    raise CallError(f"{run.name} asks more than {ROUNDS} times", "unknown")
                ask = partial(_ask, run, questions, channel, events, opened)
                answers = await (_unless_moot(ask, partial(wait_moot, outcome.park)) if outcome.park else ask())
            else:
                waits += 1
                if waits > WAITS:
                    raise CallError(f"{run.name} says to come back later, more than {WAITS} times", "unknown")
                await trio.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (waits - 1)))
            kept = Kept("", rounds, outcome.park, None if outcome.park else state)
            # Also while it is on its way: it may never arrive where the call is parked.
            outcome = await handle(next_call(run, kept, answers, events))
    if channel is not None and isinstance(outcome, Complete):
        for id in opened:  # whoever still shows the page may close it (MCP 2025-11-25, elicitation)
            params = object_of({"elicitationId": msgspec.json.encode(id)})
            channel.send(encode_notification("notifications/elicitation/complete", params))
    return outcome


@contextmanager
def _or_abandon(park: str, abandon: Callable[[str, str], None]) -> Generator[None, None, None]:
    """Let go of a parked call whose questions get no answer, since the server would wait for it in vain."""
    try:
        yield
    except BaseException as exc:  # a cancelled client gives no answer either
        if park:
            abandon(park, "the client gives no answer")
        if isinstance(exc, CallError) and exc.executed == "no":
            exc.executed = "unknown"  # that it was asked shows that the call was run so far
        raise


async def _unless_moot(ask: Callable[[], Awaitable[bytes]], wait_moot: Callable[[], Awaitable[None]]) -> bytes:
    """What `ask` returns or raises; nothing, and the client is told so, once nobody needs it any more."""
    answers, failure = b"", None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await wait_moot()
            nursery.cancel_scope.cancel("the server no longer wants to know")

        nursery.start_soon(watch)
        try:
            answers = await ask()
        except CallError as exc:
            failure = exc
        nursery.cancel_scope.cancel("the client has answered")
    if failure is not None:
        raise failure
    return answers


async def _ask(
    run: Run, questions: Mapping[str, Question], channel: Channel | None, events: Events | None, opened: list[str]
) -> bytes:
    """The client's answers as JSON text of `inputResponses`."""
    wanted = [(question.method, question.params) for question in questions.values()]
    if channel is None or lacking(run.capabilities, wanted):
        raise InputNeeded(run.name, sorted({method for method, _ in wanted}))
    put_so: list[tuple[str, Mapping[str, Json]]] = []
    for question in questions.values():
        id = secrets.token_hex(16)
        try:
            params = put(run.era, question, id)
        except CannotAsk as exc:
            text = f"{run.name} asks the user to {exc}, which this client's protocol revision cannot carry"
            raise CallError(text, "unknown") from exc
        if "elicitationId" in params:
            opened.append(id)
        put_so.append((question.method, params))
    if events is not None:
        events.tick()
    answers = await channel.ask(put_so)
    given = {
        key: _given(run, question, answer) for (key, question), answer in zip(questions.items(), answers, strict=True)
    }
    return object_of(given)


def _given(run: Run, question: Question, answer: Answered | None) -> bytes:
    if answer is not None and answer.result and is_object(answer.result):
        return answer.result
    if question.method == ELICIT:
        return _CANCELLED  # a person who does not answer has not agreed
    raise CallError(f"{run.name} asks for {question.method}, and the client {_why(answer)}", "unknown")


def _why(answer: Answered | None) -> str:
    if answer is None:
        return "did not answer in time"
    try:
        message = str(parse(answer.error)["message"])[:200]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = "no reason"
    return f"refused: {message}"
