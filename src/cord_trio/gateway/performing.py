"""One relayed request from its step to its answer: called, questions put to whoever can answer, shaped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from cord_trio.call import Complete, Error, InputRequired
from cord_trio.errors import CallError
from cord_trio.gateway.loop import go_round
from cord_trio.gateway.questions import read_round, with_origin
from cord_trio.gateway.relay import answer, failure, question
from cord_trio.gateway.state import MAX_ROUNDS, Kept, digest, next_call, open_state, seal_state
from cord_trio.gateway.steps import Reply
from cord_trio.gateway.urls import PAGES_REFUSED, as_questions, page_ids, refused_pages
from cord_trio.protocol.eras import URL_ELICITATION_REQUIRED
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, encode_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Call, Outcome
    from cord_trio.gateway.asking import Channel
    from cord_trio.gateway.events import Events
    from cord_trio.gateway.steps import Run

FIRST_PAUSE = 1.0
"""Seconds before a call is made again whose pages a person has just agreed to open; doubles each time."""

LONGEST_PAUSE = 15.0
"""Seconds between two such calls at most."""

PATIENCE = 90.0
"""Seconds for all of them."""

log = logging.getLogger("cord_trio.gateway")


async def perform(
    handle: Callable[[Call], Awaitable[Outcome]],
    run: Run,
    events: Events | None,
    us: bytes,
    *,
    sealer: Sealer,
    channel: Channel | None = None,
    abandon: Callable[[str, str], None] = lambda _park, _reason: None,
    origin: Callable[[Run], str] = lambda _run: "",
) -> Reply:
    """Make the call and return its answer. Raises nothing but cancellation.

    Args:
        handle: the fabric's.
        run: what to call.
        events: where its progress and log notifications go.
        us: our `serverInfo` as JSON text.
        sealer: seals what a modern client brings back.
        channel: the way to ask a legacy client; None if there is none.
        abandon: lets go of a parked call that will not be answered.
        origin: which source asks, where a person could not tell; else empty.

    """
    try:
        if run.state is None:
            outcome = await handle(run.call(events))
            if type(outcome) is Complete:  # the plain case
                return answer(outcome, run, us, fresh=not run.answers)
            kept = None
        else:
            kept = open_state(sealer, run, trio.current_time())
            if kept.urls and (refusal := refused_pages(run)):
                return failure(CallError(refusal, "no"), run, us)
            if kept.urls:
                outcome = await _call_anew(handle, msgspec.structs.replace(run, answers=b""), kept, events)
            else:
                outcome = await _go_on(handle, next_call(run, kept, run.answers, events), abandon)
        source = origin(run) if isinstance(outcome, InputRequired) else ""
        if not run.era.modern:
            if isinstance(outcome, InputRequired):
                outcome = await go_round(handle, run, outcome, channel, events, abandon, source)
            return answer(outcome, run, us)
        if isinstance(outcome, InputRequired):
            outcome = msgspec.structs.replace(outcome, result=with_origin(outcome.result, source))
        try:
            return _answer_modern(outcome, run, kept, us, sealer)
        except CallError:
            if isinstance(outcome, InputRequired) and outcome.park:
                abandon(outcome.park, "the client cannot be asked")
            raise
    except CallError as exc:
        return failure(exc, run, us)
    except Exception:
        log.exception("a call failed inside method=%s name=%s", run.method, run.name)
        return Reply(encode_error(run.id, INTERNAL_ERROR, "internal error"))


async def _go_on(
    handle: Callable[[Call], Awaitable[Outcome]], call: Call, abandon: Callable[[str, str], None]
) -> Outcome:
    """Bring answers to where they are waited for. A client that leaves meanwhile has cancelled the whole."""
    try:
        return await handle(call)
    except trio.Cancelled:
        if call.park:
            abandon(call.park, "the client left")
        raise


async def _call_anew(
    handle: Callable[[Call], Awaitable[Outcome]], run: Run, kept: Kept, events: Events | None
) -> Outcome:
    """Make a call anew that was not run before a person has opened pages, which takes her a while."""
    pause, patience = FIRST_PAUSE, PATIENCE
    while True:
        outcome = await handle(run.call(events))
        if not isinstance(outcome, Error) or outcome.code != URL_ELICITATION_REQUIRED:
            return outcome
        if patience <= 0 or not set(page_ids(outcome.data)) <= set(kept.urls):
            return outcome
        await trio.sleep(pause)
        patience -= pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _answer_modern(outcome: Outcome, run: Run, kept: Kept | None, us: bytes, sealer: Sealer) -> Reply:
    urls: tuple[str, ...] = ()
    if isinstance(outcome, Error) and outcome.code == URL_ELICITATION_REQUIRED:
        urls = page_ids(outcome.data)
        asked = as_questions(outcome.data, run.capabilities)
        if asked is not None:
            if kept is not None and set(urls) <= set(kept.urls):
                return failure(CallError(PAGES_REFUSED, "no"), run, us)
            outcome = InputRequired(asked)
    if not isinstance(outcome, InputRequired):
        return answer(outcome, run, us, fresh=kept is None)
    rounds = 1 if kept is None else kept.round + 1
    if rounds > MAX_ROUNDS:
        raise CallError(f"{run.name} asks more than {MAX_ROUNDS} times", "unknown")
    _, state = read_round(outcome.result)
    sealed = None
    if outcome.park or state is not None or urls:
        inside = Kept(digest(run), rounds, outcome.park, None if outcome.park else state, urls)
        sealed = seal_state(sealer, run, inside, trio.current_time())
    return question(run, outcome, sealed, us)
