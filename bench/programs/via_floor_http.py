"""Floor for a Streamable HTTP client on Trio: a pool of keep-alive connections, HTTP/1.1 by hand, JSON replies only."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import trio
from floor_wire import CALL, INITIALIZE, INITIALIZED, LIST, READ_SIZE, decode_envelope, decode_result, encode
from runtime import Client, open_each


def versions():
    return {name: version(name) for name in ("trio", "msgspec")}


async def exchange(sock, request):
    wait_readable, receive = trio.lowlevel.wait_readable, sock.recv
    sock.send(request)  # fits the socket's buffer
    data = b""
    while True:
        await wait_readable(sock)
        try:
            more = receive(READ_SIZE)
        except BlockingIOError:
            continue
        if not more:
            raise EOFError
        data = data + more if data else more
        end = data.find(b"\r\n\r\n")
        if end < 0:
            continue
        head = data[:end].lower() + b"\r\n"
        at = head.index(b"content-length:") + 15
        size = int(head[at : head.index(b"\r\n", at)])
        if len(data) >= end + 4 + size:
            return head, data[end + 4 : end + 4 + size]


class Server:
    def __init__(self, url):
        self.url = urlsplit(url)
        self.idle = []
        self.last_id = 0
        self.set_session(b"")

    def set_session(self, line):
        self.head = (
            f"POST {self.url.path} HTTP/1.1\r\nhost: {self.url.netloc}\r\ncontent-type: application/json\r\n"
            "accept: application/json, text/event-stream\r\nmcp-protocol-version: 2025-11-25\r\n"
        ).encode() + (line + b"content-length: %d\r\n\r\n%b")

    def connect(self):
        sock = socket.create_connection((self.url.hostname, self.url.port))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    async def post(self, body):
        sock = self.idle.pop() if self.idle else self.connect()
        answer = await exchange(sock, self.head % (len(body), body))
        self.idle.append(sock)
        return answer

    async def request(self, template, *args):
        self.last_id = id = self.last_id + 1
        _, body = await self.post(template % (id, *args))
        return decode_envelope(body).result

    async def open(self):
        head, _ = await self.post(INITIALIZE)
        at = head.find(b"mcp-session-id:")
        if at >= 0:
            self.set_session(head[at : head.index(b"\r\n", at) + 2])
        await self.post(INITIALIZED)
        await self.request(LIST)

    def close(self):
        for sock in self.idle:
            sock.close()


def open_clients(runtime, sources, *, era, in_flight):
    @asynccontextmanager
    async def open_one(source):
        server = Server(source["url"])
        await server.open()

        async def echo(text):
            result = await server.request(CALL, encode("echo"), encode({"msg": text}))
            return decode_result(result).content[0].text

        async def stats():
            return decode_result(await server.request(CALL, encode("stats"), b"{}")).content[0].text

        yield Client(echo, stats)
        server.close()

    return open_each(runtime, sources, open_one)
