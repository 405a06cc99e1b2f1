"""`run MODULE:AGENT PAYLOAD`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import main
from tests.cli.helpers import configure, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODE = """
import cord_trio as cord

async def echo(ctx, payload):
    return payload

async def hand(ctx, payload):
    return ctx.handoff("echo", [payload])

async def call(ctx, payload):
    return await ctx.call("it__echo", {"text": payload})

async def fail(ctx, payload):
    raise ValueError("no such order")

async def odd(ctx, payload):
    return {1j}

class Counted:
    def __init__(self):
        self.count = 0
    async def __call__(self, ctx, payload):
        self.count += 1
        return self.count

def plain(ctx, payload): ...
"""


@pytest.fixture
def desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of agents."""
    (folder / "run_desk.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("run_desk", None)


def agents(folder: Path, *names: str) -> None:
    """Configure these agents."""
    (folder / "cord.toml").write_text("".join(f'[agents.{name}]\nhandler = "run_desk:{name}"\n' for name in names))


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["run_desk:echo", "refund 17"], "refund 17\n"),
        (["run_desk:echo", '{"a": [1, null]}'], '{"a":[1,null]}\n'),
        (["run_desk:echo", '"quoted"'], "quoted\n"),
        (["run_desk:echo", '"quoted"', "--json"], '"quoted"\n'),
        (["run_desk:echo", '{"add"', "--text"], '{"add"\n'),
        (["run_desk:echo", "17", "--text", "--json"], '"17"\n'),
        (["run_desk:echo", "1e999"], "1e999\n"),
        (["run_desk:echo", "don't {"], "don't {\n"),
        (["run_desk:echo"], ""),
        (["run_desk:echo", "--json"], "null\n"),
        (["run_desk:echo", "\x1b[2J"], "\N{REPLACEMENT CHARACTER}[2J\n"),
        (["run_desk:echo", "@job.json"], '{"id":7}\n'),
        (["run_desk:odd"], "{1j}\n"),
        (["run_desk:Counted"], "1\n"),
    ],
)
def test_the_answer_is_printed(
    arguments: list[str], printed: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "job.json").write_text('{"id": 7}')
    assert main(["run", *arguments]) == 0
    assert capsys.readouterr() == (printed, "")


def test_configured_agents_are_there_to_hand_to(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agents(desk, "echo")
    assert main(["run", "run_desk:hand", "x"]) == 0
    agents(desk, "echo", "hand")
    assert main(["run", "hand", "x"]) == 0
    assert main(["run", "run_desk:hand", "x"]) == 0
    assert capsys.readouterr() == ('["x"]\n' * 3, "")


def test_a_tools_answer_is_printed_as_call_prints_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(desk, it=server())
    assert main(["run", "run_desk:call", "hello"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert main(["run", "run_desk:call", "hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "error: no agent named 'nobody' is configured; write MODULE:AGENT"),
        ("run_desk:none", "error: run_desk:none: run_desk has no none; it has Counted, call, echo, fail, hand, odd"),
        ("run_none:x", "error: run_none:x: there is no module run_none; start in the folder where it lies, or in"),
        ("run_desk:plain", "error: run_desk:plain: plain is no agent; write `async def handler(ctx, payload)`, or"),
        ("run_desk:1", 'error: run_desk:1: does not name a function; write "package.module:function"'),
        ("run_desk:" + "x" * 65, f"error: run_desk:{'x' * 65}: the name cannot be an agent's; use 1 to 64 letters"),
    ],
)
def test_what_is_no_agent_is_2_in_one_line(
    name: str, words: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)


def test_wrong_configured_agents_are_2_with_their_place(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agents(desk, "echo", "plain")
    for command in (["run", "echo"], ["serve", "--http", "127.0.0.1:0"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: cord.toml: agents.plain.handler: run_desk:plain: plain is no agent; ")
    agents(desk, "echo")
    assert main(["run", "nobody"]) == 2
    assert capsys.readouterr().err == "error: cord.toml: no agent named 'nobody' is configured; there are: echo\n"
    assert main(["run", "other:echo"]) == 2
    assert capsys.readouterr().err == (
        "error: cord.toml: agents.echo: is run_desk:echo, not other:echo; rename one of them\n"
    )


def test_a_payload_that_cannot_be_read_is_2(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "latin").write_bytes(b"\xe9")
    assert main(["run", "run_desk:echo", "@none"]) == 2
    assert main(["run", "run_desk:echo", "@latin"]) == 2
    assert capsys.readouterr().err == "error: none: No such file or directory\nerror: payload: it is not UTF-8\n"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ('{"add"', "Input data was truncated"),
        ("\ufeff {}", "JSON is malformed: invalid character (byte 0)"),
        ("[1, 2", "Input data was truncated"),
        ("\n[draft] tea", "JSON is malformed: invalid character (byte 2)"),
        ('"quoted', "Input data was truncated"),
        ("[" * 100_000, "maximum recursion depth exceeded while deserializing an object"),
        ("@job.json", "Input data was truncated"),
    ],
)
def test_a_payload_that_begins_like_json_and_is_none_is_2_in_one_line(
    payload: str, why: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "job.json").write_text('{"id": ')
    assert main(["run", "run_desk:echo", payload]) == 2
    start = "error: payload: it begins like JSON and is none: "
    assert capsys.readouterr() == ("", f"{start}{why}; mend it, or say --text to give a text\n")


def test_an_agent_that_fails_is_1_in_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "run_desk:fail"]) == 1
    assert capsys.readouterr() == ("", "error: ValueError: no such order; --debug shows where\n")


def test_it_runs_as_a_process_with_its_payload_on_stdin(desk: Path) -> None:
    agents(desk, "echo")
    done = subprocess.run(
        [sys.executable, "-m", "cord_trio", "run", "run_desk:hand", "-"],
        cwd=desk, input="héllo".encode(), capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, '["héllo"]\n', b"")
