"""The scripted server: what it says in memory, and that its child process says the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.config.values import InProcess, Stdio
from cord_trio.testing import ToolServer
from cord_trio.testing.script import TOOLS, Options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from cord_trio.errors import CallError, ConnectionLost
    from cord_trio.transports import Transport

Json: TypeAlias = Any
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(id: int | str, method: str, **params: Json) -> bytes:
    """A legacy request."""
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def modern(id: int | str, method: str, _meta: Json = None, **params: Json) -> bytes:
    """A modern request."""
    return request(id, method, **params, _meta=ENVELOPE | (_meta or {}))


def call(id: int | str, tool: str, **arguments: Json) -> bytes:
    return modern(id, "tools/call", name=tool, arguments=arguments)


def note(method: str, **params: Json) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


class Client:
    """Keeps what it is fed, decoded; rubbish as bytes."""

    def __init__(self) -> None:
        self.got: list[Json] = []
        self.over: str | None = None
        self.transport: Transport

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in messages:
            try:
                self.got.append(json.loads(message))
            except ValueError:
                self.got.append(message)

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError(error)

    def lost(self, error: ConnectionLost, /) -> None:
        self.over = error.reason

    def answers(self) -> dict[int | str | None, Json]:
        """Results and errors by id."""
        replies = [one for one in self.got if isinstance(one, dict) and "method" not in one]
        return {one.get("id"): one.get("result", one.get("error")) for one in replies}

    def texts(self) -> dict[int | str | None, str]:
        """The text of each tool result by id."""
        return {id: answer["content"][0]["text"] for id, answer in self.answers().items()}

    def notes(self) -> list[str]:
        return [one["method"] for one in self.got if isinstance(one, dict) and "method" in one]


async def talk(server: ToolServer, *lines: bytes, seconds: float = 0) -> Client:
    """What a client gets that sends these lines and then waits."""
    client = Client()
    async with server.open() as transport, trio.open_nursery() as nursery:
        await nursery.start(transport.run, client)
        for line in lines:
            transport.send(line)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel("the talk is over")
    return client


HELLO = request(
    0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "t", "version": "1"}
)
READY = note("notifications/initialized")


async def test_modern_discover_names_versions_and_identity(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(name="one", instructions="be kind"), modern("p", "server/discover"))
    assert client.answers()["p"] == {
        "resultType": "complete",
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "one", "version": "1"}},
        "supportedVersions": ["2026-07-28"],
        "ttlMs": 0,
        "cacheScope": "public",
        "capabilities": {"tools": {"listChanged": True}, "logging": {}},
        "instructions": "be kind",
    }


async def test_legacy_initialize_echoes_a_known_revision(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), HELLO)
    assert client.answers()[0]["protocolVersion"] == "2025-06-18"
    client = await talk(ToolServer(revision="2024-11-05"), HELLO)
    assert client.answers()[0]["protocolVersion"] == "2024-11-05"


@pytest.mark.parametrize(
    ("options", "line", "code"),
    [
        ({"era": "modern"}, HELLO, -32022),
        ({"era": "modern"}, request(0, "tools/list"), -32602),
        ({"era": "legacy"}, modern(0, "server/discover"), -32601),
        ({"era": "legacy", "discover_error": -32600}, modern(0, "server/discover"), -32600),
        ({}, request(0, "tools/list"), -32002),
        ({}, request(0, "tools/call", _meta={"io.modelcontextprotocol/protocolVersion": "2026-07-28"}), -32602),
        ({}, modern(0, "tools/list", {"io.modelcontextprotocol/protocolVersion": "2025-06-18"}), -32022),
        ({}, modern(0, "initialize"), -32601),
        ({}, call(0, "nothing"), -32602),
        ({}, call(0, "error", code=-5), -5),
    ],
)
async def test_each_fault_of_a_client_gets_its_code(
    autojump_clock: MockClock, options: Json, line: bytes, code: int
) -> None:
    assert (await talk(ToolServer(**options), line)).answers()[0]["code"] == code


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"{", -32700), (b"\xff", -32700), (b"[" * 100_000, -32700), (b'{"a":NaN}', -32700), (b"[]", -32600)],
)
async def test_bytes_that_are_no_message_get_an_error_without_id(
    autojump_clock: MockClock, line: bytes, code: int
) -> None:
    client = await talk(ToolServer(), line, call(1, "echo", text="still here"))
    assert client.answers()[None]["code"] == code
    assert client.answers()[1]["content"][0]["text"] == "still here"


async def test_tools_of_every_kind_answer(autojump_clock: MockClock) -> None:
    client = await talk(
        ToolServer({"twice": lambda given: given["n"] * 2, "shout": lambda given: "HO"}),
        call(1, "echo", text="\u2028é"),
        call(2, "add", a=1, b=0.5),
        call(3, "big", size=10),
        call(4, "twice", n=4),
        call(5, "shout"),
        call(6, "count"),
        call(7, "count"),
        call(8, "tool_1", text="mine"),
    )
    assert client.texts() == {1: "\u2028é", 2: "1.5", 3: "x" * 10, 4: "8", 5: "HO", 6: "1", 7: "2", 8: "mine"}
    assert client.answers()[2]["structuredContent"] == {"sum": 1.5}


async def test_failures_of_tools_are_results(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer({"bad": lambda given: given["x"]}), call(1, "fail", text="no"), call(2, "bad"))
    assert client.texts() == {1: "no", 2: "KeyError: 'x'"}
    assert all(answer["isError"] for answer in client.answers().values())


async def test_a_list_has_pages_and_may_never_end(autojump_clock: MockClock) -> None:
    first = (await talk(ToolServer(page=4), modern(1, "tools/list"))).answers()[1]
    assert [tool["name"] for tool in first["tools"]] == list(TOOLS)[:4]
    rest = (await talk(ToolServer(page=400), modern(1, "tools/list", cursor=first["nextCursor"]))).answers()[1]
    assert [tool["name"] for tool in rest["tools"]] == list(TOOLS)[4:]
    assert "nextCursor" not in rest
    assert (await talk(ToolServer(same_cursor=True), modern(1, "tools/list"))).answers()[1]["nextCursor"] == "0"


async def test_sleep_answers_in_time_and_not_when_cancelled(autojump_clock: MockClock) -> None:
    server = ToolServer()
    cancel = note("notifications/cancelled", requestId=1)
    client = await talk(server, call(1, "sleep", seconds=5), call(2, "sleep", seconds=5), cancel, seconds=4)
    assert client.answers() == {}
    client = await talk(server, call(1, "sleep", seconds=5), call(2, "sleep", seconds=5), cancel, cancel, seconds=6)
    assert client.texts() == {2: "slept"}
    assert server.cancelled == 2


async def test_an_id_used_again_is_not_answered_by_the_cancelled_call(autojump_clock: MockClock) -> None:
    cancel = note("notifications/cancelled", requestId=1)
    client = await talk(ToolServer(), call(1, "sleep", seconds=5), cancel, call(1, "sleep", seconds=50), seconds=40)
    assert client.answers() == {}


@pytest.mark.parametrize("seconds", [0, 3])
async def test_progress_comes_before_the_answer(autojump_clock: MockClock, seconds: float) -> None:
    line = modern(1, "tools/call", {"progressToken": "t"}, name="progress", arguments={"steps": 3, "seconds": seconds})
    client = await talk(ToolServer(), line, seconds=seconds + 1)
    assert [one["params"]["progress"] for one in client.got[:-1]] == [1, 2, 3]
    assert client.texts() == {1: "3 steps"}


async def test_logs_stream_once_a_legacy_client_is_ready(autojump_clock: MockClock) -> None:
    server = ToolServer(logs=10.0)
    assert (await talk(server, HELLO, seconds=1)).notes() == []
    assert len((await talk(server, HELLO, READY, seconds=1.05)).notes()) == 10
    quiet = request(1, "logging/setLevel", level="error")
    assert (await talk(server, HELLO, READY, quiet, seconds=1)).notes() == []


async def test_a_modern_call_logs_only_when_asked(autojump_clock: MockClock) -> None:
    level = {"io.modelcontextprotocol/logLevel": "info"}
    line = modern(1, "tools/call", level, name="count", arguments={})
    assert (await talk(ToolServer(logs=10.0), line)).notes() == ["notifications/message"]
    assert (await talk(ToolServer(logs=10.0), call(1, "count"), seconds=1)).notes() == []


async def test_changed_tools_are_told_to_who_listens(autojump_clock: MockClock) -> None:
    changed = "notifications/tools/list_changed"
    assert (await talk(ToolServer(), call(1, "change_tools"))).notes() == []
    assert (await talk(ToolServer(), HELLO, READY, call(1, "change_tools"))).notes() == [changed]
    listen = modern("l", "subscriptions/listen", notifications={"toolsListChanged": True})
    client = await talk(ToolServer(), listen, call(1, "change_tools"), modern(2, "tools/list"))
    assert client.notes() == ["notifications/subscriptions/acknowledged", changed]
    assert client.got[2]["params"] == {"_meta": {"io.modelcontextprotocol/subscriptionId": "l"}}
    assert client.answers()[2]["tools"][-1]["name"] == "added_1"


async def test_ask_asks_the_client_in_the_way_of_its_era(autojump_clock: MockClock) -> None:
    reply = json.dumps({"jsonrpc": "2.0", "id": "ask-1", "result": {"roots": []}}).encode()
    legacy = request(1, "tools/call", name="ask", arguments={"method": "roots/list"})
    client = await talk(ToolServer(), HELLO, READY, legacy, reply)
    assert client.notes() == ["roots/list"]
    assert client.answers()[1]["structuredContent"] == {"answer": {"roots": []}, "error": None}
    client = await talk(ToolServer(), call(1, "ask", method="roots/list"))
    asked = client.answers()[1]
    assert (asked["resultType"], asked["inputRequests"]["asked"]["method"]) == ("input_required", "roots/list")
    again = {"name": "ask", "inputResponses": {"asked": {"roots": []}}, "requestState": asked["requestState"]}
    client = await talk(ToolServer(), modern(2, "tools/call", **again))
    assert client.answers()[2]["structuredContent"] == {"answer": {"roots": []}, "state": "state-1"}


async def test_faults_spoil_answers_as_ordered(autojump_clock: MockClock) -> None:
    line = call(1, "echo", text="x")
    assert (await talk(ToolServer(silent=True), line, seconds=9)).got == []
    assert (await talk(ToolServer(silent_on="tools/call"), line, seconds=9)).got == []
    assert (await talk(ToolServer(slow=2.0), line, seconds=1)).got == []
    assert len((await talk(ToolServer(slow=2.0), line, seconds=3)).got) == 1
    assert len((await talk(ToolServer(twice=True), line)).got) == 2
    assert (await talk(ToolServer(garbage=True), line)).got[0] == b"\xff\xfe{ no json"
    assert list((await talk(ToolServer(string_ids=True), line)).answers()) == ["1"]
    assert (await talk(ToolServer(banner="hi"), line)).got[0] == b"hi"


async def test_a_server_in_this_process_ends_as_a_real_one(autojump_clock: MockClock) -> None:
    assert (await talk(ToolServer(exit_at_start=True))).over == "server exited with status 3"
    crash = await talk(ToolServer(), call(1, "crash", signal=9))
    assert (crash.over, crash.got) == ("server exited (signal 9)", [])


async def test_connections_can_be_broken_from_outside(autojump_clock: MockClock) -> None:
    server, client = ToolServer(), Client()
    async with server.open() as transport, trio.open_nursery() as nursery:
        await nursery.start(transport.run, client)
        server.break_connections()
    assert client.over == "server exited (signal 9)"


async def test_a_flood_beyond_the_outbox_arrives_whole(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), call(1, "flood", lines=20_000), call(2, "echo", text="after"), seconds=1)
    assert len(client.notes()) == 20_000
    assert client.texts() == {1: "flooded", 2: "after"}


async def test_an_error_of_the_block_comes_out_bare(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        async with ToolServer().open():
            raise KeyError


def test_options_survive_the_command_line() -> None:
    options = Options(name="n m", tools=3, logs=2.5, crlf=True, exit_on="tools/list")
    assert vars(Options.parse(options.arguments())) == vars(options)
    with pytest.raises(TypeError, match="no option 'color'"):
        Options(color="red")
    with pytest.raises(SystemExit, match="no option --color"):
        Options.parse(["--color", "red"])


def test_sources_carry_the_command_and_common_fields() -> None:
    stdio = ToolServer(name="s", tools=2).source(slots=3)
    assert isinstance(stdio, Stdio)
    assert (stdio.command, stdio.args[-4:], stdio.slots) == (sys.executable, ("--name", "s", "--tools", "2"), 3)
    assert isinstance(ToolServer(name="s").in_process(), InProcess)
    with pytest.raises(ValueError, match="functions"):
        ToolServer({"f": str}).command()


def spoken(server: ToolServer, *lines: bytes, wait: bool = False) -> list[bytes]:
    """The lines that the child writes when it is told these, then the end of its input."""
    child = subprocess.run(
        server.command(), input=b"".join(line + b"\n" for line in lines), capture_output=True, check=False
    )
    assert child.stderr == b""
    return child.stdout.splitlines(keepends=True)


def test_the_child_says_what_memory_says() -> None:
    lines = [modern("p", "server/discover"), HELLO, READY, call(1, "add", a=1, b=2), call(2, "big", size=4_000_000)]
    child = [json.loads(line) for line in spoken(ToolServer(), *lines)]
    memory = trio.run(talk, ToolServer(), *lines).got
    assert child == memory


def test_the_child_writes_the_line_ends_and_banners_it_is_told() -> None:
    first, second = spoken(ToolServer(crlf=True, banner="welcome"), call(1, "count"))
    assert first == b"welcome\r\n"
    assert second.endswith(b"}\r\n")


def test_the_child_records_what_it_received(tmp_path: Path) -> None:
    lines = [call(1, "count"), note("notifications/cancelled", requestId=1)]
    spoken(ToolServer(record=str(tmp_path / "record")), *lines)
    assert (tmp_path / "record").read_bytes().splitlines() == lines


@pytest.mark.parametrize(
    ("server", "lines", "status"),
    [
        (ToolServer(exit_at_start=True), [], 3),
        (ToolServer(exit_on="initialize", exit_status=7), [HELLO], 7),
        (ToolServer(), [call(1, "crash", signal=9)], -9),
        (ToolServer(), [HELLO], 0),
    ],
)
def test_the_child_exits_as_told(server: ToolServer, lines: list[bytes], status: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert subprocess.run(server.command(), input=data, capture_output=True, check=False).returncode == status


def test_a_deaf_child_outlives_the_end_of_input_and_sigterm() -> None:
    command = ToolServer(ignore_eof=True, ignore_term=True, banner="up").command()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        child.stdin.close()
        child.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        child.kill()


def test_the_child_reads_cancels_while_its_output_is_stuck(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with subprocess.Popen(
        ToolServer(record=str(record)).command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        child.stdin.write(call(1, "big", size=4_000_000) + b"\n")
        child.stdin.write(note("notifications/cancelled", requestId=1) + b"\n")
        child.stdin.flush()
        until = time.monotonic() + 5
        while not record.exists() or record.read_bytes().count(b"\n") < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        child.kill()


def test_the_child_floods_without_a_line_end_and_logs_to_stderr() -> None:
    server = ToolServer(no_newline_flood=True, stderr_logs=1000.0, name="chatty")
    with subprocess.Popen(
        server.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stderr.readline() == b"chatty: tick\n"
        child.stdin.write(note("notifications/initialized") + b"\n")
        child.stdin.flush()
        assert b"\n" not in child.stdout.read(1 << 20)
        child.kill()


def test_the_child_streams_logs_and_stays_small() -> None:
    with subprocess.Popen(ToolServer(logs=200.0).command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(HELLO + b"\n" + READY + b"\n")
        child.stdin.flush()
        lines = [json.loads(child.stdout.readline()) for _ in range(4)]
        assert [line.get("method") for line in lines] == [None, *["notifications/message"] * 3]
        if sys.platform == "linux":
            with open(f"/proc/{child.pid}/status") as status:
                rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            assert rss < 12 * 1024
        child.kill()


async def test_halves_of_surrogate_pairs_come_back_escaped(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), call(1, "echo", text="\ud800"))
    assert client.texts() == {1: "\ud800"}


async def test_ids_and_params_of_a_wrong_kind_get_an_error(autojump_clock: MockClock) -> None:
    wrong = [b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', b'{"jsonrpc":"2.0","id":2,"method":"ping","params":[1]}']
    client = await talk(ToolServer(), *wrong)
    assert {id: answer["code"] for id, answer in client.answers().items()} == {None: -32600, 2: -32602}


async def test_legacy_answers_ping_at_any_time_and_only_its_own_methods(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), request(1, "ping"), HELLO, READY, request(2, "tools/list"), request(3, "nope"))
    assert client.answers()[1] == {}
    assert len(client.answers()[2]["tools"]) == len(TOOLS)
    assert client.answers()[3]["code"] == -32601


async def test_a_stray_reply_is_ignored(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), b'{"jsonrpc":"2.0","id":"ask-1","result":{}}')
    assert client.got == []


async def test_a_listener_that_wants_nothing_hears_nothing(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), modern("l", "subscriptions/listen", notifications={}), call(1, "change_tools"))
    assert client.notes() == ["notifications/subscriptions/acknowledged"]


async def test_in_this_process_stderr_is_kept_and_no_process_starts(autojump_clock: MockClock) -> None:
    server = ToolServer()
    client = await talk(server, call(1, "stderr", bytes=3), call(2, "spawn"))
    assert server.world.stderr == b"ee\n"
    assert client.answers()[2]["isError"]
    assert server.received == {"tools/call": 2, "call stderr": 1, "call spawn": 1}


async def test_an_exit_on_a_method_loses_the_connection(autojump_clock: MockClock) -> None:
    server = ToolServer(exit_on="server/discover", exit_status=1)
    assert (await talk(server, modern(1, "server/discover"))).over == "server exited with status 1"


async def test_an_answer_that_no_outbox_holds_loses_the_connection(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(), call(1, "big", size=33 << 20))
    assert client.over == "message beyond bounds.outbox_bytes"


async def test_answers_to_a_client_that_left_go_nowhere(autojump_clock: MockClock) -> None:
    async with ToolServer().open() as transport:
        transport.send(call(1, "sleep", seconds=1))
        await trio.testing.wait_all_tasks_blocked()
        transport.close()
        await trio.sleep(2)
    async with ToolServer().open() as transport:
        transport.send(call(1, "count"))
        transport.close()
        await trio.sleep(2)


async def test_a_server_knows_itself(autojump_clock: MockClock) -> None:
    client = await talk(ToolServer(name="me"), call(1, "whoami"))
    known = client.answers()[1]["structuredContent"]
    assert (known["name"], known["pid"], known["era"], known["cancelled"]) == ("me", os.getpid(), "modern", 0)


def test_the_child_writes_to_stderr_and_starts_grandchildren() -> None:
    lines = [HELLO, READY, call(1, "stderr", bytes=100), call(2, "spawn", detached=True)]
    command = ToolServer(stderr=10).command()
    data = b"".join(line + b"\n" for line in lines)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(data)
        child.stdin.flush()
        answers = [json.loads(child.stdout.readline()) for _ in range(3)]
        grandchild = int(answers[2]["result"]["content"][0]["text"])
        assert os.getsid(grandchild) == grandchild
        os.kill(grandchild, signal.SIGKILL)
        assert child.stderr.read(110) == b"e" * 9 + b"\n" + b"e" * 99 + b"\n"
        child.kill()
