"""Our client in the suite: `python -m conformance.client URL`. What to do is in the environment, as the suite says."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from cord_trio import Config, Http, open_fabric
from cord_trio.call import Call, Complete
from cord_trio.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.agents.answering import Question
    from cord_trio.fabric import Fabric
    from cord_trio.protocol.tools import Tool

Json: TypeAlias = Any

LIMIT = 25.0
"""Seconds for everything; the suite allows 30."""

ZEROS: Json = {"string": "x", "integer": 0, "number": 0, "boolean": False, "object": {}, "array": [], "null": None}


def least(tool: Tool) -> Json:
    """The fewest arguments that a tool takes."""
    schema = json.loads(bytes(tool.input_schema))
    properties = schema.get("properties", {})
    return {name: ZEROS.get(properties.get(name, {}).get("type"), "x") for name in schema.get("required", [])}


async def agree(questions: Mapping[str, Question]) -> Mapping[str, Json]:  # noqa: ASYNC124  # async by contract
    """Accept each form as it is proposed."""
    return {key: {"action": "accept", "content": _filled(question)} for key, question in questions.items()}


def _filled(question: Question) -> Json:
    schema: Json = question.params.get("requestedSchema") or {}
    filled = {name: each["default"] for name, each in schema.get("properties", {}).items() if "default" in each}
    return filled or {"confirmed": True}


async def play(fabric: Fabric, scenario: str) -> None:
    """Do what the scenario wants to see."""
    snapshot = fabric.registry.snapshot
    match scenario:
        case "request-metadata":
            await _try(fabric, "add_numbers", {"a": 5, "b": 3})  # which it does not list
        case "tools_call":
            await fabric.call("add_numbers", {"a": 5, "b": 3}, answer=agree)
        case "elicitation-sep1034-client-defaults":
            await fabric.call("test_client_elicitation_defaults", {}, answer=agree)
        case "sse-retry":
            # On a session of its own, which is called only once its standing stream is open: while there is none,
            # the suite's server takes that stream for the one to be resumed.
            await fabric.call("test_reconnection", {}, answer=agree)
        case "http-standard-headers":
            await fabric.call(next(iter(snapshot.tools)), least(next(iter(snapshot.tools.values())).tool))
            await _get(fabric, Call("resources/read", next(iter(snapshot.resources))))
            await _get(fabric, Call("prompts/get", next(iter(snapshot.prompts))))
        case "http-custom-headers":
            for call in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
                await _try(fabric, call["name"], call.get("arguments") or {})
        case "http-invalid-tool-headers":
            for name, route in snapshot.tools.items():
                await _try(fabric, name, least(route.tool))
        case "sep-2322-client-request-state":
            for name in ("echo_state", "unrelated", "no_state", "no_result_type"):
                await fabric.call(f"test_mrtr_{name}", {}, answer=agree)
        case _:
            pass  # connecting and listing is all


async def _get(fabric: Fabric, call: Call) -> None:
    outcome = await fabric.handle(call)
    assert isinstance(outcome, Complete), outcome


async def _try(fabric: Fabric, name: str, arguments: Json) -> None:
    """Call a tool that need not work."""
    try:
        await fabric.call(name, arguments)
    except CallError as exc:
        sys.stderr.write(f"{name}: {exc}\n")


async def main(url: str) -> None:
    with trio.fail_after(LIMIT):
        async with open_fabric(Config(sources=[Http(name="server", url=url, prefix="")])) as fabric:
            await fabric.wait_started()
            link = fabric.links["server"]
            assert link.state == "ready", link.reason
            await play(fabric, os.environ["MCP_CONFORMANCE_SCENARIO"])


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
