"""Reported failures of many servers' tools in one list."""

from __future__ import annotations

import trio

from cord_trio.config import Bounds, Config, Http, Source, Stdio
from cord_trio.fabric import open_fabric
from tests.cases.servers import closed_port, program, refusing, scripted

RARELY = Bounds(backoff_first=30.0, backoff_longest=30.0)


def named(source: str, *tools: str) -> Stdio:
    """A server whose tools answer with its own name."""
    listed = [{"name": tool, "inputSchema": {"type": "object"}} for tool in tools]
    return scripted(
        f"TOOLS = {listed}\n"
        f"def content(message): return [{{'type': 'text', 'text': {source!r} + ' ' + message['params']['name']}}]",
        source,
    )


async def test_r01_one_name_at_two_servers_is_two_tools_in_whatever_order_they_connect() -> None:
    sources = [named("a", "send_email"), named("b", "send_email")]
    for order in (sources, sources[::-1]):
        async with open_fabric(order) as fabric:
            await fabric.wait_started()
            assert sorted(fabric.registry.snapshot.tools) == ["a__send_email", "b__send_email"]
            assert (await fabric.call("a__send_email")).text == "a send_email"
            assert (await fabric.call("b__send_email")).text == "b send_email"


async def test_r03_calls_are_routed_by_the_table_and_not_by_parsing_names() -> None:
    async with open_fabric([named("a", "b__c", "d"), named("a__b", "c", "e")]) as fabric:
        await fabric.wait_started()
        assert (await fabric.call("a__d")).text == "a d"
        assert (await fabric.call("a__b__e")).text == "a__b e"
        # Both export a__b__c: the first configured keeps it, and the other is reported.
        assert (await fabric.call("a__b__c")).text == "a b__c"
        (problem,) = fabric.registry.snapshot.problems
        assert "a__b__c" in str(problem)


async def test_r13_a_good_server_is_listed_and_called_while_four_others_are_broken() -> None:
    broken = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
    with refusing(broken) as port:
        sources: list[Source] = [
            Http(name="shut", url=f"http://127.0.0.1:{closed_port()}/mcp"),
            Stdio(name="hangs", command="/bin/sh", args=("-c", "cat > /dev/null"), connect=60.0),
            Http(name="fails", url=f"http://127.0.0.1:{port}/mcp"),
            program("for _ in iter(input, None): print('{bad', flush=True)", "lies", connect=0.3),
            named("good", "tool"),
        ]
        async with open_fabric(Config(sources=sources, bounds=RARELY)) as fabric:
            assert (await fabric.call("good__tool")).text == "good tool"
            for name, cause in {"shut": "refused", "fails": "500", "lies": "{bad"}.items():
                await fabric.links[name].wait_tried()
                assert cause in fabric.links[name].reason
            assert not fabric.links["hangs"].tried
            assert list(fabric.registry.snapshot.tools) == ["good__tool"]
            with trio.fail_after(5):
                assert (await fabric.call("good__tool")).text == "good tool"
