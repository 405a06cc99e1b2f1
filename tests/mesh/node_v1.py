"""A node of the first version of the mesh's protocol, as it was: never changed. It says and understands `frames_v1`.

It is as small as such a node can be: what it stores, and what it does with each message, are written out. The
connection is any client of NATS.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from tests.mesh.frames_v1 import (
    Bundle,
    Frame,
    Request,
    decode_frame,
    decode_request,
    encode_frame,
    encode_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cord_trio.nats.client import Nats
    from cord_trio.nats.wire import Message

Json: TypeAlias = Any

LEASE: Final = 15
ABOVE: Final = 256 * 1024
PART: Final = 64 * 1024
WINDOW: Final = 16
STALL: Final = 1.0


class Node:
    """One incarnation.

    Attributes:
        seen: records of others that it has read, by the node's name.
        begun: tools that were called here, in order.
        cancelled: ids of calls that others ended.
        stalls: how often parts did not come within `STALL`.

    """

    def __init__(self, nats: Nats, mesh: str, name: str, epoch: str, nursery: trio.Nursery) -> None:
        self.seen: dict[str, Json] = {}
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.stalls = 0
        self._nats = nats
        self._mesh = mesh
        self._name = name
        self._epoch = epoch
        self._nursery = nursery
        self._ids = 0
        self._running: dict[str, trio.CancelScope] = {}
        self._sent: dict[str, bytes] = {}
        self._incoming: dict[str, dict[int, bytes]] = {}
        self._moved = trio.Event()
        self._wanted: dict[str, Callable[[int, int, str], None]] = {}

    # Being there

    @contextmanager
    def listening(self) -> Generator[None]:
        prefix = f"$KV.cord_{self._mesh}.up."
        self._inbox = f"{self._nats.inbox}.parts"
        with (
            self._nats.subscribe(f"c1.{self._mesh}.call.{self._name}.{self._epoch}.*", tell=self._told),
            self._nats.subscribe(f"{prefix}*", tell=lambda message: self._see(message.subject, message.data)),
            self._nats.subscribe(f"{self._inbox}.*", tell=self._part),
        ):
            yield

    async def announce(self, **record: Json) -> None:
        """Take the name."""
        ttl = {"Nats-TTL": f"{LEASE}s", "Nats-Expected-Last-Subject-Sequence": "0"}
        self._revision = await self._put(f"hb.{self._name}.{self._epoch}", b"", ttl)
        said = json.dumps({"epoch": self._epoch, **record}).encode()
        before = await self._last(f"up.{self._name}")  # what was deleted has left a mark
        sequence = before.header("Nats-Sequence") or "0"
        await self._put(f"up.{self._name}", said, {"Nats-Expected-Last-Subject-Sequence": sequence})

    async def renew(self) -> None:
        headers = {"Nats-TTL": f"{LEASE}s", "Nats-Expected-Last-Subject-Sequence": str(self._revision)}
        self._revision = await self._put(f"hb.{self._name}.{self._epoch}", b"", headers)

    async def leave(self) -> None:
        for key in (f"up.{self._name}", f"hb.{self._name}.{self._epoch}"):
            await self._put(key, b"", {"KV-Operation": "DEL", "Nats-TTL": "60s"})

    async def look(self, name: str) -> None:
        """Read the record of another."""
        found = await self._last(f"up.{name}")
        if not found.status:
            self._see(f"up.{name}", found.data)

    def _see(self, subject: str, data: bytes) -> None:
        name = subject.rpartition(".")[2]
        if data:
            record = json.loads(data)
            least, most = record.get("wire", (1, 1))
            assert least <= 1 <= most
            self.seen[name] = record
        else:
            self.seen.pop(name, None)

    async def _last(self, key: str) -> Message:
        bucket = f"cord_{self._mesh}"
        return await self._nats.request(f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}")

    async def _put(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        answer = json.loads((await self._nats.request(f"$KV.cord_{self._mesh}.{key}", value, headers=headers)).data)
        assert "error" not in answer, answer
        return int(answer["seq"])

    # Owning

    def _told(self, message: Message) -> None:
        if message.header("C-Id") is None and message.header("C-Op") == "ping":
            self._nats.publish(message.reply, headers={"C-K": "pong"})
            return
        request = decode_request(message.head, message.data)
        match request.op:
            case "call":
                self._nursery.start_soon(self._run, request, message.reply)
            case "cancel":
                self.cancelled.append(request.id)
                if request.id in self._running:
                    self._running[request.id].cancel("its caller cancelled it")
                if message.reply:
                    self._say(message.reply, Frame("pong", request.id, state="done"))
            case "ping":
                state = "running" if request.id in self._running else "unknown"
                self._say(message.reply, Frame("pong", request.id, state=state))
            case "credit":
                self._send(self._sent[request.id], request.first, request.window, request.to)
            case "done":
                self._sent.pop(request.id, None)
            case _:
                pass

    async def _run(self, request: Request, reply: str) -> None:
        with trio.CancelScope() as scope:
            self._running[request.id] = scope
            try:
                body = request.body
                if request.bundle is not None:
                    ask = partial(self._ask_caller, reply)
                    body = await self._fetch(request.bundle, ask)
                await self._work(request, json.loads(body)["arguments"], reply)
            finally:
                del self._running[request.id]

    async def _work(self, request: Request, arguments: Json, reply: str) -> None:
        self.begun.append(request.tool or "")
        self._say(reply, Frame("acc", busy=len(self._running), slots=64))
        match request.tool:
            case "tells":
                for step in (1, 2, 3):
                    told = json.dumps({"progressToken": 0, "progress": step}).encode()
                    self._say(reply, Frame("prog", method="notifications/progress", body=told))
                self._say(reply, Frame("ok", body=b'"told"'))
            case "fails":
                fault = {"kind": "", "text": "no good", "executed": "yes", "code": -32000, "data": [1]}
                self._say(reply, Frame("err", body=json.dumps(fault).encode()))
            case "denies":
                fault = {"kind": "Denied", "text": "not you", "executed": "no", "name": "denies"}
                self._say(reply, Frame("err", body=json.dumps(fault).encode()))
            case "refuses":
                self._say(reply, Frame("rej", reason="draining"))
            case "sleeps":
                while True:
                    await trio.sleep(0.5)
                    self._say(reply, Frame("hb"))
            case _:
                answer = json.dumps(arguments).encode()
                if len(answer) <= ABOVE:
                    self._say(reply, Frame("ok", body=answer, busy=0, slots=64))
                    return
                self._sent[request.id] = answer
                self._say(reply, Frame("end", bundle=bundle_of(answer)))

    # Calling

    async def call(
        self, owner: str, tool: str, arguments: Json, *, events: Callable[[str, bytes], None] | None = None
    ) -> Frame:
        """The frame that ended a call of another node, with its whole body; cancelled, it tells the owner so."""
        self._ids += 1
        id = f"{self._ids:032x}"
        subject = f"c1.{self._mesh}.call.{owner}.{self.seen[owner]['epoch']}.{self._name}"
        body = json.dumps({"arguments": arguments}).encode()
        large = len(body) > ABOVE
        request = Request(
            "call", id, b"" if large else body, tool=tool, ttl=30_000, epoch=self._epoch, principal="ann",
            events=events is not None, bundle=bundle_of(body) if large else None,
        )  # fmt: skip
        ended = False
        try:
            with self._nats.open_stream(subject, request.body, headers=encode_request(request)) as stream:
                while True:
                    message = await stream.receive()
                    frame = decode_frame(message.head, message.data)
                    match frame.kind:
                        case "prog":
                            if events is not None:
                                events(frame.method, frame.body)
                        case "credit":
                            self._send(body, frame.seq, frame.window, frame.to)
                        case "ok" | "err" | "rej":
                            ended = True
                            return frame
                        case "end":
                            ended = True
                            ask = partial(self._ask_owner, subject, id, stream.inbox)
                            assert frame.bundle is not None
                            whole = await self._fetch(frame.bundle, ask)
                            self._nats.publish(subject, headers=encode_request(Request("done", id)))
                            return Frame("ok", body=whole)
                        case _:
                            pass
        finally:
            if not ended:
                self._nats.publish(subject, headers=encode_request(Request("cancel", id, reason="it was cancelled")))

    # Large bodies

    def _send(self, body: bytes, first: int, count: int, to: str) -> None:
        for seq in range(first, min(first + count, first + WINDOW, -(-len(body) // PART))):
            self._nats.publish(to, body[seq * PART : (seq + 1) * PART], headers=encode_frame(Frame("part", seq=seq)))

    def _ask_caller(self, reply: str, first: int, count: int, to: str) -> None:
        self._say(reply, Frame("credit", seq=first, window=count, to=to))

    def _ask_owner(self, subject: str, id: str, inbox: str, first: int, count: int, to: str) -> None:
        headers = encode_request(Request("credit", id, first=first, window=count, to=to))
        self._nats.publish(subject, reply=inbox, headers=headers)

    async def _fetch(self, bundle: Bundle, want: Callable[[int, int, str], None]) -> bytes:
        self._ids += 1
        to = f"{self._inbox}.{self._ids}"
        came = self._incoming[to] = {}
        asked = 0
        again = True
        while (missing := next(at for at in range(bundle.parts + 1) if at not in came)) < bundle.parts:
            if again:
                asked = missing
            if again or asked - missing <= WINDOW // 2:
                count = min(missing + WINDOW, bundle.parts) - asked
                if count > 0:
                    first, asked = asked, asked + count
                    want(first, count, to)
            self._moved = trio.Event()
            again = True
            with trio.move_on_after(STALL):
                await self._moved.wait()
                again = False
            self.stalls += again
        del self._incoming[to]
        body = b"".join(came[at] for at in range(bundle.parts))
        assert (len(body), hashlib.sha256(body).hexdigest()) == (bundle.size, bundle.sha256)
        return body

    def _part(self, message: Message) -> None:
        frame = decode_frame(message.head, message.data)
        if message.subject in self._incoming:
            self._incoming[message.subject][frame.seq] = frame.body
            self._moved.set()

    def _say(self, reply: str, frame: Frame) -> None:
        self._nats.publish(reply, frame.body, headers=encode_frame(frame))


def bundle_of(body: bytes) -> Bundle:
    return Bundle(-(-len(body) // PART), len(body), hashlib.sha256(body).hexdigest())
