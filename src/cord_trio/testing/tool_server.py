"""A scripted MCP server of both eras as a small stdio program: `python -I -S tool_server.py [options]`.

Standard library only, and sparing with it, so that fifty of them fit where tests and the demo run.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

if __name__ == "__main__" and "cord_trio" not in sys.modules:
    # Its own modules only: the package's `__init__` would import Trio, which `-S` hides anyway.
    for _name, _path in (("cord_trio", ".."), ("cord_trio.testing", ".")):
        _package = type(sys)(_name)
        _package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), _path)]
        sys.modules[_name] = _package

from cord_trio.testing.conversation import INFINITE, Conversation
from cord_trio.testing.script import Options, World

CONGESTED = 1 << 16
"""Bytes of unwritten output above which a log line is skipped, not queued."""

LAST_WRITE = 1.0
"""Seconds for what is still unwritten when the input has ended."""


class Program:
    """The conversation over stdin and stdout. One thread; it never waits for stdout alone."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.conversation = Conversation(World(options))
        self.end = b"\r\n" if options.crlf else b"\n"
        self.backlog = bytearray()
        self.partial = b""
        self.record = open(options.record, "ab", buffering=0) if options.record else None  # noqa: SIM115  # till exit

    def run(self) -> None:
        """Serve until stdin ends."""
        options = self.options
        if options.ignore_term:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        world = self.conversation.world
        if options.stderr:
            world.write_stderr(b"e" * (options.stderr - 1) + b"\n")
        if options.exit_at_start:
            world.exit(options.exit_status)
        os.set_blocking(1, False)
        if options.banner:
            self.write([options.banner.encode()])
        poll = select.poll()
        poll.register(0, select.POLLIN)
        step = 1 / options.stderr_logs if options.stderr_logs else INFINITE
        next_line, reading, flooding = time.monotonic() + step, True, False
        while True:
            wake = min(self.conversation.next_due, next_line)
            wait = None if wake == INFINITE else max(0, 1000 * (wake - time.monotonic()))
            if flooding and len(self.backlog) < CONGESTED:
                self.backlog += b"x" * CONGESTED
            if self.backlog:
                poll.register(1, select.POLLOUT)
            events = dict(poll.poll(wait))
            if self.backlog:
                poll.unregister(1)
            if 1 in events:
                self.write([])
            if 0 in events:
                data = os.read(0, 1 << 16)
                if data:
                    flooding = flooding or options.no_newline_flood
                    self.receive(data)
                elif not options.ignore_eof:
                    break
                elif reading:
                    reading = False
                    poll.unregister(0)
            now = time.monotonic()
            if now >= next_line:
                next_line = now + step
                if select.select([], [2], [], 0)[1]:
                    world.write_stderr(f"{options.name}: tick\n".encode())
            if now >= self.conversation.next_due:
                self.write(self.conversation.due(now, congested=len(self.backlog) > CONGESTED))
        # Whoever closed our input may still read; whoever does not is not waited for.
        until = time.monotonic() + LAST_WRITE
        while self.backlog and time.monotonic() < until:
            select.select([], [1], [], LAST_WRITE)
            self.write([])

    def receive(self, data: bytes) -> None:
        """Answer the whole lines in `data`."""
        *lines, self.partial = (self.partial + data).split(b"\n")
        out: list[bytes] = []
        now = time.monotonic()
        for line in lines:
            if self.record is not None:
                self.record.write(line + b"\n")
            if line.strip():
                out += self.conversation.answer(line, now)
        self.write(out)

    def write(self, messages: list[bytes]) -> None:
        """Write what the pipe takes, keep the rest for when it takes more."""
        for message in messages:
            self.backlog += message + self.end
        try:
            while self.backlog:
                del self.backlog[: os.write(1, self.backlog)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            os._exit(0)


def main() -> None:
    Program(Options.parse(sys.argv[1:])).run()


if __name__ == "__main__":
    main()
