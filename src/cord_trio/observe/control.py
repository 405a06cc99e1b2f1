"""A running fabric's window: a local socket at which its own user, and nobody else, may ask how it is.

One line is asked, one line of JSON answers, and nothing can be changed, but that a process of the same user may
take over its listening sockets (`handover`). The folder keeps others out; the
peer's user is checked as well, since a folder may have been given away.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import stat
import struct
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio.observe.handover import HANDOVER, TAKING
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from cord_trio.counters import Counters
    from cord_trio.observe.handover import Offer
    from cord_trio.protocol.jsonrpc import Json

log = logging.getLogger("cord_trio.observe")

REQUEST: Final = b"tree"
"""All that may be asked."""

REQUEST_LIMIT: Final = 64
"""Bytes of a request, its line end included."""

REPLY_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a reply that are read."""

CONNECTIONS: Final = 8
"""Askers at once; one more is hung up on."""

PATIENCE: Final = 5.0
"""Seconds for one asker to ask and to be answered."""

UNFINISHED: Final = 60.0
"""Seconds after which a socket that never got its name is somebody's who died over it."""

SUFFIX: Final = ".sock"
"""How the name of a socket ends that is being listened at."""


def folders(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where a user's sockets may be, the preferred place first."""
    runtime = (os.environ if environ is None else environ).get("XDG_RUNTIME_DIR", "")
    found = [Path(runtime, "cord_trio")] if os.path.isabs(runtime) else []
    # Also looked at by whoever has the former: a service or a cron job may have been started without it.
    return [*found, Path(tempfile.gettempdir(), f"cord_trio-{os.geteuid()}")]


def sockets(pid: int | None = None, places: list[Path] | None = None) -> list[Path]:
    """Those that somebody listens at, or seems to, of process `pid` alone if one is given. Clears away the others."""
    found: list[Path] = []
    for folder in folders() if places is None else places:
        if _fault(folder):
            continue
        _sweep(folder)
        found += sorted(path for path in folder.glob(f"*{SUFFIX}") if pid in (None, pid_of(path)))
    return found


def pid_of(path: Path) -> int:
    """The process that listens at this socket; 0 for a name that is not ours."""
    pid = path.name.partition("-")[0]
    return int(pid) if pid.isascii() and pid.isdigit() else 0


@asynccontextmanager
async def open_control(
    answer: Callable[[], Mapping[str, object]],
    *,
    counters: Counters,
    places: list[Path] | None = None,
    offer: Offer | None = None,
) -> AsyncGenerator[Path | None, None]:
    """A socket at which `answer` can be had for as long as the block runs; None if none could be made.

    That there is none ends nothing: a warning says why. An error in the block leaves as it was raised.

    Args:
        answer: what is told, made anew for each who asks.
        counters: counts who was turned away.
        places: folders to try, the preferred first; None for the usual ones.
        offer: what is handed over to another process of this user that asks for it; None for nothing.

    """
    made = _listen(folders() if places is None else places)
    if made is None:
        yield None
        return
    path, listener = made
    block_error: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            attend = _Desk(answer, counters, offer).attend
            nursery.start_soon(partial(trio.serve_listeners, attend, [listener], handler_nursery=nursery))
            try:
                yield path
            # Cancelled must travel through the nursery: it may be its.
            except Exception as exc:
                block_error = exc
            nursery.cancel_scope.cancel("the block has ended")
    finally:
        listener.socket.close()
        with suppress(OSError):
            path.unlink()
    if block_error is not None:
        raise block_error


async def look(path: Path) -> dict[str, Json] | None:
    """What is answered at this socket; None if nobody listens, or what listens does not answer."""
    reply = b""
    with trio.move_on_after(PATIENCE), suppress(OSError, trio.BrokenResourceError):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(REQUEST + b"\n")
            pieces, size = [], 0
            async for piece in stream:
                pieces.append(bytes(piece))
                size += len(piece)
                if size > REPLY_LIMIT:
                    return None
            reply = b"".join(pieces)
    try:
        found = jsonrpc.parse(reply)
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("tree"), dict) else None


class _Desk:
    """Answers those who ask, a few at once."""

    def __init__(
        self, answer: Callable[[], Mapping[str, object]], counters: Counters, offer: Offer | None = None
    ) -> None:
        self._answer = answer
        self._offer = offer
        self._counters = counters
        self._open = 0

    async def attend(self, stream: trio.SocketStream) -> None:
        """Answer one of them, and hang up. Raises nothing for what the asker did."""
        self._open += 1
        try:
            with trio.move_on_after(PATIENCE) as scope, suppress(trio.BrokenResourceError):
                async with stream:
                    if self._open > CONNECTIONS:
                        self._counters.add("control.overloaded")
                    elif _user(stream.socket) not in (None, os.geteuid()):
                        self._counters.add("control.strangers")
                    else:
                        await self._serve(stream, scope)
            if scope.cancelled_caught:
                self._counters.add("control.expired")
        finally:
            self._open -= 1

    async def _serve(self, stream: trio.SocketStream, patience: trio.CancelScope) -> None:
        asked = b""
        while b"\n" not in asked and len(asked) < REQUEST_LIMIT:
            piece = await stream.receive_some(REQUEST_LIMIT - len(asked))
            if not piece:
                return  # it only wanted to know whether somebody listens
            asked += piece
        if asked == HANDOVER + b"\n" and self._offer is not None and _user(stream.socket) is not None:
            patience.relative_deadline = TAKING
            await self._offer.hand_over(stream)
            return
        await stream.send_all(self._reply(asked) + b"\n")

    def _reply(self, asked: bytes) -> bytes:
        line, end, rest = asked.partition(b"\n")
        if line.rstrip(b"\r") != REQUEST or not end or rest:
            self._counters.add("control.refused")
            return jsonrpc.encode({"error": f"only {REQUEST.decode()!r} may be asked"})
        try:
            return jsonrpc.encode(self._answer())
        except Exception as exc:  # whoever looks must not end what is looked at
            log.exception("the tree could not be shown")
            return jsonrpc.encode({"error": repr(exc)})


def _user(asker: trio.socket.SocketType) -> int | None:
    """The user at the other end; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, user, _ = struct.unpack("iII", asker.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII")))
    return int(user)


def _listen(places: list[Path]) -> tuple[Path, trio.SocketListener] | None:
    """A socket in the first of these folders that can be used."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    faults: list[str] = []
    for folder in places:
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            if fault := _fault(folder):
                faults.append(fault)
                continue
            _sweep(folder)
            return _bind(folder)
        except OSError as exc:
            faults.append(f"{folder}: {exc.strerror or exc}")
    log.warning("no socket for `tree` and `top`: %s", "; ".join(faults))
    return None


def _bind(folder: Path) -> tuple[Path, trio.SocketListener]:
    name = f"{os.getpid()}-{secrets.token_hex(3)}"
    unfinished, path = folder / f".{name}", folder / f"{name}{SUFFIX}"
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(os.fspath(unfinished))
        try:
            unfinished.chmod(0o600)
            made.listen(CONNECTIONS)
            # Only now does it get the name under which who refuses connections is cleared away.
            unfinished.rename(path)
        except OSError:
            unfinished.unlink()
            raise
    except BaseException:
        made.close()
        raise
    return path, trio.SocketListener(trio.socket.from_stdlib_socket(made))


def _fault(folder: Path) -> str:
    """Why `folder` cannot be trusted; "" if it is ours, and nobody else may enter it."""
    try:
        found = folder.lstat()
    except OSError as exc:
        return f"{folder}: {exc.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder"
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return f"{folder} is not this user's alone"
    return ""


def _sweep(folder: Path) -> None:
    """Remove the sockets of those who died."""
    for path in _sockets(folder):
        with suppress(OSError):
            named = path.name.endswith(SUFFIX)
            if (named or time.time() - path.lstat().st_mtime > UNFINISHED) and not _listened(path):
                path.unlink()


def _sockets(folder: Path) -> Iterator[Path]:
    for path in list(folder.iterdir()):
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield path


def _listened(path: Path) -> bool:
    """Whether a process listens there; never waits for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        return asking.connect_ex(os.fspath(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
