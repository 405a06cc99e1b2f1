"""Looking at a mesh from outside: who is in it, and what is wrong with what it keeps.

Whoever looks is no node: it reads the store, and asks nodes what every node may ask of those that it may call. With
keys it looks as the node that is configured.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from cord_trio.cli import DONE, FAILED, tell
from cord_trio.cli.common import clean, count, load, print_json, wrong_usage
from cord_trio.mesh_errors import StoreFailed
from cord_trio.nats.kv import NO_STREAM

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from cord_trio.config import MeshConfig
    from cord_trio.mesh.presence import NodeRecord
    from cord_trio.mesh.recent import Step
    from cord_trio.mesh.sounding import Answer
    from cord_trio.nats.client import Nats
    from cord_trio.nats.kv import Bucket

    Look: TypeAlias = Callable[[argparse.Namespace, MeshConfig, Nats, Bucket], Awaitable[int]]

PATIENCE: Final = 30.0
"""Seconds for the broker, and the nodes, to tell all."""

DIGEST: Final = 8
"""Characters of a digest that are shown."""

NO_MESH: Final = "no mesh: name a server with --mesh nats://HOST:4222, or configure [mesh]"

_ID: Final = re.compile(r"[0-9a-f]{32}")
_STATES: Final = {
    "answers": "",
    "absent": "nobody listens there",
    "silent": "no answer",
    "forbidden": "not ours to ask",
}


def mesh_settings(args: argparse.Namespace) -> MeshConfig | None:
    """The mesh that is meant; None if none is. Raises `ConfigError` if it cannot be used."""
    from cord_trio.config import MeshConfig
    from cord_trio.config.load import DEFAULT_FILES

    found = None
    if args.config is not None or (args.mesh is None and any(map(os.path.lexists, DEFAULT_FILES))):
        found = load(args).mesh
    if args.mesh is not None:
        found = MeshConfig(servers=args.mesh) if found is None else attrs.evolve(found, servers=args.mesh)
    if found is not None and args.name is not None:
        found = attrs.evolve(found, name=args.name)
    return found


async def look(args: argparse.Namespace, what: Look, *, patience: float = PATIENCE) -> int:
    """Do `what` on the mesh that `args` name, for `patience` seconds at most; returns the exit code."""
    from cord_trio.mesh.reaching import open_store

    settings = mesh_settings(args)
    if settings is None:
        return wrong_usage(NO_MESH)
    code: int | None = None
    try:
        async with open_store(settings, make=False) as (nats, bucket):
            with trio.move_on_after(patience):
                code = await what(args, settings, nats, bucket)
    except StoreFailed as exc:
        if exc.code != NO_STREAM:
            raise
        tell(f"error: no node has been in a mesh named {settings.name!r} at this broker")
        return FAILED
    if code is None:
        tell("error: the broker did not tell who is in the mesh; is it 2.11 or newer, with JetStream?")
        return FAILED
    return code


async def nodes(args: argparse.Namespace, settings: MeshConfig, nats: Nats, bucket: Bucket) -> int:
    """Show who is in the mesh."""
    from cord_trio.mesh.sounding import ask_all

    found = await members(bucket)
    answers = await ask_all(nats, found, mesh=settings.name, node=settings.node)
    if args.json:
        print_json([_node_data(name, record, answers[name]) for name, record in sorted(found.items())])
        return DONE
    width = max(map(len, found), default=0)
    for name, record in sorted(found.items()):
        print(clean(f"{name:<{width}}  {_node_line(record, answers[name])}".rstrip()))
    tell(f"{count(len(found), 'node')} in mesh {settings.name}")
    return DONE


async def members(bucket: Bucket) -> dict[str, NodeRecord]:
    """Who is in the mesh."""
    from cord_trio.mesh.roster import Roster

    roster = Roster(bucket)
    async with trio.open_nursery() as nursery:
        await nursery.start(roster.run)
        found = dict(roster.nodes)
        nursery.cancel_scope.cancel("all was told")
    return found


def _node_data(name: str, record: NodeRecord, answer: Answer) -> dict[str, object]:
    return {
        "name": name,
        "epoch": record.epoch,
        "draining": record.draining,
        "labels": record.labels,
        "servers": record.servers,
        "groups": record.groups,
        "agents": record.agents,
        "wire": record.wire,
        "watches": record.watches,
        "state": answer.state,
        "answered_ms": round(answer.took * 1e3, 1) if answer.state == "answers" else None,
        "margin_s": answer.margin,
    }


def _node_line(record: NodeRecord, answer: Answer) -> str:
    offers = [
        f"{server}{'=' + record.groups[server] if server in record.groups else ''} ({digest[:DIGEST]})"
        for server, digest in record.servers.items()
    ]
    if record.agents:
        offers.append(f"agents ({record.agents[:DIGEST]})")
    low, high = record.wire
    facts = [f"{answer.took * 1e3:.0f} ms" if answer.state == "answers" else _STATES[answer.state]]
    if answer.margin is not None:
        facts.append(f"margin {answer.margin:g} s")
    facts.append(f"wire {low}" if low == high else f"wire {low}-{high}")
    labels = " ".join(f"{key}={value}" for key, value in record.labels.items())
    state = "drains" if record.draining else "ready "
    return f"{record.epoch}  {state}  {', '.join(offers) or '-'}  {labels or '-'}  {', '.join(facts)}"


async def trace(args: argparse.Namespace, settings: MeshConfig, nats: Nats, bucket: Bucket) -> int:
    """Follow a call over the mesh: ask all nodes what they know of it."""
    from cord_trio.mesh.recent import STEPS, trace_of
    from cord_trio.mesh.sounding import ask_all
    from cord_trio.protocol.jsonrpc import UNREADABLE

    id = trace_of(args.id) or args.id
    if not _ID.fullmatch(id):
        return wrong_usage(
            f"{args.id}: give a traceparent, the id of a trace, or that of a call: 32 hexadecimal digits"
        )
    found = await members(bucket)
    answers = await ask_all(nats, found, mesh=settings.name, node=settings.node, op="trace", body=id.encode())
    steps: list[tuple[str, Step]] = []
    untold: dict[str, str] = {}
    for name, answer in sorted(answers.items()):
        try:
            if answer.message is None or answer.message.header("C-K") != "trace":
                untold[name] = _STATES[answer.state] or "it keeps none"
            else:
                steps += [(name, step) for step in STEPS.decode(answer.message.data)]
        except UNREADABLE:
            untold[name] = "its answer cannot be read"
    steps.sort(key=lambda each: -each[1].ago)
    if args.json:
        print_json(
            {"id": id, "steps": [{"at": name, **msgspec.to_builtins(step)} for name, step in steps], "untold": untold}
        )
    else:
        for name, step in steps:
            print(clean(_step_line(name, step)))
    for name, why in untold.items():
        tell(f"node {name} tells nothing: {why}")
    if not steps:
        tell(f"no node knows a call of {id}: only those that are part of a trace are kept, the last of each node")
    return DONE if steps else FAILED


def _step_line(at: str, step: Step) -> str:
    over = "over to" if step.side == "made" else "for"
    again = f", sent {step.offers} times" if step.offers > 1 else ""
    what = f"{at}  {step.side} {step.name} {over} {step.node}"
    return (
        f"{what}  {step.ago:.1f} s ago, took {step.took * 1e3:.1f} ms{again}  "
        f"executed={step.executed}  {step.how}  epoch {step.epoch}  call {step.id}"
    )


async def audit(args: argparse.Namespace, settings: MeshConfig, nats: Nats, bucket: Bucket) -> int:
    """Say what is wrong in the mesh's store."""
    from cord_trio.mesh.auditing import audit

    found, findings = await audit(nats, bucket, mesh=settings.name, node=settings.node)
    wrong = sum(each.wrong for each in findings)
    if args.json:
        print_json(
            {
                "mesh": settings.name,
                "nodes": len(found.records),
                "leases": len(found.leases),
                "catalogues": len(found.pages),
                "agents": len(found.agents),
                "wrong": wrong,
                "findings": [attrs.asdict(each) for each in findings],
            }
        )
    else:
        for each in findings:
            print(clean(f"{'wrong' if each.wrong else 'note '}  {each.kind}: {each.what}: {each.text}"))
    sizes = {"node": len(found.records), "lease": len(found.leases), "catalogue": len(found.pages)}
    sizes["agent"] = len(found.agents)
    tell(
        f"mesh {settings.name}: {', '.join(count(size, noun) for noun, size in sizes.items())}; "
        + (f"{count(wrong, 'thing')} wrong" if wrong else "nothing wrong")
    )
    return FAILED if wrong else DONE
