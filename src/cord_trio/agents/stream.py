"""Progress from an agent to whoever asked: what it emits, then what it answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents.crew import Promise

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cord_trio.agents.turn import Sink

STREAMED: Final = 16
"""Values that are emitted before whoever streams has looked at them; then `emit` waits."""


class Events:
    """What an agent emits, in order: `async for value in events`, then `await events.result()`."""

    def __init__(self, receive: trio.MemoryReceiveChannel[object]) -> None:
        self.answer = Promise()
        self.seen = False
        self._receive = receive

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> object:
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            self.seen = True
            if self.answer.error is not None:
                raise self.answer.error from None
            raise StopAsyncIteration from None

    async def result(self) -> object:
        """The answer. What is emitted from now on is not kept."""
        self._receive.close()
        self.seen = True
        return await self.answer.result()


@asynccontextmanager
async def open_stream(ask: Callable[[Sink], Awaitable[object]]) -> AsyncGenerator[Events, None]:
    """A block in which `ask` runs. Left early, it cancels the ask and joins it; errors leave it bare."""
    send, receive = trio.open_memory_channel[object](STREAMED)
    events = Events(receive)
    block_error: Exception | None = None

    async def emit(value: object) -> None:
        try:
            await send.send(value)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nobody looks any more

    async def run() -> None:
        with send:
            try:
                events.answer.settle(await ask(emit))
            except Exception as exc:
                events.answer.settle(error=exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            with receive:
                yield events
        except Exception as exc:
            block_error = exc
        nursery.cancel_scope.cancel("the block of the stream was left")
    if block_error is not None:
        raise block_error
    if events.answer.error is not None and not events.seen:
        raise events.answer.error
