"""One client's conversation with a scripted MCP server, as pure logic: lines in, lines out, no I/O.

Standard library only. The program in `tool_server.py` carries it over stdin and stdout, `ToolServer` over
memory, `http_tool_server.py` over HTTP. Eras are decided by each message.
"""

from __future__ import annotations

import heapq
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeAlias

    from cord_trio.testing.script import World

    Json: TypeAlias = Any
    Key: TypeAlias = tuple[bool, int | str]

MODERN = ("2026-07-28",)
PREFIX = "io.modelcontextprotocol/"
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
INFINITE = float("inf")
RUBBISH = b"\xff\xfe{ no json"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_decode = json.JSONDecoder(parse_constant=_no_constant).decode
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode(value: object) -> bytes:
    """Compact JSON; characters stay as they are, except halves of surrogate pairs, which UTF-8 cannot hold."""
    try:
        return _compact(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class Conversation:
    """One client's conversation, without I/O: lines in, lines out, and a time when it wants to go on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.options = world.options
        self.modern = self.options.era == "modern"
        self.initialized = False
        self.revision = ""
        self.level = "debug"
        self.open: dict[Key, int] = {}
        self.listening: dict[Key, int | str] = {}
        self._told = world.added
        self._jobs = 0
        self._later: list[tuple[float, int, Key, int, bytes, bool]] = []
        self._asked: dict[str, int | str] = {}
        self._next_log = INFINITE
        self._out: list[bytes] = []
        self._now = 0.0

    @property
    def next_due(self) -> float:
        """When `due` should be called next, on the clock of `now`; infinite if not before the next message."""
        return min(self._later[0][0] if self._later else INFINITE, self._next_log)

    def answer(self, line: bytes, now: float) -> list[bytes]:
        """What to send at once because of one received line."""
        self._now = now
        try:
            message = _decode(line.decode())
        except (ValueError, RecursionError):
            self._error(None, -32700, "parse error")
        else:
            self._receive(message)
        return self._taken()

    def due(self, now: float, *, congested: bool = False) -> list[bytes]:
        """What to send because time has passed. A log line is skipped if the way out is `congested`."""
        self._now = now
        while self._later and self._later[0][0] <= now:
            _, _, key, job, message, last = heapq.heappop(self._later)
            if self.open.get(key) == job:
                self._out.append(message)
                if last:
                    del self.open[key]
        if self._next_log <= now:
            # No catching up: a reader that was slow wants new lines, not old ones.
            self._next_log = now + 1 / self.options.logs
            if not congested:
                self._log("tick")
        return self._taken()

    def cancel(self, id: int | str) -> None:
        """The client no longer wants the answer to `id`."""
        key = (isinstance(id, str), id)
        self.listening.pop(key, None)
        if self.open.pop(key, None) is not None:
            self.world.cancelled += 1

    def _taken(self) -> list[bytes]:
        if self._told != self.world.added and (self.initialized or self.listening):
            self._told = self.world.added
            note: Json = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            if self.initialized:
                self._out.append(encode(note))
            for id in self.listening.values():
                self._out.append(encode(note | {"params": {"_meta": {PREFIX + "subscriptionId": id}}}))
        taken, self._out = self._out, []
        return taken

    def _receive(self, message: Json) -> None:
        if not isinstance(message, dict):
            self._error(None, -32600, "not a message")
            return
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        if not isinstance(method, str):
            self._replied(message)
            return
        counts = self.world.received
        counts[method] = counts.get(method, 0) + 1
        if self.options.exit_on and method == self.options.exit_on:
            self.world.exit(self.options.exit_status)
        if self.options.silent or (self.options.silent_on and method == self.options.silent_on):
            return
        if not isinstance(params, dict):
            self._error(id, -32602, "params is not an object")
            return
        meta = params.get("_meta") or {}
        version = meta.get(PREFIX + "protocolVersion")
        modern = self.options.era != "legacy" and (version is not None or self.modern)
        if id is None:
            self._notified(method, params)
        elif isinstance(id, bool) or not isinstance(id, int | str):
            self._error(None, -32600, "an id is a string or an integer")
        elif modern:
            self._modern(id, method, params, meta, version)
        else:
            self._legacy(id, method, params, meta)

    def _notified(self, method: str, params: Json) -> None:
        if method == "notifications/initialized" and self.revision:
            self.initialized = True
            if self.options.logs:
                self._next_log = self._now + 1 / self.options.logs
        elif method == "notifications/cancelled" and isinstance(params.get("requestId"), int | str):
            self.cancel(params["requestId"])

    def _modern(self, id: int | str, method: str, params: Json, meta: Json, version: object) -> None:
        if method == "initialize" and version is None:
            self._error(id, -32022, "unsupported", {"supported": list(MODERN), "requested": "initialize"})
        elif version is None or not isinstance(meta.get(PREFIX + "clientCapabilities"), dict):
            self._error(id, -32602, "the envelope lacks protocolVersion or clientCapabilities")
        elif version not in MODERN:
            self._error(id, -32022, "unsupported", {"supported": list(MODERN), "requested": version})
        elif method == "server/discover":
            told: Json = {"supportedVersions": list(MODERN), "ttlMs": 0, "cacheScope": "public"}
            told["capabilities"] = {"tools": {"listChanged": True}, "logging": {}}
            self._result(id, told | self._instructions(), True)
        elif method == "tools/list":
            self._list(id, params, True)
        elif method == "tools/call":
            self._call(id, params, meta, True)
        elif method == "subscriptions/listen":
            wanted = (params.get("notifications") or {}).get("toolsListChanged") is True
            honoured = {"notifications": {"toolsListChanged": True} if wanted else {}}
            if wanted:
                self.listening[isinstance(id, str), id] = id
            self._note(
                "notifications/subscriptions/acknowledged", honoured | {"_meta": {PREFIX + "subscriptionId": id}}
            )
        else:
            self._error(id, -32601, f"no method {method}")

    def _legacy(self, id: int | str, method: str, params: Json, meta: Json) -> None:
        if method == "initialize":
            wanted, known = params.get("protocolVersion"), self.world.revisions
            self.revision = wanted if wanted in known else known[0]
            capabilities = {"tools": {"listChanged": True}, "logging": {}}
            told: Json = {"protocolVersion": self.revision, "capabilities": capabilities, "serverInfo": self._info()}
            self._result(id, told | self._instructions(), False)
        elif method == "ping":
            self._result(id, {}, False)
        elif not self.revision:
            code = self.options.discover_error if method == "server/discover" else -32002
            self._error(id, code, f"{method} before initialize")
        elif method == "tools/list":
            self._list(id, params, False)
        elif method == "tools/call":
            self._call(id, params, meta, False)
        elif method == "logging/setLevel":
            self.level = params.get("level", "debug")
            self._result(id, {}, False)
        else:
            self._error(id, -32601, f"no method {method}")

    def _list(self, id: int | str, params: Json, modern: bool) -> None:
        listed = self.world.tools()
        start = int(params.get("cursor") or 0)
        page = self.options.page or len(listed)
        result: Json = {"tools": listed[start : start + page]}
        if start + page < len(listed) or self.options.same_cursor:
            result["nextCursor"] = "0" if self.options.same_cursor else str(start + page)
        self._result(id, result | ({"ttlMs": 0, "cacheScope": "public"} if modern else {}), modern)

    def _call(self, id: int | str, params: Json, meta: Json, modern: bool) -> None:
        name, given = params.get("name"), params.get("arguments") or {}
        self.world.received[f"call {name}"] = self.world.received.get(f"call {name}", 0) + 1
        level = meta.get(PREFIX + "logLevel")
        if modern and level in LEVELS and LEVELS.index(level) <= LEVELS.index("info"):
            self._log(f"call {name}", asked=True)
        try:
            if name in self.world.functions:
                self._value(id, self.world.functions[name](given), modern)
            else:
                self._tool(id, name, given, params, modern)
        except Exception as exc:  # a tool's failure is a result that the model may read
            self._text(id, f"{type(exc).__name__}: {exc}", modern, isError=True)

    def _tool(self, id: int | str, name: str, given: Json, params: Json, modern: bool) -> None:
        world = self.world
        if name == "echo" or name.startswith(("tool_", "added_")):
            self._text(id, given.get("text", ""), modern)
        elif name == "add":
            total = given["a"] + given["b"]
            self._text(id, str(total), modern, structuredContent={"sum": total})
        elif name == "sleep":
            self._text(id, "slept", modern, after=float(given.get("seconds", 1)))
        elif name == "big":
            self._text(id, "x" * int(given.get("size", 1 << 20)), modern)
        elif name == "fail":
            self._text(id, given.get("text", "failed"), modern, isError=True)
        elif name == "error":
            self._error(id, int(given.get("code", -32603)), "as you wished", {"wish": given})
        elif name == "progress":
            steps, seconds = int(given.get("steps", 3)), float(given.get("seconds", 0))
            token = (params.get("_meta") or {}).get("progressToken")
            key, job = self._opened(id)
            for step in range(1, steps + 1 if token is not None else 1):
                told: Json = {"progressToken": token, "progress": step, "total": steps, "message": f"step {step}"}
                note = encode({"jsonrpc": "2.0", "method": "notifications/progress", "params": told})
                if seconds:
                    self._schedule(seconds * step / steps, key, job, note, last=False)
                else:
                    self._out.append(note)
            self._text(id, f"{steps} steps", modern, after=seconds, job=job)
        elif name == "crash":
            world.exit(int(given.get("status", self.options.exit_status)), int(given.get("signal", 0)))
        elif name == "flood":
            for number in range(int(given.get("lines", 1000))):
                self._log(f"flood {number}", asked=True)
            self._text(id, "flooded", modern)
        elif name == "stderr":
            world.write_stderr(b"e" * (int(given.get("bytes", 1 << 16)) - 1) + b"\n")
            self._text(id, "written", modern)
        elif name == "change_tools":
            world.added += 1
            self._text(id, f"added_{world.added}", modern)
        elif name == "ask":
            self._ask(id, given, params, modern)
        elif name == "spawn":
            self._text(id, str(world.spawn(given.get("detached") is True)), modern)
        elif name == "count":
            world.count += 1
            self._text(id, str(world.count), modern)
        elif name == "whoami":
            known = {"name": self.options.name, "pid": os.getpid(), "era": "modern" if modern else "legacy"}
            more = {"revision": self.revision, "cancelled": world.cancelled, "received": world.received}
            self._value(id, known | more, modern)
        else:
            self._error(id, -32602, f"unknown tool {name}")

    def _ask(self, id: int | str, given: Json, params: Json, modern: bool) -> None:
        method, wanted = given.get("method", "roots/list"), given.get("params") or {}
        if not modern:
            asking = f"ask-{id}"
            self._asked[asking] = id
            self._opened(id)
            self._out.append(encode({"jsonrpc": "2.0", "id": asking, "method": method, "params": wanted}))
        elif "inputResponses" in params:
            self._value(
                id, {"answer": params["inputResponses"].get("asked"), "state": params.get("requestState")}, True
            )
        else:
            entry = {"asked": {"method": method, "params": wanted}}
            self._result(id, {"resultType": "input_required", "inputRequests": entry, "requestState": "state-1"}, True)

    def _replied(self, message: Json) -> None:
        id = self._asked.pop(str(message.get("id")), None)
        if id is not None and (isinstance(id, str), id) in self.open:
            self._value(id, {"answer": message.get("result"), "error": message.get("error")}, False)

    def _value(self, id: int | str, value: object, modern: bool) -> None:
        if isinstance(value, str):
            self._text(id, value, modern)
        else:
            self._text(id, encode(value).decode(), modern, structuredContent=value)

    def _text(
        self, id: int | str, text: str, modern: bool, *, after: float = 0, job: int | None = None, **more: Json
    ) -> None:
        self._result(id, {"content": [{"type": "text", "text": text}], **more}, modern, after, job)

    def _result(self, id: int | str, result: Json, modern: bool, after: float = 0, job: int | None = None) -> None:
        if modern:
            result = {"resultType": "complete", "_meta": {PREFIX + "serverInfo": self._info()}} | result
        self._send(id, {"result": result}, after, job)

    def _error(self, id: int | str | None, code: int, text: str, data: Json = None) -> None:
        error = {"code": code, "message": text} | ({} if data is None else {"data": data})
        self._send(id, {"error": error}, 0, None)

    def _send(self, id: int | str | None, body: Json, after: float, job: int | None) -> None:
        """Every answer passes here, so this is where answers are spoilt."""
        if id is None:
            self._out.append(encode({"jsonrpc": "2.0"} | body))
            return
        shown = str(id) if self.options.string_ids else id
        message = encode({"jsonrpc": "2.0", "id": shown} | body)
        messages = [RUBBISH, message] if self.options.garbage else [message]
        if self.options.twice:
            messages.append(message)
        key = (isinstance(id, str), id)
        after += self.options.slow
        if after:
            job = self._opened(id)[1] if job is None else job
            for part in messages:
                self._schedule(after, key, job, part, last=part is messages[-1])
        else:
            self.open.pop(key, None)
            self._out += messages

    def _opened(self, id: int | str) -> tuple[Key, int]:
        key = (isinstance(id, str), id)
        self._jobs += 1
        self.open[key] = self._jobs
        return key, self._jobs

    def _schedule(self, after: float, key: Key, job: int, message: bytes, *, last: bool) -> None:
        self._jobs += 1  # also keeps the heap in the order of asking
        heapq.heappush(self._later, (self._now + after, self._jobs, key, job, message, last))

    def _note(self, method: str, params: Json) -> None:
        self._out.append(encode({"jsonrpc": "2.0", "method": method, "params": params}))

    def _log(self, text: str, *, asked: bool = False) -> None:
        if asked or LEVELS.index("info") >= LEVELS.index(self.level):
            self._note("notifications/message", {"level": "info", "logger": self.options.name, "data": text})

    def _info(self) -> Json:
        return {"name": self.options.name, "version": "1"}

    def _instructions(self) -> Json:
        return {"instructions": self.options.instructions} if self.options.instructions else {}
