"""Which agents are asked over the mesh: those of ours that others may ask, as others learn it, and those of others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.mesh.asking import Asking
from cord_trio.mesh.hosting import STANDBY
from cord_trio.mesh_errors import BadCatalogue
from cord_trio.protocol.jsonrpc import members

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from cord_trio.agents.directory import Agents
    from cord_trio.mesh.catalogues import Catalogue
    from cord_trio.mesh.hosting import Hosting
    from cord_trio.mesh.keeping import Keeping
    from cord_trio.mesh.moving import Moving
    from cord_trio.mesh.node import Node

log = logging.getLogger("cord_trio.mesh")

GATHER: Final = 0.2
"""Seconds in which further agents join the first, before others are told."""


class Lending:
    """What one node lends of its agents, and what it knows of those of others.

    Args:
        agents: ours.
        node: ours.
        rng: draws tokens.
        hosting: knows which of ours others may ask.
        keeping: has those of which there is one in the mesh.
        moving: moves them.

    Attributes:
        asking: those of others, as ours ask them.

    """

    def __init__(
        self, agents: Agents, node: Node, rng: random.Random, hosting: Hosting, keeping: Keeping, moving: Moving
    ) -> None:
        self.asking = Asking(agents, node, hosting.asked, hosting.locate, moving.move, rng, self._stir)
        hosting.asking = self.asking
        self._keeping = keeping
        self._node = node
        self._hosting = hosting
        self._stirred = trio.Event()
        self._said: dict[str, Catalogue] = {}  # what each node that is there told of its agents

    async def run(self) -> None:
        """Tell others which of ours they may ask, until cancelled."""
        lent: bytes | None = None
        while True:
            self._stirred = trio.Event()
            try:
                text = self._hosting.offered()
            except BadCatalogue as exc:
                self._node.counters.add("mesh.not_offered")
                log.warning("no agents are offered: %s", exc)
                text = None
            if text != lent:
                lent = text
                self._node.teller.lend(text)
            await self._stirred.wait()
            await trio.sleep(GATHER)

    def _stir(self) -> None:
        self._stirred.set()
        self._keeping.stir()

    def see(self, catalogue_of: Callable[[str], Catalogue | None]) -> None:
        """Take over what the nodes of the mesh say of their agents now.

        What a node said before counts until it is known what it says now, so that no agent is missing meanwhile.

        Args:
            catalogue_of: what is listed under a digest; None if that is not known yet.

        """
        found: dict[str, list[str]] = {}
        standing: dict[str, list[str]] = {}
        said: dict[str, Catalogue] = {}
        for name, record in sorted(self._node.roster.nodes.items()):
            if not record.agents or name == self._node.name:
                continue
            catalogue = catalogue_of(record.agents) or self._said.get(name)
            if catalogue is not None and "tools" in catalogue.lists:
                said[name] = catalogue
                for tool in catalogue.lists["tools"].items:
                    where = standing if STANDBY in members(tool.members.get("_meta", b"")) else found
                    where.setdefault(tool.key, []).append(name)
        self._said, self.asking.offered, self.asking.standing = said, found, standing
