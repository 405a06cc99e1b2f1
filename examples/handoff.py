"""Two agents and one bundled MCP server: one agent calls a tool, then hands over to the other.

Run it: `python examples/handoff.py`. It needs nothing but cord_trio.
"""

from __future__ import annotations

import sys

import trio

import cord_trio as cord
from cord_trio.testing import tool_server


async def triage(ctx: cord.Context, task: str) -> cord.Handoff:
    """Add two numbers with a tool, then let the writer go on."""
    total = await ctx.call("demo__add", {"a": 40, "b": 2})
    return ctx.handoff("writer", {"task": task, "total": total.text})


async def writer(ctx: cord.Context, job: dict[str, str]) -> str:  # noqa: ASYNC124  # async by contract
    """Have the final words."""
    return f"{job['task']}: {job['total']}"


async def main() -> None:
    server = cord.Stdio(name="demo", command=sys.executable, args=("-I", "-S", str(tool_server.__file__)))
    async with cord.open_fabric([server]) as fabric:
        fabric.agent("triage", triage, turn=8)
        fabric.agent("writer", writer, turn=1)
        with trio.fail_after(30):
            print(await fabric.ask("triage", "the answer"))


if __name__ == "__main__":
    trio.run(main)
