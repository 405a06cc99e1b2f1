"""Clients of the official SDK 1.x that answer what they are asked: `sdk1_answering.py checks|many URL`; prints JSON.

`checks` is one client that uses everything; `many` are eight at once, each with answers of its own.
"""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import json
import sys
import warnings
from contextlib import asynccontextmanager

warnings.simplefilter("ignore")

import anyio  # noqa: E402  # after the filter
from mcp import ClientSession, McpError, types  # noqa: E402
from mcp.client.streamable_http import streamablehttp_client  # noqa: E402

ASKING = "test_input_required_result_"


class Person:
    """Answers everything in her own words, and counts what she was asked."""

    def __init__(self, name):
        self.name = name
        self.asked = []
        self.logs = []

    async def elicit(self, context, params):
        self.asked.append("elicitation")
        kinds = {name: each.get("type") for name, each in params.requestedSchema["properties"].items()}
        content = {name: True if kind == "boolean" else f"{self.name} {name}" for name, kind in kinds.items()}
        return types.ElicitResult(action="accept", content=content)

    async def sample(self, context, params):
        self.asked.append("sampling")
        text = types.TextContent(type="text", text=f"{self.name} says")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def roots(self, context):
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri=f"file:///{self.name}/{each}") for each in "ab"])

    async def log(self, params):
        self.logs.append(params.data)

    @asynccontextmanager
    async def at(self, url, **more):
        own = {
            "elicitation_callback": self.elicit,
            "sampling_callback": self.sample,
            "list_roots_callback": self.roots,
            "logging_callback": self.log,
        }
        async with (
            streamablehttp_client(url) as (reading, writing, _),
            ClientSession(reading, writing, **(own | more)) as session,
        ):
            await session.initialize()
            yield session


async def checks(url):
    ann = Person("ann")
    found = {}
    async with ann.at(url) as session:

        async def said(tool, arguments=None, **more):
            with anyio.fail_after(90):
                result = await session.call_tool(tool, arguments or {}, **more)
            return [result.isError, result.content[0].text]

        progress = []

        async def told(done, total, message):  # noqa: ASYNC124  # async by contract
            progress.append(done)

        tools = [tool.name for tool in (await session.list_tools()).tools]
        found["list"] = ASKING + "sampling" in tools
        found["simple text"] = await said("test_simple_text")
        await said("test_tool_with_progress", progress_callback=told)
        found["progress"] = progress
        await session.set_logging_level("info")
        await said("test_tool_with_logging")
        found["logging"] = len(ann.logs)
        found["error"] = (await said("test_error_handling"))[0]
        prompt = types.PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
        found["completion"] = (await session.complete(prompt, {"name": "arg1", "value": "t"})).completion.values
        for name in (
            "elicitation", "sampling", "list_roots", "request_state", "multiple_inputs", "multi_round",
            "tampered_state",
        ):  # fmt: skip
            found[name] = await said(ASKING + name)
        got = await session.get_prompt(ASKING + "prompt", {})
        found["prompt"] = got.messages[0].content.text
    bob = Person("bob")
    async with bob.at(url, elicitation_callback=None, list_roots_callback=None) as session:
        with anyio.fail_after(90):
            try:
                ended = (await session.call_tool(ASKING + "capabilities", {})).isError
            except McpError:
                ended = True
        found["capabilities"] = [ended, sorted(set(bob.asked))]
    return found


async def many(url):
    found = {}

    async def use(name):
        person = Person(name)
        texts = []
        async with person.at(url) as session:
            for _ in range(3):
                for tool in ("elicitation", "sampling", "multi_round"):
                    result = await session.call_tool(ASKING + tool, {})
                    texts.append(result.content[0].text)
        found[name] = texts

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(use, f"p{number}")
    return found


sys.stdout.write(json.dumps(anyio.run({"checks": checks, "many": many}[sys.argv[1]], sys.argv[2])) + "\n")
