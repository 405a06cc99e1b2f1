"""Moving an agent of which there is one to another node, from outside: whoever has it does it, and is asked to."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import DONE, FAILED, tell
from cord_trio.cli.common import clean, print_json
from cord_trio.errors import CordError

if TYPE_CHECKING:
    import argparse

    from cord_trio.config import MeshConfig
    from cord_trio.nats.client import Nats
    from cord_trio.nats.kv import Bucket

PATIENCE: Final = 60.0
"""Seconds for an agent to be where it shall go: longer than its runs have to end, and nodes to answer."""

LABELS: Final = re.compile(r"[^=,\s]+=[^=,\s]*(,[^=,\s]+=[^=,\s]*)*")


def wrong(args: argparse.Namespace) -> str:
    """What is wrong with the arguments; "" for nothing."""
    from cord_trio.mesh.presence import is_name
    from cord_trio.mesh.singletons import NAME

    if not NAME.fullmatch(args.agent):
        return f"{args.agent[:100]!r} is no name of an agent of which there is one: 1 to 64 letters, digits, _ and -"
    if args.to and not LABELS.fullmatch(args.to) and not is_name(args.to):
        return f"--to {args.to[:100]}: give the name of a node, or labels: region=north"
    return ""


async def move(args: argparse.Namespace, settings: MeshConfig, nats: Nats, bucket: Bucket) -> int:
    """Have an agent moved by whoever has it."""
    from cord_trio.mesh.calling import open_calling
    from cord_trio.mesh.letters import MOVE
    from cord_trio.mesh.moving import say
    from cord_trio.mesh.roster import Roster
    from cord_trio.mesh.signing import Signer
    from cord_trio.mesh.singletons import locate

    held = await locate(bucket, args.agent)
    if held is None or not held.node:
        tell(
            f"error: no node has an agent {args.agent!r} of which there is one; only such move: say "
            "`singleton = true`, or call `fabric.singleton`, on each node that may have it"
        )
        return FAILED
    roster, rng = Roster(bucket), random.Random()
    epoch = f"{rng.getrandbits(32):08x}"  # we are no node, and have one answer to get
    signer = Signer(settings.key, settings.name, settings.node) if settings.key else None
    failure: CordError | None = None
    said: object = None
    async with trio.open_nursery() as nursery:
        await nursery.start(roster.run)
        try:
            async with open_calling(
                nats, roster, mesh=settings.name, node=settings.node, epoch=lambda: epoch, signer=signer, rng=rng
            ) as calling:
                if held.node != args.to:
                    deadline = trio.current_time() + PATIENCE
                    said = await say(calling, MOVE, args.agent, held.node, {"to": args.to}, deadline)
        except CordError as exc:
            failure = exc
        nursery.cancel_scope.cancel("it is known how that went")
    if failure is not None:
        raise failure
    to = said if isinstance(said, str) else args.to
    if args.json:
        print_json({"agent": args.agent, "from": held.node, "to": to, "moved": to != held.node})
    else:
        print(clean(f"{args.agent}  {held.node}  {to}" if to != held.node else f"{args.agent}  {to}  it stays"))
    return DONE
