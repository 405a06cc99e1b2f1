"""A scripted MCP server over Streamable HTTP, both eras, with faults: `python -I -S http_tool_server.py [options]`.

Standard library only; one thread a request. It prints its URL on stdout, and ends when its stdin does.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import os
import select
import socket
import sys
import threading
import time
from collections import deque

if __name__ == "__main__" and "cord_trio" not in sys.modules:
    # Its own modules only: the package's `__init__` would import Trio, which `-S` hides anyway.
    for _name, _path in (("cord_trio", ".."), ("cord_trio.testing", ".")):
        _package = type(sys)(_name)
        _package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), _path)]
        sys.modules[_name] = _package

from cord_trio.testing.conversation import MODERN, PREFIX, Conversation, encode
from cord_trio.testing.script import Options, World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Json: TypeAlias = Any

TICK = 0.02
"""Seconds between two looks at whether the client has left."""


class HttpOptions(Options):
    """What the server does, faults included; those of `Options` that speak of messages hold too."""

    port = 0
    reply = "auto"
    """json, sse, or auto: JSON where the answer is at hand and stands alone."""
    stateless = False
    """Legacy without sessions."""
    no_get = False
    """405 for GET, as servers without a standalone stream do."""
    forget_after = 0
    """All sessions are forgotten, once, after this many requests."""
    priming = False
    """SSE begins with an event that has an id and no data (MCP 2025-11-25)."""
    comments = False
    """A comment line before each SSE event."""
    fault_on = "tools/call"
    """The method that the faults below are for; `*` for every POST."""
    times = 0
    """How often they strike; 0 for ever."""
    status = 0
    """This status instead of an answer."""
    status_body = ""
    status_header = ""
    """One more header of such an answer, as `Name: value`."""
    late_fault = False
    """The status comes only after the call has run."""
    redirect = ""
    """A `Location` to go to with `status`, 307 unless given."""
    cut = -1
    """Bytes of the answer's body after which the connection breaks."""
    reset = False
    """The connection breaks before any byte of the answer."""
    gzip = False
    """A JSON body is compressed, asked for or not."""
    slow_head = 0.0
    slow_body = 0.0
    """Seconds between the pieces of a body."""
    piece = 0
    """Bytes of a body that are sent at once; 0 for all."""
    until_close = False
    """The body ends where the connection does."""
    content_type = ""
    header_bytes = 0
    """Bytes of a needless header."""


class CutError(Exception):
    """The connection breaks here, on purpose."""


class Session:
    """One legacy session: its revision, and the conversations of its running requests."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.running: set[Talk] = set()


class Talk(Conversation):
    """The conversation of one HTTP request; others put lines that belong to it into its inbox."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.inbox: deque[bytes] = deque()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    options: HttpOptions
    world: World

    def __init__(self, options: HttpOptions) -> None:
        super().__init__(("127.0.0.1", options.port), Exchange)
        self.options = options
        self.world = World(options)
        self.sessions: dict[str, Session] = {}
        self.requests = self.strikes = 0
        self.record = open(options.record, "ab", buffering=0) if options.record else None  # noqa: SIM115  # till exit

    def note(self, **facts: Json) -> None:
        """Write one line of the record."""
        if self.record is not None:
            self.record.write(encode(facts) + b"\n")


class Exchange(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faulty = False

    @property
    def mcp(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (CutError, ConnectionError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.faulty = False
        session = self._session()
        if self.mcp.options.no_get or self.mcp.options.era == "modern":
            self.respond(405, b"", extra=[("Allow", "POST")])
        elif session is None and not self.mcp.options.stateless:
            self.respond(404 if self.headers.get("Mcp-Session-Id") else 400, b"no session", "text/plain")
        else:
            talk = Talk(self.mcp.world)
            talk.revision = session.revision if session else "2025-11-25"
            talk.answer(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', time.monotonic())
            self.open_sse()
            while not self.left(TICK):
                self.events(talk.due(time.monotonic()))

    def do_DELETE(self) -> None:
        known = self.mcp.sessions.pop(self.headers.get("Mcp-Session-Id", ""), None)
        self.respond(200 if known else 404, b"")

    def do_POST(self) -> None:
        server, options = self.mcp, self.mcp.options
        self.faulty = False
        body = self.read_body()
        server.note(
            method=self.command, path=self.path, headers=list(self.headers.items()), body=body.decode("latin-1")
        )
        server.requests += 1
        if options.forget_after and server.requests == options.forget_after + 1:
            server.sessions.clear()
        try:
            message = json.loads(body)
        except ValueError:
            return self.error(400, None, -32700, "parse error")
        if not isinstance(message, dict):
            return self.error(400, None, -32600, "not a message")
        self.faulty = options.fault_on in ("*", message.get("method")) and not 0 < options.times <= server.strikes
        server.strikes += self.faulty
        if self.faulty and self.strike(after=False):
            return
        meta = (message.get("params") or {}).get("_meta") or {}
        version = meta.get(PREFIX + "protocolVersion")
        modern = version is not None or self.headers.get("MCP-Protocol-Version") in MODERN
        if options.era == "modern" or (modern and options.era == "auto"):
            self.modern(message, version, body)
        else:
            self.legacy(message, body)

    def modern(self, message: Json, version: object, body: bytes) -> None:
        id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
        if id is None:
            return self.respond(202, b"")
        name = params.get("name") if method in ("tools/call", "prompts/get") else None
        given = self.headers.get("Mcp-Name")
        if given is not None and given.startswith("=?base64?"):
            given = base64.b64decode(given[9:-2]).decode()
        told = (self.headers.get("MCP-Protocol-Version"), self.headers.get("Mcp-Method"), given)
        if version is not None and told != (version, method, name):
            return self.error(400, id, -32020, f"headers say {told}, the body {(version, method, name)}")
        talk = Talk(self.mcp.world)
        talk.modern = True
        self.converse(talk, id, body, None)

    def legacy(self, message: Json, body: bytes) -> None:
        server, id, method = self.mcp, message.get("id"), message.get("method")
        session = self._session()
        if method == "initialize":
            talk = Talk(server.world)
            lines = talk.answer(body, time.monotonic())
            extra = []
            if not server.options.stateless:
                token = os.urandom(8).hex()
                server.sessions[token] = Session(talk.revision)
                extra = [("Mcp-Session-Id", token)]
            self.respond(200, b"".join(lines), extra=extra)
            return
        if session is None and not server.options.stateless:
            known = self.headers.get("Mcp-Session-Id")
            self.error(404 if known else 400, id, -32600, "session not found" if known else "missing session id")
            return
        session = session or Session("2025-11-25")
        if id is None or method is None:
            if method is not None and method != "notifications/cancelled":
                server.world.received[method] = server.world.received.get(method, 0) + 1
            for talk in list(session.running):
                talk.inbox.append(body)
            self.respond(202, b"")
            return
        talk = Talk(server.world)
        talk.revision = session.revision
        session.running.add(talk)
        try:
            self.converse(talk, id, body, session)
        finally:
            session.running.discard(talk)

    def converse(self, talk: Talk, id: int | str, body: bytes, session: Session | None) -> None:
        """Answer one request: as JSON if that can be, else as a stream of events."""
        key, reply = (isinstance(id, str), id), self.mcp.options.reply
        lines = talk.answer(body, time.monotonic())
        sse = key in talk.listening or reply == "sse"
        if sse and not self.open_sse():
            return
        done = withdrawn = False
        while True:
            done = any(map(is_reply, lines))
            if not sse and reply == "auto" and len(lines) > done:
                sse = True
                if not self.open_sse():
                    return
            if done or withdrawn:
                break
            if sse:
                self.events(lines)
                lines = []
            if self.left(min(TICK, max(0.0, talk.next_due - time.monotonic()))):
                self.mcp.note(left=id)
                if session is None:
                    talk.cancel(id)
                self.close_connection = True
                return
            running = key in talk.open or key in talk.listening
            while talk.inbox:
                lines += talk.answer(talk.inbox.popleft(), time.monotonic())
            lines += talk.due(time.monotonic())
            withdrawn = running and key not in talk.open and key not in talk.listening
        if not done:
            lines = [encode({"jsonrpc": "2.0", "id": id, "error": {"code": -32800, "message": "cancelled"}})]
        if sse:
            self.events(lines)
            self.body(b"", last=True)
            return
        if self.faulty and self.strike(after=True):
            return
        answers = [line for line in lines if is_reply(line)]
        code = json.loads(answers[-1]).get("error", {}).get("code", 0)
        status = {-32601: 404, -32020: 400, -32021: 400, -32022: 400}.get(code, 200) if session is None else 200
        if code == -32602 and session is None and b"envelope" in answers[-1]:
            status = 400
        self.respond(status, b"\n".join(answers))

    def strike(self, *, after: bool) -> bool:
        """Answer with a fault instead; False if there is none for this moment."""
        options = self.mcp.options
        if options.late_fault != after:
            return False
        time.sleep(options.slow_head)
        if options.reset:
            raise CutError
        if options.redirect:
            self.respond(options.status or 307, b"", extra=[("Location", options.redirect)])
            return True
        if options.status:
            name, _, value = options.status_header.partition(": ")
            extra = [(name, value)] if name else []
            kind = "application/json" if options.status_body.startswith("{") else "text/plain"
            self.respond(options.status, options.status_body.encode(), kind, extra=extra)
            return True
        return False

    def open_sse(self) -> bool:
        """Begin a stream of events; False if a fault was answered instead."""
        if self.faulty and self.strike(after=True):
            return False
        self.head(200, "text/event-stream", None)
        if self.mcp.options.priming:
            self.body(b"id: 1\nretry: 10\ndata:\n\n")
        return True

    def events(self, lines: list[bytes]) -> None:
        for line in lines:
            comment = b": quiet\n\n" if self.mcp.options.comments else b""
            self.body(comment + b"event: message\ndata: " + line + b"\n\n")

    def error(self, status: int, id: int | str | None, code: int, text: str) -> None:
        identity = {} if id is None else {"id": id}
        self.respond(status, encode({"jsonrpc": "2.0", **identity, "error": {"code": code, "message": text}}))

    def respond(
        self, status: int, body: bytes, kind: str = "application/json", extra: list[tuple[str, str]] | None = None
    ) -> None:
        """A whole answer."""
        if self.faulty and self.mcp.options.gzip:
            body = gzip.compress(body)
        self.head(status, kind if body else "", len(body), extra or [])
        self.body(body, last=True)

    def head(self, status: int, kind: str, length: int | None, extra: list[tuple[str, str]] | None = None) -> None:
        options = self.mcp.options
        self.sent = 0
        self.chunked = length is None and not (self.faulty and options.until_close)
        self.send_response(status)
        for name, value in extra or []:
            self.send_header(name, value)
        if self.faulty and options.gzip and length is not None:
            self.send_header("Content-Encoding", "gzip")
        if self.faulty and options.header_bytes:
            self.send_header("X-Needless", "x" * options.header_bytes)
        if kind:
            self.send_header("Content-Type", (self.faulty and options.content_type) or kind)
        if self.faulty and options.until_close:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of a body, in pieces and up to where it is cut."""
        options = self.mcp.options
        size = (self.faulty and options.piece) or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            cut = options.cut - self.sent if self.faulty and options.cut >= 0 else len(piece) + 1
            self.sent += len(piece)
            piece = piece[: max(0, cut)]
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
            if cut <= size and self.faulty and options.cut >= 0 and self.sent >= options.cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                raise CutError
            if self.faulty and options.slow_body:
                time.sleep(options.slow_body)
        if last and self.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def left(self, seconds: float) -> bool:
        """Whether the client closes within `seconds`."""
        if not select.select([self.connection], [], [], seconds)[0]:
            return False
        try:
            gone = not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True
        if not gone:
            time.sleep(seconds)  # it has sent its next request already, so waiting for it does not wait
        return gone

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _session(self) -> Session | None:
        return self.mcp.sessions.get(self.headers.get("Mcp-Session-Id", ""))


def is_reply(line: bytes) -> bool:
    """Whether a line that we send is a reply."""
    try:
        return "method" not in json.loads(line)
    except ValueError:
        return False


def main() -> None:
    """Serve until stdin ends."""
    server = Server(HttpOptions.parse(sys.argv[1:]))
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}/mcp\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.read(0, 1024):
        pass


if __name__ == "__main__":
    main()
