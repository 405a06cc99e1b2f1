"""One relayed request from its step to its answer: called, questions put to whoever can answer, shaped."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec
import trio
from msgspec import Raw

from cord_trio.call import Complete, Error, InputRequired, Task
from cord_trio.errors import CallError
from cord_trio.gateway.loop import go_round, wait_always
from cord_trio.gateway.places import bringing, brought, node_of, placed
from cord_trio.gateway.questions import read_round, with_origin
from cord_trio.gateway.relay import answer, executed_data, failure, question
from cord_trio.gateway.requests import TASK_CALLS
from cord_trio.gateway.shapes import shape_result
from cord_trio.gateway.state import MAX_ROUNDS, Kept, digest, next_call, open_state, seal_state
from cord_trio.gateway.steps import STATE, Reply
from cord_trio.gateway.tasks import new_task, open_task, require_tasks, task_call, task_result
from cord_trio.gateway.urls import PAGES_REFUSED, as_questions, page_ids, refused_pages
from cord_trio.layers import META_DEADLINE
from cord_trio.protocol.eras import URL_ELICITATION_REQUIRED
from cord_trio.protocol.jsonrpc import (
    INTERNAL_ERROR,
    encode,
    encode_error,
    encode_result,
    members,
    object_of,
    parse,
)
from cord_trio.routing import BROUGHT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractContextManager

    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Call, EventSink, Handler, Outcome
    from cord_trio.gateway.asking import Channel
    from cord_trio.gateway.events import Events
    from cord_trio.gateway.steps import Run
    from cord_trio.routing import Elsewhere

FIRST_PAUSE = 1.0
"""Seconds before a call is made again whose pages a person has just agreed to open; doubles each time."""

LONGEST_PAUSE = 15.0
"""Seconds between two such calls at most."""

PATIENCE = 90.0
"""Seconds for all of them."""

log = logging.getLogger("cord_trio.gateway")


async def _pass_time(_pages: Iterable[str], patience: float, _call: Call) -> None:
    await trio.sleep(patience)


class Performer:
    """Makes calls and answers for them. Holds nothing between two of them.

    Args:
        handle: the fabric's.
        us: our `serverInfo` as JSON text.
        sealer: seals what a modern client brings back.
        wait_pages: waits for pages of a call to be done with, so many seconds at most.
        wait_moot: returns once a parked call wants no answer any more.
        abandon: lets go of a parked call that will not be answered.
        origin: which source asks, where a person could not tell; else empty.
        hold: gives what takes the further rounds of a call whose client is asked while it waits; `handle` if None.
        elsewhere: the other nodes of a mesh; None if there are none.

    """

    def __init__(
        self,
        handle: Callable[[Call], Awaitable[Outcome]],
        us: bytes,
        sealer: Sealer,
        *,
        wait_pages: Callable[[Iterable[str], float, Call], Awaitable[object]] = _pass_time,
        wait_moot: Callable[[str], Awaitable[None]] = wait_always,
        abandon: Callable[[str, str], None] = lambda _park, _reason: None,
        origin: Callable[[Run], str] = lambda _run: "",
        hold: Callable[[], AbstractContextManager[Handler]] | None = None,
        elsewhere: Callable[[], Elsewhere | None] = lambda: None,
    ) -> None:
        self._handle = handle
        self._hold = hold or (lambda: nullcontext(handle))
        self._wait_pages = wait_pages
        self._wait_moot = wait_moot
        self._us = us
        self._sealer = sealer
        self._abandon = abandon
        self._origin = origin
        self._elsewhere = elsewhere

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
                if type(outcome) is Complete:  # the plain case; for a tool what `answer` does, without its calls
                    if run.method == "tools/call":
                        return Reply(encode_result(run.id, shape_result(run.era, outcome.result, self._us)))
                    return answer(outcome, run, self._us, fresh=not run.answers)
            elif (there := self._there(run.state)) is not None:
                return self._answer(await there.bring(bringing(run, events)), run, None, there=True)
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

    async def _go_on(self, run: Run, kept: Kept, events: EventSink | None) -> Outcome:
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

    async def _call_anew(self, run: Run, kept: Kept, events: EventSink | None) -> Outcome:
        """Make a call that was not run before a person has opened pages, which takes her a while."""
        pause, patience = FIRST_PAUSE, PATIENCE
        while True:
            outcome = await self._handle(run.call(events))
            if not isinstance(outcome, Error) or outcome.code != URL_ELICITATION_REQUIRED:
                return outcome
            if patience <= 0 or not set(page_ids(outcome.data)) <= set(kept.urls):
                return outcome
            # It returns early if the server says that they are done with.
            await self._wait_pages(kept.urls, pause, run.call(None))
            patience -= pause
            pause = min(2 * pause, LONGEST_PAUSE)

    async def brought(self, call: Call) -> Outcome:
        """How a call goes on whose client came to another node with what was sealed here. Raises `CallError`."""
        run, now = brought(call), trio.current_time()
        if run.method in TASK_CALLS:
            return await self._handle(task_call(run, open_task(self._sealer, run, now)))
        kept = open_state(self._sealer, run, now)
        outcome = await self._go_on(run, kept, call.events)
        if not isinstance(outcome, InputRequired):
            return outcome
        try:
            result, sealed = self._seal(outcome, run, kept.round + 1, ())
        except CallError:
            if outcome.park:
                self._abandon(outcome.park, "the client cannot be asked")
            raise
        return InputRequired(Raw(object_of({**members(result), STATE: encode(f"{BROUGHT}{sealed}")})))

    def _there(self, text: str) -> Elsewhere | None:
        """The other nodes, if one of those has sealed it."""
        elsewhere, node = self._elsewhere(), node_of(text)
        return elsewhere if elsewhere is not None and node not in ("", elsewhere.node) else None

    def _place(self) -> str:
        elsewhere = self._elsewhere()
        return "" if elsewhere is None else elsewhere.place

    def _answer(self, outcome: Outcome, run: Run, kept: Kept | None, *, there: bool = False) -> Reply:
        """The answer to a modern client, which is asked by it; `there` if another node's gateway goes on with it."""
        urls: tuple[str, ...] = ()
        if isinstance(outcome, Error) and outcome.code == URL_ELICITATION_REQUIRED:
            urls = page_ids(outcome.data)
            asked = as_questions(outcome.data, run.capabilities)
            if asked is not None:
                if kept is not None and set(urls) <= set(kept.urls):
                    raise CallError(PAGES_REFUSED, "no")
                outcome = InputRequired(asked)
        if isinstance(outcome, Task):
            return Reply(encode_result(run.id, new_task(self._sealer, run, outcome.result, self._us, self._place())))
        if not isinstance(outcome, InputRequired):
            return answer(outcome, run, self._us, fresh=kept is None)
        try:
            if there and not outcome.park and node_of(text := read_round(outcome.result)[1] or ""):
                return question(run, outcome, text, self._us)
            return self._ask(outcome, run, 1 if kept is None else kept.round + 1, urls)
        except CallError:
            if outcome.park:
                self._abandon(outcome.park, "the client cannot be asked")
            raise

    def _ask(self, outcome: InputRequired, run: Run, rounds: int, urls: tuple[str, ...]) -> Reply:
        result, sealed = self._seal(outcome, run, rounds, urls)
        return question(run, InputRequired(result), placed(self._place(), sealed) if sealed else None, self._us)

    def _seal(self, outcome: InputRequired, run: Run, rounds: int, urls: tuple[str, ...]) -> tuple[Raw, str]:
        """The questions, and what brings the answers back; "" for nothing."""
        if rounds > MAX_ROUNDS:
            raise CallError(f"{run.name} asks more than {MAX_ROUNDS} times", "unknown")
        result = with_origin(outcome.result, self._origin(run))
        _, state = read_round(result)
        if not outcome.park and state is None and not urls:
            return result, ""
        inside = Kept(digest(run), rounds, outcome.park, None if outcome.park else state, urls)
        return result, seal_state(self._sealer, run, inside, trio.current_time())

    async def _ask_of_task(self, run: Run) -> Reply:
        require_tasks(run)
        if (there := self._there(run.name)) is not None:
            outcome = await there.bring(bringing(run, None))
        else:
            outcome = await self._handle(task_call(run, open_task(self._sealer, run, trio.current_time())))
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
