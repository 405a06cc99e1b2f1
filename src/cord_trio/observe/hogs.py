"""Who holds the loop: while it does not come round, a thread looks at what it runs.

Everything shares one loop, so a handler that computes for long stops all others, and nothing in it can say so: it
takes no step. A look from outside costs the loop one addition a turn, and names the very line.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.observe.tree import Node

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from types import FrameType

    from cord_trio.counters import Counters

HOG: Final = 0.025
"""Seconds without a turn of the loop from which on somebody is said to hold it."""

LOOK: Final = 0.01
"""Seconds between looks while the loop has work."""

REST: Final = 50
"""Looks at an idle loop after which it is not looked at any more until it has work."""

KEPT: Final = 64
"""Places that are remembered; of further ones only the number."""

_NOT_THEIRS: Final = tuple(
    folder + os.sep
    for folder in (
        os.path.dirname(os.path.dirname(__file__)),
        os.path.dirname(trio.__file__),
        os.path.dirname(os.__file__),
    )
)


@attrs.frozen
class Hog:
    """Somebody who held the loop.

    Attributes:
        who: the agent, or else the function that the task was started with.
        where: file, line and function, of the caller's code if there is any.
        times: how often it was found so.
        longest: seconds.

    """

    who: str
    where: str
    times: int
    longest: float


class Watch(trio.abc.Instrument):
    """What was seen so far. Get one from `open_watch`."""

    def __init__(self, name_of: Callable[[FrameType], str | None], counters: Counters) -> None:
        self.turns = 0
        self._name_of = name_of
        self._counters = counters
        self._loop = threading.get_ident()
        self._rests = False
        self._wake = threading.Event()
        self._over = False
        self._found: dict[tuple[str, str], Hog] = {}

    def after_io_wait(self, timeout: float) -> None:  # Trio's
        """Count a turn."""
        self.turns += 1
        if self._rests:
            self._rests = False
            self._wake.set()

    @property
    def hogs(self) -> tuple[Hog, ...]:
        """Who held the loop, the longest first."""
        return tuple(sorted(self._found.copy().values(), key=lambda hog: -hog.longest))  # the thread adds to it

    def nodes(self) -> list[Node]:
        """The same for the live tree."""
        return [
            Node("hog", hog.who, "held the loop", {
                "where": hog.where, "times": hog.times, "longest_ms": round(hog.longest * 1e3),
            })
            for hog in self.hogs
        ]  # fmt: skip

    def stop(self) -> None:
        """End the thread's `run`."""
        self._over = True
        self._wake.set()

    def run(self) -> None:
        """Look until stopped. In a thread of its own."""
        turns, since, before, quiet = -1, 0.0, perf_counter(), 0
        held: tuple[str, str] | None = None
        while not self._over:
            self._wake.wait(LOOK)
            self._wake.clear()
            now = perf_counter()
            late, before = now - before - LOOK, now
            frame = sys._current_frames().get(self._loop)
            if frame is None or _waits(frame):
                held, turns, quiet = None, self.turns, quiet + 1
                since = now
                if quiet >= REST and not self._over:
                    self._rest(turns)
                    before = perf_counter()
                continue
            quiet = 0
            if self.turns != turns:
                turns, since, held = self.turns, now, None
                # C code that keeps the interpreter to itself lets nobody look before it is done.
                if late < HOG:
                    continue
                since = now - late
            if now - since >= HOG:
                held = self._note(frame, now - since, held)

    def _rest(self, turns: int) -> None:
        """Wait until the loop has work."""
        self._rests = True
        if self.turns == turns and not self._over:
            self._wake.wait()
        self._rests = False
        self._wake.clear()

    def _note(self, frame: FrameType, seconds: float, before: tuple[str, str] | None) -> tuple[str, str]:
        """Remember who holds it; `before` is who was noted of the same turn. Returns who it is."""
        frames = _step(frame)
        key = before or (self._who(frames), _where(frames))
        found = self._found.get(key)
        if found is None:
            if before is None:
                self._counters.add("observe.hogs")
            if len(self._found) >= KEPT:
                return key
            found = Hog(*key, 0, 0.0)
        times = found.times + (before is None)
        self._found[key] = attrs.evolve(found, times=times, longest=max(found.longest, seconds))
        return key

    def _who(self, frames: Sequence[FrameType]) -> str:
        named = next(filter(None, map(self._name_of, frames)), None)
        coroutines = [frame for frame in frames if frame.f_code.co_flags & inspect.CO_COROUTINE]
        return named or (coroutines or frames)[-1].f_code.co_qualname


def _waits(frame: FrameType) -> bool:
    """Whether the loop waits for something to do."""
    return str(frame.f_globals.get("__name__", "")).startswith("trio._core._io_")


def _step(frame: FrameType) -> list[FrameType]:
    """What the loop runs, the innermost first. Taken at once: it goes on while we look."""
    frames = []
    at: FrameType | None = frame
    while at is not None and at.f_code.co_name != "unrolled_run":
        frames.append(at)
        at = at.f_back
    return frames or [frame]


def _where(frames: Sequence[FrameType]) -> str:
    """The line that is run, in the code of whoever uses us if it is there."""
    theirs = [frame for frame in frames if _is_theirs(frame.f_code.co_filename)]
    at = (theirs or frames)[0]
    return f"{os.path.basename(at.f_code.co_filename)}:{at.f_lineno} in {at.f_code.co_qualname}"


def _is_theirs(file: str) -> bool:
    return not file.startswith(_NOT_THEIRS) and "site-packages" not in file


@asynccontextmanager
async def open_watch(name_of: Callable[[FrameType], str | None], *, counters: Counters) -> AsyncGenerator[Watch, None]:
    """Watch this loop for as long as the block runs. Its thread has ended with the block.

    Args:
        name_of: the agent whose handler a frame runs, if it does.
        counters: counts who was found.

    """
    watch = Watch(name_of, counters)
    thread = threading.Thread(target=watch.run, name="cord_trio watch", daemon=True)
    thread.start()
    trio.lowlevel.add_instrument(watch)
    try:
        yield watch
    finally:
        watch.stop()
        trio.lowlevel.remove_instrument(watch)
        thread.join()  # it is only ever a look away from its end
