"""Many calls at once under one deadline: what is late is cancelled, down to the server that runs it.

Run it: `python examples/deadlines.py`. It needs nothing but cord_trio.
"""

from __future__ import annotations

import sys

import trio

import cord_trio as cord
from cord_trio.testing import tool_server

SERVERS = ("red", "green", "blue")


async def ask(fabric: cord.Fabric, server: str, seconds: float) -> None:
    """Let a server take so long, and tell how it ended."""
    try:
        await fabric.call(f"{server}__sleep", {"seconds": seconds})
        print(f"{server} took {seconds:g} s")
    except trio.Cancelled:
        print(f"{server} was cancelled: {seconds:g} s is too late")
        raise


async def main() -> None:
    start = ("-I", "-S", str(tool_server.__file__))
    sources = [cord.Stdio(name=name, command=sys.executable, args=start) for name in SERVERS]
    async with cord.open_fabric(sources) as fabric:
        await fabric.wait_started()
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                for server, seconds in zip(SERVERS, (0.1, 0.2, 60), strict=True):
                    nursery.start_soon(ask, fabric, server, seconds)
        try:
            await fabric.call("red__crash", {"status": 1, "signal": 0})
        except cord.CallError as exc:
            print(f"a call failed: {exc}; executed: {exc.executed}")


if __name__ == "__main__":
    trio.run(main)
