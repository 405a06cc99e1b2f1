"""What only some revisions have, with the official SDKs: a server of 1.x, clients of 2.x in either era."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx  # noqa: ASYNC127  # an independent client, as users run it
import pytest
import trio

from cord_trio.transports.http_sinks import STALE_SESSION
from tests.real.environments import sdk1
from tests.real.helpers import read_line, running, until

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from tests.real.test_sdk_pairings import Person, gateway_before, said  # noqa: E402  # only where the SDK is

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Json: TypeAlias = Any
PROGRAM = str(Path(__file__).with_name("sdk1_rare.py"))

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Make its environment outside of any test's time limit."""
    sdk1()


@asynccontextmanager
async def rare() -> AsyncGenerator[str]:
    async with running([sdk1(), PROGRAM]) as process:
        yield await read_line(process.stdout)


class Thinking(Person):
    """One who thinks for a while about one question."""

    spared = False

    async def elicit(self, context: Json, params: Json) -> Json:
        if getattr(params, "message", "") == "Never mind?":
            try:
                await trio.sleep(0.6)
            except trio.Cancelled:
                self.spared = True
                raise
        return await super().elicit(context, params)


async def test_rows_10_17_22_26_what_only_legacy_servers_have() -> None:
    async with rare() as far, gateway_before(far, "legacy") as (fabric, url):
        for era in ("legacy", "modern"):
            ann = Thinking()
            async with ann.at(url, era) as session:
                # 10: a page to open first; a legacy client is told so by its own error, and calls again
                if era == "legacy":
                    with pytest.raises(mcp.MCPError) as first:
                        await session.call_tool("page", {"who": era})
                    assert first.value.error.code == -32042
                    assert first.value.error.data["elicitations"][0]["url"] == "https://example.org/in"
                assert await said(session, "page", {"who": era}) == "welcome"
                assert ann.asked == ([] if era == "legacy" else ["https://example.org/in"])
                # 22: a tool that is run only as a task, and asks
                assert (await session.list_tools()).tools[2].execution is None
                assert await said(session, "slow") == "accept ann"
                # 17: a question that is withdrawn while the person thinks
                assert await said(session, "withdraw") == "withdrawn"
                assert ann.spared == (era == "legacy")  # a modern client hears of nothing while it is asked
                # 26: a session that its server forgets
                open = [client.session for _, client in fabric.links["far"].open()]
                async with httpx.AsyncClient() as other:
                    for each in open:
                        transport: Json = each.transport
                        headers = {"Mcp-Session-Id": transport.session_id, "MCP-Protocol-Version": "2025-11-25"}
                        await other.delete(far, headers=headers)
                assert await said(session, "page", {"who": era}) == "welcome"
                assert STALE_SESSION in [each.loss for each in open]
        await until(lambda: len(fabric._parks) == 0)
