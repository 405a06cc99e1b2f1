"""Background tasks of the modern era with real peers: the server is FastMCP's, the clients are the official SDKs."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.real.environments import tasks, typescript
from tests.real.helpers import read_line, running

pytest.importorskip("mcp", reason="the official SDK is not installed")
from tests.real.test_sdk_pairings import Person, gateway_before, said  # only where the SDK is

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    """Make them outside of any test's time limit."""
    tasks()


@asynccontextmanager
async def gateway() -> AsyncGenerator[str]:
    """The URL of a gateway before a server that runs its tools only as tasks."""
    async with running([tasks(), str(HERE / "tasks_server.py")]) as process:
        far = await read_line(process.stdout)
        async with gateway_before(far, "modern", prefix="far") as (fabric, url):
            yield url
            assert len(fabric._parks) == 0


async def test_row_22_clients_of_both_eras_use_tools_that_are_run_as_tasks() -> None:
    async with gateway() as url:
        for era in ("legacy", "modern"):  # neither knows of tasks
            ann = Person()
            async with ann.at(url, era) as session:
                assert await said(session, "far__slow", {"text": "ä"}) == "ä"
                assert await said(session, "far__greet") == "accept ann"
                assert ann.asked == ["Name?"]
        async with running(["node", str(HERE / "ts_tasks.mjs"), typescript(), url]) as process:
            with trio.fail_after(90):
                found = json.loads(await read_line(process.stdout))
    assert found == {
        "kinds": ["task", "task"],
        "far__slow": "ä",
        "far__greet": "accept Ada",
        "asked": ["elicitation"],
        "stay": "cancelled",
        "sealed": True,
    }
