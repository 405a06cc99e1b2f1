"""The official SDKs of both eras, each with nothing but the other era's servers behind our gateway."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from conformance.build import SDK1, SDK2
from cord_trio.config import Config, Http
from cord_trio.fabric import open_fabric
from cord_trio.gateway import serve_gateway
from tests.real.environments import everything, sdk
from tests.real.helpers import START, read_line, running

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from mcp import types  # noqa: E402  # only where the SDK is

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Json: TypeAlias = Any

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    """Make them outside of any test's time limit."""
    sdk(SDK1)
    sdk(SDK2)


@asynccontextmanager
async def gateway_before(version: str, era: str) -> AsyncGenerator[str]:
    """The URL of a gateway before a server that knows one era alone."""
    async with (
        everything(version, era) as url,
        open_fabric(Config(sources=[Http(name="far", url=url, prefix="", connect=START)])) as fabric,
    ):
        with trio.fail_after(90):
            await fabric.wait_started()
        assert fabric.links["far"].state == "ready", fabric.links["far"].reason
        assert fabric.links["far"].sessions["shared"].greeting.modern is (era == "modern")
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_gateway(fabric, http=[listener]))
            yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
            nursery.cancel_scope.cancel("the test is over")
        await trio.sleep(0.1)
        sessions = [client.session for _, client in fabric.links["far"].open()]
        asked = [pending.method for session in sessions for pending in session.peer.open.values()]
        assert set(asked) <= {"subscriptions/listen"}
        assert len(fabric._parks) == 0


class Person:
    """Answers everything in her own words."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.logs: list[Json] = []

    async def elicit(self, context: Json, params: Json) -> Json:
        properties = params.requested_schema["properties"]
        return types.ElicitResult(
            action="accept", content={name: self.choose(each) for name, each in properties.items()}
        )

    def choose(self, schema: Json) -> Json:
        """What she enters in a field: what is proposed, the last of a choice, or her name."""
        if "default" in schema:
            return schema["default"]
        if "items" in schema:
            return [self.choose(schema["items"])]
        choices = schema.get("enum") or [each["const"] for each in schema.get("oneOf") or schema.get("anyOf") or ()]
        return choices[-1] if choices else self.name

    async def sample(self, context: Json, params: Json) -> Json:
        text = types.TextContent(type="text", text=f"{self.name} says")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def roots(self, context: Json) -> Json:
        return types.ListRootsResult.model_validate({"roots": [{"uri": f"file:///{self.name}"}]})

    async def log(self, params: Json) -> None:
        self.logs.append(params.data)

    @asynccontextmanager
    async def at(self, url: str) -> AsyncGenerator[Json]:
        async with mcp.Client(
            url, mode="auto", elicitation_callback=self.elicit, sampling_callback=self.sample,
            list_roots_callback=self.roots, logging_callback=self.log,
        ) as client:  # fmt: skip
            assert client.protocol_version == "2026-07-28"
            yield client


async def test_a_modern_client_uses_all_of_a_legacy_server() -> None:
    ann = Person("ann")
    found: dict[str, Json] = {}
    async with gateway_before(SDK1, "legacy") as url, ann.at(url) as client:

        async def said(tool: str, arguments: Json = None, **more: Json) -> str:
            with trio.fail_after(90):
                result = await client.call_tool(tool, arguments or {}, **more)
            assert result.is_error is False, result
            text: str = result.content[0].text
            return text

        progress: list[float] = []

        async def told(done: float, total: float | None, message: str | None) -> None:  # noqa: ASYNC124  # async by contract
            progress.append(done)

        found["list"] = len((await client.list_tools()).tools)
        found["simple text"] = await said("test_simple_text")
        await said("test_tool_with_progress", progress_callback=told)
        found["progress"] = progress
        meta = {"io.modelcontextprotocol/logLevel": "info"}
        await said("test_tool_with_logging", meta=meta)
        found["logging"] = len(ann.logs)
        found["error"] = (await client.call_tool("test_error_handling", {})).is_error
        prompt = types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
        found["completion"] = (await client.complete(prompt, {"name": "arg1", "value": "t"})).completion.values
        found["sampling"] = await said("test_sampling", {"prompt": "?"})
        found["elicitation"] = await said("test_elicitation", {"message": "?"})
        found["defaults"] = await said("test_elicitation_sep1034_defaults")
        found["enums"] = await said("test_elicitation_sep1330_enums")
        found["roots"] = await said("test_list_roots")
        found["resources and prompts"] = [
            (await client.read_resource("test://template/7/data")).contents[0].uri,
            (await client.get_prompt("test_prompt_with_arguments", {"arg1": "x", "arg2": "y"}))
            .messages[0]
            .content.text,
        ]
    assert found == {
        "list": 14,
        "simple text": "This is a simple text response for testing.",
        "progress": [0, 50, 100],
        "logging": 3,
        "error": True,
        "completion": [],
        "sampling": "LLM response: ann says",
        "elicitation": 'User response: action=accept, content={"response":"ann"}',
        "defaults": 'Elicitation result: action=accept, content={"name":"John Doe","age":30,"score":95.5,'
        '"status":"active","verified":true}',
        "enums": 'Elicitation completed: action=accept, content={"untitledSingle":"pending","titledSingle":"high",'
        '"untitledMulti":["execute"],"titledMulti":["docs"],"legacyEnum":"large"}',
        "roots": "file:///ann",
        "resources and prompts": ["test://template/7/data", "Prompt with arguments: arg1='x', arg2='y'"],
    }


async def test_eight_modern_clients_of_a_legacy_server_get_their_own_answers() -> None:
    found: dict[str, list[str]] = {}

    async def use(url: str, name: str) -> None:
        texts = found[name] = []
        async with Person(name).at(url) as client:
            for _ in range(3):
                texts.append((await client.call_tool("test_sampling", {"prompt": "?"})).content[0].text)
                texts.append((await client.call_tool("test_elicitation", {"message": "?"})).content[0].text)
                texts.append((await client.call_tool("test_list_roots", {})).content[0].text)

    names = [f"p{number}" for number in range(8)]
    async with gateway_before(SDK1, "legacy") as url, trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(use, url, name)
    for name in names:
        sampled, elicited, rooted = found[name][:3]
        assert (sampled, rooted) == (f"LLM response: {name} says", f"file:///{name}")
        assert f'"response":"{name}"' in elicited
        assert found[name] == [sampled, elicited, rooted] * 3


async def sdk1(what: str, url: str) -> Json:
    command = [sdk(SDK1)[0], str(Path(__file__).with_name("sdk1_answering.py")), what, url]
    async with running(command) as process:
        return json.loads(await read_line(process.stdout))


async def test_a_legacy_client_uses_all_of_a_modern_server() -> None:
    async with gateway_before(SDK2, "modern") as url:
        found = await sdk1("checks", url)
    assert found == {
        "list": True,
        "simple text": [False, "This is a simple text response for testing."],
        "progress": [0, 50, 100],
        "logging": 3,
        "error": True,
        "completion": [],
        "elicitation": [False, "Hello, ann name!"],
        "sampling": [False, "Model said: ann says"],
        "list_roots": [False, "Client exposed 2 root(s)."],
        "request_state": [False, "state-ok: confirmation received"],
        "multiple_inputs": [False, "All inputs received."],
        "multi_round": [False, "ann name likes ann color."],
        "tampered_state": [False, "state-ok: round-1"],
        "prompt": "Use the following context: ann context",
        "capabilities": [True, ["sampling"]],
    }


async def test_eight_legacy_clients_of_a_modern_server_get_their_own_answers() -> None:
    async with gateway_before(SDK2, "modern") as url:
        found = await sdk1("many", url)
    assert found == {
        name: [f"Hello, {name} name!", f"Model said: {name} says", f"{name} name likes {name} color."] * 3
        for name in (f"p{number}" for number in range(8))
    }
