from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import main, serve
from cord_trio.cli.figures import children
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.cli.helpers import Said, command_line, configure, script, server

if TYPE_CHECKING:
    from pathlib import Path


def arguments(**given: object) -> argparse.Namespace:
    """Parsed arguments of `serve`."""
    return argparse.Namespace(
        **{
            "config": None,
            "http": "127.0.0.1:0",
            "stdio": False,
            "grace": 0.2,
            "fd": None,
            "takeover": None,
            "record": None,
            "mesh": None,
            "node": None,
            **given,
        }
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--http", "a:b:c"], "--http: write HOST:PORT, such as 127.0.0.1:8931"),
        (["--http", "127.0.0.1:99999"], "--http: a port is 0 to 65535"),
        (["--http", "0.0.0.0:0"], "is not a loopback address, and there is no authentication yet"),
        (["--grace", "0"], "--grace: give more than 0 seconds"),
        (["--grace", "-1"], "--grace: give more than 0 seconds"),
        (["--grace", "nan"], "--grace: give more than 0 seconds"),
    ],
)
def test_wrong_arguments_are_2_in_one_line(
    wrong: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it=server())
    assert main(["serve", *wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_port_that_is_taken_is_1_and_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=server())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["serve", "--http", place]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on {place}: Address already in use; name another port")


def victims() -> list[int]:
    return [pid for pid in children() if "victim-of-serve" in command_line(pid)]


async def keep_killing() -> None:
    """Kill it again and again: one that dies while it is greeted is greeted anew, and nobody is told."""
    while True:
        for pid in victims():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await trio.sleep(0.3)


async def test_it_says_which_source_is_down_and_when_it_is_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it=server(name="victim-of-serve"), dead=script("raise SystemExit('no\\nkey')"))
    lines, interrupted = Said(capsys), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(), interrupted)
        assert (await lines.wait_for("serving")).startswith("serving 2 sources at http://127.0.0.1:")
        assert "no key" in await lines.wait_for("source dead is down: ")
        async with trio.open_nursery() as killing:
            killing.start_soon(keep_killing)
            assert "signal 9" in await lines.wait_for("source it is down: ")
            killing.cancel_scope.cancel("it is seen")
        await lines.wait_for("source it is ready again")
        interrupted.set()
        await lines.wait_for("draining for up to 0.2 s; a second signal cancels")


async def test_an_address_of_ipv6_is_shown_in_brackets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    configure(folder, it=server())
    interrupted = trio.Event()
    interrupted.set()
    assert await serve.run(arguments(http="[::1]:0"), interrupted) == 0
    assert "http://[::1]:" in capsys.readouterr().err


def test_stdio_ends_with_its_client(folder: Path) -> None:
    configure(folder, it=server())
    greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    greeting["params"] = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": ""},
    }
    done = subprocess.run(
        [sys.executable, "-m", "cord_trio", "serve", "--stdio"],
        cwd=folder, input=json.dumps(greeting).encode() + b"\n", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    first = json.loads(done.stdout.splitlines()[0])
    assert first["result"]["serverInfo"]["name"] == "cord_trio"
    assert (done.returncode, done.stderr) == (0, b"")


async def test_what_the_start_has_made_is_kept_out_of_the_collectors_way() -> None:
    gc.unfreeze()
    async with open_fabric([ToolServer(name="it").in_process()]) as fabric:
        try:
            await serve._freeze_when_listed(fabric)
            assert fabric.registry.snapshot.sources["it"].state == "ready"
            assert gc.get_freeze_count() > 10_000
        finally:
            gc.unfreeze()
