"""The guardian: one small process per fabric that ends its children if the fabric itself is killed.

It holds the reading end of a pipe. However the fabric ends, the pipe ends, and the guardian then ends
every process group that is still registered, and whatever else carries the fabric's cookie in its
environment, such as a grandchild that left its group. All is gone within 2 s. Not reached: a process that
scrubbed its environment, and a container that was started through a daemon. Where there is no /proc
(macOS) only the groups are ended.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import trio

from cord_trio.counters import Counters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PROGRAM: Final = Path(__file__).with_name("guardian_main.py")

RESTARTS: Final = 10
"""Times that a killed guardian is replaced; then the fabric goes on without one."""

RESTART_PAUSE: Final = 0.1
"""Seconds before a guardian is replaced."""

READY_WAIT: Final = 5.0
"""Seconds that the first child waits for the guardian to be started; then it starts without."""

EXIT_WAIT: Final = 3.0
"""Seconds that the guardian has at the end of the fabric, when there should be nothing left to do for it."""

STARTED_AT_ONCE: Final = 8
"""Children that are started in one turn of the loop, which stands still for half a millisecond for each.

One in each turn took 45 ms of CPU for fifty of them, eight 38, and all at once 33.
"""

_log = logging.getLogger("cord_trio.transports")


class Guardian:
    """What knows the fabric's children and outlives it.

    Invariants: `register` and `unregister` never block or fail; the process is started with the first
    child; without it the fabric works as ever, and `guardian.lost` and `guardian.failed` count.

    Attributes:
        cookie: the value that marks every process of this fabric.
        groups: the process groups registered now.
        pid: the guardian's own process id, 0 while there is none.
        turn: whoever starts a child has one of these meanwhile.

    """

    def __init__(self, counters: Counters) -> None:
        self.cookie = uuid4().hex
        self.groups: set[int] = set()
        self.pid = 0
        self.turn: Final = trio.CapacityLimiter(STARTED_AT_ONCE)
        self._counters = counters
        self._pipe = -1
        self._wanted = trio.Event()
        self._ready = trio.Event()
        self._process: trio.Process | None = None

    def register(self, group: int) -> None:
        """Take care of process group `group`."""
        self.groups.add(group)
        self._wanted.set()
        self._tell(b"+%d\n" % group)

    def unregister(self, group: int) -> None:
        """Forget process group `group`, which is gone."""
        self.groups.discard(group)
        self._tell(b"-%d\n" % group)

    async def wait_ready(self) -> None:
        """Return once the guardian watches, starting it if it was not wanted before; or after `READY_WAIT`."""
        self._wanted.set()
        with trio.move_on_after(READY_WAIT):
            await self._ready.wait()

    async def keep(self) -> None:
        """Run the guardian from when it is first wanted, and replace it if it dies."""
        await self._wanted.wait()
        for _ in range(1 + RESTARTS):
            try:
                await self._start()
            except OSError as exc:
                self._counters.add("guardian.failed")
                self._ready.set()
                if exc.errno in (errno.ENOENT, errno.EACCES):
                    _log.warning("no guardian: children may outlive a fabric that is killed reason=%s", exc)
                    return
            else:
                assert self._process is not None
                await self._process.wait()
                self._counters.add("guardian.lost")
                self._leave()
            await trio.sleep(RESTART_PAUSE)
        _log.warning("the guardian does not stay: children may outlive a fabric that is killed tries=%d", 1 + RESTARTS)

    async def end(self) -> None:
        """Let the guardian go. It ends what is left, if anything is, and then itself."""
        process = self._process
        self._leave()
        if process is not None:
            await process.wait()

    async def _start(self) -> None:
        if not sys.executable:
            raise OSError(errno.ENOENT, "no Python interpreter to run the guardian with")
        read, write = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", str(PROGRAM), self.cookie],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Bare, so that it carries no cookie: not ours, nor that of a fabric whose child we are.
                env={name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_"))},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        os.set_blocking(write, False)
        self._process, self._pipe, self.pid = process, write, process.pid
        for group in self.groups:
            self._tell(b"+%d\n" % group)
        self._ready.set()

    def _tell(self, line: bytes) -> None:
        if self._pipe < 0:
            return
        try:
            os.write(self._pipe, line)
        except OSError:
            # Stopped or killed; whatever it does not learn it still finds by the cookie.
            self._counters.add("guardian.untold")

    def _leave(self) -> None:
        pipe, self._pipe = self._pipe, -1
        self._process, self.pid = None, 0
        if pipe >= 0:
            os.close(pipe)


@asynccontextmanager
async def open_guardian(*, counters: Counters | None = None) -> AsyncGenerator[Guardian, None]:
    """Guard the children that are registered while the block runs; open it before any child, close it after all."""
    guardian = Guardian(Counters() if counters is None else counters)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guardian.keep)
            try:
                yield guardian
            except Exception as exc:  # the block's own, which no group of this nursery shall wrap
                failure = exc
            nursery.cancel_scope.cancel("the fabric's block has ended")
    finally:
        with trio.move_on_after(EXIT_WAIT, shield=True):
            await guardian.end()
    if failure is not None:
        raise failure
