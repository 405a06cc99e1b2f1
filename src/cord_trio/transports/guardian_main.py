"""The guardian's program: `python -I -S guardian_main.py COOKIE`, standard library only, small on purpose.

It reads lines from stdin: `+GROUP` and `-GROUP` register and unregister a process group. At end of file,
which comes however the fabric ends, it ends the groups that are left, and then whatever carries the cookie
in its environment, until nothing does.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the bare module: `signal` would load `enum`
import os
import sys
import time

TERM_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL."""

POLL = 0.02
"""Seconds between two looks at what is left."""

GIVE_UP = 30.0
"""Seconds after which what does not die even of SIGKILL is left to the kernel."""

COOKIE = b"CORD_TRIO_FABRIC="


def groups_left(lines: int) -> set[int]:
    """The groups still registered when the pipe ends."""
    groups: set[int] = set()
    tail = b""
    while data := os.read(lines, 65536):
        *whole, tail = (tail + data).split(b"\n")
        for line in whole:
            if line[:1] == b"+":
                groups.add(int(line[1:]))
            elif line[:1] == b"-":
                groups.discard(int(line[1:]))
    return groups


def marked(mark: bytes) -> list[int]:
    """Every process that was started with `mark` in its environment. Empty where there is no /proc."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if not name.isdigit():
            continue
        try:
            file = os.open(f"/proc/{name}/environ", os.O_RDONLY)
        except OSError:
            continue
        try:
            environment = b""
            while part := os.read(file, 1 << 20):
                environment += part
        except OSError:
            continue
        finally:
            os.close(file)
        if mark in environment.split(b"\0"):
            found.append(int(name))
    return found


def send(kill: object, target: int, number: int) -> bool:
    """Signal a process or group with `os.kill` or `os.killpg`. False if it is not there."""
    try:
        kill(target, number)  # type: ignore[operator]  # either function
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def end_all(groups: set[int], mark: bytes) -> None:
    """End `groups` and everything that carries `mark`: SIGTERM, then SIGKILL, until nothing is left."""
    start = time.monotonic()
    told: set[int] = set()
    groups = {group for group in groups if send(os.killpg, group, _signal.SIGTERM)}
    while (now := time.monotonic() - start) < GIVE_UP:
        left = marked(mark)
        if now < TERM_GRACE:
            for pid in left:
                if pid not in told:
                    told.add(pid)
                    send(os.kill, pid, _signal.SIGTERM)
            # A group of zombies that nobody collects still exists; it does not outlive the grace here.
            groups = {group for group in groups if send(os.killpg, group, 0)}
        else:
            for group in groups:
                send(os.killpg, group, _signal.SIGKILL)
            groups = set()
            for pid in left:
                send(os.kill, pid, _signal.SIGKILL)
        if not left and not groups:
            return
        time.sleep(POLL)


def main() -> None:
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        # A service manager signals everything at once; then the fabric is still to be outlived.
        _signal.signal(number, _signal.SIG_IGN)
    end_all(groups_left(0), COOKIE + sys.argv[1].encode())


if __name__ == "__main__":
    main()
