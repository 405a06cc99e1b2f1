from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import main
from tests.cli.helpers import configure, script, server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def demo(folder: Path) -> Path:
    configure(folder, demo=server())
    return folder


def test_a_result_is_printed(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__add", '{"a": 40, "b": 2}']) == 0
    assert capsys.readouterr() == ("42\n", "")


def test_json_is_the_result_as_the_server_gave_it(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__echo", '{"text": "hello"}', "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["content"] == [{"type": "text", "text": "hello"}]
    assert (out.count("\n"), err) == (1, "")


def test_arguments_come_from_a_file(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (demo / "in.json").write_text('{"text": "from a file"}')
    assert main(["call", "demo__echo", "@in.json"]) == 0
    assert capsys.readouterr().out == "from a file\n"


def test_arguments_come_from_stdin(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (demo / "in.json").write_text('{"text": "from stdin"}')
    with open("in.json") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(["call", "demo__echo", "-"]) == 0
    assert capsys.readouterr().out == "from stdin\n"


def test_ctrl_c_ends_a_wait_for_stdin(demo: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "cord_trio", "call", "demo__echo", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as waiting:  # fmt: skip
        while len(os.listdir(f"/proc/{waiting.pid}/task")) < 2:  # a thread of its own waits for stdin
            time.sleep(0.02)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=10) == 130
        assert waiting.stderr is not None
        assert waiting.stderr.read() == b""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{bad", "JSON is malformed"),
        ("[1]", "'[1]' is no JSON object"),
        ('"x"', "is no JSON object"),
        ("", "arguments: "),
        ("@no-such-file", "error: no-such-file: No such file or directory"),
        ("@.", "error: .: Is a directory"),
        ("@binary", "can't decode"),
    ],
)
def test_bad_arguments_are_2_in_one_line(text: str, words: str, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (demo / "binary").write_bytes(b"\xff\xfe")
    assert main(["call", "demo__echo", text]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_failure_of_the_tool_is_1_and_on_stderr(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__fail", '{"text": "no luck"}']) == 1
    assert capsys.readouterr() == ("", "no luck\n")


def test_an_error_of_the_server_is_1_in_one_line(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__error", '{"code": -32000}']) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_a_call_that_may_have_run_is_told_as_that(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__crash", '{"status": 7, "signal": 0}']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("the call may have run")


def test_a_name_that_is_nearly_right_is_guessed(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo__ehco"]) == 1
    assert "did you mean demo__echo" in capsys.readouterr().err


def test_a_name_that_nothing_is_near_leads_to_the_list(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "zzzzzzzz"]) == 1
    assert (
        capsys.readouterr().err == "error: no tool named 'zzzzzzzz'; `python -m cord_trio tools` lists what there is\n"
    )


def test_a_tool_of_a_source_that_was_left_out_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, demo=server(), unset={"command": "x", "env": {"KEY": "${NEVER_SET_AT_ALL}"}})
    assert main(["call", "unset__echo"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: source 'unset' is down: ")
    assert "NEVER_SET_AT_ALL" in last


def test_only_the_source_that_can_own_the_tool_is_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, demo=server(), other=script("open('started', 'w')"))
    assert main(["call", "demo__echo", '{"text": ""}']) == 0
    assert not (folder / "started").exists()


BLOCKS = """
import json, sys
blocks = [
    {"type": "text", "text": "one"},
    {"type": "resource_link", "uri": "file:///a", "title": "A"},
    {"type": "resource_link", "uri": "file:///b"},
    {"type": "resource", "resource": {"uri": "file:///c", "text": "inside"}},
    {"type": "resource", "resource": {"uri": "file:///d", "blob": "AAAA"}},
    {"type": "image", "mimeType": "image/png", "data": "AAAAAAAA"},
    {"type": "hologram"},
]
for line in sys.stdin:
    message = json.loads(line)
    arguments = message.get("params", {}).get("arguments")
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "b"}},
        "tools/list": {"tools": [{"name": "show", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": blocks} if arguments else {"content": [], "structuredContent": {"a": 1}},
    }
    if "id" in message:
        result = results.get(message["method"])
        answer = {"result": result} if result else {"error": {"code": -32601, "message": "no"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


def test_x05_every_block_of_a_result_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=script(BLOCKS))
    assert main(["call", "it__show", '{"x": 1}']) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one",
        "[link cord://it/file:///a] A",
        "[link cord://it/file:///b]",
        "inside",
        "[resource cord://it/file:///d]",
        "[image image/png, 6 bytes; --json prints it]",
        "[hologram; --json prints it]",
    ]


def test_a_result_without_blocks_shows_its_structure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=script(BLOCKS))
    assert main(["call", "it__show"]) == 0
    assert capsys.readouterr().out == '{"a":1}\n'


def test_what_the_locale_cannot_write_is_written_as_utf_8(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["call", "demo__echo", '{"text": "\\u00e9"}']) == 0
    assert out.buffer.getvalue() == "é\n".encode()
