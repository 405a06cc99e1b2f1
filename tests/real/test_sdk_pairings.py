"""The official SDK 2.x as client and as server, each held to one era, through gateway and fabric: four pairings."""

from __future__ import annotations

import itertools
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from conformance.build import SDK2
from cord_trio.config import Config, GatewayConfig, Http
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.gateway import serve_gateway
from tests.real.environments import everything, sdk
from tests.real.helpers import START, Record, sdk_over_http, until

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from mcp import types  # noqa: E402  # only where the SDK is

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
    pytest.mark.parametrize(
        ("client", "server"),
        [*itertools.product(("legacy", "modern"), repeat=2)],
        ids=["L-L", "L-M", "M-L", "M-M"],
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    """Make them outside of any test's time limit."""
    sdk(SDK2)


@asynccontextmanager
async def gateway_before(url: str, era: Json, prefix: str = "") -> AsyncGenerator[tuple[Fabric, str]]:
    """A fabric with this one source, which is spoken to in `era`, and the URL of its gateway."""
    source = Http(name="far", url=url, prefix=prefix, era=era, connect=START)
    async with open_fabric(Config(sources=[source], gateway=GatewayConfig(page_size=30))) as fabric:
        await fabric.wait_started()
        assert fabric.links["far"].state == "ready", fabric.links["far"].reason
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_gateway(fabric, http=[listener]))
            yield fabric, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
            nursery.cancel_scope.cancel("the test is over")


class Person:
    """A client whose user answers everything."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.logs: list[Json] = []
        self.heard: list[str] = []

    async def elicit(self, context: Json, params: Json) -> Json:
        if isinstance(params, types.ElicitRequestURLParams):
            self.asked.append(params.url)
            return types.ElicitResult(action="accept")
        self.asked.append(params.message)
        return types.ElicitResult(action="accept", content=dict.fromkeys(params.requested_schema["properties"], "ann"))

    async def sample(self, context: Json, params: Json) -> Json:
        text = types.TextContent(type="text", text="ann says")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def roots(self, context: Json) -> Json:
        return types.ListRootsResult.model_validate({"roots": [{"uri": "file:///ann"}]})

    async def log(self, params: Json) -> None:
        self.logs.append(params.data)

    async def hear(self, message: Json) -> None:
        self.heard.append(str(getattr(message, "method", "")))

    @asynccontextmanager
    async def at(self, url: str, era: str, *, silent: bool = False) -> AsyncGenerator[Json]:
        answering: Json = {
            "elicitation_callback": self.elicit, "sampling_callback": self.sample, "list_roots_callback": self.roots,
        }  # fmt: skip
        mode = {"legacy": "legacy", "modern": "auto"}[era]
        more = {} if silent else answering
        async with mcp.Client(url, mode=mode, logging_callback=self.log, message_handler=self.hear, **more) as client:
            assert client.protocol_version == {"legacy": "2025-11-25", "modern": "2026-07-28"}[era]
            yield client


async def said(client: Json, tool: str, arguments: Json = None, **more: Json) -> str:
    result = await client.call_tool(tool, arguments or {}, **more)
    assert result.is_error is False, result
    text: str = result.content[0].text
    return text


async def test_rows_1_2_5_7_14_15_18_23_24_what_every_client_does(client: str, server: str) -> None:
    async with everything(SDK2) as far, gateway_before(far, server) as (fabric, url):
        ann = Person()
        async with ann.at(url, client) as session:
            assert [tool.name for tool in (await session.list_tools()).tools] == list(fabric.registry.snapshot.tools)
            assert len((await session.list_prompts()).prompts) == len(fabric.registry.snapshot.prompts) > 0
            assert len((await session.list_resources()).resources) == len(fabric.registry.snapshot.resources) > 0
            assert len((await session.list_resource_templates()).resource_templates) > 0
            read = await session.read_resource("test://template/7/data")
            assert json.loads(read.contents[0].text)["id"] == "7"
            got = await session.get_prompt("test_prompt_with_arguments", {"arg1": "x", "arg2": "y"})
            assert "arg1='x'" in got.messages[0].content.text
            assert (await session.call_tool("test_error_handling", {})).is_error is True
            with pytest.raises(mcp.MCPError) as missing:
                await session.read_resource("test://none")
            assert missing.value.error.code == (-32602 if client == "modern" else -32002)
            prompt = types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
            assert (await session.complete(prompt, {"name": "arg1", "value": "t"})).completion.values == []
            progress: list[float] = []

            async def told(done: float, total: float | None, message: str | None) -> None:  # noqa: ASYNC124  # async by contract  # noqa: ASYNC124  # async by contract
                progress.append(done)

            await said(session, "test_tool_with_progress", progress_callback=told)
            assert progress == [0, 50, 100]
            if client == "legacy":
                await session.send_ping()
                await session.set_logging_level("info")
            meta = {"io.modelcontextprotocol/logLevel": "info"} if client == "modern" else None
            await said(session, "test_tool_with_logging", meta=meta)
            assert len(ann.logs) == 3


async def test_rows_3_4_8_11_12_13_what_a_person_is_asked(client: str, server: str) -> None:
    async with everything(SDK2) as far, gateway_before(far, server) as (_, url):
        ann = Person()
        async with ann.at(url, client) as session:
            if server == "legacy":
                assert '"response":"ann"' in await said(session, "test_elicitation", {"message": "Who?"})
                assert ann.asked == ["Who?"]
                assert "ann says" in await said(session, "test_sampling", {"prompt": "?"})
            else:
                kind = "test_input_required_result_"
                assert await said(session, f"{kind}elicitation") == "Hello, ann!"
                assert await said(session, f"{kind}sampling") == "Model said: ann says"
                assert await said(session, f"{kind}list_roots") == "Client exposed 1 root(s)."
                assert await said(session, f"{kind}multi_round") == "ann likes ann."
        async with Person().at(url, client, silent=True) as session:
            tool = "test_elicitation" if server == "legacy" else "test_input_required_result_elicitation"
            arguments = {"message": "?"} if server == "legacy" else {}
            if client == "modern" and server == "modern":
                with pytest.raises(mcp.MCPError) as refused:
                    await session.call_tool(tool, arguments)
                assert refused.value.error.code == -32021
            else:
                result = await session.call_tool(tool, arguments)
                assert result.is_error or "not supported" in result.content[0].text


async def test_rows_6_9_12_14_16_19_20_23_27_29_31_32_all_the_rest(
    client: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "record")
    async with sdk_over_http(record) as far, gateway_before(far, server) as (fabric, url):
        ann = Person()
        async with ann.at(url, client) as session:
            assert await said(session, "visit") == "accept"
            assert ann.asked == ["https://example.org/in"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.call_tool, "hang", {"label": "x"})
                await record.wait_for("started-x")
                nursery.cancel_scope.cancel("enough")
            await record.wait_for("cancelled-x")
            if client == "modern":
                async with session.listen(tools_list_changed=True, resource_subscriptions=["note://one"]) as changes:
                    await said(session, "grow", {"name": "new"})
                    assert "new" in await listed(session)
                    seen = set()
                    await until_subscribed(record, fabric, server)
                    await said(session, "touch")
                    async for event in changes:
                        seen.add(type(event).__name__)
                        if {"ToolsListChanged", "ResourceUpdated"} <= seen:
                            break
            else:
                await session.subscribe_resource("note://one")
                await until_subscribed(record, fabric, server)
                await said(session, "grow", {"name": "new"})
                await said(session, "touch")
                told = {"notifications/tools/list_changed", "notifications/resources/updated"}
                await until(lambda: told <= set(ann.heard))
                assert "new" in await listed(session)
        async with gateway_before(far, server, prefix="far") as (_, url):
            await carried(url, client, server)
            await contents(url, client, monkeypatch)


async def contents(url: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 27 and 29: what an old client cannot read, and the pages of Apps."""
    async with Person().at(url, client) as session:
        (app,) = [tool for tool in (await session.list_tools()).tools if tool.name == "far__app"]
        page = app.meta["ui"]["resourceUri"]
        assert page == "ui://far/app/page"
        assert (await session.read_resource(page)).contents[0].text == "<p>app</p>"
        audio, link = (await session.call_tool("far__blocks", {})).content
        assert (audio.type, link.type, str(link.uri)) == ("audio", "resource_link", page)
    if client == "legacy":  # held to the oldest revision, which has neither block
        monkeypatch.setattr("mcp.client.session.LATEST_HANDSHAKE_VERSION", "2024-11-05")
        async with mcp.Client(url, mode="legacy") as session:
            assert session.protocol_version == "2024-11-05"
            blocks = (await session.call_tool("far__blocks", {})).content
            assert [block.type for block in blocks] == ["text", "text"]
            assert page in blocks[1].text


async def carried(url: str, client: str, server: str) -> None:
    """Rows 6, 12, 14, 23, 31 and 32: cursors, completions, roots, and what goes along with requests and results."""
    async with Person().at(url, client) as session:
        pages = [await session.list_prompts()]
        while pages[-1].next_cursor is not None:
            pages.append(await session.list_prompts(cursor=pages[-1].next_cursor))
        assert [len(page.prompts) for page in pages] == [30, 1]
        assert pages[1].prompts[0].name == "far__p0030"
        with pytest.raises(mcp.MCPError) as refused:
            await session.list_prompts(cursor="8")  # its server's own
        assert refused.value.error.code == -32602
        prompt = types.PromptReference(type="ref/prompt", name="far__p0001")
        page = types.ResourceTemplateReference(type="ref/resource", uri="cord://far/note://{number}")
        for ref in (prompt, page):
            completed = await session.complete(ref, {"name": "n", "value": "x"}, {"before": "y"})
            assert completed.completion.values == ["xa", "xb", "y"]
        assert await said(session, "far__where") == "file:///ann"
        await session.list_tools()  # tells which arguments go into headers too
        # A legacy server asks for a ping in between, and has no such headers.
        told = "mcp-method=tools/call mcp-name=headers mcp-param-label=x" if server == "modern" else ""
        assert await said(session, "far__headers", {"label": "x"}) == told
        read = await session.read_resource("cord://far/note://one")
        hints = {"ttl_ms", "cache_scope"} & read.model_fields_set
        assert hints == ({"ttl_ms", "cache_scope"} if client == "modern" else set())
        if client == "modern":
            kept = (59_000, 60_000, "public") if server == "modern" else (0, 0, "private")
            assert kept[0] <= read.ttl_ms <= kept[1], read
            assert read.cache_scope == kept[2]


async def listed(session: Json) -> list[str]:
    """The tools, once there is the new one."""
    for _ in range(100):
        names = [tool.name for tool in (await session.list_tools(cache_mode="refresh")).tools]
        if "new" in names:
            break
        await trio.sleep(0.05)
    return names


async def until_subscribed(record: Record, fabric: Fabric, server: str) -> None:
    if server == "legacy":
        await record.wait_for("subscribed-note://one")
    else:
        await trio.sleep(0.5)
