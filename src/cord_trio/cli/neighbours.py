"""What `serve` says of the mesh: that it is in it, who comes and goes, and what becomes of the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import tell
from cord_trio.cli.common import count, one_line
from cord_trio.mesh.staying import Entered, Refused, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from cord_trio.config import MeshConfig
    from cord_trio.mesh.node import Node
    from cord_trio.mesh.presence import NodeRecord
    from cord_trio.mesh.staying import News

GATHER: Final = 1.0
"""Seconds in which further nodes that come or go join the first, before they are told of."""

NAMED: Final = 5
"""Nodes that are named each in a line; of more together only how many they are."""

BURST: Final = 20
"""Lines that may be said at once."""

EVERY: Final = 5.0
"""Seconds for each line beyond those; what could not be said is counted in the next."""


class Voice:
    """Says lines, and no more of them than a person reads."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = trio.current_time()
        self._unsaid = 0

    def say(self, text: str) -> None:
        """Say it, or count it."""
        now = trio.current_time()
        self._left = min(BURST, self._left + (now - self._at) / EVERY)
        self._at = now
        if self._left < 1:
            self._unsaid += 1
            return
        self._left -= 1
        tell(one_line(text) + (f" ({count(self._unsaid, 'line')} before this left out)" if self._unsaid else ""))
        self._unsaid = 0


class Neighbours:
    """Tells of one fabric's being in a mesh.

    Args:
        settings: of the mesh.
        refuse: called when the mesh refuses us after all.

    """

    def __init__(self, settings: MeshConfig, refuse: Callable[[Exception], None]) -> None:
        self._settings = settings
        self._refuse = refuse
        self._voice = Voice()
        self._reason: str | None = None  # why we are not in the mesh, as it was told
        self._node: Node | None = None
        self._entered = trio.Event()

    def hear(self, news: News) -> None:
        """What became of our being in the mesh."""
        match news:
            case Entered(node):
                self._node, self._reason = node, None
                others = count(len(node.roster.nodes.keys() - {node.name}), "other node")
                self._voice.say(f"node {node.name} of mesh {node.mesh}, with {others}")
                self._entered.set()
            case Waiting(reason):
                self._node, self._entered = None, trio.Event()
                if reason != self._reason:
                    self._reason = reason
                    self._voice.say(
                        f"not in mesh {self._settings.name} yet, and goes on trying; "
                        f"what is configured here is served meanwhile: {reason}"
                    )
            case Refused(error):
                self._refuse(error)

    def changed(self, connected: bool, reason: str) -> None:
        """The broker is lost, or back."""
        if connected:
            self._voice.say(f"the broker of mesh {self._settings.name} is back")
        else:
            self._voice.say(f"the broker of mesh {self._settings.name} is lost, other nodes with it: {reason}")

    async def watch(self) -> None:
        """Say who joins and leaves, until cancelled."""
        while True:
            await self._entered.wait()
            if self._node is not None:
                try:
                    await self._follow(self._node)
                except trio.BrokenResourceError:  # out of the mesh, or leaving it
                    await trio.sleep(GATHER)

    async def _follow(self, node: Node) -> None:
        members = node.roster.members
        known = members.nodes
        drain = {name for name, record in known.items() if record.draining}  # a node that leaves says so just before
        with node.roster.hearing(lambda name, epoch: None, drains=drain.add):
            while True:
                members = await node.roster.changed(members.number)
                with trio.move_on_after(GATHER):
                    while True:
                        members = await node.roster.changed(members.number)
                self._tell(known, members.nodes, node.name, drain)
                known = members.nodes
                drain.intersection_update(name for name, record in known.items() if record.draining)

    def _tell(
        self, before: Mapping[str, NodeRecord], now: Mapping[str, NodeRecord], ours: str, drain: Collection[str]
    ) -> None:
        came = sorted(now.keys() - before.keys() - {ours})
        went = sorted(before.keys() - now.keys() - {ours})
        again = sorted(
            name for name in now.keys() & before.keys() - {ours} if now[name].epoch != before[name].epoch
        )  # fmt: skip
        if len(came) + len(went) + len(again) > NAMED:
            parts = [(came, "joined"), (went, "left"), (again, "started again")]
            said = ", ".join(f"{len(names):,} {what}" for names, what in parts if names)
            self._voice.say(f"of the nodes {said}; there are {len(now):,} now")
            return
        for name in came:
            self._voice.say(f"node {name} has joined")
        for name in went:
            self._voice.say(f"node {name} {'has left' if name in drain else 'is gone'}")
        for name in again:
            self._voice.say(f"node {name} has started again")
