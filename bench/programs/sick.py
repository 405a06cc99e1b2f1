"""An MCP server that falls ill on command: `python -I -S sick.py --way WAY [--port N] --control FILE --ledger FILE`.

It speaks over stdio, Streamable HTTP (both eras), HTTP+SSE or a WebSocket. While FILE names a fault it has it, and is
well again once FILE is empty; what hung goes on from there. Each call that it runs adds a line to the ledger, the `n`
of its arguments, before it is answered. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time

AT = {
    "crash-start": "start",
    "hang-connect": "connect",
    "hang-list": "list",
    "unread": "read",
}
"""Where a fault strikes; all others in a call."""
NOT_RUN = ("401", "403", "404", "408", "429", "503", "redirect")
"""Statuses that are told before the call has run."""
LOG = 10_000
FLOOD = 100_000_000
"""Bytes of one log line, and of all of them."""
STORM = 2000
"""Changes of its list that it tells of at once."""
META = "io.modelcontextprotocol/"
MODERN = "2026-07-28"
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
TEXTS = {
    "401": "Unauthorized", "403": "Forbidden", "404": "Not Found", "408": "Request Timeout", "429": "Too Many Requests",
    "500": "Internal Server Error", "502": "Bad Gateway", "503": "Service Unavailable",
}  # fmt: skip
TOOLS = [
    {"name": "echo", "inputSchema": {"type": "object"}},
    {"name": "sleep", "inputSchema": {"type": "object"}},
]


def encode(value):
    return json.dumps(value, separators=(",", ":")).encode()


class Gone(Exception):
    """The other end has left."""


class Sick:
    """What all connections share."""

    def __init__(self, way, control, ledger, name):
        self.way = way
        self.name = name
        self.control = control
        self.ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if ledger else -1
        self.sessions = set()
        self.listeners = {}
        self._looked, self._fault = 0.0, ("", "")

    def fault(self):
        """The fault that it has now, and what more is said of it."""
        now = time.monotonic()
        if now - self._looked > 0.005:
            try:
                with open(self.control) as file:
                    name, _, rest = file.read().strip().partition(" ")
            except OSError:
                name = rest = ""
            self._fault = name, rest
            self._looked = now
        return self._fault

    def at(self, point):
        """The fault that strikes at this point; "" for none."""
        name, rest = self.fault()
        opening = self.way == "ws" and (name in TEXTS or name == "redirect")
        here = "open" if opening else AT.get(name, "call")
        return (name, rest) if name and here == point else ("", "")

    def wait_well(self, name):
        while self.fault()[0] == name:
            time.sleep(0.02)

    # What it answers

    def receive(self, peer, line):
        """Take one message from `peer`."""
        try:
            message = json.loads(line)
        except ValueError:
            return
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        if id is None or method is None:
            return
        meta = params.get("_meta") or {}
        modern = META + "protocolVersion" in meta
        point = {"initialize": "connect", "server/discover": "connect", "tools/list": "list", "tools/call": "call"}
        fault, rest = self.at(point.get(method, ""))
        if method == "subscriptions/listen":
            self.listen(peer, id, modern)
            return
        if method == "tools/call" and fault not in NOT_RUN:
            self.run(params.get("arguments") or {})
        if fault == "storm":
            self.storm()
            fault = ""
        payload = self.answer(id, method, params, modern)
        if method == "tools/call" and params.get("name") == "sleep":
            seconds = float((params.get("arguments") or {}).get("seconds", 0))
            peer.alone(lambda: (time.sleep(seconds), peer.raw(peer.frame(payload))))
        elif not fault:
            peer.raw(peer.frame(payload))
        else:
            peer.alone(lambda: self.strike(fault, rest, peer, payload))

    def run(self, arguments):
        if self.ledger >= 0 and "n" in arguments:
            os.write(self.ledger, b"%d\n" % arguments["n"])

    def answer(self, id, method, params, modern):
        if method == "initialize" and not modern:
            wanted = params.get("protocolVersion")
            result = {
                "protocolVersion": wanted if wanted in LEGACY else LEGACY[0],
                "capabilities": {"tools": {"listChanged": True}, "logging": {}},
                "serverInfo": {"name": self.name, "version": "1"},
            }
        elif method == "server/discover" and self.way != "sse":
            result = {"supportedVersions": [MODERN], "capabilities": {"tools": {"listChanged": True}}}
            result |= {"ttlMs": 0, "cacheScope": "public"}
        elif method == "tools/list":
            result = {"tools": TOOLS} | ({"ttlMs": 0, "cacheScope": "public"} if modern else {})
        elif method == "tools/call":
            arguments = params.get("arguments") or {}
            text = f"{arguments.get('n')}:{len(arguments.get('text', ''))}"
            result = {"content": [{"type": "text", "text": text}]}
        elif method in ("ping", "logging/setLevel"):
            result = {}
        else:
            return encode({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": f"no method {method}"}})
        if modern:
            result |= {"resultType": "complete", "_meta": {META + "serverInfo": {"name": self.name, "version": "1"}}}
        return encode({"jsonrpc": "2.0", "id": id, "result": result})

    def listen(self, peer, id, modern):
        """Keep a modern subscription; over HTTP until its connection closes."""
        meta = {"_meta": {META + "subscriptionId": id}}
        peer.begin()
        first = {"method": "notifications/subscriptions/acknowledged"}
        peer.raw(
            peer.event(
                encode({"jsonrpc": "2.0", **first, "params": {"notifications": {"toolsListChanged": True}, **meta}})
            )
        )
        self.listeners[peer] = meta
        peer.stay()

    def storm(self):
        for peer, meta in list(self.listeners.items()):
            note = {
                "jsonrpc": "2.0",
                "method": "notifications/tools/list_changed",
                **({"params": meta} if meta else {}),
            }
            try:
                for _ in range(STORM):
                    peer.raw(peer.event(encode(note)))
            except (OSError, Gone):
                self.listeners.pop(peer, None)

    # What it suffers

    def strike(self, fault, rest, peer, payload):
        """Answer with `payload` as a server that has this fault would."""
        wire = peer.frame(payload)
        if fault.startswith("hang"):
            self.wait_well(fault)
            peer.raw(wire)
        elif fault == "flood":
            peer.begin()
            params = {"level": "info", "data": "f" * LOG}
            line = peer.event(encode({"jsonrpc": "2.0", "method": "notifications/message", "params": params}))
            for _ in range(FLOOD // LOG):
                if self.fault()[0] != fault:
                    break
                peer.raw(line)
            peer.raw(peer.event(payload))
            peer.end()
        elif fault == "crash-call":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "half":
            with peer.turn:  # nothing else fits into the middle of it
                peer.raw(wire[: len(wire) // 2])
                self.wait_well(fault)
                peer.raw(wire[len(wire) // 2 :])
        elif fault == "garbage":
            peer.raw(random.Random(7).randbytes(65536) + b"\n")
            peer.end()
        elif fault == "large":
            message = json.loads(payload)
            message["result"]["content"][0]["text"] = "l" * int(rest)
            peer.raw(peer.frame(encode(message)))
        elif fault == "drip":
            with peer.turn:
                for index in range(len(wire)):
                    peer.raw(wire[index : index + 1])
                    until = time.monotonic() + 1
                    while self.fault()[0] == fault and time.monotonic() < until:
                        time.sleep(0.02)
        elif fault == "reset":
            peer.raw(wire[: int(rest)])
            time.sleep(0.005)  # else the reset overtakes what was sent
            peer.cut()
        else:
            peer.refuse(fault)


class Peer:
    """Who speaks with us over one connection."""

    def __init__(self, sick, sock=None):
        self.sick = sick
        self.sock = sock
        self.turn = threading.RLock()

    def raw(self, data):
        try:
            with self.turn:
                self.sock.sendall(data)
        except OSError:
            raise Gone from None

    def cut(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def alone(self, work):
        """Do `work` beside what else this peer asks."""

        def run():
            try:
                work()
            except Gone:
                pass

        threading.Thread(target=run, daemon=True).start()

    def event(self, payload):
        return self.frame(payload)

    def begin(self):
        pass

    def end(self):
        pass

    def stay(self):
        pass

    def chunks(self):
        """What it sends, as it comes; nothing is read while that is the fault."""
        while True:
            if select.select([self.sock], [], [], 0.05)[0]:
                if self.sick.at("read")[0]:
                    self.sick.wait_well("unread")
                try:
                    data = self.sock.recv(1 << 18)
                except OSError:
                    return
                if not data:
                    return
                yield data


class Pipe(Peer):
    def frame(self, payload):
        return payload + b"\n"

    def raw(self, data):
        with self.turn:
            while data:
                data = data[os.write(1, data) :]

    def cut(self):
        os._exit(1)

    def serve(self):
        if self.sick.at("start")[0]:
            print("sick: cannot start, and this is my last line", file=sys.stderr, flush=True)
            os._exit(3)
        self.sick.listeners[self] = None
        rest = b""
        while True:
            if select.select([0], [], [], 0.05)[0]:
                if self.sick.at("read")[0]:
                    self.sick.wait_well("unread")
                data = os.read(0, 1 << 18)
                if not data:
                    os._exit(0)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.sick.receive(self, line)


class Web(Peer):
    """A WebSocket. `reader` yields what comes after the opening."""

    def frame(self, payload, kind=1):
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 128 | kind, size)
        elif size < 65536:
            head = struct.pack("!BBH", 128 | kind, 126, size)
        else:
            head = struct.pack("!BBQ", 128 | kind, 127, size)
        return head + payload

    def serve(self, reader):
        self.sick.listeners[self] = None
        message = b""
        while True:
            first, second = reader.exactly(2)
            size = second & 127
            if size >= 126:
                size = int.from_bytes(reader.exactly(2 if size == 126 else 8), "big")
            mask = reader.exactly(4)
            data = reader.exactly(size)
            pad = (mask * (size // 4 + 1))[:size]
            data = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
            kind = first & 15
            if kind == 8:
                self.raw(self.frame(data, 8))
                return
            if kind == 9:
                self.raw(self.frame(data, 10))
            elif kind in (0, 1):
                message += data
                if first & 128:
                    whole, message = message, b""
                    self.sick.receive(self, whole)


class Reader:
    """Bytes of a connection, asked for by number or up to an end."""

    def __init__(self, chunks):
        self._chunks = chunks
        self._have = bytearray()

    def exactly(self, size):
        while len(self._have) < size:
            self._more()
        return self._taken(size)

    def until(self, end):
        while (place := self._have.find(end)) < 0:
            self._more()
        return self._taken(place + len(end))

    def _taken(self, size):
        data = bytes(self._have[:size])
        del self._have[:size]
        return data

    def _more(self):
        for data in self._chunks:
            self._have += data
            return
        raise Gone


class Exchange(Peer):
    """The requests of one HTTP connection, one after the other."""

    started = False
    closing = False
    stream = None

    def frame(self, payload, status="200 OK", kind="application/json", more=""):
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n{more}\r\n"
        return head.encode() + payload

    def event(self, payload):
        return b"event: message\ndata: " + payload + b"\n\n"

    def begin(self):
        if not self.started:
            self.started = self.closing = True
            self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")

    def end(self):
        self.closing = True

    def stay(self):
        """Hold the stream of events until its reader leaves."""
        try:
            # Never blocked in `recv`: that would keep the connection open beyond a `cut`.
            while not select.select([self.sock], [], [], 0.05)[0] or self.sock.recv(4096):
                pass
        except (OSError, ValueError):
            pass
        self.sick.listeners.pop(self, None)
        raise Gone

    def alone(self, work):
        work()

    def refuse(self, fault):
        more = {"401": 'WWW-Authenticate: Bearer realm="sick"\r\n', "429": "Retry-After: 1\r\n"}.get(fault, "")
        if fault == "redirect":
            self.raw(self.frame(b"", "307 Temporary Redirect", more=f"Location: {self.path}\r\n"))
        else:
            self.raw(self.frame(b"sick", f"{fault} {TEXTS[fault]}", "text/plain", more))

    def serve(self):
        reader = Reader(self.chunks())
        while not self.closing:
            first, *lines = reader.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            method, self.path, _ = first.split(" ", 2)
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = reader.exactly(int(headers.get("content-length", 0)))
            self.started = False
            if "websocket" in headers.get("upgrade", "").lower():
                self.upgrade(headers, reader)
                return
            if self.sick.way == "sse":
                self.sse(method, body)
            else:
                self.streamable(method, headers, body)
        self.sock.close()

    def upgrade(self, headers, reader):
        fault, _ = self.sick.at("open")
        if fault:
            self.refuse(fault)
            self.sock.close()
            return
        if self.sick.at("connect")[0]:
            self.sick.wait_well("hang-connect")
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.raw(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mcp\r\n\r\n".encode()
        )
        web = Web(self.sick, self.sock)
        try:
            web.serve(reader)
        finally:
            self.sick.listeners.pop(web, None)

    def streamable(self, method, headers, body):
        session = headers.get("mcp-session-id")
        if method == "GET":
            if session not in self.sick.sessions:
                self.raw(self.frame(b"", "405 Method Not Allowed"))
                return
            self.begin()
            self.sick.listeners[self] = None
            self.stay()
        elif method == "DELETE":
            self.sick.sessions.discard(session)
            self.raw(self.frame(b""))
        elif session is not None and session not in self.sick.sessions:
            self.raw(self.frame(b"no such session", "404 Not Found", "text/plain"))
        else:
            message = json.loads(body)
            if message.get("id") is None or message.get("method") is None:
                self.raw(self.frame(b"", "202 Accepted"))
            elif message["method"] == "initialize" and not self.sick.at("connect")[0]:
                made = os.urandom(8).hex()
                self.sick.sessions.add(made)
                payload = self.sick.answer(message["id"], "initialize", message["params"], False)
                self.raw(self.frame(payload, more=f"Mcp-Session-Id: {made}\r\n"))
            else:
                self.sick.receive(self, body)

    def sse(self, method, body):
        if method == "GET":
            if self.sick.at("connect")[0]:
                self.sick.wait_well("hang-connect")
            self.begin()
            name = os.urandom(8).hex()
            stream = Stream(self.sick, self.sock)
            self.sick.listeners[stream] = None
            STREAMS[name] = stream
            self.raw(f"event: endpoint\ndata: /messages/{name}\n\n".encode())
            try:
                self.stay()
            finally:
                self.sick.listeners.pop(stream, None)
                STREAMS.pop(name, None)
        elif method != "POST":
            self.raw(self.frame(b"", "405 Method Not Allowed"))
        elif (stream := STREAMS.get(self.path.rpartition("/")[2])) is None:
            self.raw(self.frame(b"no such session", "404 Not Found", "text/plain"))
        else:
            fault, _ = self.sick.at("call")
            if b'"tools/call"' in body and (fault in TEXTS or fault == "redirect"):
                if fault not in NOT_RUN:
                    self.sick.run(json.loads(body)["params"]["arguments"])
                self.refuse(fault)
                return
            self.raw(self.frame(b"", "202 Accepted"))
            self.sick.receive(stream, body)


STREAMS = {}


class Stream(Peer):
    """The event stream of HTTP+SSE."""

    def frame(self, payload):
        return b"event: message\ndata: " + payload + b"\n\n"


def attend(sick, sock):
    try:
        Exchange(sick, sock).serve()
    except (Gone, OSError, ValueError):
        pass
    finally:
        try:
            sock.close()
        except OSError:
            pass


def accept(sick, listener):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=attend, args=(sick, sock), daemon=True).start()


def main():
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    way = given["--way"]
    sick = Sick(way, given["--control"], given.get("--ledger"), given.get("--name", "sick"))
    if way == "stdio":
        Pipe(sick).serve()
        return
    if sick.at("start")[0]:
        os._exit(3)
    listener = socket.create_server(("127.0.0.1", int(given["--port"])), backlog=256)
    threading.Thread(target=accept, args=(sick, listener), daemon=True).start()
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
