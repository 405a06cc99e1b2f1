"""A server of one revision as its wire is, played from scripts, which holds the gateway to that revision's rules."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from cord_trio.errors import ConnectionLost
from cord_trio.protocol.eras import ERAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cord_trio.errors import CallError
    from cord_trio.testing.wire import FaultyTransport
    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any
PREFIX = "io.modelcontextprotocol/"
VERSION, CAN, LEVEL = f"{PREFIX}protocolVersion", f"{PREFIX}clientCapabilities", f"{PREFIX}logLevel"
SUBSCRIPTION = f"{PREFIX}subscriptionId"
ENVELOPE = frozenset({VERSION, CAN, LEVEL, f"{PREFIX}clientInfo"})

ASKS = {"elicitation": "elicitation/create", "sampling": "sampling/createMessage", "roots": "roots/list"}
PATIENCE = 40.0
"""Seconds that a server waits for an answer to its question; longer than anything that has a deadline here."""


@attrs.frozen
class Script:
    """What a server does in one call.

    Attributes:
        steps: ("wait", seconds), ("progress", how often), ("falls", how often), ("log", how often),
            ("ask", which of `ASKS`), ("change", 0).
        ending: text, rich, fail, error, twice, unknown, silent, drop or lingers: telling progress after its answer.

    """

    steps: tuple[tuple[str, Any], ...]
    ending: str


@attrs.define(eq=False)
class Seen:
    """One `tools/call` on the server's wire: when it came, was answered or cancelled, and on which connection."""

    number: int
    id: int | str
    connection: Connection
    came: float
    token: Json
    level: Json
    can: Mapping[str, Json]
    answered: float | None = None
    cancelled: float | None = None
    asked: bool = False

    @property
    def over(self) -> bool:
        return self.answered is not None or self.cancelled is not None or self.connection.over


class Server:
    """One server, over all its connections.

    Attributes:
        wrong: what the gateway did that it must not.
        seen: every `tools/call`.
        started: how often each call was begun, which may be once.

    """

    def __init__(
        self,
        revision: str,
        scripts: Mapping[int, Script],
        wrong: list[str],
        nursery: trio.Nursery,
        *,
        lossy: bool = False,
    ) -> None:
        self.lossy = lossy
        self.era = ERAS[revision]
        self.scripts = scripts
        self.wrong = wrong
        self.nursery = nursery
        self.seen: list[Seen] = []
        self.started: Counter[int] = Counter()
        self.answers: list[tuple[int, str, Json]] = []
        self.connections: list[Connection] = []
        self.version = 0

    async def serve(self, transport: MemoryTransport | FaultyTransport) -> None:
        connection = Connection(self, transport)
        self.connections.append(connection)
        try:
            with transport:
                await transport.run(connection)
        finally:
            connection.end()

    def tools(self) -> Json:
        return [{"name": "t", "description": f"version {self.version}", "inputSchema": {"type": "object"}}]

    def blame(self, what: str) -> None:
        self.wrong.append(f"server {self.era.revision}: {what}")


class Connection:
    """One connection; its Receiver."""

    def __init__(self, server: Server, transport: MemoryTransport | FaultyTransport) -> None:
        self.server = server
        self.transport = transport
        self.over = False
        self.ended: float | None = None
        self.declared: Json = None
        self.open: dict[int | str, Seen] = {}
        self.ids: set[int | str] = set()
        self.cancels: Counter[int | str] = Counter()
        self.listening: dict[int | str, None] = {}
        self.questions: dict[str, tuple[Seen, str, trio.Event]] = {}
        self._asked = 0

    def end(self) -> None:
        """Nothing more comes or goes."""
        if self.ended is None:
            self.over, self.ended = True, trio.current_time()

    # The wire

    def send(self, message: Json) -> None:
        with suppress(ConnectionLost):
            self.transport.send(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def result(self, id: int | str, result: Json) -> None:
        self.send({"id": id, "result": ({"resultType": "complete"} | result) if self.server.era.modern else result})

    def error(self, id: int | str, code: int, data: Json = None) -> None:
        self.send({"id": id, "error": {"code": code, "message": "no", **({"data": data} if data else {})}})

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in map(json.loads, messages):
            if "method" not in message:
                self._replied(message)
            elif "id" in message:
                self._requested(message["id"], message["method"], message.get("params") or {})
            else:
                self._noticed(message["method"], message.get("params") or {})

    def fail(self, id: int | str, error: CallError, /) -> None:
        """It waits for no answer of the transport's."""

    def waits(self, id: int | str, /) -> bool:
        return False

    def lost(self, error: ConnectionLost, /) -> None:
        self.end()

    def _requested(self, id: int | str, method: str, params: Json) -> None:
        server, era = self.server, self.server.era
        meta = params.get("_meta") or {}
        if id in self.ids:
            server.blame(f"the id {id!r} was used again")
        self.ids.add(id)
        if method == "server/discover" and not era.modern and self.declared is None:
            self.error(id, -32601)  # the probe
        elif method == "initialize" and era.modern:
            self.error(id, -32022, {"supported": [era.revision], "requested": "initialize"})
        elif method not in era.requests:
            server.blame(f"{method} is none of its requests")
        elif era.modern and (meta.get(VERSION) != era.revision or not isinstance(meta.get(CAN), dict)):
            server.blame(f"{method} without an envelope")
        elif not era.modern and method != "initialize" and (self.declared is None or ENVELOPE & meta.keys()):
            server.blame(f"{method} before initialize, or with an envelope")
        elif method == "initialize":
            self.declared = params["capabilities"]
            can = {"tools": {"listChanged": True}, "logging": {}}
            info = {"name": "s", "version": "1"}
            self.result(id, {"protocolVersion": era.revision, "capabilities": can, "serverInfo": info})
        elif method == "server/discover":
            can = {"tools": {"listChanged": True}, "logging": {}}
            more = {"ttlMs": 0, "cacheScope": "public", "_meta": {f"{PREFIX}serverInfo": {"name": "s", "version": "1"}}}
            self.result(id, {"supportedVersions": [era.revision], "capabilities": can, **more})
        elif method == "tools/list":
            hints = {"ttlMs": 0, "cacheScope": "public"} if era.modern else {}
            self.result(id, {"tools": server.tools(), **hints})
        elif method == "subscriptions/listen":
            self.listening[id] = None
            self.send({"method": "notifications/subscriptions/acknowledged",
                       "params": {"notifications": params["notifications"], "_meta": {SUBSCRIPTION: id}}})  # fmt: skip
        elif method == "tools/call":
            self._called(id, params, meta)
        else:
            self.result(id, {})  # ping, logging/setLevel

    def _noticed(self, method: str, params: Json) -> None:
        era, now = self.server.era, trio.current_time()
        if method not in era.notices:
            self.server.blame(f"{method} is none of its notifications")
        elif method == "notifications/cancelled":
            id = params["requestId"]
            self.cancels[id] += 1
            self.listening.pop(id, None)
            if (id not in self.ids and not self.server.lossy) or self.cancels[id] > 1:
                self.server.blame(f"{id!r} was cancelled {self.cancels[id]} times, and had come {id in self.ids}")
            seen = self.open.pop(id, None)
            if seen is not None:
                seen.cancelled = now

    def _replied(self, message: Json) -> None:
        if self.server.era.modern:
            self.server.blame("a modern server was answered")
            return
        found = self.questions.pop(message.get("id"), None)
        if found is None:
            self.server.blame(f"an answer to {message.get('id')!r}, which is no question of this connection, or again")
            return
        seen, kind, answered = found
        self.server.answers.append((seen.number, kind, message.get("result")))
        answered.set()

    # Tools

    def _called(self, id: int | str, params: Json, meta: Json) -> None:
        server, era = self.server, self.server.era
        number, state = params["arguments"]["number"], params.get("requestState")
        can = meta.get(CAN) if era.modern else self.declared
        seen = Seen(number, id, self, trio.current_time(), meta.get("progressToken"), meta.get(LEVEL), can or {})
        if not era.modern and {"requestState", "inputResponses"} & params.keys():
            server.blame("a legacy server got answers within a call")
        self.open[id] = seen
        server.seen.append(seen)
        at = 0
        if state is None:
            server.started[number] += 1
        else:
            of, at, _ = map(int, state.split("."))
            if of != number:
                server.blame(f"the state of {of} came with {number}")
            for key, answer in (params.get("inputResponses") or {}).items():
                server.answers.append((number, key, answer))
        server.nursery.start_soon(self._play, seen, at)

    async def _play(self, seen: Seen, at: int) -> None:
        script = self.server.scripts[seen.number]
        told = 1000 * seen.number + 100 * at
        for place, (verb, much) in enumerate(script.steps[at:], at):
            match verb:
                case "wait":
                    await trio.sleep(much)
                case "progress" if seen.token is not None and not seen.over:
                    for _ in range(much):
                        told += 1
                        self.send({"method": "notifications/progress",
                                   "params": {"progressToken": seen.token, "progress": told}})  # fmt: skip
                case "falls" if seen.token is not None and not seen.over:
                    for less in range(much):  # a bad server, whose word must not be passed on
                        fallen = max(told - less, 1000 * seen.number)
                        self.send({"method": "notifications/progress",
                                   "params": {"progressToken": seen.token, "progress": fallen}})  # fmt: skip
                case "log" if not seen.over and (not self.server.era.modern or seen.level is not None):
                    self.send({"method": "notifications/message", "params": {"level": "info", "data": seen.number}})
                case "change":
                    self.server.version += 1
                    self._tell_changed()
                case "ask":
                    kinds = [each for each in much if each in seen.can and self._knows(each)]
                    if kinds and not seen.over:
                        seen.asked = True
                        if self.server.era.modern:
                            self._ask_modern(seen, kinds, place)
                            return
                        await self._ask(seen, kinds)
            if seen.over:
                return  # as a good server does: not a word after it was cancelled
        self._end(seen, script.ending)

    def _knows(self, kind: str) -> bool:
        return self.server.era.modern or ASKS[kind] in self.server.era.asks

    def _ask_modern(self, seen: Seen, kinds: list[str], place: int) -> None:
        asked = {kind: {"method": ASKS[kind], "params": question(kind, seen.number)} for kind in kinds}
        self._answered(seen)
        state = f"{seen.number}.{place + 1}.{len(self.server.seen)}"
        self.send({"id": seen.id, "result":
                   {"resultType": "input_required", "inputRequests": asked, "requestState": state}})  # fmt: skip

    async def _ask(self, seen: Seen, kinds: list[str]) -> None:
        events = []
        for kind in kinds:
            self._asked += 1
            id = f"ask-{self._asked}"
            events.append(trio.Event())
            self.questions[id] = (seen, kind, events[-1])
            self.send({"id": id, "method": ASKS[kind], "params": question(kind, seen.number)})
        for each in events:
            with trio.move_on_after(PATIENCE):
                await each.wait()

    def _tell_changed(self) -> None:
        method = "notifications/tools/list_changed"
        if not self.server.era.modern:
            self.send({"method": method})
        for id in self.listening:
            self.send({"method": method, "params": {"_meta": {SUBSCRIPTION: id}}})

    def _answered(self, seen: Seen) -> None:
        seen.answered = trio.current_time()
        self.open.pop(seen.id, None)

    async def _linger(self, seen: Seen) -> None:
        """Tell progress of a call that was answered, at once and later."""
        for late in (998, 999):
            told = {"progressToken": seen.token, "progress": 1000 * seen.number + late}
            self.send({"method": "notifications/progress", "params": told})
            await trio.sleep(0.1)

    def _end(self, seen: Seen, ending: str) -> None:
        if ending == "silent":
            return
        if ending == "drop":
            self.end()
            self.transport.lose("server exited (signal 9)")
            return
        self._answered(seen)
        if ending == "error":
            self.error(seen.id, -32050, {"number": seen.number})
            return
        blocks: list[Json] = [{"type": "text", "text": f"value {seen.number}"}]
        more: Json = {"isError": True} if ending == "fail" else {}
        if ending == "rich":
            blocks += (
                [{"type": "audio", "data": "", "mimeType": "audio/wav"}] if "audio" in self.server.era.blocks else []
            )
            if "resource_link" in self.server.era.blocks:
                blocks.append({"type": "resource_link", "uri": "file:///a", "name": "a"})
            if self.server.era.structured == "any":
                more = {"structuredContent": [seen.number]}
            elif self.server.era.structured == "object":
                more = {"structuredContent": {"number": seen.number}}
        if ending == "unknown":
            self.result(999_999, {"content": []})
            self.result("never", {"content": []})
        for _ in range(2 if ending == "twice" else 1):
            self.result(seen.id, {"content": blocks, **more})
        if ending == "lingers" and seen.token is not None:
            self.server.nursery.start_soon(self._linger, seen)


def question(kind: str, number: int) -> Json:
    """What is asked for the call `number`; for roots that cannot be said."""
    if kind == "elicitation":
        return {"message": f"for {number}", "requestedSchema": {"type": "object", "properties": {}}}
    if kind == "sampling":
        return {"messages": [{"role": "user", "content": {"type": "text", "text": f"for {number}"}}], "maxTokens": 1}
    return {}
