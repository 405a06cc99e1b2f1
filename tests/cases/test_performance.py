"""Reported failures of speed, on a clock that jumps."""

from __future__ import annotations

import trio

from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer


async def test_q01_twenty_slow_servers_start_together_and_are_listed_in_their_order(autojump_clock: object) -> None:
    servers = [ToolServer(name=f"s{number:02}", slow=0.5) for number in reversed(range(20))]
    began = trio.current_time()
    async with open_fabric([server.in_process() for server in servers]) as fabric:
        await fabric.wait_started()
        assert trio.current_time() - began < 1.5
        tools = list(fabric.registry.snapshot.tools)
    sources = list(dict.fromkeys(name.partition("__")[0] for name in tools))
    assert sources == [server.options.name for server in servers]
