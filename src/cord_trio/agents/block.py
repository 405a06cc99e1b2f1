"""Where a fabric was opened: which tasks end with its block by themselves, and which must be told to."""

from __future__ import annotations

import trio


class Block:
    """The task that opens a fabric, and what it had opened before, which may outlive the fabric's block."""

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._before = frozenset(self._task.child_nurseries)

    def holds_this_task(self) -> bool:
        """Whether the task that runs lives within the block, and so cannot outlive it."""
        task = trio.lowlevel.current_task()
        while task is not self._task:
            nursery = task.parent_nursery
            if nursery is None or nursery in self._before:
                return False
            task = nursery.parent_task
        return True
