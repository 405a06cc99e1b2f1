"""Exported agents as tools of the official SDK's client, in both eras, over HTTP and stdio."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from tests.real.helpers import Record, read_line, running

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from mcp import types  # noqa: E402  # only where the SDK is
from mcp.client.stdio import stdio_client  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

Json: TypeAlias = Any

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]

HANDLERS = '''
import trio

FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

async def greets(ctx, payload):
    """Greets whoever is there."""
    await ctx.emit(1)
    filled = await ctx.elicit(payload["question"], FORM)
    await ctx.emit({"progress": 2, "message": "asked"})
    return "nobody" if filled is None else f"hello {filled['name']}"

async def hangs(ctx, payload):
    with open(payload["record"], "a") as record:
        try:
            record.write("started\\n")
            record.flush()
            await trio.sleep_forever()
        finally:
            record.write("cancelled\\n")
'''
CONFIG = """
[agents.greets]
handler = "asking:greets"
export = true
turn = 8

[agents.hangs]
handler = "asking:hangs"
export = true
"""
MODES = {"legacy": "legacy", "modern": "auto"}


class Person:
    """Answers with her name; declines if she has none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []
        self.steps: list[float] = []

    async def elicit(self, context: Json, params: Json) -> Json:
        self.asked.append(params.message)
        await trio.sleep(0.1)
        if not self.name:
            return types.ElicitResult(action="decline")
        return types.ElicitResult(action="accept", content={"name": self.name})

    async def step(self, done: float, total: float | None, message: str | None) -> None:  # noqa: ASYNC124  # async by contract
        self.steps.append(done)

    @asynccontextmanager
    async def at(self, way: Json, era: str) -> AsyncGenerator[Json]:
        async with mcp.Client(way, mode=MODES[era], elicitation_callback=self.elicit) as client:
            assert client.protocol_version == {"legacy": "2025-11-25", "modern": "2026-07-28"}[era]
            yield client

    async def greet(self, client: Json) -> str:
        arguments = {"payload": {"question": f"{self.name}?"}}
        result = await client.call_tool("agent__greets", arguments, progress_callback=self.step)
        text: str = result.content[0].text
        return text


async def is_used(way: Json, era: str, record: Record) -> None:
    """All that a client does with an agent."""
    ann = Person("ann")
    async with ann.at(way, era) as client:
        (tool,) = [each for each in (await client.list_tools()).tools if each.name == "agent__greets"]
        assert tool.description == "Greets whoever is there."
        assert await ann.greet(client) == "hello ann"
        assert ann.asked == ["ann?"]
        assert (ann.steps[0], ann.steps[-1]) == (1, 2)
        async with trio.open_nursery() as nursery:
            arguments = {"payload": {"record": str(record.path)}}
            nursery.start_soon(client.call_tool, "agent__hangs", arguments)
            await record.wait_for("started")
            nursery.cancel_scope.cancel("enough")
        await record.wait_for("cancelled")
        ann.name = ""
        assert await ann.greet(client) == "nobody"


@asynccontextmanager
async def gateway(folder: Path) -> AsyncGenerator[str]:
    (folder / "asking.py").write_text(HANDLERS)
    (folder / "cord.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "cord_trio", "serve", "--http", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), *sys.path]))}
    async with running(command, stderr=subprocess.PIPE, cwd=folder, env=environment) as process:
        line = ""
        while "serving" not in line:
            line = await read_line(process.stderr)
        yield line.rpartition(" ")[2]


async def test_agents_ask_the_clients_of_both_eras_over_http_each_its_own(tmp_path: Path) -> None:
    async with gateway(tmp_path) as url:
        for era in MODES:
            await is_used(url, era, Record(tmp_path / f"record-{era}"))
        said: dict[str, str] = {}

        async def use(name: str, era: str) -> None:
            person = Person(name)
            async with person.at(url, era) as client:
                said[name] = await person.greet(client)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(use, f"p{number}", ["legacy", "modern"][number % 2])
        assert said == {name: f"hello {name}" for name in said}
        assert len(said) == 6


@pytest.mark.parametrize("era", MODES)
async def test_an_agent_asks_a_client_over_stdio(tmp_path: Path, era: str) -> None:
    (tmp_path / "asking.py").write_text(HANDLERS)
    (tmp_path / "cord.toml").write_text(CONFIG)
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))}
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230  # no disk behind it
        server = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "cord_trio", "serve", "--stdio"], cwd=str(tmp_path), env=environment
        )
        await is_used(stdio_client(server, errlog=nowhere), era, Record(tmp_path / "record"))
