"""Sources that are started when they are needed, as child processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from cord_trio.config import Config
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def until(happened: Callable[[], object]) -> None:
    while not happened():  # noqa: ASYNC110  # it happens outside
        await trio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_listed_before_it_runs_started_by_a_call_and_stopped_when_nobody_uses_it(
    tmp_path: Path,
) -> None:
    source = ToolServer(name="it", tools=2).source(start="manifest", idle=1.0)
    config = Config(sources=[source], state_dir=str(tmp_path))
    with trio.fail_after(90):
        async with open_fabric(config) as fabric:
            await until(lambda: fabric.counters["manifests.written"])
        async with open_fabric(config) as fabric:
            await fabric.wait_started()
            link = fabric.links["it"]
            assert (link.pid, link.state, "it__tool_2" in fabric.registry.snapshot.tools) == (None, "manifest", True)
            assert (await fabric.call("it__echo", {"text": "hi"})).text == "hi"
            pid = link.pid
            assert pid is not None
            await until(lambda: link.state == "manifest")
            await until(lambda: not lives(pid))
            assert "it__tool_2" in fabric.registry.snapshot.tools
            assert (await fabric.call("it__echo", {"text": "again"})).text == "again"
            assert link.pid not in (None, pid)


async def test_replicas_of_a_command_are_processes_of_their_own() -> None:
    source = ToolServer(name="it").source(replicas=2)
    with trio.fail_after(90):
        async with open_fabric([source]) as fabric:
            await fabric.wait_started()
            await until(lambda: {child.state for child in fabric.source_nodes()[0].children} == {"ready"})
            [node] = fabric.source_nodes()
            pids = [child.facts["pid"] for child in node.children]
            assert len(set(pids)) == 2
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(fabric.call, "it__sleep", {"seconds": 0.1})
                    await trio.sleep(0.01)
            assert isinstance(pids[0], int)
            os.kill(pids[0], 9)
            await until(lambda: fabric.counters["link.down"])
            for _ in range(10):
                assert (await fabric.call("it__echo", {"text": "hi"})).text == "hi"
    assert not any(lives(pid) for pid in pids if isinstance(pid, int))
