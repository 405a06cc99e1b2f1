"""What is piped into the gateway is answered, although its stdin ends at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from pathlib import Path


HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "printf", "version": "1"}}


async def test_requests_piped_in_are_answered_after_stdin_ended(tmp_path: Path) -> None:
    source = ToolServer().source(name="demo")
    block = {"mcpServers": {"demo": {"command": source.command, "args": list(source.args)}}}
    (tmp_path / ".mcp.json").write_text(json.dumps(block))
    asked: list[dict[str, object]] = [
        {"id": 1, "method": "initialize", "params": HELLO},
        {"method": "notifications/initialized"},
        {"id": "two", "method": "tools/list"},
        {"id": 3, "method": "tools/call", "params": {"name": "demo__echo", "arguments": {"text": "hi"}}},
        {"id": 4, "method": "tools/call", "params": {"name": "demo__sleep", "arguments": {"seconds": 0.2}}},
    ]
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in asked)
    done = await trio.run_process(
        [sys.executable, "-m", "cord_trio", "serve", "--stdio"],
        cwd=tmp_path,
        stdin=lines.encode(),
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {message["id"]: message["result"] for message in told if "id" in message}
    assert set(answers) == {1, "two", 3, 4}
    assert answers[3]["content"] == [{"type": "text", "text": "hi"}]
