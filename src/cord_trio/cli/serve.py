"""Serve the configured sources to MCP clients as one endpoint."""

from __future__ import annotations

import gc
import math
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import DONE, FAILED, report, tell
from cord_trio.cli.common import add_config, clean, count, find_configured, one_line, open_view, wrong_usage
from cord_trio.cli.reloading import keep_reloading, load_stamped
from cord_trio.cli.running import Running, find
from cord_trio.cli.serving import add_ways, address_of, drain_when_interrupted, listen_at, tell_where
from cord_trio.cli.sockets import Notify, as_listeners, checked, inherit, passed
from cord_trio.observe.control import pid_of
from cord_trio.observe.handover import TAKING, Offer, Taken, take_over

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from cord_trio.cli.neighbours import Neighbours
    from cord_trio.config import Config, MeshConfig
    from cord_trio.fabric import Fabric, Mesh
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.recorder import Recorder

DRAINS = True
"""The first signal drains, the second cancels."""

BEGINNING: Final = ("configured", "starting")
"""States of a source that starts by itself, until its first list or its first failure."""

ASIDE: Final = 0.2
"""Seconds until another look at whom to take over from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=False)
    add_ways(parser, "127.0.0.1:8931, or as configured")
    parser.add_argument("--fd", metavar="N", type=int, help="serve at this listening socket, which was inherited")
    parser.add_argument(
        "--takeover", metavar="PID", type=int, nargs="?", const=0,
        help="take the listening sockets of the `serve` that runs (with this PID, if several do), which then drains",
    )  # fmt: skip
    parser.add_argument("--record", metavar="FILE", help="keep every call in this file, without secrets, for `replay`")
    parser.add_argument("--mesh", metavar="URL", action="append", help="be a node of the mesh at this NATS server")
    parser.add_argument("--node", metavar="NAME", help="of this node; default: as configured, else this machine's")
    parser.add_argument("--grace", metavar="SECONDS", type=float, help="for running calls at the end; default 10")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric
    from cord_trio.gateway import serve_gateway

    try:
        given = address_of(args)
    except ValueError as exc:
        return wrong_usage(str(exc))
    if args.grace is not None:
        if not 0 < args.grace < math.inf:
            return wrong_usage("--grace: give more than 0 seconds")
        given["grace"] = args.grace
    if args.record is not None:
        given["record"] = args.record

    def as_told(config: Config) -> Config:
        """What is configured, with what the command line says instead."""
        mesh = _mesh_as_told(config.mesh, args.mesh, args.node)
        return attrs.evolve(config, gateway=attrs.evolve(config.gateway, **given), mesh=mesh)

    loaded, stamp = load_stamped(args)
    config = as_told(loaded)
    if args.node is not None and config.mesh is None:
        return wrong_usage("--node: there is no mesh; name its server with --mesh nats://HOST:4222")
    gateway = config.gateway
    handlers = find_configured(config)
    notify = Notify(os.environ)
    async with AsyncExitStack() as stack:
        recorder = _recorder(config, stack)
        try:
            listeners, taken = await _listen(args, config, stack)
        except (ValueError, OSError) as exc:
            tell(f"error: {clean(str(exc))}")
            return FAILED
        leaving = trio.Event()
        refusals: list[Exception] = []

        def refuse(exc: Exception) -> None:
            """What the mesh says only now a person has to mend: end, so that one hears of it."""
            refusals.append(exc)
            report(exc)
            interrupted.set()

        neighbours = None if config.mesh is None else _neighbours(config.mesh, refuse)
        offer = Offer(listeners, leaving.set, serving=False)
        async with (
            open_fabric(
                config, recorder=recorder, mesh=_mesh(config.mesh, neighbours, heir=taken is not None)
            ) as fabric,
            open_view(fabric, "serve", offer=offer),
            trio.open_nursery() as nursery,
        ):
            await nursery.start(keep_reloading, fabric, stamp, as_told, interrupted, notify)
            tell_where(f"serving {count(len(config.enabled), 'source')}", listeners)
            fabric.add_configured(handlers)

            async def drain_when_taken_over() -> None:
                await leaving.wait()
                tell(f"process {offer.pid} has taken over; connections have {gateway.grace:g} s to end")
                await trio.sleep(gateway.grace)
                interrupted.set()

            nursery.start_soon(
                drain_when_interrupted, interrupted, fabric, gateway.grace, nursery.cancel_scope, notify.stopping
            )
            nursery.start_soon(drain_when_taken_over)
            nursery.start_soon(_tell_changes, fabric)
            if neighbours is not None:
                nursery.start_soon(neighbours.watch)
            nursery.start_soon(_freeze_when_listed, fabric)
            if taken is not None:
                with trio.move_on_after(TAKING / 2):
                    await fabric.wait_started()  # the one before us serves meanwhile
            serving = partial(serve_gateway, fabric, http=listeners or None, stdio=args.stdio, leaving=leaving)
            async with trio.open_nursery() as gateway_nursery:
                await gateway_nursery.start(serving)
                if taken is not None:
                    await taken.ready()
                offer.serving = True
                notify.ready()
            nursery.cancel_scope.cancel("all that was asked is answered")
    return FAILED if refusals else DONE


def _mesh_as_told(mesh: MeshConfig | None, servers: list[str] | None, node: str | None) -> MeshConfig | None:
    """The configured mesh, with what the command line says instead. Raises `ConfigError`."""
    from cord_trio.config import MeshConfig

    given: dict[str, Json] = {"servers": servers, "node": node}
    given = {name: value for name, value in given.items() if value is not None}
    if mesh is None:
        return None if servers is None else MeshConfig(**given)
    return attrs.evolve(mesh, **given)


def _neighbours(settings: MeshConfig, refuse: Callable[[Exception], None]) -> Neighbours:
    """What tells of the mesh."""
    from cord_trio.cli.neighbours import Neighbours

    return Neighbours(settings, refuse)


def _mesh(settings: MeshConfig | None, neighbours: Neighbours | None, *, heir: bool) -> Mesh | None:
    """What makes the fabric a node of the configured mesh whenever that can be had; None if there is none."""
    if settings is None or neighbours is None:
        return None
    from cord_trio.mesh.joining import in_mesh
    from cord_trio.mesh.staying import stay_in_mesh

    return stay_in_mesh(in_mesh(settings, changed=neighbours.changed), neighbours.hear, heir=heir)


def _recorder(config: Config, stack: AsyncExitStack) -> Recorder | None:
    """What records, closed by `stack`; None if nothing does. Raises `ConfigError` if its file cannot be used."""
    gateway = config.gateway
    if not gateway.record:
        return None
    from cord_trio.recorder import Recorder

    path = os.path.expanduser(gateway.record)
    recorder = Recorder(path, most=config.bounds.record_bytes, keys=gateway.record_secrets)
    stack.callback(recorder.close)
    tell(f"recording all calls in {clean(path)}, without the secrets that can be told")
    return recorder


async def _freeze_when_listed(fabric: Fabric) -> None:
    """Keep what the start has made, lists of tools too, out of the garbage collector's way: it would look at it all."""
    eager = [name for name, source in fabric.config.enabled.items() if source.start == "eager"]
    with trio.move_on_after(fabric.config.bounds.first_list):
        snapshot = fabric.registry.snapshot
        while any(name in snapshot.sources and snapshot.sources[name].state in BEGINNING for name in eager):
            snapshot = await fabric.registry.changed(snapshot.version)
    gc.collect()
    gc.freeze()


async def _listen(
    args: argparse.Namespace, config: Config, stack: AsyncExitStack
) -> tuple[list[trio.SocketListener], Taken | None]:
    """Where to listen, closed by `stack`; and from whom that is taken over, if from anybody.

    Raises:
        ValueError: what was inherited cannot be used, or nothing can be taken over.
        OSError: we cannot listen.

    """
    inherited = passed(os.environ)
    taken = None
    sockets: list[socket.socket] = []
    if args.takeover is not None:
        taken = await take_over(await _running(args.takeover))
        stack.callback(taken.close)
        sockets = [checked(each) for each in taken.sockets]
    elif args.fd is not None or inherited:
        sockets = [inherit(number) for number in ([args.fd] if args.fd is not None else inherited)]
    listeners = as_listeners(sockets)
    if not listeners and (args.http is not None or not args.stdio):
        listeners = await listen_at(config.gateway, "name another port with --http, or 0 for any free one")
    for listener in listeners:
        stack.push_async_callback(trio.aclose_forcefully, listener)
    return listeners, taken


async def _running(pid: int) -> Path:
    """The control socket of the `serve` that runs; of process `pid`, unless that is 0.

    Raises:
        ValueError: there is none, or no single one.

    """
    running, found, silent = await _servers(pid)
    # One may have taken over from another while they were asked, or one have been too busy to answer in time.
    if len(found) > 1 or (silent and not found):
        await trio.sleep(ASIDE)
        running, found, silent = await _servers(pid)
    if len(found) == 1:
        return found[0].path
    if silent and not running:
        raise ValueError(f"process {pid_of(silent[0].path)} does not answer; try again")
    if not found:
        raise ValueError(
            "another process is taking over just now, or has; try again"
            if running
            else "no `serve` runs that this user could take over"
        )
    raise ValueError(
        "several run; name one: --takeover PID, with " + ", ".join(str(pid_of(each.path)) for each in found)
    )


async def _servers(pid: int) -> tuple[list[Running], list[Running], list[Running]]:
    """Those that serve; of them those that could be taken over from; and those that do not say what they are."""
    asked = await find(pid or None)
    running = [each for each in asked if each.said is not None and each.said.get("verb") == "serve"]
    found = [each for each in running if each.said is not None and each.said.get("takeover", True)]
    return running, found, [each for each in asked if each.said is None]


async def _tell_changes(fabric: Fabric) -> None:
    """Say which sources go down, and why, and which of them come back."""
    version = 0
    told: dict[str, str] = {}
    while True:
        snapshot = await fabric.registry.changed(version)
        version = snapshot.version
        for name, view in snapshot.sources.items():
            if view.state == "down" and view.reason != told.get(name):
                told[name] = view.reason
                tell(f"source {name} is down: {one_line(view.reason)}")
            elif view.state == "ready" and told.pop(name, ""):
                tell(f"source {name} is ready again")
