"""Laws of the gateway: whatever comes in gets one right answer or none, and sessions keep to their rules."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cord_trio.counters import Counters
from cord_trio.errors import Overloaded
from cord_trio.gateway.front import Front
from cord_trio.gateway.sessions import IDLE, Session, Sessions
from cord_trio.gateway.steps import (
    Answered,
    Batch,
    Caller,
    Cancel,
    Client,
    Level,
    List,
    Listen,
    Open,
    Reply,
    Run,
    Step,
    Subscribe,
)
from cord_trio.protocol.eras import ERAS
from cord_trio.testing.schedule import scheduled
from cord_trio.transports.http1 import Headers
from tests.gateway.fakes import ENVELOPE, IDENTITY, FakeFabric, FakeRegistry, modern, notice, open_pipe, text, tool

if TYPE_CHECKING:
    from random import Random

    from cord_trio.call import Call, Outcome
    from cord_trio.protocol.jsonrpc import Json

REGISTRY_TOOLS = [
    tool("plain"),
    tool("routed", inputSchema={"type": "object", "properties": {"r": {"type": "string", "x-mcp-header": "R"}}}),
]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ids = st.integers(-(2**53), 2**64) | st.text(max_size=6)
versions = st.sampled_from([*ERAS, "2099-01-01", "1.0", ""])
methods = st.sampled_from(
    ["initialize", "ping", "tools/list", "tools/call", "server/discover", "subscriptions/listen", "nothing",
     "notifications/cancelled", "notifications/initialized", "resources/read", "prompts/get", "prompts/list",
     "completion/complete", "resources/subscribe", "logging/setLevel"]
)  # fmt: skip
metas = st.fixed_dictionaries(
    {},
    optional={
        "io.modelcontextprotocol/protocolVersion": versions | values,
        "io.modelcontextprotocol/clientCapabilities": st.just({}) | values,
        "io.modelcontextprotocol/logLevel": st.just("info") | values,
        "progressToken": ids | values,
        "a.b/c": values,
    },
)
params = st.fixed_dictionaries(
    {},
    optional={
        "_meta": metas | st.just(ENVELOPE) | values,
        "name": st.sampled_from(["plain", "routed", "none"]) | values,
        "arguments": st.dictionaries(st.sampled_from(["r", "x"]), values) | values,
        "cursor": values,
        "protocolVersion": versions | values,
        "notifications": st.just({"toolsListChanged": True, "resourceSubscriptions": ["a:b"]}) | values,
        "uri": st.just("a:b") | values,
        "level": st.just("info") | values,
        "argument": st.just({"name": "a", "value": "b"}) | values,
        "ref": st.just({"type": "ref/prompt", "name": "plain"}) | values,
        "requestState": st.just("s") | values,
        "inputResponses": st.just({}) | values,
        "requestId": ids | values,
        "reason": values,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | values,
        "id": ids | values,
        "method": methods | values,
        "params": params | values,
        "result": values,
        "error": values,
    },
)
likely = st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "method": methods, "params": params}, optional={"id": ids})
sound = st.builds(
    lambda identity, method, more, meta: {
        "jsonrpc": "2.0",
        "id": identity,
        "method": method,
        "params": {"name": "plain", **more, "_meta": {**meta, **ENVELOPE}},
    },
    ids,
    methods,
    st.dictionaries(st.sampled_from(["cursor", "x", "inputResponses"]), values, max_size=2),
    metas,
)
texts = (sound | likely | messages | st.lists(likely | messages, max_size=3) | values).map(
    lambda value: json.dumps(value).encode()
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Messages, messages with a byte changed, and bytes."""
    body = draw(texts | st.binary(max_size=40))
    if body and draw(st.booleans()):
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + 1 :]
    return body


header_lines = st.lists(
    st.tuples(
        st.sampled_from([b"MCP-Protocol-Version", b"Mcp-Method", b"Mcp-Name", b"mcp-name", b"Mcp-Param-R"]),
        st.sampled_from([b"2026-07-28", b"2025-11-25", b"tools/call", b"plain", b"=?base64?cGxhaW4=?=", b"\xff"]),
    ),
    max_size=4,
)
callers = st.builds(
    lambda lines, client, named: Caller(None if lines is None else Headers(lines), client, named),
    st.none() | header_lines,
    st.none() | st.sampled_from([Client(era) for era in ERAS.values() if not era.modern]),
    st.booleans(),
)


def front() -> Front:
    registry = FakeRegistry()
    registry.publish(REGISTRY_TOOLS)
    return Front(IDENTITY, lambda: registry.snapshot)


def expected_id(value: Json) -> Json:
    """The id that an answer to `value` has, if it is to have one."""
    id = value.get("id") if isinstance(value, dict) else None
    return id if isinstance(id, int | str) and not isinstance(id, bool) else None


def check_step(step: Step, value: Json, caller: Caller) -> None:
    id = expected_id(value)
    match step:
        case Reply(None, status):
            assert status == 202
            assert not (isinstance(value, dict) and isinstance(value.get("method"), str) and id is not None)
        case Reply(message, status):
            assert message is not None
            answer = json.loads(message)
            assert answer["jsonrpc"] == "2.0"
            assert ("result" in answer) != ("error" in answer)
            assert "\n" not in message.decode()
            if "id" in answer:
                assert (type(answer["id"]), answer["id"]) == (type(id), id)
            if "result" in answer:
                assert status == 200
                assert "id" in answer
            else:
                assert status in (200, 400, 404)
        case Open(found, _, client):
            assert (type(found), found) == (type(id), id)
            assert not client.era.modern
            assert "io.modelcontextprotocol/protocolVersion" not in (value["params"].get("_meta") or {})
        case Run():
            found, era, name, members, meta = step.id, step.era, step.name, step.params, step.meta
            assert (type(found), found) == (type(id), id)
            own = {"resources/read": "uri", "completion/complete": ""}.get(step.method, "name")
            named = value["params"].get(own)
            ref = value["params"].get("ref") if step.method == "completion/complete" else {}
            assert name in (named, ref.get("name"), ref.get("uri"))
            assert set(members) <= set(value["params"]) - {own, "_meta"}
            assert (step.state is None and not step.answers) or era.modern
            assert not any(key.startswith("io.modelcontextprotocol/") or key == "progressToken" for key in meta)
            assert era.modern or caller.client is not None
        case List(found, era) | Listen(found, era):
            assert (type(found), found) == (type(id), id)
            assert era.modern or caller.client is not None
        case Subscribe(found, uri):
            assert (type(found), found, uri) == (type(id), id, value["params"]["uri"])
            assert caller.client is not None
        case Level(found, level):
            assert (type(found), found, level) == (type(id), id, value["params"]["level"])
            assert caller.client is not None
        case Answered(found):
            assert (type(found), found) == (type(id), id)
            assert "method" not in value or value["method"] is None
            assert caller.client is not None
        case Cancel():
            assert id is None
        case Batch(steps):
            assert caller.client is not None
            assert caller.client.era.batches
            assert len(steps) == len(value)
            for inner, member in zip(steps, value, strict=True):
                assert not isinstance(inner, Open | Listen | Batch)
                check_step(inner, member, caller)


@given(body=bodies(), caller=callers)
@example(  # what names a tool is any other member to what reads a resource
    b'[{"jsonrpc":"2.0","id":0,"method":"resources/read","params":{"uri":"a:b","name":"plain"}}]',
    Caller(None, Client(ERAS["2025-03-26"], b"{}", b"{}")),
)
def test_any_bytes_get_one_right_answer_or_none(body: bytes, caller: Caller) -> None:
    step = front().read(body, caller)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        assert isinstance(step, Reply)
        assert step.message is not None
        assert json.loads(step.message)["error"]["code"] in (-32700, -32600)
        return
    check_step(step, value, caller)


@given(body=bodies(), caller=callers)
def test_the_front_remembers_nothing(body: bytes, caller: Caller) -> None:
    one = front()
    assert one.read(body, caller) == one.read(body, caller)


async def some(call: Call) -> Outcome:
    for _ in range(int(bytes(call.params.get("arguments", b'{"n":1}'))[5:-1] or b"1")):
        await trio.lowlevel.checkpoint()
    return text("done")


@settings(max_examples=30)
@given(
    program=st.lists(st.tuples(st.sampled_from(["call", "cancel"]), st.integers(0, 4), st.integers(0, 9)), max_size=25),
    rng=st.randoms(use_true_random=False),
)
def test_c10_every_request_ends_once_however_cancellations_race(
    program: list[tuple[str, int, int]], rng: Random
) -> None:
    async def main() -> None:
        fabric = FakeFabric(some=some)
        async with open_pipe(fabric) as client:
            asked: Counter[int] = Counter()
            cancelled: Counter[int] = Counter()
            for verb, id, steps in program:
                if verb == "call":
                    client.send(modern(id, "tools/call", {"name": "some", "arguments": {"n": steps}}))
                    asked[id] += 1
                else:
                    client.send(notice("notifications/cancelled", {"requestId": id}))
                    cancelled[id] += 1
                for _ in range(steps % 3):
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            answered = Counter(message["id"] for message in client.got)
            for id in range(5):
                assert asked[id] - cancelled[id] <= answered[id] <= asked[id]
            client.got.clear()
            client.send(modern("last", "ping"))
            await trio.testing.wait_all_tasks_blocked()
            assert len(client.got) == 1

    with scheduled(rng):
        trio.run(main)


class SessionRules(RuleBasedStateMachine):
    """Sessions against a model: which exist is what was opened, less what ended or idled."""

    LIMIT = 4

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.counters = Counters()
        self.made = 0
        self.sessions = Sessions(self.new_id, self.counters, limit=self.LIMIT)
        self.model: dict[str, tuple[Session, float]] = {}

    def new_id(self) -> str:
        self.made += 1
        return f"s{self.made}"

    def alive(self) -> list[str]:
        return [id for id, (session, used) in self.model.items() if session.running or used + IDLE > self.now]

    @rule()
    def open(self) -> None:
        try:
            session = self.sessions.open(Client(ERAS["2025-11-25"]), self.now)
        except Overloaded:
            assert len(self.alive()) >= self.LIMIT
            return
        assert session.id not in self.model
        self.model[session.id] = (session, self.now)

    @rule(seconds=st.sampled_from([1.0, IDLE / 2, IDLE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([*self.model, "unknown"]))
        found = self.sessions.find(id, self.now)
        assert self.sessions.find(id, self.now, principal="someone else") is None
        if id in self.alive():
            assert found is self.model[id][0]
            self.model[id] = (self.model[id][0], self.now)
        else:
            assert found is None
            self.model.pop(id, None)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), id=st.sampled_from([1, "1", 2]))
    def begin(self, data: st.DataObject, id: int | str) -> None:
        if alive := self.alive():
            session = self.model[data.draw(st.sampled_from(alive))][0]
            before = len(session.running)
            scope = session.running.begin(id)
            assert len(session.running) == before + (scope is not None)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), id=st.sampled_from([1, "1", 2]))
    def finish(self, data: st.DataObject, id: int | str) -> None:
        name = data.draw(st.sampled_from(list(self.model)))
        session = self.model[name][0]
        if session.running.cancel(id, "test"):
            session.running.end(id)
        assert not session.running.cancel(id, "test")

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(self.alive()), max_size=1)) if self.alive() else []:
            session, _ = self.model.pop(name)
            scopes = list(session.running)
            self.sessions.close(session, "test")
            self.sessions.close(session, "test")
            assert all(scope.cancel_called for scope in scopes)
            assert self.sessions.find(name, self.now) is None

    @rule()
    def sweep(self) -> None:
        self.sessions.sweep(self.now)
        self.model = {id: self.model[id] for id in self.alive()}
        assert len(self.sessions) == len(self.model)

    @invariant()
    def bounded(self) -> None:
        assert len(self.sessions) <= self.LIMIT


TestSessionRules = SessionRules.TestCase
