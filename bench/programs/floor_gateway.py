"""Floors for a gateway on Trio: `floor_gateway.py PORT SOURCES MODE`, SOURCES in JSON.

MODE `task`: one task a connection, which awaits each call. MODE `pump`: no tasks; every socket and pipe is in one
private epoll inside Trio's, and a reply is written where it is read.
"""

from __future__ import annotations

import gc
import json
import socket
import sys

import msgspec
import trio
from floor_wire import CALL, EMPTY, READ_SIZE, Child, Pump, decode_envelope, encode
from msgspec import Raw, Struct


class CallParams(Struct):
    name: str
    arguments: Raw = EMPTY


decode_params = msgspec.json.Decoder(CallParams).decode

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
NOT_ALLOWED = b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n"
GREETING = b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"floor","version":"0"}}'


def reply(id, result, headers=b""):
    body = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, result)
    return JSON % (headers, len(body), body)


def split_request(data):
    """(body, rest, whether it is a POST), or None while the request is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower() + b"\r\n"
    at = head.find(b"\r\ncontent-length:")
    size = int(head[at + 17 : head.index(b"\r\n", at + 17)]) if at >= 0 else 0
    end += 4
    if len(data) < end + size:
        return None
    return data[end : end + size], data[end + size :], data.startswith(b"POST")


class Gateway:
    def __init__(self):
        self.routes = {}
        self.tools = b""

    async def add(self, name, child):
        for tool in await child.open():
            self.routes[f"{name}__{tool}"] = (child, encode(tool))
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in self.routes]
        self.tools = b'{"tools":' + encode(tools) + b"}"

    def take(self, body, post):
        """(response, None) for what is answered here; (None, (child, tool, arguments, id)) for a call."""
        if not post:
            return NOT_ALLOWED, None
        message = decode_envelope(body)
        if message.id is None:
            return ACCEPTED, None
        id = encode(message.id)
        if message.method == "tools/call":
            params = decode_params(message.params)
            child, tool = self.routes[params.name]
            return None, (child, tool, bytes(params.arguments), id)
        if message.method == "initialize":
            return reply(id, GREETING, b"mcp-session-id: s1\r\n"), None
        return reply(id, self.tools if message.method == "tools/list" else b"{}"), None


async def serve_connection(gateway, sock):
    """MODE task."""
    data = b""
    with sock:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                more = sock.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not more:
                return
            data += more
            while (request := split_request(data)) is not None:
                body, data, post = request
                response, call = gateway.take(body, post)
                if call is not None:
                    child, tool, arguments, id = call
                    response = reply(id, bytes(await child.request(CALL, tool, arguments)))
                while response:
                    try:
                        response = response[sock.send(response) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sock)
                    except OSError:
                        return


def add_client(pump, gateway, sock):
    data = b""

    def answer(id):
        return lambda result: send(reply(id, bytes(result)))

    def send(response):
        try:  # the client may be gone; its small replies fit the socket's buffer
            sock.send(response)
        except OSError:
            pass

    def read():
        nonlocal data
        try:
            more = sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            pump.remove(sock.fileno())
            sock.close()
            return
        data += more
        while (request := split_request(data)) is not None:
            body, data, post = request
            response, call = gateway.take(body, post)
            if call is None:
                send(response)
            else:
                child, tool, arguments, id = call
                child.ask(CALL, tool, arguments, then=answer(id))

    pump.add(sock.fileno(), read)


async def main():
    port, sources, mode = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    gateway, pump = Gateway(), Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        async with trio.open_nursery() as starting:
            for source in sources:
                child = Child(source["command"])
                if mode == "pump":
                    pump.add_child(child)
                else:
                    nursery.start_soon(child.keep_reading)
                starting.start_soon(gateway.add, source["name"], child)
        gc.collect()
        gc.freeze()
        listener = socket.create_server(("127.0.0.1", port), backlog=512)
        listener.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if mode == "pump":
                add_client(pump, gateway, sock)
            else:
                nursery.start_soon(serve_connection, gateway, sock)


trio.run(main)
