"""The official Python SDK's client, in each of its modes, against the gateway over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from msgspec import Raw

from tests.gateway.fakes import FakeFabric, echo, hang, text, tool
from tests.gateway.test_serving import serving, until

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome

mcp_client = pytest.importorskip("mcp.client.client", reason="the official SDK is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK leaves async generators to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODES = ("legacy", "auto", "2026-07-28")


async def steps(call: Call) -> Outcome:
    """Tells of two steps, then answers."""
    for step in (1, 2):
        if call.events is not None:
            call.events("notifications/progress", Raw(b'{"progressToken":0,"progress":%d,"total":2}' % step))
        await trio.lowlevel.checkpoint()
    return text("walked")


async def failing(call: Call) -> Outcome:
    """Says that it failed."""
    await trio.lowlevel.checkpoint()
    return text("no", isError=True)


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_client_lists_calls_follows_and_cancels(mode: str) -> None:
    fabric = FakeFabric(echo=echo, steps=steps, failing=failing, hang=hang)
    seen: list[Any] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        await trio.lowlevel.checkpoint()
        seen.append((done, total))

    async with serving(fabric) as (url, _), mcp_client.Client(url, mode=mode) as client:
        assert client.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
        assert [item.name for item in (await client.list_tools()).tools] == ["echo", "steps", "failing", "hang"]
        answer = await client.call_tool("echo", {"a": 1})
        assert (answer.is_error, answer.content[0].text) == (False, '{"a":1}')
        assert (await client.call_tool("failing", {})).is_error is True
        assert (await client.call_tool("steps", {}, progress_callback=progress)).content[0].text == "walked"
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sorted(seen) == [(1.0, 2.0), (2.0, 2.0)]
        with pytest.raises(mcp_client.MCPError) as caught:
            await client.call_tool("none", {})
        assert caught.value.error.code == -32602
        before = len(fabric.calls)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.call_tool, "hang", {})
                await until(fabric, before + 1)
                scope.cancel("enough")
        while not fabric.cancelled:  # noqa: ASYNC110  # real sockets: there is nothing to wait on
            await trio.sleep(0.002)
        assert fabric.cancelled == ["hang"]
        assert (await client.call_tool("echo", {})).is_error is False


@pytest.mark.parametrize("mode", MODES[1:])
async def test_the_official_client_hears_of_changes(mode: str) -> None:
    fabric = FakeFabric(echo=echo)
    async with serving(fabric) as (url, _), mcp_client.Client(url, mode=mode) as client:
        async with client.listen(tools_list_changed=True) as changes:
            fabric.registry.publish([tool("new")])
            async for event in changes:
                assert type(event).__name__ == "ToolsListChanged"
                break
        assert [item.name for item in (await client.list_tools()).tools] == ["new"]
