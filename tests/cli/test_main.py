from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio import cli
from cord_trio.cli import main
from cord_trio.errors import ConfigError, ConnectionLost, DeadlineExceeded, Problem
from tests.cli.helpers import configure, server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

COMMAND = [sys.executable, "-m", "cord_trio"]


def verb(run: Callable[[trio.Event], Awaitable[int]], *, drains: bool = False) -> object:
    """A module of a verb that does this."""

    def run_it(args: object, interrupted: trio.Event) -> Awaitable[int]:
        return run(interrupted)

    return SimpleNamespace(run=run_it, DRAINS=drains, add_arguments=lambda _: None)


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Puts a verb in the place of `tools`."""

    def replace(module: object) -> None:
        monkeypatch.setitem(sys.modules, "cord_trio.cli.tools", module)

    return replace


# What is run


def test_alone_without_a_configuration_it_says_what_to_do_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) <= 10
    for word in ("demo", ".mcp.json", "check", "tools", "serve", "--help"):
        assert word in out


@pytest.mark.parametrize("arguments", [[], ["--http", "127.0.0.1:0"]])
def test_alone_with_a_configuration_it_serves(arguments: list[str], folder: Path) -> None:
    configure(folder, it=server())
    with subprocess.Popen([*COMMAND, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True) as gateway:
        assert gateway.stderr is not None
        first = gateway.stderr.readline()
        gateway.send_signal(signal.SIGTERM)
        gateway.communicate(timeout=10)
    if "Address already in use" not in first:  # the usual port may be somebody's
        assert first.startswith("serving 1 source at http://127.0.0.1:")
        assert gateway.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in cli.VERBS)])
def test_help_and_version_are_no_failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--nonsense"], ["call"], ["serve", "--grace", "soon"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["tools"], ["check"], ["call", "a__b"], ["serve"]])
def test_a_missing_configuration_is_2_in_one_line(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no cord.toml or .mcp.json in this folder; ")
    assert len(err.splitlines()) == 1


def test_the_script_exits_with_the_code(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["cord-trio", "tools"])
    with pytest.raises(SystemExit) as ended:
        cli.script()
    assert ended.value.code == 2


# How errors are told


async def raised(error: Exception) -> int:
    await trio.lowlevel.checkpoint()
    raise error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (OSError(28, "No space left on device"), 1, ["error: [Errno 28] No space left on device"]),
        (DeadlineExceeded("too slow", "no"), 1, ["error: deadline exceeded: too slow"]),
        (ConnectionLost("it died"), 1, ["error: connection lost: it died; the call may have run"]),
        (RuntimeError("a bug"), 1, ["error: RuntimeError: a bug; --debug shows where"]),
        (
            ConfigError([Problem("f", "p", "wrong", "mend it"), Problem("f", "", "worse", "")]),
            2,
            ["error: f: p: wrong; mend it", "error: f: worse"],
        ),
        (
            ExceptionGroup("two", [RuntimeError("a"), ExceptionGroup("", [ConfigError([Problem("", "", "b", "")])])]),
            2,
            ["error: RuntimeError: a; --debug shows where", "error: b"],
        ),
    ],
)
def test_each_error_is_one_line(
    error: Exception, code: int, lines: list[str], instead: Callable[[object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    instead(verb(lambda _: raised(error)))
    assert main(["tools"]) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)


def test_debug_shows_the_trace_too(instead: Callable[[object], None], capsys: pytest.CaptureFixture[str]) -> None:
    instead(verb(lambda _: raised(RuntimeError("a bug"))))
    assert main(["tools", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in raised" in err
    assert "RuntimeError: a bug" in err.splitlines()[-1]


# Signals


def kill_us() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_verb_with_130(number: int, instead: Callable[[object], None]) -> None:
    async def run(_: trio.Event) -> int:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    instead(verb(run))
    assert main(["tools"]) == 130


def test_a_verb_that_drains_is_told_first_and_cancelled_by_the_second_signal(
    instead: Callable[[object], None],
) -> None:
    told = []

    async def run(interrupted: trio.Event) -> int:
        kill_us()
        await interrupted.wait()
        told.append("first")
        kill_us()
        await trio.sleep_forever()

    instead(verb(run, drains=True))
    assert main(["tools"]) == 130
    assert told == ["first"]


def test_a_verb_that_drains_ends_with_its_own_code(instead: Callable[[object], None]) -> None:
    async def run(interrupted: trio.Event) -> int:
        kill_us()
        await interrupted.wait()
        return 0

    instead(verb(run, drains=True))
    assert main(["tools"]) == 0


def test_ctrl_c_where_no_task_runs_is_130_too(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def run(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(trio, "run", run)
    assert main(["tools"]) == 130


@pytest.mark.parametrize(
    "command",
    [COMMAND, [sys.executable, "-c", "from cord_trio.__main__ import script; script()"], [*COMMAND, "simulate", "a:b"]],
)
def test_ctrl_c_while_it_imports_ends_it_quietly(command: list[str], tmp_path: Path) -> None:
    done = interrupted_importing(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_a_signal_that_is_ignored_stays_ignored_while_it_imports(tmp_path: Path) -> None:
    done = interrupted_importing(["sh", "-c", 'trap "" INT; exec "$0" "$@"', *COMMAND], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def interrupted_importing(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run it with a Trio that sends the signal as it is imported, and ends the process where that does not."""
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"
    (folder / "trio.py").write_text(code)
    path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=30, check=False
    )


def test_d01_ctrl_c_while_a_call_runs_ends_serve_after_its_grace_with_a_clean_stderr(folder: Path) -> None:
    configure(folder, it=server())
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
    call["params"] = {"name": "it__sleep", "arguments": {"seconds": 60}}
    greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    greeting["params"] = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": ""},
    }
    command = [*COMMAND, "serve", "--stdio", "--grace", "0.5"]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as gateway:
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        gateway.stdin.write(json.dumps(greeting).encode() + b"\n")
        gateway.stdout.readline()
        gateway.stdin.write(json.dumps(call).encode() + b"\n")
        time.sleep(0.5)  # until the call runs; if it does not yet, the test is only weaker
        began = time.monotonic()
        gateway.send_signal(signal.SIGINT)
        _, err = gateway.communicate(timeout=10)
    assert 0.3 < time.monotonic() - began < 8
    assert gateway.returncode == 0
    assert err.decode().splitlines() == ["draining for up to 0.5 s; a second signal cancels"]


# Output that nobody reads


def test_a_reader_that_leaves_is_no_error_to_tell(folder: Path) -> None:
    configure(folder, it=server(tools=2000))
    done = subprocess.run(
        f"{' '.join(COMMAND)} tools | head -1", shell=True, cwd=folder, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["tools"], ["tools", "--json"]])
def test_a_reader_that_has_left_already_is_no_error_to_tell(arguments: list[str], folder: Path) -> None:
    configure(folder, it=server())
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=folder, stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_broken_pipe_is_1(instead: Callable[[object], None], capfd: pytest.CaptureFixture[str]) -> None:
    instead(verb(lambda _: raised(ExceptionGroup("", [BrokenPipeError()]))))
    assert main(["tools"]) == 1
    assert capfd.readouterr() == ("", "")


PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
PONG = b'{"jsonrpc":"2.0","id":1,"result":{}}\n'


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_ends_no_gateway(redirection: str, folder: Path) -> None:
    configure(folder, dead={"command": "no-such-program-at-all"}, it={**server(), "colour": "red"})
    done = subprocess.run(
        f"(printf '%s\n' '{PING.decode().strip()}'; sleep 0.6) | {' '.join(COMMAND)} serve --stdio {redirection}",
        shell=True, cwd=folder, stdout=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(PONG)
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in done.stdout.splitlines())
    assert done.returncode == 0


def test_standard_files_that_are_closed_are_no_trap(folder: Path) -> None:
    configure(folder, it=server())
    done = subprocess.run(
        f"{' '.join(COMMAND)} call it__echo '{{\"text\": \"x\"}}' <&- >&-", shell=True, cwd=folder,
        stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_demo_draws_in_a_terminal() -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "demo", "--servers", "13", "--agents", "1", "--seconds", "0.6"], stdout=follower, stderr=follower
    ) as demo:
        os.close(follower)
        shown = b""
        try:
            while piece := os.read(leader, 1 << 16):
                shown += piece
        except OSError:  # the terminal's way to say that all have left
            pass
    os.close(leader)
    text = shown.decode()
    assert demo.returncode == 0
    assert "in flight" in text
    assert "… and 1 more server" in text
    assert "left behind  nothing" in text
