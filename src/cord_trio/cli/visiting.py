"""Being in a mesh for one command: `tools`, `call` and `run` with `--mesh`.

Whoever visits is a node like any other, so that what is true of calls between nodes is true of theirs: it is known that
they are gone, and what they asked ends with them. It offers nothing, and has a name of its own: where the broker knows
nodes by their keys that has to be one with a key.
"""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import tell
from cord_trio.cli.common import clean, count, load
from cord_trio.config import Config
from cord_trio.errors import ConfigError, Problem
from cord_trio.mesh_errors import DuplicateName
from cord_trio.trace import TraceContext

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from cord_trio.config import MeshConfig
    from cord_trio.fabric import Fabric
    from cord_trio.mesh.node import Node
    from cord_trio.registry import Snapshot

PATIENCE: Final = 10.0
"""Seconds to learn what the nodes of the mesh offer."""

LOOK: Final = 0.05
"""Seconds between two looks at whether an agent is known."""

SETTLED: Final = 1.0
"""Seconds in which no node has told of other agents, after which one that is unknown is not waited for."""

NAMED: Final = 10
"""Nodes, and agents, that are named where one is not found."""

SHORT: Final = 43
"""Characters of a node's name that leave room for what a visitor adds."""


def add_visit(parser: argparse.ArgumentParser) -> None:
    """Add what says which mesh is visited, and as whom."""
    parser.add_argument(
        "--mesh", metavar="URL", nargs="?", const="",
        help="with what the nodes of a mesh offer: of the one at this NATS server, else of the one that is configured",
    )  # fmt: skip
    parser.add_argument("--node", metavar="NAME", help="be this node there, with a key of its own where there are keys")
    parser.add_argument("--credentials", metavar="FILE", help="with that key; default: as configured")


def load_visited(args: argparse.Namespace) -> Config:
    """The configuration; with the URL of a mesh, none is needed. Raises `ConfigError`."""
    none = args.config is None and not any(map(os.path.lexists, ("cord.toml", ".mcp.json")))
    return Config() if none and args.mesh else load(args)


class Visit:
    """One visit of a mesh.

    Attributes:
        trace: that what is called there is part of.

    Args:
        settings: of the mesh.

    """

    def __init__(self, settings: MeshConfig) -> None:
        self.trace = TraceContext(secrets.token_hex(16), secrets.token_hex(8))
        self._settings = settings
        self._node: Node | None = None

    @asynccontextmanager
    async def mesh(self, fabric: Fabric) -> AsyncGenerator[None]:
        """For `open_fabric(mesh=…)`. Raises as `in_mesh` says."""
        from cord_trio.mesh.joining import in_mesh

        try:
            async with in_mesh(self._settings)(fabric) as self._node:
                yield
        except DuplicateName as exc:
            if not self._settings.credentials:
                raise
            name = self._settings.node
            remedy = "give a visitor a key of its own: `mesh permissions … VISITOR`, then --node and --credentials"
            raise ConfigError([Problem("", "mesh.node", f"node {name} is in the mesh already", remedy)]) from exc

    async def listed(self, fabric: Fabric, tool: str = "") -> bool:
        """Wait for all that the mesh offers to be had here, or for `tool`; False if it takes too long.

        What a source of our own lists as well is ours alone: it is not had from others, or not for long.
        """
        from cord_trio.config.values import Foreign
        from cord_trio.mesh.joining import offers_of

        assert self._node is not None
        missing: set[str] = set()
        with trio.move_on_after(PATIENCE):
            while True:
                snapshot = fabric.registry.snapshot
                ready = {name for name, view in snapshot.sources.items() if view.state == "ready"}
                theirs = {name for name, link in fabric.links.items() if isinstance(link.source, Foreign)}
                ours = _digests(snapshot, snapshot.sources.keys() - theirs)
                twice = {offer.name for offer in offers_of(self._node) if offer.digest in ours}
                missing = {offer.name for offer in offers_of(self._node)} - ready - twice
                if not (missing or twice & theirs) or tool in snapshot.tools:
                    return True
                await fabric.registry.changed(snapshot.version)
        if not missing:
            return True
        tell(
            f"error: after {PATIENCE:g} s it is not known what {count(len(missing), 'source')} of the mesh list: "
            + clean(", ".join(sorted(missing)))
        )
        return False

    async def knows(self, fabric: Fabric, agent: str) -> bool:
        """Wait for an agent of another node; False if there is none, which is told with where it was looked for.

        There is none once all that the nodes offer was read and stayed the same for `SETTLED`, or after `PATIENCE`.
        """
        began = since = trio.current_time()
        offered: Mapping[str, Sequence[str] | None] = {}
        while fabric.agents.taker(agent) is None:
            before, offered = offered, self._agents()
            now = trio.current_time()
            if offered != before or None in offered.values():
                since = now
            if now - since >= SETTLED or now - began >= PATIENCE:
                tell(f"error: {clean(_nowhere(agent, fabric.config.agents, offered))}")
                return False
            await trio.sleep(LOOK)
        return True

    def _agents(self) -> Mapping[str, Sequence[str] | None]:
        """What agents each of the other nodes offers; None for one of which that is not known yet."""
        assert self._node is not None
        found: dict[str, Sequence[str] | None] = {}
        for name, record in sorted(self._node.roster.nodes.items()):
            if name != self._node.name:
                catalogue = self._node.catalogues.at_hand(record.agents) if record.agents else None
                listed = () if catalogue is None else catalogue.lists["tools"].items
                found[name] = None if record.agents and catalogue is None else [each.key for each in listed]
        return found

    def tell_trace(self) -> None:
        """Say how what was called can be followed."""
        tell(f"`python -m cord_trio mesh trace {self.trace.id}` follows it over the mesh")


def hint(config: Config) -> str:
    """What to add to an error that without `--mesh` something is not there; "" where no mesh is configured."""
    return "" if config.mesh is None else f"; with --mesh behind all else, also what mesh {config.mesh.name} offers"


def _nowhere(agent: str, here: Iterable[str], offered: Mapping[str, Sequence[str] | None]) -> str:
    """That an agent is nowhere, and where it was looked for."""
    known = [*here, *(f"{name}@{node}" for node, names in offered.items() for name in names or ())]
    unread = [node for node, names in offered.items() if names is None]
    more = f"; it is not known what agents these have: {_some(unread)}" if unread else ""
    where = f"on {count(len(offered), 'other node')} of the mesh" + (f" ({_some(list(offered))})" if offered else "")
    return f"no agent named {agent!r} is configured here, or offered {where}; there are: {_some(known) or 'none'}{more}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def _digests(snapshot: Snapshot, sources: Iterable[str]) -> set[str]:
    """Of what these list; none of what has not listed yet, or is too long to be offered."""
    from cord_trio.mesh.catalogues import digest_of, encode_catalogue
    from cord_trio.mesh_errors import BadCatalogue

    found: set[str] = set()
    for name in sources:
        with suppress(BadCatalogue):
            text = encode_catalogue(snapshot, name)
            if text is not None:
                found.add(digest_of(text))
    return found


def visit_of(args: argparse.Namespace, config: Config) -> Visit | None:
    """The visit that is asked for; None if none is. Raises `ConfigError` if it cannot be made."""
    from cord_trio.config import MeshConfig

    if args.mesh is None:
        if args.node is None and args.credentials is None:
            return None
        raise ConfigError([Problem("", "--node, --credentials", "no mesh is visited", "add --mesh")])
    if args.mesh and "://" not in args.mesh:
        remedy = "write nats://HOST:4222; without a URL, put --mesh behind all else"
        raise ConfigError([Problem("", f"--mesh {args.mesh}", "is no URL of a NATS server", remedy)])
    found = config.mesh
    if found is None:
        if not args.mesh:
            remedy = "configure [mesh], or write --mesh nats://HOST:4222"
            raise ConfigError([Problem(config.file, "mesh", "is not configured", remedy)])
        found = MeshConfig(servers=[args.mesh])
    elif args.mesh:
        found = attrs.evolve(found, servers=[args.mesh])
    credentials = found.credentials if args.credentials is None else args.credentials
    name = args.node
    if name is None:
        # By a key the broker knows one name alone.
        name = found.node if credentials else f"{found.node[:SHORT]}-{secrets.token_hex(2)}"
    return Visit(
        attrs.evolve(found, node=name, credentials=credentials, share=(), agents=(), groups={}, labels={})
    )  # fmt: skip
