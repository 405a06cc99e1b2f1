"""Where `serve` has its listening sockets from: its own, one it inherited, systemd's, or another process's.

Also the few words that systemd wants to hear (sd_notify). Both are protocols of a page each, so no library is needed.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.config import is_loopback

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST: Final = 3
"""The first descriptor that systemd passes (sd_listen_fds(3))."""

VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def passed(environ: MutableMapping[str, str]) -> list[int]:
    """The descriptors that systemd passed to this process; none if it passed none.

    The variables are removed, and the descriptors closed in children, so that nobody after us takes them for his.

    Raises:
        ValueError: what is said about them makes no sense.

    """
    said = {name: environ.pop(name, "") for name in VARIABLES}
    if said["LISTEN_PID"] != str(os.getpid()):
        return []  # meant for another process, such as the one that started us
    count = said["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and int(count) <= 64):
        raise ValueError(f"LISTEN_FDS={count!r} is no number of sockets")
    numbers = list(range(FIRST, FIRST + int(count)))
    for number in numbers:
        with suppress(OSError):  # told when it is looked at
            os.set_inheritable(number, False)
    return numbers


def inherit(number: int) -> socket.socket:
    """The listening socket that the descriptor `number` is.

    Raises:
        ValueError: it is none that we may serve at; says why.

    """
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise ValueError(f"descriptor {number} is no socket")
    except OSError as exc:
        raise ValueError(f"descriptor {number} is not open") from exc
    try:
        return checked(socket.socket(fileno=number))
    except ValueError as exc:
        raise ValueError(f"descriptor {number} {exc}") from None


def checked(sock: socket.socket) -> socket.socket:
    """`sock`, if it listens for TCP on a loopback address; else it is closed.

    Raises:
        ValueError: it does not; says why, to follow the words for the socket.

    """
    why = ""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        why = "is no socket of TCP"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        why = "does not listen"
    elif not is_loopback(sock.getsockname()[0]):
        why = f"listens on {sock.getsockname()[0]}, which is no loopback address, and there is no authentication yet"
    if why:
        sock.close()
        raise ValueError(why)
    sock.setblocking(False)
    os.set_inheritable(sock.fileno(), False)
    return sock


def as_listeners(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    """The same, for Trio."""
    return [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]


class Notify:
    """Tells systemd how we are (sd_notify(3)); nobody, where NOTIFY_SOCKET names nobody. Never fails or waits."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")

    def __call__(self, *lines: str) -> None:
        """Tell it these, such as `READY=1`."""
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
            telling.setblocking(False)
            telling.sendto("\n".join(lines).encode(), address)

    def ready(self) -> None:
        """We serve. Also names our process, which may have taken over from the one that systemd started."""
        self("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """We look at the configuration; `ready` follows."""
        self("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """We drain."""
        self("STOPPING=1")
