"""The official TypeScript SDK as client and as server: v1, which is legacy, and v2, held to the modern era."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.config import Config, Stdio
from cord_trio.fabric import open_fabric
from cord_trio.gateway import serve_gateway
from tests.real.environments import typescript
from tests.real.helpers import START, read_line, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Json: TypeAlias = Any

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Get them outside of any test's time limit."""
    typescript()


@asynccontextmanager
async def gateway() -> AsyncGenerator[str]:
    """The URL of a gateway before a server of each era, which are named so."""
    program = str(HERE / "ts_server.mjs")
    sources = [
        Stdio(name=era, command="node", args=(program, typescript(), version), connect=START)
        for era, version in (("legacy", "v1"), ("modern", "v2"))
    ]
    async with open_fabric(Config(sources=sources)) as fabric:
        with trio.fail_after(90):
            await fabric.wait_started()
        for era, link in fabric.links.items():
            assert link.state == "ready", link.reason
            assert link.sessions["shared"].greeting.modern is (era == "modern")
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_gateway(fabric, http=[listener]))
            yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
            nursery.cancel_scope.cancel("the test is over")
        assert len(fabric._parks) == 0


async def clients(url: str) -> Json:
    async with running(["node", str(HERE / "ts_client.mjs"), typescript(), url]) as process:
        with trio.fail_after(90):
            return json.loads(await read_line(process.stdout))


async def test_rows_1_5_7_8_15_28_its_clients_use_its_servers_of_both_eras() -> None:
    async with gateway() as url:
        found = await clients(url)
    everything = {
        "tools": 4,
        "echo": "ä",
        "steps": ["3 steps", [1, 2, 3]],
        "fail": True,
        "ask": "accept Ada",
        "prompt": "Greet Ada",
        "read": "a note",
    }
    pairings = [f"{one} {other}" for one in ("legacy", "modern") for other in ("legacy", "modern")]
    assert found["use"] == dict.fromkeys(pairings, everything)
    assert found["batch"] == {"revision": "2025-03-26", "texts": ["legacy", "modern"], "ping": {}}
