"""A server program of ours as a real child process, driven over what a client may give it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cord_trio.transports.stdio_server import SURE

if TYPE_CHECKING:
    from pathlib import Path

SERVER = """
import os, sys, trio
from cord_trio.transports.stdio_server import serve_stdio

class Echo:
    def __init__(self, transport):
        self.transport = transport
    def feed(self, messages, within=None):
        print("a stray print")
        os.system("echo a stray child; cat")
        for message in messages:
            self.transport.send(message)
    def fail(self, id, error): pass
    def lost(self, error): print("lost:", error.reason, file=sys.stderr)
    def waits(self, id): return True

async def main():
    async with serve_stdio(max_message=2_000_000) as transport:
        await transport.run(Echo(transport))
    print("restored")

trio.run(main)
"""
TEXT = '{"text":"řžš→世界😀\u2028"}\n'.encode()


def serve(stdin: int, stdout: int, *, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )


def test_answers_that_are_ready_reach_a_client_that_has_closed_our_stdin() -> None:
    message = b'{"x":"%b"}\n' % (b"y" * 1_000_000)
    with serve(subprocess.PIPE, subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        server.stdin.write(message)
        server.stdin.close()
        while not server.stderr.readline().startswith(b"lost"):
            pass
        assert server.stdout.read() == message + b"restored\n"


def nonblocking(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)


def finish(server: subprocess.Popen[bytes]) -> bytes:
    _out, said = server.communicate(timeout=8)
    assert server.returncode == 0, said
    return said


def test_f20_text_passes_whatever_the_locale_and_prints_go_to_stderr() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONUNBUFFERED": ""},
    )
    out, said = server.communicate(TEXT + b"{}\r\n", timeout=8)
    assert out == TEXT + b"{}\nrestored\n"
    assert b"a stray print\n" in said
    assert b"a stray child\n" in said
    assert b"lost: the peer closed the connection" in said


def test_a_large_message_passes_a_slow_reader_and_the_shared_flags_stay() -> None:
    message = b'{"x":"%b"}\n' % (b"y" * 1_000_000)
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    with serve(theirs_in, theirs_out) as server:
        with os.fdopen(ours_in, "wb") as stdin, os.fdopen(ours_out, "rb") as stdout:
            stdin.write(message)
            stdin.flush()
            got = stdout.readline()
            # These are the very descriptors that the server got, which share their flags with its own.
            assert not nonblocking(theirs_in)
            assert not nonblocking(theirs_out)
            stdin.close()
            os.close(theirs_out)
            rest = stdout.read()
        os.close(theirs_in)
        finish(server)
    assert got == message
    assert rest == b"restored\n"


def test_a_socket_serves_as_both_ends() -> None:
    ours, theirs = socket.socketpair()
    message = b'{"x":"%b"}\n' % (b"y" * 1_000_000)
    with ours, serve(theirs.fileno(), theirs.fileno()) as server:
        assert not nonblocking(theirs.fileno())
        ours.sendall(message + TEXT)
        got = b""
        while not got.endswith(TEXT):
            got += ours.recv(65536)
        assert not nonblocking(theirs.fileno())
        theirs.close()
        ours.shutdown(socket.SHUT_WR)
        assert b"".join(iter(partial(ours.recv, 100), b"")) == b"restored\n"
        finish(server)
    assert got == message + TEXT


def test_plain_files_serve_too(tmp_path: Path) -> None:
    asked, answered = tmp_path / "in", tmp_path / "out"
    asked.write_bytes(TEXT * SURE)
    with asked.open("rb") as stdin, answered.open("wb") as stdout, serve(stdin.fileno(), stdout.fileno()) as server:
        finish(server)
    assert answered.read_bytes() == TEXT * SURE + b"restored\n"


def test_a_terminal_serves_too() -> None:
    ours, theirs = os.openpty()
    with serve(theirs, theirs) as server:
        os.write(ours, b"{}\n")
        got = b""
        while got.count(b"{}") < 2:  # the terminal's echo, and the server's
            got += os.read(ours, 1000)
        os.write(ours, b"\x04")
        finish(server)
    os.close(theirs)
    os.close(ours)


def test_a_message_past_the_bound_gets_an_error_and_the_next_one_works() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, _said = server.communicate(b"x" * 2_000_001 + b"\n" + TEXT, timeout=8)
    error, echoed, _restored = out.splitlines(keepends=True)
    assert b"message_in" in error
    assert b'"error"' in error
    assert echoed == TEXT


@pytest.mark.parametrize("closed", ["stderr", "stdout"])
def test_a_client_that_closes_an_end_ends_nothing_badly(closed: str) -> None:
    code = f'exec {"2>&-" if closed == "stderr" else ">&-"}; exec "$0" -c "$1"'
    server = subprocess.Popen(
        ["/bin/sh", "-c", code, sys.executable, SERVER.replace("print(", "0 and print(")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, said = server.communicate(b"{}\n", timeout=8)
    assert (out, said) == ((b"{}\n", b"") if closed == "stderr" else (b"", said))
