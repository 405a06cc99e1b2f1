"""Child processes: started with pipes of our own and a bare environment, stopped with all their offspring.

Each child leads its own process group, so that one signal reaches whatever it started. It leads a session too only
where we have a terminal, from which it could otherwise read: where Linux schedules by session (`sched_autogroup`),
fifty sessions more answered a third as many calls. There is no `preexec_fn` and no `PR_SET_PDEATHSIG`: that signal
fires when the thread that spawned dies, and Trio may spawn from a worker thread. What survives the death of the fabric
itself is the guardian's.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from cord_trio.errors import ConnectFailed
from cord_trio.transports.started import Started, start

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

ENVIRONMENT: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TZ", "TMPDIR", "__CF_USER_TEXT_ENCODING"}
)
"""Variables of ours that every child gets, if set, and `LC_*`; all others only if its source gives them."""

COOKIE: Final = "CORD_TRIO_FABRIC"
"""Variable that marks every process of a fabric."""

STDERR_TAIL: Final = 64 * 1024
"""Bytes of a child's stderr that are kept, the last ones."""

STDERR_SHOWN: Final = 600
"""Characters of a child's stderr that an error shows, the last ones."""

KILL_WAIT: Final = 1.0
"""Seconds that the kernel has to end what was sent SIGKILL."""

POLL: Final = 0.02
"""Seconds between two looks at a process group whose leader is gone: nothing tells when its last member ends."""


@attrs.frozen
class Graces:
    """Seconds a child has to end by itself: after its stdin is closed, and again after SIGTERM."""

    close: float = 2.0
    term: float = 2.0

    @property
    def bound(self) -> float:
        """Seconds that a stop takes at most."""
        return self.close + self.term + KILL_WAIT


GRACES: Final = Graces()
"""What a child gets unless told otherwise."""


class Command(Protocol):
    """What to run: the part of a configured stdio source that matters here."""

    @property
    def command(self) -> str: ...
    @property
    def args(self) -> tuple[str, ...]: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def cwd(self) -> str | None: ...


def child_environment(own: Mapping[str, str], given: Mapping[str, str], cookie: str) -> dict[str, str]:
    """The whole environment of a child: what is allowed of `own`, then `given`, then the fabric's mark."""
    allowed = {
        name: value
        for name, value in own.items()
        # A value that begins so is a shell function, not a setting.
        if (name in ENVIRONMENT or name.startswith("LC_")) and not value.startswith("()")
    }
    return {**allowed, **given, COOKIE: cookie}


class Child:
    """A running child, its group, and our ends of its three pipes.

    Invariants: the descriptors are non-blocking, ours alone, and -1 once closed; its exit is collected
    by `wait`; `stop` leaves no member of its group.

    Attributes:
        gone: whether it and its group have ended; from then on the number may be somebody else's.
        stopped_by: the last signal that its group had to be sent; 0 for none.
        pid: its process id, which is also its group's.
        stdin: descriptor that we write to.
        stdout: descriptor that we read from.
        stderr: descriptor that we read from.

    """

    def __init__(self, process: trio.Process | Started, stdin: int, stdout: int, stderr: int) -> None:
        self.gone = False
        self.stopped_by = 0
        self.pid = process.pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._process = process
        self._said = bytearray()

    @property
    def exit_status(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it runs."""
        return self._process.returncode

    @property
    def stderr_tail(self) -> str:
        """The last that it wrote to stderr."""
        return self._said[-STDERR_TAIL:].decode(errors="replace")

    def describe(self, otherwise: str) -> str:
        """What became of it, or `otherwise` if it still runs, with the end of what it said on stderr."""
        status = self.exit_status
        if status is None:
            text = f"server: {otherwise}"
        elif status < 0:
            text = f"server exited (signal {-status})"
        else:
            text = f"server exited with status {status}"
        said = self.stderr_tail.strip()
        if len(said) > STDERR_SHOWN:
            said = f"…{said[-STDERR_SHOWN:]}"
        return f"{text}; stderr: {said}" if said else text

    @property
    def exit_fd(self) -> int:
        """Descriptor that can be read once it has exited; -1 if there is none."""
        return self._process.fd if isinstance(self._process, Started) else -1

    def wait(self) -> Coroutine[object, object, int]:
        """Its exit status, once it has exited."""
        return self._process.wait()

    async def drain_stderr(self) -> None:
        """Read its stderr until the end, and keep the tail."""
        while await _readable(self.stderr):
            if not self.read_stderr():
                return

    def read_stderr(self) -> bool:
        """Take what stderr holds now, as far as one read goes. False at its end."""
        try:
            data = os.read(self.stderr, STDERR_TAIL)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._said += data
        if len(self._said) > 2 * STDERR_TAIL:
            del self._said[:-STDERR_TAIL]
        return bool(data)

    def hear(self) -> str | None:
        """The same, for a pump: why it is over, at its end."""
        return None if self.read_stderr() else "its stderr has ended"

    async def _discard_stdout(self) -> None:
        while await _readable(self.stdout):
            try:
                if not os.read(self.stdout, STDERR_TAIL):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return

    def close_stdin(self) -> None:
        """Tell it that no more comes."""
        self.stdin = _close(self.stdin)

    def signal(self, number: int) -> bool:
        """Signal its whole group. False if nobody is left in it."""
        if self.gone:
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # a member runs as somebody else; macOS says so of zombies too
            return group_lives(self.pid)
        return True

    async def stop(self, graces: Graces) -> bool:
        """End it and its group: close stdin, wait, SIGTERM, wait, SIGKILL; as short as it lets us.

        Its output is drained meanwhile, since a writer that is blocked cannot exit. The caller shields
        this; it takes `graces.bound` seconds at most, and nothing but the child's own time if it obeys.

        Returns:
            Whether it and its group are gone.

        """
        self.close_stdin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard_stdout)
            nursery.start_soon(self.drain_stderr)
            await self.sweep(graces)
            nursery.cancel_scope.cancel("the child has been stopped")
        self.read_stderr()  # its last words may have come in the tick in which it exited
        return self.gone

    async def sweep(self, graces: Graces) -> bool:
        """Wait for its exit and end what is left of its group, as `stop` does, but read and close nothing."""
        with trio.move_on_after(graces.close):
            await self.wait()
        for number, grace in ((signal.SIGTERM, graces.term), (signal.SIGKILL, KILL_WAIT)):
            self.gone = self.gone or (self.exit_status is not None and not group_lives(self.pid))
            if not self.signal(number):
                self.gone = self.exit_status is not None
                break
            self.stopped_by = number
            with trio.move_on_after(grace):
                await self.wait()
                while group_lives(self.pid):  # noqa: ASYNC110  # no event tells when a group's last member ends
                    await trio.sleep(POLL)
                self.gone = True
        return self.gone

    def close(self) -> None:
        """Give up our ends of its pipes."""
        self.close_stdin()
        self.stdout = _close(self.stdout)
        self.stderr = _close(self.stderr)
        if isinstance(self._process, Started):
            self._process.close()


async def spawn(source: Command, *, name: str, cookie: str) -> Child:
    """Start `source`'s command as the leader of a process group of its own, out of reach of our terminal.

    Raises:
        ConnectFailed: it could not be started; the configuration's fault.

    """
    environment = child_environment(os.environ, source.env, cookie)
    with ExitStack() as theirs, ExitStack() as ours:
        try:
            stdin, our_stdin = _pipe(theirs, ours)
            our_stdout, stdout = _pipe(ours, theirs)
            our_stderr, stderr = _pipe(ours, theirs)
            process = await start(
                [source.command, *source.args],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd=source.cwd,
                **({"start_new_session": True} if has_terminal() else {"process_group": 0}),
            )
        except (OSError, ValueError) as exc:
            raise _spawn_failed(source, name, environment.get("PATH", ""), exc) from exc
        for fd in (our_stdin, our_stdout, our_stderr):
            os.set_blocking(fd, False)
        ours.pop_all()
        return Child(process, our_stdin, our_stdout, our_stderr)


def has_terminal() -> bool:
    """Whether our session has a terminal, which our children could read from."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def group_lives(group: int) -> bool:
    """Whether a process group has a member that still runs. Zombies that nobody collects do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        if sys.platform == "darwin":  # pragma: no cover  # there it means: zombies only, or foreign
            return False
    if sys.platform != "linux":  # pragma: no cover
        return True
    return any(_is_member(name, group) for name in os.listdir("/proc") if name.isdigit())


def _is_member(pid: str, group: int) -> bool:
    try:
        status = Path("/proc", pid, "stat").read_bytes()
    except OSError:
        return False
    # pid (name, which may hold anything) state parent group ...
    state, _parent, of = status.rpartition(b")")[2].split()[:3]
    return int(of) == group and state not in (b"Z", b"X")


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe's two ends, each closed with its side."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


async def _readable(fd: int) -> bool:
    """Wait until `fd` can be read. False if it is closed, or another task reads it."""
    try:
        await trio.lowlevel.wait_readable(fd)
    except (trio.ClosedResourceError, trio.BusyResourceError, OSError):
        return False
    return True


def _close(fd: int) -> int:
    if fd >= 0:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)
    return -1


def _spawn_failed(source: Command, name: str, path: str, error: OSError | ValueError) -> ConnectFailed:
    command, number = source.command, getattr(error, "errno", None)
    reason, remedy = f"cannot start {command!r}: {getattr(error, 'strerror', None) or error}", ""
    if source.cwd is not None and not os.path.isdir(source.cwd):
        reason, remedy = f"the working folder {source.cwd!r} is not there", "create it, or correct cwd"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        if os.path.exists(command):
            reason = f"the interpreter that {command!r} names is not there"
            remedy = "install it, or mend its first line"
        else:
            reason = f"no such command: {command!r}"
            remedy = f"install it, or give its full path; looked in PATH={path}"
            if os.sep in command:
                remedy = f"correct the path; it starts from {source.cwd or os.getcwd()}"
    elif number == errno.EACCES:
        remedy = "make it executable (chmod +x), or name another file; PATH may hold one that is not executable"
    elif number == errno.ENOEXEC:
        remedy = "it is no program: give its interpreter as the command, or a first line that starts with #!"
    elif number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        remedy = "this machine's limit is met (ulimit -n, ulimit -u, memory)"
    return ConnectFailed(name, "spawn", reason, remedy)
