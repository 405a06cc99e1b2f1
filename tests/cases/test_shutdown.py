"""Reported failures at the end: what hangs, and what hides the cause."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio

from cord_trio.cli import main
from cord_trio.config import Bounds, Config, Http
from cord_trio.errors import SourceDown
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.cases.servers import closed_port, program, refusing
from tests.cases.test_process import running, shell
from tests.gateway.fakes import initialize, legacy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cord_trio.config import Source

HIDING = ("TaskGroup", "ExceptionGroup", "sub-exception", "Traceback")


@contextmanager
def serving(folder: Path, marker: str) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway as people start it, with a child that has `marker` in its arguments, and an open stream to it."""
    command, *args = ToolServer(name=marker).command()
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"it": {"command": command, "args": args}}}))
    serve = [sys.executable, "-m", "cord_trio", "serve", "--http", "127.0.0.1:0", "--grace", "1"]
    with subprocess.Popen(serve, cwd=folder, stderr=subprocess.PIPE) as gateway:
        try:
            assert gateway.stderr is not None
            url = urlsplit(gateway.stderr.readline().split()[-1].decode())
            assert url.hostname is not None
            with (
                closing(http.client.HTTPConnection(url.hostname, url.port, timeout=20)) as opening,
                closing(http.client.HTTPConnection(url.hostname, url.port, timeout=20)) as stream,
            ):
                headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
                opening.request("POST", "/mcp", initialize(), headers)
                answer = opening.getresponse()
                answer.read()
                session = {"Mcp-Session-Id": answer.headers["mcp-session-id"]}
                opening.request("POST", "/mcp", legacy(1, "tools/list"), headers | session)
                assert b"it__echo" in opening.getresponse().read()
                stream.request("GET", "/mcp", headers={"Accept": "text/event-stream", **session})
                assert stream.getresponse().status == 200
                yield gateway
        finally:
            gateway.kill()


def test_d01_ctrl_c_ends_a_gateway_with_an_open_stream_and_a_child(tmp_path: Path) -> None:
    marker = f"d01-{os.getpid()}"
    with serving(tmp_path, marker) as gateway:
        assert running(marker)
        gateway.send_signal(signal.SIGINT)
        _, said = gateway.communicate(timeout=8)
    assert gateway.returncode in (0, 130)
    assert not any(word in said.decode() for word in HIDING)
    assert running(marker) == []


def test_d01_ctrl_c_ends_a_gateway_whose_client_stays_on_its_stdin(tmp_path: Path) -> None:
    marker = f"d01s-{os.getpid()}"
    command, *args = ToolServer(name=marker).command()
    (tmp_path / ".mcp.json").write_text(json.dumps({"mcpServers": {"it": {"command": command, "args": args}}}))
    serve = [sys.executable, "-m", "cord_trio", "serve", "--stdio", "--grace", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(serve, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe) as gateway:
        try:
            assert gateway.stdin is not None
            assert gateway.stdout is not None
            assert gateway.stderr is not None
            gateway.stdin.write(initialize() + b"\n" + legacy(1, "tools/list") + b"\n")
            gateway.stdin.flush()
            while b"it__echo" not in gateway.stdout.readline():
                pass
            assert running(marker)
            gateway.send_signal(signal.SIGINT)
            assert gateway.wait(8) in (0, 130)
            said = gateway.stderr.read().decode()
        finally:
            gateway.kill()
    assert not any(word in said for word in HIDING)
    assert running(marker) == []


def test_p10_a_killed_gateway_leaves_no_child(tmp_path: Path) -> None:
    marker = f"p10-{os.getpid()}"
    with serving(tmp_path, marker) as gateway:
        assert running(marker)
        gateway.kill()
        gateway.wait()
        end = time.monotonic() + 2
        while running(marker):
            assert time.monotonic() < end
            time.sleep(0.02)


async def test_d04_leaving_a_fabric_of_idle_servers_waits_for_no_grace() -> None:
    servers = [ToolServer(name=f"it{number}").source() for number in range(3)]
    bounds = Bounds(stop_close=6.0, stop_terminate=6.0)
    async with open_fabric(Config(sources=servers, bounds=bounds)) as fabric:
        await fabric.wait_started()
        leaving = trio.current_time()
    assert trio.current_time() - leaving < bounds.stop_close / 2


DENIED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BROKEN = "print('{\"bad json', flush=True)\nimport sys\nfor _ in sys.stdin: print('{\"bad json', flush=True)"


async def test_d05_each_failure_is_one_error_with_its_source_and_cause() -> None:
    with refusing(DENIED) as denied:
        sources: list[Source] = [
            Http(name="shut", url=f"http://127.0.0.1:{closed_port()}/mcp"),
            Http(name="denied", url=f"http://127.0.0.1:{denied}/mcp"),
            program(BROKEN, "broken", connect=0.3),
        ]
        rarely = Bounds(backoff_first=30.0, backoff_longest=30.0)
        async with open_fabric(Config(sources=sources, bounds=rarely)) as fabric:
            await fabric.wait_started()
            failures = {name: str(link.failure) for name, link in fabric.links.items()}
    for name, cause in {"shut": "refused", "denied": "401", "broken": "bad json"}.items():
        assert failures[name].startswith(f"{name}: ")
        assert cause in failures[name]
        assert not any(word in failures[name] for word in HIDING)


def test_p03_d05_the_command_line_tells_each_cause_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with refusing(DENIED) as denied:
        (tmp_path / "cord.toml").write_text(
            f'[sources.shut]\nurl = "http://127.0.0.1:{closed_port()}/mcp"\n'
            f'[sources.denied]\nurl = "http://127.0.0.1:{denied}/mcp"\n'
            f'[sources.missing]\ncommand = "no-such-bin"\n'
            f"[sources.broken]\nconnect = 0.3\ncommand = {json.dumps(sys.executable)}\n"
            f"args = {json.dumps(['-I', '-S', '-c', BROKEN])}\n"
        )
        assert main(["tools"]) == 1
    out, said = capfd.readouterr()
    assert out == ""
    names = ("shut", "denied", "missing", "broken")
    lines = {name: line for line in said.splitlines() for name in names if f" {name}:" in line}
    assert "refused" in lines["shut"]
    assert "401" in lines["denied"]
    assert "PATH" in lines["missing"]
    assert "bad json" in lines["broken"]
    assert not any(word in said for word in HIDING)


async def test_d05_a_call_to_a_source_that_never_came_up_says_why_it_is_down() -> None:
    rarely = Bounds(backoff_first=30.0, backoff_longest=30.0)
    source = shell("it", "echo need API_KEY >&2; exit 3")
    async with open_fabric(Config(sources=[source], bounds=rarely)) as fabric:
        with pytest.raises(SourceDown, match="need API_KEY"):
            await fabric.call("it__echo")
