"""Servers that others wrote, as sources of one fabric."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.config import Http, Stdio
from cord_trio.errors import CallError, CallFailed
from cord_trio.fabric import open_fabric
from tests.real.helpers import SCRIPTS, START, Record, read_line, running, sdk_over_http, sdk_over_stdio, until

if TYPE_CHECKING:
    from msgspec import Raw

    from cord_trio.config import Source
    from cord_trio.fabric import Fabric

ERAS = {"auto": "2026-07-28", "modern": "2026-07-28", "legacy": "2025-11-25"}


def why_down(fabric: Fabric) -> dict[str, str]:
    return {name: link.reason for name, link in fabric.links.items() if link.state != "ready"}


async def lists_and_calls(fabric: Fabric, source: str) -> None:
    assert f"{source}__hang" in fabric.registry.snapshot.tools
    assert (await fabric.call(f"{source}__echo", {"text": "ä\u2028\n"})).text == "ä\u2028\n"
    assert (await fabric.call(f"{source}__add", {"a": 1, "b": 2})).structured == {"result": 3}
    assert len((await fabric.call(f"{source}__big", {"size": 5_000_000})).text) == 5_000_000


async def tells_errors(fabric: Fabric, source: str) -> None:
    failed = await fabric.call(f"{source}__fail", {"text": "bad luck"})
    assert failed.is_error
    assert "bad luck" in failed.text
    with pytest.raises(CallFailed, match="as you wished") as caught:
        await fabric.call(f"{source}__error", {"code": -32055})
    assert (caught.value.code, caught.value.data, caught.value.executed) == (-32055, b'{"wish":-32055}', "yes")


async def tells_progress(fabric: Fabric, source: str) -> None:
    told: list[str] = []

    def note(method: str, _params: Raw) -> None:
        told.append(method)

    assert (await fabric.call(f"{source}__steps", {"many": 3}, events=note)).text == "3 steps"
    assert told == ["notifications/progress"] * 3


async def is_cancelled(fabric: Fabric, source: str, record: Record) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fabric.call, f"{source}__hang", {"label": source})
        await record.wait_for(f"started-{source}")
        nursery.cancel_scope.cancel("enough")
    await record.wait_for(f"cancelled-{source}")


async def tells_of_a_new_tool(fabric: Fabric, source: str) -> None:
    await fabric.call(f"{source}__grow", {"name": f"new_{source}"})
    await until(lambda: f"{source}__new_{source}" in fabric.registry.snapshot.tools)
    assert (await fabric.call(f"{source}__new_{source}", {"text": "grown"})).text == "grown"


async def test_the_official_servers_serve_in_each_era_over_stdio_and_http(tmp_path: Path) -> None:
    record = Record(tmp_path / "record")
    async with sdk_over_http(record) as url:
        sources = [sdk_over_stdio(f"stdio_{era}", record, era=era) for era in ERAS]
        remote = [Http(name=f"http_{era}", url=url, era=era, connect=START) for era in ERAS]  # type: ignore[arg-type]  # its words
        async with open_fabric([*sources, *remote]) as fabric:
            await fabric.wait_started()
            assert why_down(fabric) == {}
            for source, link in fabric.links.items():
                (client,) = link.sessions.values()
                assert client.greeting.revision == ERAS[source.partition("_")[2]]
                await lists_and_calls(fabric, source)
                await tells_errors(fabric, source)
                await tells_progress(fabric, source)
                await is_cancelled(fabric, source, record)
                await tells_of_a_new_tool(fabric, source)
                assert not client.session.peer.open or client.greeting.modern  # a listen stays open there
            assert fabric.counters["session.late_reply"] == 0
        assert sorted(record.words) == sorted(
            f"{what}-{source}" for source in fabric.links for what in ("started", "cancelled")
        )


async def test_the_reference_servers_are_sources_of_one_fabric(tmp_path: Path) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for arguments in (("init", "-q"), (*identity, "commit", "-qm", "one", "--allow-empty")):
        await trio.run_process(["git", *arguments], cwd=tmp_path)
    sources = [
        Stdio(name="time", command=str(SCRIPTS / "mcp-server-time"), args=("--local-timezone", "UTC"), connect=START),
        Stdio(name="git", command=str(SCRIPTS / "mcp-server-git"), args=("--repository", str(tmp_path)), connect=START),
        Stdio(name="fetch", command=str(SCRIPTS / "mcp-server-fetch"), args=("--ignore-robots-txt",), connect=START),
    ]
    async with open_fabric(sources) as fabric:
        await fabric.wait_started()
        assert why_down(fabric) == {}
        now = await fabric.call("time__get_current_time", {"timezone": "Europe/Zurich"})
        assert '"timezone": "Europe/Zurich"' in now.text
        assert (await fabric.call("time__get_current_time", {"timezone": "Nowhere/Else"})).is_error
        assert "one" in (await fabric.call("git__git_log", {"repo_path": str(tmp_path)})).text
        wrong = await fabric.call("git__git_show", {"repo_path": str(tmp_path), "revision": "no-such"})
        assert wrong.is_error
        # It refuses addresses of this machine, so there is no success without a network.
        refused = await failure_or_result(fabric, "fetch__fetch", {"url": "http://127.0.0.1:9/"})
        assert "127.0.0.1" in refused or "private" in refused or "fetch" in refused


async def failure_or_result(fabric: Fabric, tool: str, arguments: dict[str, object]) -> str:
    """How a call ended that may fail as a tool's result or as an error of the protocol."""
    try:
        result = await fabric.call(tool, arguments)
    except CallError as exc:
        return str(exc)
    assert result.is_error
    return result.text


EVERYTHING = "@modelcontextprotocol/server-everything"


def everything() -> list[str]:
    """The command of the Node server, installed once on this machine, or why this test cannot be."""
    if "CORD_NO_NODE" in os.environ:
        pytest.skip("CORD_NO_NODE is set")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node here")
    folder = Path(tempfile.gettempdir()) / f"cord-trio-node-{os.getuid()}"
    program = folder / "node_modules" / EVERYTHING / "dist" / "index.js"
    if not program.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), EVERYTHING]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as exc:
            pytest.skip(f"npm cannot install {EVERYTHING}: {exc}")
    return ["node", str(program)]


async def test_the_node_server_is_a_source_over_stdio_and_http() -> None:
    command = everything()
    with trio.socket.socket() as found:
        await found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"PORT": str(port)}
    async with running([*command, "streamableHttp"], stderr=subprocess.PIPE, env=environment) as process:
        with trio.move_on_after(20):
            while str(port) not in await read_line(process.stderr):
                pass
        sources: list[Source] = [
            Stdio(name="pipe", command=command[0], args=(*command[1:], "stdio"), connect=START),
            Http(name="web", url=f"http://127.0.0.1:{port}/mcp", connect=START),
        ]
        async with open_fabric(sources) as fabric:
            await fabric.wait_started()
            assert why_down(fabric) == {}
            for source in fabric.links:
                assert "hi" in (await fabric.call(f"{source}__echo", {"message": "hi"})).text
                told: list[str] = []
                result = await fabric.call(
                    f"{source}__trigger-long-running-operation", {"duration": 0.2, "steps": 2},
                    events=lambda method, _params: told.append(method),  # noqa: B023  # over before the next round
                )  # fmt: skip
                assert not result.is_error
                assert told.count("notifications/progress") == 2
                with trio.move_on_after(0.2) as scope:
                    await fabric.call(f"{source}__trigger-long-running-operation", {"duration": 30, "steps": 30})
                assert scope.cancelled_caught
                assert "still" in (await fabric.call(f"{source}__echo", {"message": "still here"})).text
                assert "Invalid arguments" in await failure_or_result(fabric, f"{source}__echo", {"message": 7})
