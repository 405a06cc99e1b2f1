"""Any client through our gateway: `python -m conformance.through CLIENT ... URL` gives it a gateway before URL."""

from __future__ import annotations

import sys

import trio

from cord_trio import Config, Http, open_fabric, serve_gateway


async def main(*words: str) -> int:
    """The client's exit status."""
    *client, url = words
    async with open_fabric(Config(sources=[Http(name="server", url=url, prefix="")])) as fabric:
        await fabric.wait_started()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_gateway(fabric, http=listeners))
            done = await trio.run_process([*client, f"http://127.0.0.1:{port}/mcp"], check=False)
            nursery.cancel_scope.cancel("the client has ended")
    return done.returncode


if __name__ == "__main__":
    sys.exit(trio.run(main, *sys.argv[1:]))
