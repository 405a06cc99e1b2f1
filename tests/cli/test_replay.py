from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import pytest

from cord_trio.cli import main
from tests.cli.helpers import configure, server

if TYPE_CHECKING:
    from pathlib import Path

    from cord_trio.protocol.jsonrpc import Json

HEAD = b'{"cord_trio":"recording","version":1,"keys":[]}\n'


def answers(verb: list[str], tools: list[tuple[str, Json]]) -> list[Json]:
    """What a client on stdin is answered: the tools that are listed, and then each call's result or error."""
    asked: list[Json] = [
        {"id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
        }},
        {"method": "notifications/initialized"},
        {"id": 1, "method": "tools/list"},
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "cord_trio", *verb, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found: list[Json] = []
        for number, (name, given) in enumerate(tools, 2):
            asked.append({"id": number, "method": "tools/call", "params": {"name": name, "arguments": given}})
        for message in asked:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            process.stdin.flush()
            if "id" in message:
                reply = json.loads(process.stdout.readline())
                while "id" not in reply:
                    reply = json.loads(process.stdout.readline())
                found.append(reply)
        process.stdin.close()
        assert process.wait(10) == 0
    return found[1:]


def test_a_recording_made_by_serve_is_served_with_the_same_answers(folder: Path) -> None:
    configure(folder, it=server())
    asked: list[tuple[str, Json]] = [
        ("it__echo", {"text": "a"}), ("it__count", {}), ("it__count", {}), ("it__fail", {"text": "no"}),
    ]  # fmt: skip
    said = answers(["serve", "--record", "calls"], asked)
    assert said[2]["result"]["content"] != said[3]["result"]["content"]
    assert answers(["replay", "calls"], asked) == said
    assert answers(["replay", "calls", "--source", "it"], [(name[4:], given) for name, given in asked])[1:] == said[1:]


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        (b"hello\n", [], "is no recording; name a file that `serve --record` wrote"),
        (b'{"cord_trio":"recording","version":9}\n', [], "is a recording of format 9"),
        (HEAD + b"{\n" + b"{}\n", [], "line 2 is damaged"),
        (HEAD, ["--source", "x"], "has no source 'x'; it has none"),
        (HEAD, ["--speed", "-1"], "--speed: give 0 or more"),
        (HEAD, ["--http", "a:b:c"], "--http: write HOST:PORT"),
    ],
)
def test_what_cannot_be_replayed_is_2_in_one_line(
    data: bytes, more: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "calls").write_bytes(data)
    assert main(["replay", "calls", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_serve_does_not_record_into_another_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=server())
    (folder / "notes").write_text("mine\n")
    assert main(["serve", "--stdio", "--record", "notes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: notes: is no recording; name a file that `serve --record` wrote"
    assert (folder / "notes").read_text() == "mine\n"


def test_a_recording_is_served_over_http_until_a_signal_and_a_torn_line_is_told(folder: Path) -> None:
    catalogue = {
        "source": "x", "prefix": "x", "capabilities": {"tools": {}},
        "lists": {"tools": [{"name": "a", "inputSchema": {"type": "object"}}]},
    }  # fmt: skip
    result = {"content": [{"type": "text", "text": "then"}]}
    call = {
        "source": "x", "method": "tools/call", "name": "a", "params": {"arguments": {}}, "outcome": "result",
        "value": result,
    }  # fmt: skip
    whole = HEAD + b"".join(json.dumps(each).encode() + b"\n" for each in (catalogue, call))
    (folder / "calls").write_bytes(whole + b'{"source":"x","meth')
    with (
        subprocess.Popen(
            [sys.executable, "-m", "cord_trio", "replay", "calls", "--http", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as at_end,
    ):
        at_end.callback(process.kill)
        assert process.stderr is not None
        assert "its last line is cut off" in process.stderr.readline()
        url = process.stderr.readline().split()[-1]
        asked = {
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "x__a", "arguments": {}, "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            }},
        }  # fmt: skip
        headers = {
            "Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call", "Mcp-Name": "x__a",
        }  # fmt: skip
        assert httpx.post(url, json=asked, headers=headers).json()["result"]["content"] == result["content"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == "draining for up to 10 s; a second signal cancels\n"
