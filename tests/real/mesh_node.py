"""A node of a mesh as a process of its own, for tests and figures that kill it: `python -m tests.real.mesh_node …`.

What is called here is written down, a line each, as it begins and ends, so that what ran can be counted after a kill.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.mesh import flight, presence, roster, tenure
from cord_trio.mesh.node import open_node
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import BucketOptions, open_bucket
from cord_trio.protocol.jsonrpc import encode, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Handler, Outcome
    from cord_trio.mesh.node import Node
    from cord_trio.nats.client import Nats
    from cord_trio.nats.wire import Message

Json: TypeAlias = Any

MESH = "chaos"

SIZES = 4
"""Sizes of results that are kept, since small ones are asked for beside large ones."""


def hurry(lease: int) -> None:
    """Let leases last so many seconds, and what follows from them."""
    presence.LEASE = lease  # type: ignore[misc]  # a test may
    roster.LEASE = lease  # type: ignore[attr-defined]  # as above
    flight.PATIENCE = 2.0 * lease  # type: ignore[misc]  # as above
    tenure.REMEMBERED = 4.0 * lease  # type: ignore[misc]  # as above


def pen(path: Path) -> Callable[[str, object], None]:
    """What writes down that something happened."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, number: object) -> None:
        os.write(log, f"{json.dumps([what, number, time.time(), os.getpid()])}\n".encode())

    return note


def writing(path: Path) -> Handler:
    """Sleeps and answers as it is told, and writes down that it did; `echo` answers what it is given, and no more."""
    made: dict[int, Raw] = {}
    note = pen(path)

    async def handle(call: Call) -> Outcome:
        if call.name == "echo":
            return Complete(call.params["arguments"])
        asked = parse(call.params["arguments"])
        number = asked.get("number")
        if number is not None:
            note("begun", number)
        try:
            if "seconds" in asked:
                await trio.sleep(asked["seconds"])
        except trio.Cancelled:
            note("cancelled", number)
            raise
        if number is not None:
            note("done", number)
        size = asked.get("size", 0)
        if size not in made:  # to make it takes longer than to send it
            if len(made) >= SIZES:
                made.clear()
            made[size] = Raw(encode({"data": "x" * size}))
        return Complete(made[size])

    return handle


def notes(path: Path) -> list[tuple[str, object, float, int]]:
    """What was written down so far."""
    return [tuple(json.loads(line)) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def asked(**arguments: object) -> Call:
    within = float(str(arguments.pop("within", 60.0)))
    deadline = trio.current_time() + within
    return Call("tools/call", "work", {"arguments": Raw(encode(arguments))}, deadline=deadline)


def reset(nats: Nats) -> None:
    """Let its connection be reset, as by a machine between it and the server."""
    wire = nats.line._wire
    if wire is not None:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # type: ignore[attr-defined]  # a plain connection
        nats.line._give_up("the test wants it")


async def reset_on_signal(nats: Nats) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            reset(nats)


async def call(node: Node, log: Path, owner: str, first: int, count: int = 1, **arguments: object) -> None:
    """Make so many calls at once, and write down which had a result."""
    note = pen(log)

    async def one(number: int) -> None:
        await node.calling.call(asked(number=number, **arguments), [owner])
        note("got", number)

    while node.roster.epoch(owner) is None:
        await node.roster.changed(node.roster.number)
    async with trio.open_nursery() as nursery:
        for number in range(first, first + count):
            nursery.start_soon(one, number)


async def main(url: str, name: str, log: str, lease: str, options: Json) -> None:
    """Be a node of the servers `url`, which commas part.

    Args:
        url: of the servers.
        name: the node's.
        log: where what happens is written down.
        lease: seconds.
        options: `replicas` of the bucket; `epochs`, to write down each incarnation; `calls`, arguments of `call`.

    """
    hurry(int(lease))
    urls = url.split(",")
    async with open_nats(urls, name=name) as nats, open_nats(urls, name=f"{name} bulk") as bulk:
        store = await open_bucket(nats, f"cord_{MESH}", BucketOptions(replicas=options.get("replicas", 1)))
        note = pen(Path(log)) if options.get("epochs") else None

        def bare(message: Message) -> None:
            nats.publish(message.reply, message.data)

        nats.subscribe(f"bare.{name}", tell=bare)
        async with open_node(
            nats, store, mesh=MESH, node=name, bulk=bulk, handler=writing(Path(log)),
            begun=None if note is None else lambda lease: note("epoch", name),
        ) as node, trio.open_nursery() as nursery:  # fmt: skip
            nursery.start_soon(reset_on_signal, nats)
            print("ready", flush=True)  # noqa: T201  # its parent waits for it
            if "calls" in options:
                await call(node, Path(log), **options["calls"])


if __name__ == "__main__":
    _, *given = sys.argv
    url, name, log, lease, options = (*given, "{}")[:5]
    trio.run(main, url, name, log, lease, json.loads(options))
