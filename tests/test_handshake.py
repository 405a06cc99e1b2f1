from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, ConnectFailed, ConnectionLost, HttpFailed, Refused
from cord_trio.handshake import LAST_WORDS, FreshNeeded, Greeting, negotiate, refused
from cord_trio.protocol import eras
from cord_trio.session import Session, open_session
from cord_trio.transports.memory import MemoryTransport, memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from cord_trio.handshake import EraChoice

Json: TypeAlias = Any
PATIENCE = 10.0
LEGACY: Mapping[str, Json] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "old"},
    "instructions": "be kind",
}
MODERN: Mapping[str, Json] = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {"listChanged": True}},
    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "new"}},
    "ttlMs": 0,
    "cacheScope": "public",
}


class Server:
    """Answers each method as the test says: lines with `ID` for the request's id, or an error for that request."""

    def __init__(self, transport: MemoryTransport, script: Mapping[str, bytes | CallError | None]) -> None:
        self.transport = transport
        self.script = script
        self.methods: list[str] = []
        self.params: list[Json] = []
        self.session: Session | None = None

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in map(json.loads, messages):
            self.methods.append(message.get("method", "reply"))
            self.params.append(message.get("params"))
            answer = self.script.get(self.methods[-1])
            if isinstance(answer, bytes):
                for line in answer.split(b"\n"):
                    self.transport.send(line.replace(b"ID", json.dumps(message["id"]).encode()))
            elif answer is not None:
                assert self.session is not None
                self.session.fail(message["id"], answer)

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        pass

    def waits(self, id: int | str, /) -> bool:
        return False


def result(value: Json, **more: Json) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "result": {**value, **more}}).encode().replace(b'"id": 0', b'"id":ID')


def error(code: int, data: Json = None) -> bytes:
    told = {"code": code, "message": "initialize first"} | ({} if data is None else {"data": data})
    return b'{"jsonrpc":"2.0","id":ID,"error":%b}' % json.dumps(told).encode()


@asynccontextmanager
async def conversing(**script: bytes | CallError | None) -> AsyncGenerator[tuple[Session, Server]]:
    """A session with a server that answers `discover`, `initialize` and so on as told; others not at all."""
    named = {"discover": "server/discover"}
    ours, theirs = memory_transport_pair()
    server = Server(theirs, {named.get(name, name): answer for name, answer in script.items()})
    timer = Timer()
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        await nursery.start(theirs.run, server)
        async with open_session(ours, name="far", timer=timer, counters=Counters()) as session:
            server.session = session
            yield session, server
        nursery.cancel_scope.cancel("the test is over")


async def greet(session: Session, era: EraChoice = "auto") -> Greeting:
    return await negotiate(
        session, era=era, patience=PATIENCE, client_info={"name": "cord"}, capabilities={"roots": {}}
    )


async def test_a_modern_server_is_greeted_in_one_round(autojump_clock: MockClock) -> None:
    async with conversing(discover=result(MODERN, instructions="hi")) as (session, server):
        greeting = await greet(session)
        assert greeting == Greeting("2026-07-28", True, {"tools": {"listChanged": True}}, {"name": "new"}, "hi")
        assert server.methods == ["server/discover"]
        assert server.params[0]["_meta"] == {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "cord"},
            "io.modelcontextprotocol/clientCapabilities": {"roots": {}},
        }
        assert session.on_asked is None


async def test_a_modern_server_that_speaks_legacy_too_is_taken_as_modern(autojump_clock: MockClock) -> None:
    async with conversing(discover=result(MODERN, supportedVersions=["2025-11-25", "2026-07-28"])) as (session, _):
        assert (await greet(session)).revision == "2026-07-28"


ODD: Mapping[str, bytes | CallError] = {
    "method not found": error(-32601),
    "invalid params": error(-32602),
    "invalid request": error(-32600),
    "initialize first": error(-32000),
    "not initialized": error(-32002),
    "any code": error(4711),
    "error without id": b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"?"}}',
    "error that is no error": b'{"jsonrpc":"2.0","id":ID,"error":"no"}',
    "unsupported, names legacy": error(-32022, {"supported": ["2025-11-25"]}),
    "unsupported, names nothing": error(-32022),
    "unsupported, unreadable": error(-32022, {"supported": 5}),
    "neither result nor error": b'{"jsonrpc":"2.0","id":ID}',
    "wrong version of JSON-RPC": b'{"jsonrpc":2.0,"id":ID,"result":{}}',
    "empty result": result({}),
    "result that is no object": b'{"jsonrpc":"2.0","id":ID,"result":[1]}',
    "result without revisions": result(MODERN, supportedVersions=[]),
    "revisions that are none": result(MODERN, supportedVersions={"a": 1}),
    "only legacy revisions": result(MODERN, supportedVersions=["2025-06-18", "1999-01-01"]),
    "result that asks for input": result(MODERN, resultType="input_required"),
    "asks before it answers": b'{"jsonrpc":"2.0","id":"u-1","method":"ping"}',
    "HTTP 400, text": HttpFailed(400, "Bad Request: no session"),
    "HTTP 400, empty": HttpFailed(400),
    "HTTP 404, HTML": HttpFailed(404, "<html>"),
    "HTTP 405": HttpFailed(405),
    "HTTP 406": HttpFailed(406),
    "HTTP 415": HttpFailed(415),
    "HTTP 200, no JSON": BadReply("the reply is 'text/html', neither JSON nor an event stream"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_m01_every_odd_answer_to_the_probe_is_followed_by_initialize(
    odd: bytes | CallError, autojump_clock: MockClock
) -> None:
    async with conversing(discover=odd, initialize=result(LEGACY)) as (session, server):
        greeting = await greet(session)
        assert greeting == Greeting("2025-11-25", False, {"tools": {}}, {"name": "old"}, "be kind")
        assert [method for method in server.methods if method != "reply"] == ["server/discover", "initialize"]
        assert server.params[server.methods.index("initialize")] == {
            "protocolVersion": "2025-11-25",
            "capabilities": {"roots": {}},
            "clientInfo": {"name": "cord"},
        }


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_where_modern_is_configured_nothing_else_will_do(
    odd: bytes | CallError, autojump_clock: MockClock
) -> None:
    async with conversing(discover=odd, initialize=result(LEGACY)) as (session, server):
        with pytest.raises(ConnectFailed) as caught:
            await greet(session, "modern")
        assert "initialize" not in server.methods
        assert caught.value.source == "far"


async def test_where_legacy_is_configured_nobody_is_probed(autojump_clock: MockClock) -> None:
    async with conversing(initialize=result(LEGACY)) as (session, server):
        assert (await greet(session, "legacy")).revision == "2025-11-25"
        assert server.methods == ["initialize"]


@pytest.mark.parametrize("code", [eras.HEADER_MISMATCH, eras.MISSING_CAPABILITY])
async def test_a_modern_refusal_is_not_taken_for_legacy(code: int, autojump_clock: MockClock) -> None:
    async with conversing(discover=error(code), initialize=result(LEGACY)) as (session, server):
        with pytest.raises(ConnectFailed, match="handshake: server/discover failed"):
            await greet(session)
        assert server.methods == ["server/discover"]


@pytest.mark.parametrize(
    "answer", [error(-32022, {"supported": ["2031-01-01"]}), result(MODERN, supportedVersions=["2031-01-01"])]
)
async def test_a_server_of_another_time_is_refused_with_both_sides_named(
    answer: bytes, autojump_clock: MockClock
) -> None:
    async with conversing(discover=answer, initialize=result(LEGACY)) as (session, server):
        with pytest.raises(ConnectFailed, match=r"it speaks 2031-01-01; we speak 2026-07-28, 2025-11-25"):
            await greet(session)
        assert server.methods == ["server/discover"]


async def test_a_revision_that_is_refused_and_named_is_tried_once_more(autojump_clock: MockClock) -> None:
    refusal = error(-32022, {"supported": ["2026-07-28"]})
    async with conversing(discover=refusal, initialize=result(LEGACY)) as (session, server):
        with pytest.raises(ConnectFailed, match="no common protocol revision"):
            await greet(session)
        assert server.methods == ["server/discover", "server/discover"]
    async with conversing(discover=refusal) as (session, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_then, server, result(MODERN))
            assert (await greet(session)).modern
        assert server.methods == ["server/discover", "server/discover"]


async def _then(server: Server, answer: bytes) -> None:
    """From the first request on, answer so."""
    while not server.methods:  # noqa: ASYNC110  # the scripted server tells by no event
        await trio.lowlevel.checkpoint()
    server.script = {"server/discover": answer}


@pytest.mark.parametrize("status", [401, 403, 407, 429, 500, 502, 503, 504])
async def test_a_status_that_says_nothing_of_the_era_is_no_verdict(status: int, autojump_clock: MockClock) -> None:
    failure = Refused("later", status=status) if status in (429, 503) else HttpFailed(status)
    async with conversing(discover=failure, initialize=result(LEGACY)) as (session, server):
        with pytest.raises(ConnectFailed, match=f"HTTP status {status}"):
            await greet(session)
        assert server.methods == ["server/discover"]


async def test_m02_silence_means_legacy_on_a_fresh_connection(autojump_clock: MockClock) -> None:
    async with conversing(initialize=result(LEGACY)) as (session, server):
        start = trio.current_time()
        with pytest.raises(FreshNeeded, match="no answer to server/discover"):
            await greet(session)
        assert trio.current_time() - start == PATIENCE
        # The probe is never cancelled on the wire: a legacy server may choke on it.
        await wait_all_tasks_blocked()
        assert server.methods == ["server/discover"]


async def test_m03_an_exit_means_legacy_on_a_fresh_connection(autojump_clock: MockClock) -> None:
    async with conversing(discover=ConnectionLost("server exited with status 1")) as (session, _):
        with pytest.raises(FreshNeeded, match="status 1"):
            await greet(session)


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_p14_silence_ends_at_the_configured_time(era: EraChoice, autojump_clock: MockClock) -> None:
    async with conversing() as (session, server):
        start = trio.current_time()
        with pytest.raises(ConnectFailed, match=r"no answer to .* within 10 s; raise `connect`"):
            await greet(session, era)
        assert trio.current_time() - start == PATIENCE
        await wait_all_tasks_blocked()
        assert server.methods == ["server/discover" if era == "modern" else "initialize"]


async def test_a_server_that_takes_nothing_is_silent_not_legacy(autojump_clock: MockClock) -> None:
    ours, _theirs = memory_transport_pair()
    timer = Timer()
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        async with open_session(ours, timer=timer) as session:
            with pytest.raises(ConnectFailed, match="no answer to server/discover"):
                await greet(session)
        nursery.cancel_scope.cancel("the test is over")


async def test_f12_content_length_framing_is_named(autojump_clock: MockClock) -> None:
    async with conversing(initialize=b"Content-Length: 58") as (session, _):
        with pytest.raises(ConnectFailed, match="writes Content-Length headers, which is not MCP's framing"):
            await greet(session, "legacy")


async def test_f01_the_last_noise_is_shown_when_nothing_else_came(autojump_clock: MockClock) -> None:
    async with conversing(initialize=b"starting\nwaiting for a debugger") as (session, _):
        with pytest.raises(ConnectFailed, match="it wrote 'waiting for a debugger'"):
            await greet(session, "legacy")


@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
async def test_l06_an_older_revision_is_accepted(revision: str, autojump_clock: MockClock) -> None:
    async with conversing(initialize=result(LEGACY, protocolVersion=revision)) as (session, _):
        assert (await greet(session, "legacy")).revision == revision
        assert session.batches is (revision == "2025-03-26")


@pytest.mark.parametrize("revision", ["1999-01-01", "2026-07-28"])
async def test_l06_a_revision_that_is_none_of_ours_is_named(revision: str, autojump_clock: MockClock) -> None:
    async with conversing(initialize=result(LEGACY, protocolVersion=revision)) as (session, _):
        with pytest.raises(ConnectFailed, match=f"it offers '{revision}'; we speak 2025-11-25, 2025-06-18"):
            await greet(session, "legacy")


@pytest.mark.parametrize(
    ("answer", "step", "reason"),
    [
        (error(-32603), "handshake", "initialize failed: initialize first"),
        (result({}), "handshake", "has no protocolVersion"),
        (b'{"jsonrpc":"2.0","id":ID}', "handshake", "neither result nor error"),
        (HttpFailed(401), "authorize", "HTTP status 401"),
        (HttpFailed(403), "authorize", "HTTP status 403"),
        (HttpFailed(404), "http", "HTTP status 404"),
        (HttpFailed(418), "http", "HTTP status 418"),
        (ConnectionLost("it burnt down"), "handshake", "it burnt down"),
        (ConnectionLost("refused", "no"), "connect", "refused"),
    ],
)
async def test_a_failed_initialize_says_why(
    answer: bytes | CallError, step: str, reason: str, autojump_clock: MockClock
) -> None:
    async with conversing(initialize=answer) as (session, _):
        start = trio.current_time()
        with pytest.raises(ConnectFailed, match=reason) as caught:
            await greet(session, "legacy")
        assert caught.value.step == step
        assert trio.current_time() == start


async def test_a_pipe_that_is_broken_first_leaves_the_reason_to_the_exit(autojump_clock: MockClock) -> None:
    async with conversing() as (session, server):
        ours = server.transport._peer
        ours._over = "writing failed: Broken pipe"

        async def exit_later() -> None:
            await trio.sleep(LAST_WORDS / 2)
            session.lost(ConnectionLost("server exited with status 3; stderr: need API_KEY"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(exit_later)
            with pytest.raises(ConnectFailed, match="connect: server exited with status 3; stderr: need API_KEY"):
                await greet(session)


async def test_a_broken_pipe_is_reason_enough_when_no_other_comes(autojump_clock: MockClock) -> None:
    async with conversing() as (session, server):
        server.transport._peer._over = "writing failed: Broken pipe"
        start = trio.current_time()
        with pytest.raises(ConnectFailed, match="connect: writing failed: Broken pipe"):
            await greet(session, "legacy")
        assert trio.current_time() - start == LAST_WORDS


async def test_l09_a_ping_before_the_answer_to_initialize_is_answered(autojump_clock: MockClock) -> None:
    ping = b'{"jsonrpc":"2.0","id":"u-1","method":"ping"}\n'
    async with conversing(initialize=ping + result(LEGACY)) as (session, server):
        assert (await greet(session, "legacy")).revision == "2025-11-25"
        await wait_all_tasks_blocked()
        assert server.methods == ["initialize", "reply"]


def test_refusals_say_what_to_do() -> None:
    assert "headers" in refused("far", HttpFailed(401)).remedy
    assert "credentials" in refused("far", HttpFailed(403)).remedy
    assert "url" in refused("far", HttpFailed(405)).remedy
    assert refused("far", HttpFailed(500, "boom")).reason == "HTTP status 500: boom"
