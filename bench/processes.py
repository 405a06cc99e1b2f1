"""Runs contestants as child processes, and leaves none behind."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STOP = 10
"""Seconds a program has to stop once told."""
SETTLE = 5
"""Seconds its own children have to go after it."""

PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A contestant failed; says how, in one line."""


def adopt_orphans():
    """Whatever a contestant leaves behind becomes our child, so that we see it. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def begotten():
    """Ids of our children, whichever thread started them; also of the dead whom nobody has waited for."""
    ids = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            ids += map(int, task.read_text().split())
    return ids


def children():
    """Ids of our living children; the dead are waited for."""
    living = []
    for pid in begotten():
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                living.append(pid)
    return living


def reap(own=()):
    """Wait for orphans to end, then kill them. Returns how many had to be killed; `own` children stay."""
    patience = time.monotonic() + SETTLE
    while (left := [pid for pid in children() if pid not in own]) and time.monotonic() < patience:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return len(left)


SPIN = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[1]):
    pass
"""


@contextlib.contextmanager
def awake(cores):
    """Keep `cores` cores from going idle, at a priority that yields to everything. Yields the children's ids."""
    spinners = [subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN, str(os.getpid())]) for _ in range(cores)]
    try:
        yield [spinner.pid for spinner in spinners]
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def last_line(file):
    """The last that says something: a traceback of a group ends in a drawn line."""
    file.seek(0)
    lines = [line for line in file.read().splitlines() if line.strip(" |+-")]
    return lines[-1].lstrip(" |") if lines else "no message"


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_json(args, *, timeout):
    """Run a program that prints one JSON object as its last line; returns it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done within {timeout:g} s; {last_line(err)}") from None
        finally:
            kill_group(process)
        if status:
            raise Failed(f"exit status {status}: {last_line(err)}")
        try:
            return json.loads(last_line(out))
        except ValueError:
            raise Failed(f"printed no JSON: {last_line(out)}") from None


def cpu_of_run(args):
    """CPU seconds of a program from start to end."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # the first run writes the byte code
    process = subprocess.Popen(
        args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
    )
    with process.stderr:
        message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed((message.decode().strip().splitlines() or ["no message"])[-1])
    return usage.ru_utime + usage.ru_stime


def children_cpu():
    """CPU seconds of all children that have ended, and of theirs that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def pipes(args):
    """Run a program that speaks JSON-RPC on its pipes; yields what sends a message, and what takes the answer to one.

    Its stdin is closed at the end, whereupon it has to stop.
    """
    with tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, start_new_session=True
        )

        def say(message):
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            process.stdin.flush()

        def hear(id):
            for line in process.stdout:
                answer = json.loads(line)
                if answer.get("id") == id and "method" not in answer:
                    if "error" in answer:
                        raise Failed(str(answer["error"]))
                    return answer["result"]
            raise Failed(f"ended; {last_line(err)}")

        try:
            with process.stdin, process.stdout:
                yield say, hear
                process.stdin.close()
                try:
                    process.wait(STOP)
                except subprocess.TimeoutExpired:
                    raise Failed(f"did not stop within {STOP} s of its stdin's end") from None
        finally:
            kill_group(process)


_given = set()


def free_port():
    """A port that is free now, and never the same twice; below those that systems choose for whoever asks for none."""
    while True:
        port = random.randrange(20_000, 32_000)
        if port not in _given:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                _given.add(port)
                return port


class Server:
    """A program that serves until told to stop."""

    def __init__(self, process, port, err):
        self.process = process
        self.pid = process.pid
        self.port = port
        self._err = err

    def check(self):
        if self.process.poll() is not None:
            raise Failed(f"exit status {self.process.returncode}: {last_line(self._err)}")

    def cpu(self):
        """CPU seconds of the process so far, its children not counted."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self):
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def serve(args, port, *, timeout=60.0):
    """Start a server on `port`; yields it once it listens."""
    with tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True
        )
        server = Server(process, port, err)
        try:
            patience = time.monotonic() + timeout
            while True:
                server.check()
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > patience:
                        raise Failed(f"does not listen within {timeout:g} s; {last_line(err)}") from None
                    time.sleep(0.01)
            try:
                yield server
            except (OSError, ValueError, LookupError, http.client.HTTPException) as exc:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
                server.check()  # its own end says more than what we saw of it
                raise Failed(f"{exc!r}; {last_line(err)}") from exc
            server.check()
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                raise Failed(f"did not stop within {STOP} s of SIGTERM") from None
        finally:
            kill_group(process)
