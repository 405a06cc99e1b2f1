"""Brokers that can be asked what they hold, and ways to them that swallow everything without a reset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

import trio

from tests.real.nats_server import free_port, running


@contextmanager
def monitored(config="", **options):
    """A broker, and the port where it tells of itself."""
    port = free_port()
    with running(f'http: "127.0.0.1:{port}"\n{config}', jetstream=True, **options) as broker:
        yield broker, port


def monitor(port, page):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
        return json.load(answer)


class Apart:
    """A way to a broker that can be cut.

    Attributes:
        url: of the broker, on that way.
        within: the command that runs a node there.
        kind: what it is.

    """

    def __init__(self, url, within, kind, cut, mend):
        self.url, self.within, self.kind, self.cut, self.mend = url, within, kind, cut, mend


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def namespace(port):
    """A network of its own, joined to ours by a pair of virtual cards."""
    name = f"cord{os.getpid() % 100000}"
    ours, theirs = f"{name}a", f"{name}b"
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        yield Apart(
            f"nats://10.213.7.1:{port}", ("ip", "netns", "exec", name), "a network of its own",
            partial(ip, "link", "set", ours, "down"), partial(ip, "link", "set", ours, "up"),
        )  # fmt: skip


@asynccontextmanager
async def swallowing(port):
    """A proxy that, while it is cut, takes no bytes and no connections, and resets nothing."""
    passing = trio.Event()
    passing.set()

    async def copy(source, sink):
        async for data in source:
            await passing.wait()
            await sink.send_all(data)

    async def serve(near):
        await passing.wait()
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(copy, near, far)
            await copy(far, near)
            nursery.cancel_scope.cancel("one side has ended")

    async def guarded(near):
        try:
            await serve(near)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def cut():
        nonlocal passing
        passing = trio.Event()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, guarded, 0, host="127.0.0.1"))
        own = listeners[0].socket.getsockname()[1]
        yield Apart(f"nats://127.0.0.1:{own}", (), "a proxy", cut, lambda: passing.set())
        nursery.cancel_scope.cancel("the way is not needed any more")


@asynccontextmanager
async def apart(port):
    """The first of the two that this machine lets us have."""
    with ExitStack() as stack:
        try:
            if shutil.which("ip") is None:
                raise OSError
            way = stack.enter_context(namespace(port))
        except (OSError, subprocess.CalledProcessError):
            async with swallowing(port) as way:
                yield way
        else:
            yield way
