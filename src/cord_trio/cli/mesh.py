"""Look at a mesh, let nodes in, and run a broker to try one out."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import DONE, FAILED, looking, placing, tell
from cord_trio.cli.broker import PORT, keep_broker
from cord_trio.cli.common import add_config, clean, wrong_usage

if TYPE_CHECKING:
    import argparse

MOST_PORT: Final = 65535

_LISTEN: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(what=None)
    verbs = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    nodes = verbs.add_parser("nodes", help="who is in the mesh, what each offers, and how it is")
    audit = verbs.add_parser("audit", help="what is wrong in what the mesh keeps; exit code 1 if anything is")
    trace = verbs.add_parser(
        "trace", help="follow a call over the mesh: which nodes it went to, and how it ended there"
    )
    trace.add_argument("id", metavar="ID", help="a traceparent, the id of a trace, or that of a call")
    move = verbs.add_parser("move", help="let an agent of which there is one go on at another node, with its state")
    move.add_argument("agent", metavar="NAME", help="of the agent")
    move.add_argument(
        "--to", metavar="NODE", default="",
        help="a node that stands by for it, or labels: region=north; default another that has less to do",
    )  # fmt: skip
    for each in (nodes, audit, trace, move):
        add_config(each)
        each.add_argument("--mesh", metavar="URL", action="append", help="a NATS server; default: as configured")
        each.add_argument("--name", metavar="MESH", help="of the mesh; default: as configured, else cord")
    permissions = verbs.add_parser(
        "permissions", help="write the configuration of a NATS server that lets these nodes do what they must, no more"
    )
    permissions.add_argument(
        "nodes", metavar="NODE", nargs="+", help="NODE, or NODE:TARGET,TARGET for whom it may call"
    )
    permissions.add_argument("--name", metavar="MESH", default="cord", help="of the mesh; default cord")
    permissions.add_argument("--keys", metavar="FOLDER", default=".", help="where NODE.nk is, or is put; default here")
    permissions.add_argument(
        "--registrar", metavar="NODE", action="append",
        help="only these bury nodes that died; default all, since nodes of one owner trust each other",
    )  # fmt: skip
    permissions.add_argument("--listen", metavar="HOST:PORT", default=f"127.0.0.1:{PORT}")
    permissions.add_argument("--store", metavar="FOLDER", default="./nats", help="of JetStream; default ./nats")
    broker = verbs.add_parser("broker", help="run a NATS server here, to try a mesh out")
    broker.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 for any free one")
    broker.add_argument("--store", metavar="FOLDER", help="what it keeps; default a new folder, gone at the end")
    broker.add_argument("--conf", metavar="FILE", help="a configuration of nats-server, in place of all that")
    for each in (nodes, audit, trace, move, permissions, broker):
        each.add_argument("--debug", action="store_true", default=False, help="show traces and debug logs on stderr")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    match args.what:
        case "nodes":
            return await looking.look(args, looking.nodes)
        case "trace":
            return await looking.look(args, looking.trace)
        case "audit":
            return await looking.look(args, looking.audit)
        case "move" if bad := placing.wrong(args):
            return wrong_usage(bad)
        case "move":
            return await looking.look(args, placing.move, patience=placing.PATIENCE + looking.PATIENCE)
        case "permissions":
            return await _permissions(args)
        case _:
            if args.conf is not None and not os.access(args.conf, os.R_OK):
                return wrong_usage(f"--conf {args.conf}: there is no such file, or it cannot be read")
            if not 0 <= args.port <= MOST_PORT:
                return wrong_usage(f"--port {args.port}: a port is a number from 0 to {MOST_PORT}")
            return await keep_broker(port=args.port, store=args.store, conf=args.conf)


# permissions


async def _permissions(args: argparse.Namespace) -> int:
    from cord_trio.config.mesh import NAME
    from cord_trio.mesh.permissions import Member, server_config

    if not _LISTEN.fullmatch(args.listen) or not 0 < int(args.listen.rpartition(":")[2]) <= MOST_PORT:
        return wrong_usage(f"--listen {args.listen}: write HOST:PORT, such as 127.0.0.1:{PORT} or 0.0.0.0:{PORT}")
    targets: dict[str, tuple[str, ...]] = {}
    for each in args.nodes:
        name, colon, calls = each.partition(":")
        if name in targets:
            return wrong_usage(f"node {name!r} is given twice")
        targets[name] = tuple(calls.split(",")) if colon else ()
    registrars = args.registrar if args.registrar is not None else list(targets)
    named = [args.name, *targets, *(target for calls in targets.values() for target in calls), *registrars]
    for name in named:
        if not NAME.fullmatch(name):
            return wrong_usage(f"no name of a node or mesh: {name[:100]!r}; one has 1 to 48 of a-z, 0-9, _ and -")
    for name, calls in targets.items():
        for target in calls:
            if target not in targets:
                return wrong_usage(f"{name}:{target}: {target!r} is none of the nodes; name it as a node, too")
    for name in registrars:
        if name not in targets:
            return wrong_usage(f"--registrar: {name!r} is none of the nodes")
    folder = Path(args.keys)
    try:
        members = [Member(name, _key(folder, name), calls, name in registrars) for name, calls in targets.items()]
    except (OSError, ValueError) as exc:
        tell(f"error: {clean(str(exc))}")
        return FAILED
    await trio.lowlevel.checkpoint()
    sys.stdout.write(server_config(members, args.name, listen=args.listen, store=args.store))
    return DONE


def _key(folder: Path, name: str) -> str:
    """The public key of a node, whose seed is in `folder`, or is put there."""
    from cord_trio.nats.keys import load_credentials, make_key

    path = folder / f"{name}.nk"
    if path.exists():
        key = load_credentials(path).key
        assert key is not None
        return key.public
    key = make_key()
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{key.seed}\n")
    tell(f"wrote {path}, the key of node {name}: keep it secret, and name it in mesh.credentials there")
    return key.public
