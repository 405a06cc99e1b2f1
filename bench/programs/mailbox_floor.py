"""The least that Trio can do for a mailbox: a deque, and a waiting task that is rescheduled.

No bound, no budget, no deadline, no trace, no answer to a crash: a limit, not a mailbox.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter as clock

import trio
from agents_common import run, send_many


async def main(_):
    took, queue, waiting = [], deque(), []

    async def take(since):  # noqa: ASYNC124  # as a handler is
        took.append(clock() - since)

    async def work():
        task = trio.lowlevel.current_task()
        while True:
            while not queue:
                waiting.append(task)
                await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
            await take(queue.popleft())

    async def send(since):
        queue.append(since)
        if waiting:
            trio.lowlevel.reschedule(waiting.pop())
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.lowlevel.checkpoint()
        figures = await send_many(send, took)
        nursery.cancel_scope.cancel("all have been sent")
    return {**figures, "versions": {"trio": trio.__version__}}


if __name__ == "__main__":
    run(lambda seconds: trio.run(main, seconds))
