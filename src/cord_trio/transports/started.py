"""Starting a program, and learning of its exit, without a thread and without a task that waits for it.

Python starts a program by `vfork`, half a millisecond in which the loop stands still, on a busy machine a few. In a
thread it costs three times as much, holds Python's global lock for half of that time, and leaves the thread. And a
descriptor tells of the exit, which one task can await for all. Where Linux's descriptors of processes cannot be had,
Trio's own way serves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, TypedDict

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NotRequired, Unpack


class Setting(TypedDict):
    """What a program is started with, as `subprocess.Popen` has it."""

    stdin: int
    stdout: int
    stderr: int
    env: Mapping[str, str]
    cwd: str | None
    start_new_session: NotRequired[bool]
    process_group: NotRequired[int]


class Started:
    """A process of ours, and a descriptor that can be read once it has exited.

    Attributes:
        pid: its number, until its exit is collected.
        fd: the descriptor; -1 once closed.

    """

    __slots__ = ("_process", "_waiting", "fd", "pid")

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process of which nobody else collects the exit. Raises OSError if there is no descriptor of it."""
        self.pid = process.pid
        self.fd = os.pidfd_open(process.pid)
        self._process = process
        self._waiting: trio.Lock | None = None

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Its exit status, once it has exited."""
        if self._waiting is None:
            self._waiting = trio.Lock()
        async with self._waiting:  # around the next await: only one task may wait for a descriptor
            while (status := self.returncode) is None:
                await trio.lowlevel.wait_readable(self.fd)
        return status

    def close(self) -> None:
        """Give up the descriptor. Again does nothing."""
        if self.fd >= 0:
            trio.lowlevel.notify_closing(self.fd)
            os.close(self.fd)
            self.fd = -1


async def start(command: Sequence[str], **setting: Unpack[Setting]) -> Started | trio.Process:
    """Start `command`. Others run before that, and the loop stands still for about half a millisecond.

    Raises:
        OSError: it could not be started.
        ValueError: something in it cannot be told to the kernel.

    """
    if not has_descriptors():
        return await trio.lowlevel.open_process(command, **setting)
    await trio.lowlevel.checkpoint()
    process = subprocess.Popen(command, **setting)  # noqa: ASYNC220  # see the module
    try:
        return Started(process)
    except BaseException:  # nobody else would end it, or collect its exit
        process.kill()
        process.wait()
        raise


def has_descriptors() -> bool:
    """Whether the kernel gives a descriptor of a process."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True
