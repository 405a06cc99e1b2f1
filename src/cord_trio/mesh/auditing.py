"""What the store of a mesh holds, against the nodes that answer: what of it is wrong.

What is only under way looks wrong for a moment: a node that starts has a lease before it has a record, one that died
has a record until it is buried. So what is found counts if a second look, some time later, finds it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from cord_trio.mesh.presence import MAX_RECORD, TAKEN, WIRE, NodeRecord, decode_record, is_epoch, is_name
from cord_trio.mesh.sounding import Answer, ask_all
from cord_trio.nats.watch import Change, Reset, Synced
from cord_trio.protocol.jsonrpc import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cord_trio.mesh.contracts import Link, Store

SETTLE: Final = 3.0
"""Seconds between the two looks: longer than a node that has died is still in the list of those who know that."""

COUNT: Final = 16
"""Bytes at the beginning of a catalogue that say how many pages it has."""

KINDS: Final = (
    "bad record", "ghost", "lapsed lease", "absent", "silent", "wire", "no watchers", "lease alone", "duplicate name",
    "no catalogue", "unnamed catalogue", "split group", "agent alone", "strange key",
)  # fmt: skip
"""What can be found."""


@attrs.frozen
class Finding:
    """One thing that is to be said of the store.

    Attributes:
        kind: one of `KINDS`.
        what: the node, catalogue, agent or key that it is about.
        text: in words.
        wrong: whether it should not be so; else it is only worth knowing.

    """

    kind: str
    what: str
    text: str
    wrong: bool = True


@attrs.frozen
class Contents:
    """What the store holds.

    Attributes:
        records: what each node says of itself, by its name; None where that cannot be used.
        leases: node and epoch of each, and whether it is held; False if its end was proved.
        pages: how many each catalogue says that it has, and the numbers of those that are there; by its digest.
        agents: whose each agent is, as node and epoch.
        strange: keys that are none of ours.

    """

    records: dict[str, NodeRecord | None] = attrs.field(factory=dict)
    leases: dict[tuple[str, str], bool] = attrs.field(factory=dict)
    pages: dict[str, tuple[int, set[int]]] = attrs.field(factory=dict)
    agents: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    strange: list[str] = attrs.field(factory=list)

    @property
    def nodes(self) -> dict[str, NodeRecord]:
        """Those whose records can be used."""
        return {name: record for name, record in sorted(self.records.items()) if record is not None}

    def put(self, key: str, value: bytes) -> None:
        """Note what a key holds."""
        kind, _, rest = key.partition(".")
        name, _, more = rest.partition(".")
        match kind:
            case "up":
                record = decode_record(value) if len(value) <= MAX_RECORD else NodeRecord()
                self.records[rest] = record if is_name(rest) and is_epoch(record.epoch) else None
            case "hb" if more:
                self.leases[name, more] = value != TAKEN
            case "cat" if not more or more.isdigit():
                count, there = self.pages.get(name, (0, set()))
                if not more:
                    said = value[:COUNT].partition(b"\n")[0]
                    count = int(said) if said.isdigit() else 0
                self.pages[name] = count, there | {int(more or 0)}
            case "ag":
                self.agents[rest] = _owner(value)
            case _:
                self.strange.append(key)


def _owner(value: bytes) -> tuple[str, str]:
    try:
        found = msgspec.json.decode(value, type=dict[str, str])
    except UNREADABLE:
        found = {}
    return found.get("node", ""), found.get("epoch", "")


async def read_store(store: Store) -> Contents:
    """All that the store holds now. Waits for as long as its caller's scopes let it.

    Raises:
        NotPermitted: the store does not let us.

    """
    found = Contents()
    with store.watch(">") as watching:
        while True:
            match await watching.receive():
                case Synced():
                    return found
                case Reset():
                    found = Contents()
                case Change(key, value):
                    if value is not None:  # else it has ended meanwhile; the second look does without it
                        found.put(key, value)


def judge(found: Contents, answers: Mapping[str, Answer]) -> list[Finding]:
    """What is to be said of it. Pure."""
    return [
        *_nodes(found, answers),
        *_leases(found),
        *_catalogues(found),
        *_agents(found),
        *(Finding("strange key", key, "is none of a mesh's", wrong=False) for key in found.strange),
    ]


def _nodes(found: Contents, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    for name in sorted(name for name, record in found.records.items() if record is None):
        yield Finding("bad record", name, "has a record that cannot be used")
    for name, record in found.nodes.items():
        epoch, state = record.epoch, answers[name].state if name in answers else "forbidden"
        held = found.leases.get((name, epoch))
        if held is None and state != "answers":
            yield Finding("ghost", name, f"epoch {epoch} has a record, and no lease: it is gone, and nobody buries it")
        elif not held:
            why = "its end was proved" if held is False else "it is not there"
            yield Finding("lapsed lease", name, f"epoch {epoch} is without its lease: {why}")
        elif state == "absent":
            yield Finding("absent", name, f"epoch {epoch} holds its lease, and nobody listens there: it has died")
        elif state == "silent":
            yield Finding("silent", name, f"epoch {epoch} holds its lease, and does not answer")
        low, high = record.wire
        if not (low <= WIRE[1] and WIRE[0] <= high):
            yield Finding("wire", name, f"speaks versions {low} to {high} of the mesh's protocol, and we {WIRE[0]}")
    if found.nodes and not any(record.watches for record in found.nodes.values()):
        yield Finding("no watchers", "mesh", "no node may take away the records of those that have died")


def _leases(found: Contents) -> Iterator[Finding]:
    for name, epoch in sorted(lease for lease, held in found.leases.items() if held):
        record = found.nodes.get(name)
        if record is None:
            yield Finding("lease alone", name, f"epoch {epoch} holds a lease, and has no record")
        elif record.epoch != epoch:
            yield Finding("duplicate name", name, f"epoch {epoch} holds a lease beside {record.epoch}")


def _catalogues(found: Contents) -> Iterator[Finding]:
    named: set[str] = set()
    groups: dict[str, set[str]] = {}
    for name, record in found.nodes.items():
        agents = [("agents", record.agents)] if record.agents else []
        for server, digest in [*sorted(record.servers.items()), *agents]:
            named.add(digest)
            if server in record.groups:
                groups.setdefault(record.groups[server], set()).add(digest)
            count, there = found.pages.get(digest, (0, set[int]()))
            if not count or not there.issuperset(range(count)):
                yield Finding("no catalogue", name, f"offers {server}, whose catalogue {digest[:8]} is not stored")
    for digest in sorted(found.pages.keys() - named):
        yield Finding("unnamed catalogue", digest[:8], "is named by no node, and ends by itself", wrong=False)
    for group, digests in sorted(groups.items()):
        if len(digests) > 1:
            text = f"lists {len(digests)} different things, so that those do not stand for each other"
            yield Finding("split group", group, text, wrong=False)


def _agents(found: Contents) -> Iterator[Finding]:
    for agent, (node, epoch) in sorted(found.agents.items()):
        if epoch and not found.leases.get((node, epoch)):
            text = f"was that of node {node}, epoch {epoch}, which is gone; nobody has taken it over"
            yield Finding("agent alone", agent, text, wrong=False)


async def audit(link: Link, store: Store, *, mesh: str, node: str) -> tuple[Contents, list[Finding]]:
    """What the store holds, and what is to be said of it: what is wrong first.

    Args:
        link: to the mesh.
        store: of it.
        mesh: its name.
        node: as whom the nodes are asked; it need not be in the mesh.

    Raises:
        NotPermitted: the store does not let us.

    """
    found = await read_store(store)
    findings = judge(found, await ask_all(link, found.nodes, mesh=mesh, node=node))
    if any(each.wrong for each in findings):
        before = {(each.kind, each.what) for each in findings}
        await trio.sleep(SETTLE)
        found = await read_store(store)
        findings = judge(found, await ask_all(link, found.nodes, mesh=mesh, node=node))
        findings = [each for each in findings if not each.wrong or (each.kind, each.what) in before]
    return found, sorted(findings, key=lambda each: not each.wrong)
