"""Calls of legacy servers, which ask in the middle of them on the connection.

Such a call has no task: its entry among the session's open requests is told of its end itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import outcome
import trio

from cord_trio.background import RESULT, awaiting, begin_task, cancel_task, ended, longest
from cord_trio.call import Error
from cord_trio.errors import CallError, CallFailed
from cord_trio.parking import Parked, Question
from cord_trio.pending import Pending
from cord_trio.protocol.jsonrpc import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from cord_trio.call import Call, Outcome
    from cord_trio.client import Client
    from cord_trio.errors import Executed
    from cord_trio.parking import Parks

log = logging.getLogger("cord_trio.parking")


class Held(Pending):
    """An open request whose end is told to a function: there is no task that waits for it."""

    __slots__ = ("ended",)

    timed = False  # who waits for it keeps its deadline
    ended: Callable[[outcome.Outcome[Raw]], None]

    def settle(self, value: Raw) -> bool:
        return self._tell(outcome.Value(value))

    def fail(self, error: Exception) -> bool:
        return self._tell(outcome.Error(error))

    def _tell(self, result: outcome.Outcome[Raw]) -> bool:
        if self.settled:
            return False
        self.settled = True
        self.ended(result)
        return True


class Running(Parked):
    """One call on its way at a legacy server.

    Attributes:
        id: of the request.

    Args:
        client: of a session that may ask its caller.
        call: what to call.
        parks: where it waits for its caller.
        done: told when it is over, and whether the server may still be at it.

    """

    def __init__(self, client: Client, call: Call, parks: Parks, done: Callable[[Running, bool], None]) -> None:
        super().__init__(call, parks)
        self.id = client.session.peer.mint()
        self._client = client
        self._done = done
        self._pending: Held | None = None
        self._task = ""

    @property
    def source(self) -> str:
        return self._client.session.name

    async def start(self, name: str | None) -> Outcome:
        """Make the call, of what the server knows as `name`, and wait until it ends or asks.

        Raises:
            CallError: it ended without an answer of the server.

        """
        call, session = self.call, self._client.session
        if call.log_level is not None:
            session.logging[self.id] = call.log_level
        method, message = call.method, b""
        try:
            if name is not None and name in self._client.tasked and method == "tools/call":
                task = await begin_task(self._client, call, name, self.id)
                if not isinstance(task, str):
                    self._finish()
                    return task
                self._task, method, message = task, RESULT, awaiting(self.id, task)
            pending = Held(session, self.id, method, call.deadline, self._told, not self._task, 0.0, call.latest)
            pending.ended = self._ended
            await session.begin(pending, message or self._client.message(self.id, call, name), name=name)
        except BaseException as exc:
            if self._task:
                cancel_task(session, self._task, exc)
            self._finish()
            raise
        self._pending = pending
        return await self._attach(longest(call) if self._task else call)

    async def resume(self, call: Call) -> Outcome:
        return await super().resume(longest(call) if self._task else call)

    def _stop(self, reason: str) -> bool:
        pending = self._pending
        if pending is None:
            return False
        pending.settled = True
        self._client.session.withdraw(pending, reason)
        if self._task:
            cancel_task(self._client.session, self._task)
        return True

    def _executed(self) -> Executed:
        return "unknown" if self._task else self._client.session.executed(self.id)

    def _until(self, deadline: float) -> None:
        if self._pending is not None:
            self._pending.deadline = deadline  # for whoever looks

    def _ordered(self, open: list[Question]) -> list[Question]:
        # In the order in which they came; the tasks that answer them may have begun in another.
        order = {id: place for place, (_, id) in enumerate(self._client.session.peer.asked)}
        return sorted(open, key=lambda each: order.get(each.id, 0))

    def _over(self, left: bool) -> None:
        self._client.session.logging.pop(self.id, None)
        self._done(self, left)

    @trio.lowlevel.enable_ki_protection
    def _ended(self, result: outcome.Outcome[Raw]) -> None:
        """The server's call has ended, in whichever way."""
        final: outcome.Outcome[Any]
        if isinstance(result, outcome.Value):
            value = ended(result.value) if self._task else result.value
            final = outcome.capture(self._client.outcome, self.call.method, value)
        elif isinstance(result, outcome.Error) and isinstance(result.error, CallFailed):
            error = result.error
            final = outcome.Value(Error(error.code, error.message, error.data))
        else:
            final = result
            if self._task and isinstance(result, outcome.Error) and isinstance(result.error, CallError):
                result.error.executed = "unknown"  # the task was begun, whatever is known of the second request
        self._conclude(final)

    def _tick(self, token: int | str, ticks: int) -> None:
        params = b'{"progressToken":%b,"progress":%d}' % (encode(token), ticks)
        try:
            self._client.session.notify("notifications/progress", params)
        except CallError as exc:
            log.debug("tick unsent peer=%s error=%s", self._client.session.name, exc)
