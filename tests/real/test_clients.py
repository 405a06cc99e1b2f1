"""The official Python SDK's client, in each of its modes, against our gateway as a real child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.testing import ToolServer
from tests.real.helpers import read_line, running, until

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from mcp.client.stdio import stdio_client  # noqa: E402  # only where the SDK is
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.filterwarnings(
    # The SDK leaves half-read generators to the collector when it runs on Trio.
    "ignore:Async generator:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

Json: TypeAlias = Any
MODES = ("auto", "legacy", "session")
"""Of the client: it asks for the modern era first; it shakes hands; its older class that always does."""


class Setup:
    """A configuration with one scripted source, and what that source was sent."""

    def __init__(self, folder: Path, **options: Json) -> None:
        self.record = folder / "record"
        self.record.touch()
        self.config = folder / "servers.json"
        command, *args = ToolServer(record=str(self.record), **options).command()
        self.config.write_text(json.dumps({"mcpServers": {"up": {"command": command, "args": args}}}))

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "cord_trio", "serve", "--config", str(self.config), *more]

    def received(self, method: str) -> list[Json]:
        """The params of what the source was sent of one method, in order."""
        messages = [json.loads(line) for line in self.record.read_bytes().splitlines()]
        return [{"id": one.get("id"), **one.get("params", {})} for one in messages if one.get("method") == method]

    def calls(self, tool: str) -> list[Json]:
        return [one["id"] for one in self.received("tools/call") if one["name"] == tool]

    @property
    def cancelled(self) -> list[Json]:
        return [one["requestId"] for one in self.received("notifications/cancelled")]


@asynccontextmanager
async def gateway(setup: Setup, *more: str) -> AsyncGenerator[tuple[trio.Process, str]]:
    """Our gateway over HTTP, and its URL."""
    async with running(setup.command("--http", "127.0.0.1:0", *more), stderr=subprocess.PIPE) as process:
        line = ""
        while "serving" not in line:
            line = await read_line(process.stderr)
        yield process, line.rpartition(" ")[2]


class Heard:
    """What a client was told beside its answers."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    async def __call__(self, message: Json) -> None:
        self.methods.append(str(getattr(message, "method", type(message).__name__)))


@asynccontextmanager
async def over_http(url: str, mode: str, heard: Heard) -> AsyncGenerator[Json]:
    if mode != "session":
        async with mcp.Client(url, mode=mode, message_handler=heard) as client:
            yield client
        return
    async with streamable_http_client(url) as (reading, writing):
        async with mcp.ClientSession(reading, writing, message_handler=heard) as session:
            await session.initialize()
            yield session


@asynccontextmanager
async def over_stdio(setup: Setup, mode: str, heard: Heard) -> AsyncGenerator[Json]:
    command, *args = setup.command("--stdio")
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230  # no disk behind it
        transport = stdio_client(mcp.StdioServerParameters(command=command, args=args), errlog=nowhere)
        if mode != "session":
            async with mcp.Client(transport, mode=mode, message_handler=heard) as client:
                yield client
            return
        async with (
            transport as (reading, writing),
            mcp.ClientSession(reading, writing, message_handler=heard) as session,
        ):
            await session.initialize()
            yield session


async def everything_works(client: Json, setup: Setup, heard: Heard, mode: str) -> None:
    """All that a client does with a gateway."""
    names = [tool.name for tool in (await client.list_tools()).tools]
    assert {"up__echo", "up__sleep", "up__progress"} <= set(names)
    text = 'ä\u2028 "quoted"'
    answer = await client.call_tool("up__echo", {"text": text})
    assert (answer.is_error, answer.content[0].text) == (False, text)
    assert (await client.call_tool("up__add", {"a": 1, "b": 2})).structured_content == {"sum": 3}
    assert len((await client.call_tool("up__big", {"size": 5_000_000})).content[0].text) == 5_000_000
    # Errors: of a tool, of the source, of the gateway.
    failed = await client.call_tool("up__fail", {"text": "bad luck"})
    assert (failed.is_error, failed.content[0].text) == (True, "bad luck")
    for tool, arguments, code in (("up__error", {"code": -32055}, -32055), ("up__no_such", {}, -32602)):
        with pytest.raises(mcp.MCPError) as caught:
            await client.call_tool(tool, arguments)
        assert caught.value.error.code == code
    steps: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:  # noqa: ASYNC124  # async by contract
        steps.append(done)

    done = await client.call_tool("up__progress", {"steps": 3, "seconds": 0.15}, progress_callback=progress)
    assert done.content[0].text == "3 steps"
    await until(lambda: sorted(steps) == [1, 2, 3])
    await is_cancelled_exactly(client, setup)
    await hears_of_changes(client, heard, mode)


async def is_cancelled_exactly(client: Json, setup: Setup) -> None:
    """Of two calls of one tool, the one that the client drops is the one that the source is told of."""
    before, told = len(setup.calls("sleep")), len(setup.cancelled)
    answers: list[str] = []

    async def stay() -> None:
        answers.append((await client.call_tool("up__sleep", {"seconds": 0.7})).content[0].text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay)
        await until(lambda: len(setup.calls("sleep")) == before + 1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as dropped:
                dropped.start_soon(client.call_tool, "up__sleep", {"seconds": 60})
                await until(lambda: len(setup.calls("sleep")) == before + 2)
                scope.cancel("enough")
    await until(lambda: len(setup.cancelled) > told)
    assert answers == ["slept"]
    assert setup.cancelled[told:] == [setup.calls("sleep")[-1]]


async def hears_of_changes(client: Json, heard: Heard, mode: str) -> None:
    if mode == "auto":
        async with client.listen(tools_list_changed=True) as changes:
            await client.call_tool("up__change_tools", {})
            async for event in changes:
                assert type(event).__name__ == "ToolsListChanged"
                break
    else:
        before = heard.methods.count("notifications/tools/list_changed")  # one came when the source did
        await client.call_tool("up__change_tools", {})
        await until(lambda: heard.methods.count("notifications/tools/list_changed") > before)
    names = [tool.name for tool in (await client.list_tools()).tools]
    assert any(name.startswith("up__added_") for name in names)


async def test_the_official_client_uses_the_gateway_over_http_in_each_mode(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with gateway(setup) as (_, url):
        for mode in MODES:
            heard = Heard()
            async with over_http(url, mode, heard) as client:
                await everything_works(client, setup, heard, mode)


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_client_uses_the_gateway_over_stdio(tmp_path: Path, mode: str) -> None:
    setup, heard = Setup(tmp_path), Heard()
    async with over_stdio(setup, mode, heard) as client:
        await everything_works(client, setup, heard, mode)


async def test_both_eras_meet_a_legacy_source_behind_the_gateway(tmp_path: Path) -> None:
    setup = Setup(tmp_path, era="legacy")
    async with gateway(setup) as (_, url):
        for mode in ("auto", "legacy"):
            heard = Heard()
            async with over_http(url, mode, heard) as client:
                await everything_works(client, setup, heard, mode)


# The end


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def families(client: Json) -> list[int]:
    """A source's process, and two that it started, one of them in a session of its own."""
    own = json.loads((await client.call_tool("up__whoami", {})).content[0].text)["pid"]
    more = [int((await client.call_tool("up__spawn", {"detached": far})).content[0].text) for far in (False, True)]
    assert all(map(alive, [own, *more]))
    return [own, *more]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_sigterm_drains_with_a_call_in_flight_and_leaves_nothing(tmp_path: Path, mode: str) -> None:
    setup = Setup(tmp_path)
    async with gateway(setup) as (process, url), over_http(url, mode, Heard()) as client:
        pids = await families(client)
        answers: list[str] = []

        async def stay() -> None:
            answers.append((await client.call_tool("up__sleep", {"seconds": 1.5})).content[0].text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            await until(lambda: setup.calls("sleep"))
            process.send_signal(signal.SIGTERM)
        assert answers == ["slept"]
        with trio.fail_after(90):
            assert await process.wait() == 0
        assert setup.calls("sleep")[0] not in setup.cancelled
        await until(lambda: not any(map(alive, pids)))


async def test_a_second_signal_cancels_what_runs(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with gateway(setup, "--grace", "60") as (process, url):
        ended: list[str] = []

        async def stay() -> None:
            try:
                async with over_http(url, "auto", Heard()) as client:
                    await client.call_tool("up__sleep", {"seconds": 60})
            except Exception as exc:  # whatever the SDK makes of a lost connection
                ended.append(str(exc))

        async with trio.open_nursery() as nursery:
            async with over_http(url, "auto", Heard()) as client:
                pids = await families(client)
            nursery.start_soon(stay)
            await until(lambda: setup.calls("sleep"))
            process.send_signal(signal.SIGTERM)
            await trio.sleep(0.3)
            assert process.returncode is None
            assert ended == []
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(90):
                await process.wait()
        assert len(ended) == 1
        await until(lambda: setup.calls("sleep")[0] in setup.cancelled)
        await until(lambda: not any(map(alive, pids)))


async def test_kill_9_of_the_gateway_leaves_no_child_or_grandchild(tmp_path: Path) -> None:
    setup = Setup(tmp_path, ignore_eof=True, ignore_term=True)
    async with gateway(setup) as (process, url):
        async with over_http(url, "auto", Heard()) as client:
            pids = await families(client)
        process.kill()
        await process.wait()
        await until(lambda: not any(map(alive, pids)))
