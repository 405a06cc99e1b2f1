"""A gateway inside a program of one's own: serve the fabric to MCP clients, and be one of them.

Run it: `python examples/gateway.py`. It needs nothing but cord_trio.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

import cord_trio as cord
from cord_trio.testing import tool_server


async def main() -> None:
    server = cord.Stdio(name="demo", command=sys.executable, args=("-I", "-S", str(tool_server.__file__)))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/mcp"
    async with cord.open_fabric([server]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        await nursery.start(partial(cord.serve_gateway, fabric, http=listeners))
        # Any client does; ours is another fabric, for which the gateway is a source like any other.
        async with cord.open_fabric([cord.Http(name="up", url=url)]) as client:
            with trio.fail_after(30):
                answer = await client.call("up__demo__add", {"a": 40, "b": 2})
        print(f"{url} answered {answer.text}")
        nursery.cancel_scope.cancel("the example is over")


if __name__ == "__main__":
    trio.run(main)
