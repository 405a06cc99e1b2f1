"""A client of one revision as its wire is, played from scripts, which holds the gateway to that revision's rules."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from cord_trio.errors import ConnectionLost
from cord_trio.protocol.eras import ERAS
from properties.bridge_server import ASKS, CAN, LEVEL, PREFIX, SUBSCRIPTION, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.errors import CallError
    from cord_trio.transports.memory import MemoryTransport
    from properties.bridge_server import Script

Json: TypeAlias = Any
LISTEN = "listen"


@attrs.frozen
class Ask:
    """One call of a client: when, of which source, what the server does, and what the client does meanwhile.

    Attributes:
        rounds: for each question or round of them: answer, refuse, late, never, replay or wrong.
        cancel: seconds after which it is cancelled; None for never.

    """

    at: float
    source: int
    script: Script
    rounds: tuple[str, ...]
    cancel: float | None


@attrs.frozen
class Person:
    """One client.

    Attributes:
        can: which of `ASKS` it declares.
        logs: whether it wants log notifications.
        listens: whether it subscribes to changes; a legacy client always hears of them.
        leaves: when it disconnects; None for never.

    """

    revision: str
    can: tuple[str, ...]
    asks: tuple[Ask, ...]
    logs: bool
    listens: bool
    leaves: float | None


@attrs.define(eq=False)
class Sent:
    """One request of the client, and what came of it."""

    number: int
    token: str
    began: float
    state: str | None = None
    told: float = -1.0
    reply: Json = None
    replied: float | None = None
    cancelled: float | None = None
    arrived: trio.Event = attrs.field(factory=trio.Event)

    @property
    def open(self) -> bool:
        return self.reply is None and self.cancelled is None


class Client:
    """One client; the Receiver of its end of the pipe."""

    def __init__(
        self, person: Person, first: int, transport: MemoryTransport, wrong: list[str], nursery: trio.Nursery
    ) -> None:
        self.person = person
        self.era = ERAS[person.revision]
        self.first = first
        self.transport = transport
        self.wrong = wrong
        self.sent: dict[str, Sent] = {}
        self.questions: dict[int | str, int] = {}
        self.acknowledged = False
        self.left = False
        self._asked: set[int | str] = set()
        self._rounds = {number: iter(ask.rounds) for number, ask in self.numbered()}
        self._nursery = nursery
        self._initialized = trio.Event()

    def numbered(self) -> list[tuple[int, Ask]]:
        return list(enumerate(self.person.asks, self.first))

    def blame(self, what: str, message: Json = None) -> None:
        self.wrong.append(f"client {self.era.revision}, call {self.first} on: {what}: {json.dumps(message)[:300]}")

    # What it does

    async def run(self) -> None:
        """All of it, until nothing of it is under way."""
        person = self.person
        opening: Json = {"capabilities": {each: {} for each in person.can}}
        async with trio.open_nursery() as nursery:
            if not self.era.modern:
                info = {"clientInfo": {"name": "c", "version": "1"}, "protocolVersion": person.revision}
                self.send({"id": "init", "method": "initialize", "params": info | opening})
                await self._initialized.wait()
                self.send({"method": "notifications/initialized"})
                if person.logs:
                    self.send({"id": "level", "method": "logging/setLevel", "params": {"level": "info"}})
            elif person.listens:
                self._request(LISTEN, "subscriptions/listen", {"notifications": {"toolsListChanged": True}}, 0)
            if person.leaves is not None:
                nursery.start_soon(self._leave, person.leaves)
            for number, ask in self.numbered():
                nursery.start_soon(self._call, number, ask)

    def send(self, message: Json) -> None:
        if not self.left:
            with suppress(ConnectionLost):
                self.transport.send(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def _request(self, id: str, method: str, params: Json, number: int, state: str | None = None) -> Sent:
        meta: Json = {"progressToken": f"p{id}"}
        if self.era.modern:
            meta |= {VERSION: self.era.revision, CAN: {each: {} for each in self.person.can}}
            meta |= {LEVEL: "info"} if self.person.logs else {}
        sent = self.sent[id] = Sent(number, meta["progressToken"], trio.current_time(), state)
        self.send({"id": id, "method": method, "params": params | {"_meta": meta}})
        if self.left:
            sent.arrived.set()
        return sent

    async def _leave(self, after: float) -> None:
        await trio.sleep(after)
        self.left = True
        self._initialized.set()
        self.transport.close()
        for sent in self.sent.values():
            sent.arrived.set()

    def _cancel(self, id: str) -> None:
        if self.sent[id].open and not self.left:
            self.sent[id].cancelled = trio.current_time()
            self.send({"method": "notifications/cancelled", "params": {"requestId": id, "reason": "as it pleases"}})
            self.sent[id].arrived.set()

    async def _call(self, number: int, ask: Ask) -> None:
        await trio.sleep(ask.at)
        due = trio.current_time() + ask.cancel if ask.cancel is not None else float("inf")
        params: Json = {"name": f"s{ask.source}__t", "arguments": {"number": number}}
        more: Json = {}
        for round in range(12):
            id = f"{number}.{round}"
            sent = self._request(id, "tools/call", params | more, number, more.get("requestState"))
            with trio.move_on_at(due) as scope:
                await sent.arrived.wait()
            if scope.cancelled_caught:
                self._cancel(id)
                return
            result = (sent.reply or {}).get("result") or {}
            if self.left or result.get("resultType") != "input_required":
                return
            more = {"requestState": result["requestState"]} if "requestState" in result else {}
            given = {}
            does = next(self._rounds[number], "answer")
            if does == "never":
                return
            if does == "late":
                await trio.sleep(2)
            for key, each in result["inputRequests"].items():
                given[key] = self._answer(each["method"], number, fine=does != "refuse")["result"]
            more["inputResponses"] = given
            if does == "wrong":
                wrong = params | more | {"arguments": {"number": number, "other": 1}}
                again = self._request(f"{id}w", "tools/call", wrong, number)
                await again.arrived.wait()
                if not self.left and ((again.reply or {}).get("error") or {}).get("code") != -32602:
                    self.blame("a state was taken for another call", again.reply)
            if does == "replay":
                self._request(f"{id}r", "tools/call", params | more, number, more["requestState"])

    def _answer(self, method: str, number: int, *, fine: bool) -> Json:
        """An answer that says for which call it is."""
        if method == "elicitation/create":
            return {"result": {"action": "accept", "content": {"of": str(number)}} if fine else {"action": "decline"}}
        if method == "roots/list":
            return {"result": {"roots": [{"uri": f"file:///{self.first}"}]}}
        text = {"type": "text", "text": f"of {number}"}
        return {"result": {"role": "assistant", "model": "m", "content": text}}

    async def _reply(self, id: int | str, method: str, number: int) -> None:
        does = next(self._rounds[number], "answer")
        if does == "never":
            return
        if does == "late":
            await trio.sleep(2)
        if self.questions.pop(id, None) is None:
            return  # it was withdrawn
        refused = does == "refuse" and method != "elicitation/create"
        answer = self._answer(method, number, fine=does != "refuse")
        self.send({"id": id, **({"error": {"code": -1, "message": "no"}} if refused else answer)})
        if does == "replay":
            self.send({"id": id, **answer})

    # What it sees

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in map(json.loads, messages):
            if self.left:
                return
            if message.get("jsonrpc") != "2.0":
                self.blame("no message", message)
            elif "method" not in message:
                self._replied(message)
            elif "id" in message:
                self._questioned(message, message.get("params") or {})
            else:
                self._noticed(message["method"], message.get("params") or {}, message)

    def fail(self, id: int | str, error: CallError, /) -> None:
        """It waits for no answer of the transport's."""

    def waits(self, id: int | str, /) -> bool:
        return False

    def lost(self, error: ConnectionLost, /) -> None:
        if not self.left:
            self.blame(f"the gateway hung up: {error.reason}")

    def _lively(self, sent: Sent) -> bool:
        """Whether it may hear of this request: what crosses a cancellation comes in the same moment."""
        return sent.reply is None and sent.cancelled in (None, trio.current_time())

    def _questioned(self, message: Json, params: Json) -> None:
        method, id = message["method"], message["id"]
        if self.era.modern or method not in self.era.asks:
            self.blame("a question that this revision does not know", message)
            return
        if id in self._asked or method not in {ASKS[each] for each in self.person.can}:
            self.blame("a question with a used id, or that was not declared", message)
            return
        self._asked.add(id)
        open = [sent.number for sent in self.sent.values() if self._lively(sent)]
        number = asked_for(method, params)
        if (number is None and not open) or (number is not None and number not in open):
            self.blame("a question that belongs to none of its calls", message)
            return
        number = open[0] if number is None else number
        self.questions[id] = number
        self._nursery.start_soon(self._reply, id, method, number)

    def _noticed(self, method: str, params: Json, message: Json) -> None:
        modern, now = self.era.modern, trio.current_time()
        if method not in self.era.tells:
            self.blame("a notification that this revision does not know", message)
        elif method == "notifications/progress":
            sent = next((each for each in self.sent.values() if each.token == params["progressToken"]), None)
            if sent is None or not self._lively(sent):
                self.blame("progress of nothing that runs", message)
            elif params["progress"] <= sent.told or (
                params["progress"] > 1 and params["progress"] // 1000 != sent.number
            ):
                self.blame("progress that falls, or of another call", message)
            else:
                sent.told = params["progress"]
        elif method == "notifications/message":
            running = any(self._lively(each) for id, each in self.sent.items() if id != LISTEN)
            if not self.person.logs or (modern and not running):
                self.blame("a log notification that was not asked for", message)
        elif method == "notifications/cancelled":
            if modern or params["requestId"] not in self._asked:
                self.blame("a question was withdrawn that was none", message)
            self.questions.pop(params["requestId"], None)
        elif modern:
            mine = (params.get("_meta") or {}).get(SUBSCRIPTION) == LISTEN and LISTEN in self.sent
            if not mine or (method.endswith("acknowledged") is self.acknowledged):
                self.blame("news without a subscription, or before it", message)
            self.acknowledged = True
        elif "_meta" in params and SUBSCRIPTION in params["_meta"]:
            self.blame(f"a subscription in a legacy revision at {now}", message)

    def _replied(self, message: Json) -> None:
        id = message.get("id")
        if id in ("init", "level"):
            self._initialized.set()
            if "error" in message or (id == "init" and message["result"]["protocolVersion"] != self.era.revision):
                self.blame("not the revision that was asked for", message)
            return
        sent = self.sent.get(id)
        if sent is None or not self._lively(sent) or ("result" in message) is ("error" in message):
            self.blame("an answer to nothing, again, or after it was cancelled", message)
            return
        sent.reply, sent.replied = message, trio.current_time()
        sent.arrived.set()
        if "result" in message and id != LISTEN:
            self._judge(sent, message["result"], message)
        elif (
            "error" in message
            and (data := message["error"].get("data"))
            and data.get("number", sent.number) != sent.number
        ):
            self.blame("the error of another call", message)

    def _judge(self, sent: Sent, result: Json, message: Json) -> None:
        kind = result.get("resultType")
        if self.era.modern and (
            kind not in ("complete", "input_required") or f"{PREFIX}serverInfo" not in result["_meta"]
        ):
            self.blame("a result that is no modern one", message)
        if not self.era.modern and ({"resultType", "inputRequests", "requestState"} & result.keys()):
            self.blame("a result that is no legacy one", message)
        if kind == "input_required" and self.era.modern:
            for each in result["inputRequests"].values():
                number = asked_for(each["method"], each.get("params") or {})
                if number not in (None, sent.number) or each["method"] not in {ASKS[can] for can in self.person.can}:
                    self.blame("a question of another call, or that was not declared", message)
            return
        if {block["type"] for block in result["content"]} - self.era.blocks:
            self.blame("a block that this revision does not know", message)
        if not self.era.modern and not isinstance(result.get("structuredContent", {}), dict):
            self.blame("structured content that is no object", message)
        if result["content"][0]["text"] != f"value {sent.number}" and not result.get("isError"):
            self.blame("the result of another call", message)
        if (
            result.get("isError")
            and result["content"][0]["text"].startswith("value ")
            and (result["content"][0]["text"] != f"value {sent.number}")
        ):
            self.blame("the failure of another call", message)


def asked_for(method: str, params: Json) -> int | None:
    """The call for which a server asks, where the question says so."""
    if method == "elicitation/create":
        return int(params["message"].rpartition(" ")[2])
    if method == "sampling/createMessage":
        return int(params["messages"][0]["content"]["text"].rpartition(" ")[2])
    return None
