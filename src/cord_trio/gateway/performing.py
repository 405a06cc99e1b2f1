"""One relayed request from its step to its answer: called, questions put to whoever can answer, shaped."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec
import trio

from cord_trio.call import Complete, Error, InputRequired, Task
from cord_trio.errors import CallError
from cord_trio.gateway.loop import go_round, wait_always
from cord_trio.gateway.questions import read_round, with_origin
from cord_trio.gateway.relay import answer, executed_data, failure, question
from cord_trio.gateway.requests import TASK_CALLS
from cord_trio.gateway.state import MAX_ROUNDS, Kept, digest, next_call, open_state, seal_state
from cord_trio.gateway.steps import Reply
from cord_trio.gateway.tasks import new_task, open_task, require_tasks, task_call, task_result
from cord_trio.gateway.urls import PAGES_REFUSED, as_questions, page_ids, refused_pages
from cord_trio.layers import META_DEADLINE
from cord_trio.protocol.eras import URL_ELICITATION_REQUIRED
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, encode_error, encode_result, parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractContextManager

    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Call, Handler, Outcome
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


async def _pass_time(_pages: Iterable[str], patience: float) -> None:
    await trio.sleep(patience)


class Performer:
    """Makes calls and answers for them. Holds nothing between two of them.

    Args:
        handle: the fabric's.
        us: our `serverInfo` as JSON text.
        sealer: seals what a modern client brings back.
        wait_pages: waits for pages to be done with, so many seconds at most.
        wait_moot: returns once a parked call wants no answer any more.
        abandon: lets go of a parked call that will not be answered.
        origin: which source asks, where a person could not tell; else empty.
        hold: gives what takes the further rounds of a call whose client is asked while it waits; `handle` if None.

    """

    def __init__(
        self,
        handle: Callable[[Call], Awaitable[Outcome]],
        us: bytes,
        sealer: Sealer,
        *,
        wait_pages: Callable[[Iterable[str], float], Awaitable[object]] = _pass_time,
        wait_moot: Callable[[str], Awaitable[None]] = wait_always,
        abandon: Callable[[str, str], None] = lambda _park, _reason: None,
        origin: Callable[[Run], str] = lambda _run: "",
        hold: Callable[[], AbstractContextManager[Handler]] | None = None,
    ) -> None:
        self._handle = handle
        self._hold = hold or (lambda: nullcontext(handle))
        self._wait_pages = wait_pages
        self._wait_moot = wait_moot
        self._us = us
        self._sealer = sealer
        self._abandon = abandon
        self._origin = origin

    async def perform(self, run: Run, events: Events | None, channel: Channel | None = None) -> Reply:
        """The answer to `run`. Raises nothing but cancellation.

        Args:
            run: what to call.
            events: where its progress and log notifications go.
            channel: the way to ask a legacy client; None if there is none.

        """
        if run.meta:
            run = in_time(run)
        try:
            if run.method in TASK_CALLS:
                return await self._ask_of_task(run)
            kept = None
            if run.state is None:
                outcome = await self._handle(run.call(events))
                if type(outcome) is Complete:  # the plain case
                    return answer(outcome, run, self._us, fresh=not run.answers)
            else:
                kept = open_state(self._sealer, run, trio.current_time())
                outcome = await self._go_on(run, kept, events)
            if run.era.modern:
                return self._answer(outcome, run, kept)
            if isinstance(outcome, InputRequired):
                origin = self._origin(run)
                with self._hold() as handle:
                    outcome = await go_round(
                        handle, run, outcome, channel, events, self._abandon, origin, self._wait_moot
                    )
            return answer(outcome, run, self._us)
        except CallError as exc:
            return failure(exc, run, self._us)
        except Exception:
            log.exception("a call failed inside method=%s name=%s", run.method, run.name)
            return Reply(encode_error(run.id, INTERNAL_ERROR, "internal error", executed_data("unknown")))

    async def _go_on(self, run: Run, kept: Kept, events: Events | None) -> Outcome:
        """Bring answers to where they are waited for."""
        if kept.urls:
            if refusal := refused_pages(run):
                raise CallError(refusal, "no")
            return await self._call_anew(msgspec.structs.replace(run, answers=b""), kept, events)
        try:
            return await self._handle(next_call(run, kept, run.answers, events))
        except trio.Cancelled:
            if kept.park:  # a client that leaves has cancelled the whole
                self._abandon(kept.park, "the client left")
            raise

    async def _call_anew(self, run: Run, kept: Kept, events: Events | None) -> Outcome:
        """Make a call that was not run before a person has opened pages, which takes her a while."""
        pause, patience = FIRST_PAUSE, PATIENCE
        while True:
            outcome = await self._handle(run.call(events))
            if not isinstance(outcome, Error) or outcome.code != URL_ELICITATION_REQUIRED:
                return outcome
            if patience <= 0 or not set(page_ids(outcome.data)) <= set(kept.urls):
                return outcome
            await self._wait_pages(kept.urls, pause)  # returns early if the server says that they are done with
            patience -= pause
            pause = min(2 * pause, LONGEST_PAUSE)

    def _answer(self, outcome: Outcome, run: Run, kept: Kept | None) -> Reply:
        """The answer to a modern client, which is asked by it."""
        urls: tuple[str, ...] = ()
        if isinstance(outcome, Error) and outcome.code == URL_ELICITATION_REQUIRED:
            urls = page_ids(outcome.data)
            asked = as_questions(outcome.data, run.capabilities)
            if asked is not None:
                if kept is not None and set(urls) <= set(kept.urls):
                    raise CallError(PAGES_REFUSED, "no")
                outcome = InputRequired(asked)
        if isinstance(outcome, Task):
            return Reply(encode_result(run.id, new_task(self._sealer, run, outcome.result, self._us)))
        if not isinstance(outcome, InputRequired):
            return answer(outcome, run, self._us, fresh=kept is None)
        try:
            return self._ask(outcome, run, 1 if kept is None else kept.round + 1, urls)
        except CallError:
            if outcome.park:
                self._abandon(outcome.park, "the client cannot be asked")
            raise

    def _ask(self, outcome: InputRequired, run: Run, rounds: int, urls: tuple[str, ...]) -> Reply:
        if rounds > MAX_ROUNDS:
            raise CallError(f"{run.name} asks more than {MAX_ROUNDS} times", "unknown")
        result = with_origin(outcome.result, self._origin(run))
        _, state = read_round(result)
        sealed = None
        if outcome.park or state is not None or urls:
            inside = Kept(digest(run), rounds, outcome.park, None if outcome.park else state, urls)
            sealed = seal_state(self._sealer, run, inside, trio.current_time())
        return question(run, InputRequired(result), sealed, self._us)

    async def _ask_of_task(self, run: Run) -> Reply:
        require_tasks(run)
        ref = open_task(self._sealer, run, trio.current_time())
        outcome = await self._handle(task_call(run, ref))
        if isinstance(outcome, Complete | Task):  # some servers answer `tasks/get` with a task, as the examples do
            return Reply(encode_result(run.id, task_result(outcome.result, self._us, run.name)))
        return answer(outcome, run, self._us)


def in_time(run: Run) -> Run:
    """`run`, all of whose calls end when whoever asks says that they must; what it said is for us alone."""
    told = run.meta.get(META_DEADLINE)
    if told is None:
        return run
    meta = {name: value for name, value in run.meta.items() if name != META_DEADLINE}
    try:
        left = parse(told)
    except msgspec.DecodeError:  # a number beyond all numbers
        left = None
    if isinstance(left, bool) or not isinstance(left, int | float) or not 0 <= left < math.inf:
        return msgspec.structs.replace(run, meta=meta)
    return msgspec.structs.replace(run, meta=meta, deadline=trio.current_time() + left / 1000)
