"""What the floors share: MCP over a child's pipes with nothing superfluous.

No back-pressure, no clean close, no deadline, no second look at what comes in: a limit, not a product.
"""

from __future__ import annotations

import os
import select
import subprocess

import msgspec
import trio
from msgspec import Raw, Struct
from outcome import Value

EMPTY = Raw(b"")
READ_SIZE = 65536


class Envelope(Struct):
    id: int | str | None = None
    method: str | None = None
    result: Raw = EMPTY
    error: Raw = EMPTY
    params: Raw = EMPTY


class Content(Struct):
    type: str
    text: str | None = None


class CallResult(Struct):
    content: list[Content]
    isError: bool = False
    structuredContent: Raw = EMPTY


class Tool(Struct):
    name: str


class Tools(Struct):
    tools: list[Tool]


encode = msgspec.json.Encoder().encode
decode_envelope = msgspec.json.Decoder(Envelope).decode
decode_result = msgspec.json.Decoder(CallResult).decode
decode_tools = msgspec.json.Decoder(Tools).decode

INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"floor","version":"0"}}}'
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
LIST = b'{"jsonrpc":"2.0","id":%d,"method":"tools/list","params":{}}'
CALL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%b,"arguments":%b}}'


class Child:
    """A server on pipes: `os.write` at once, replies settled by whoever reads `out` and feeds."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.inn, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.inn, False)
        os.set_blocking(self.out, False)
        self.last_id = 0
        self.waiting = {}  # id -> function that takes the result
        self.backlog = b""
        self.rest = b""

    def write(self, line):
        if self.backlog:
            line = self.backlog + line
        try:
            n = os.write(self.inn, line)
        except BlockingIOError:
            n = 0
        self.backlog = line[n:]

    def ask(self, template, *args, then):
        self.last_id = id = self.last_id + 1
        self.waiting[id] = then
        self.write(template % (id, *args) + b"\n")

    async def request(self, template, *args):
        task, reschedule = trio.lowlevel.current_task(), trio.lowlevel.reschedule
        self.last_id = id = self.last_id + 1
        self.waiting[id] = lambda result: reschedule(task, Value(result))
        self.write(template % (id, *args) + b"\n")

        def abort(_):
            self.waiting.pop(id, None)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def echo(self, text):
        return decode_result(await self.request(CALL, encode("echo"), encode({"msg": text}))).content[0].text

    async def stats(self):
        return decode_result(await self.request(CALL, encode("stats"), b"{}")).content[0].text

    async def open(self):
        """Shake hands; returns the names of the tools."""
        self.write(INITIALIZE + b"\n" + INITIALIZED + b"\n")
        return [tool.name for tool in decode_tools(await self.request(LIST)).tools]

    def read(self):
        """Take what is there and settle. Returns False at the end."""
        try:
            data = os.read(self.out, READ_SIZE)
        except BlockingIOError:
            return True
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            message = decode_envelope(line)
            if message.method is None and (then := self.waiting.pop(message.id, None)) is not None:
                then(message.result)
        return bool(data)

    async def keep_reading(self):
        while self.read():
            await trio.lowlevel.wait_readable(self.out)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Pump:
    """Calls back whoever has something to read: all pipes and sockets in one private epoll inside Trio's."""

    def __init__(self):
        self.epoll = select.epoll()
        self.callbacks = {}

    def add(self, fd, callback):
        self.callbacks[fd] = callback
        self.epoll.register(fd, select.EPOLLIN)

    def remove(self, fd):
        self.epoll.unregister(fd)
        del self.callbacks[fd]

    async def run(self):
        wait_readable, fd, poll, callbacks = (
            trio.lowlevel.wait_readable,
            self.epoll.fileno(),
            self.epoll.poll,
            self.callbacks,
        )
        while True:
            await wait_readable(fd)
            for ready, _ in poll(0, 256):
                try:
                    callbacks[ready]()
                except (OSError, KeyError):  # one dead client must not stop the pump
                    pass

    def add_child(self, child):
        def read():
            if not child.read():
                self.remove(child.out)

        self.add(child.out, read)
