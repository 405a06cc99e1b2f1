"""Taking over a changed configuration while serving: the file is watched, and SIGHUP says to look at once."""

from __future__ import annotations

import os
import signal
import stat
import sys
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import tell
from cord_trio.cli.common import clean, load, tell_problems
from cord_trio.config import load_config
from cord_trio.config.load import DEFAULT_FILES
from cord_trio.errors import ConfigError, Draining, Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import TypeAlias

    from cord_trio.cli.sockets import Notify
    from cord_trio.config import Config
    from cord_trio.fabric import Fabric
    from cord_trio.sources import Changes

    Stamp: TypeAlias = tuple[int, ...] | None

LOOK: Final = 1.0
"""Seconds between looks at the file. It is taken over once two of them find it the same."""


def load_stamped(args: argparse.Namespace) -> tuple[Config, Stamp]:
    """What is configured, and the stamp that its file had before it was read. Raises `ConfigError`."""
    stamps = {file: _stamp(file) for file in ([args.config] if args.config is not None else DEFAULT_FILES)}
    config = load(args)
    return config, stamps.get(config.file)


async def keep_reloading(
    fabric: Fabric,
    read: Stamp,
    as_told: Callable[[Config], Config],
    interrupted: trio.Event,
    notify: Notify,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Follow the file that the fabric was configured from, until cancelled.

    A file that cannot be used changes nothing, and is reported once.

    Args:
        fabric: to be reconfigured.
        read: the stamp of that file as it was read; what came since is taken over.
        as_told: puts in what the command line says instead of the file.
        interrupted: set if the signal means that our terminal is gone, which ends us like any other program.
        notify: told of each look.
        task_status: told once SIGHUP is heard.

    """
    file = fabric.config.file
    used = seen = read
    on_terminal = _has_terminal()
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        task_status.started()
        while True:
            told = False
            with trio.move_on_after(LOOK):
                await anext(hangups)
                told = True
            if told and on_terminal and not _has_terminal():
                interrupted.set()
                continue
            found = _stamp(file)
            rests, seen = found == seen, found
            # Halfway through an editor's write it is neither the old one nor the new.
            if told or (rests and found != used):
                used = found
                notify.reloading()
                _reload(fabric, file, as_told)
                notify.ready()


def _reload(fabric: Fabric, file: str, as_told: Callable[[Config], Config]) -> None:
    try:
        if fault := _fault(file):
            raise ConfigError([Problem(file, "", *fault)])
        config = as_told(load_config(file))
        changes = fabric.reconfigure(config)
    except ConfigError as exc:
        for problem in exc.problems:
            tell(f"error: {clean(str(problem))}")
        tell(f"{file} was not taken over: everything goes on as it was")
        return
    except Draining:
        return
    tell_problems(config.problems)
    tell(f"{file} was taken over: {_shown(changes)}")
    if changes.restart:
        tell(f"warning: {file}: what is new in {', '.join(changes.restart)} takes a restart")


def _shown(changes: Changes) -> str:
    parts = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("added", changes.added),
            ("removed", changes.removed),
            ("replaced", changes.replaced),
            ("as before, since it cannot be used any more:", changes.kept),
        )
        if names
    ]
    return "; ".join(parts) or "no source has changed"


def _fault(file: str) -> tuple[str, str] | None:
    """Why the file is not even read, and what to do; None if it is, be it only to say what is wrong with it."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        return "is no plain file", "put one in its place"  # reading a pipe might take for ever, and hold up all calls
    if not found.st_size:
        return "is empty", "write what it is to hold, or stop the gateway"  # some write a file in two steps
    return None


def _stamp(file: str) -> Stamp:
    """What tells one content of the file from another, and whether it may be read; None if there is no file."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _has_terminal() -> bool:
    """Whether we have a terminal that is still there."""
    try:
        os.tcgetpgrp(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)
    except OSError:
        return False
    return True
