"""What a node says of itself: one record, which others get whenever it has changed, and not more often than they bear.

A change goes to every node of the mesh. So changes gather, the last of them counts, and what was lost is said again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError
from cord_trio.mesh.catalogues import KEPT, digest_of
from cord_trio.mesh.presence import MAX_RECORD, NodeRecord
from cord_trio.mesh_errors import DuplicateName

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from cord_trio.mesh.catalogues import Catalogues
    from cord_trio.mesh.presence import Presence

log = logging.getLogger("cord_trio.mesh")

PAUSE: Final = (1.0, 2.0)
"""Seconds between two records of one node, at least and at most."""

PATIENCE: Final = 10.0
"""Seconds that the store may take for a record, or for a catalogue."""

ROOM: Final = len(b'"epoch":"00000000",')


class Teller:
    """Says what a node is and offers, for as long as `run` runs.

    Args:
        presence: of the node.
        catalogues: where what it offers is stored.
        record: what it has said at first.
        rng: draws pauses.
        counters: where to count.

    """

    def __init__(
        self,
        presence: Presence,
        catalogues: Catalogues,
        record: NodeRecord,
        *,
        rng: random.Random,
        counters: Counters | None = None,
    ) -> None:
        self.record = record
        self._presence = presence
        self._catalogues = catalogues
        self._rng = rng
        self._counters = Counters() if counters is None else counters
        self._texts: dict[str, bytes] = {}  # by digest
        self._agents: dict[str, bytes] = {}  # likewise, of the agents
        self._stored: dict[str, float] = {}  # when, by digest
        self._stirred = trio.Event()

    def tell(self, record: NodeRecord) -> None:
        """Say `record` from now on.

        Raises:
            ValueError: it is too long.

        """
        size = len(msgspec.json.encode(record))
        if size + ROOM > MAX_RECORD:
            raise ValueError(f"the record of a node is {size} bytes long, where {MAX_RECORD - ROOM} may be; offer less")
        if record != self.record:
            self.record = record
            self._stirred.set()

    def offer(self, texts: Mapping[str, bytes], groups: Mapping[str, str]) -> tuple[str, ...]:
        """Offer these servers from now on, in place of those before; returns the names of those that have no room.

        Args:
            texts: their catalogues, by their names.
            groups: what those are called of which there are others alike, by their names.

        """
        servers: dict[str, str] = {}
        alike: dict[str, str] = {}
        kept: dict[str, bytes] = {}
        left_out: list[str] = []
        record = msgspec.structs.replace(self.record, servers=servers, groups=alike)
        size = len(msgspec.json.encode(record)) + len('"servers":{},"groups":{},') + ROOM
        for name, text in texts.items():
            digest = digest_of(text)
            size += len(msgspec.json.encode({name: digest}))
            if name in groups:
                size += len(msgspec.json.encode({name: groups[name]}))
            if size > MAX_RECORD:
                left_out.append(name)
                continue
            servers[name], kept[digest] = digest, text
            if name in groups:
                alike[name] = groups[name]
        if left_out:
            self._counters.add("mesh.not_offered", len(left_out))
            log.warning("the record of a node has no room for servers=%s", ",".join(left_out)[:500])
        self._texts = kept
        self.tell(record)
        return tuple(left_out)

    def lend(self, text: bytes | None) -> None:
        """Have the agents of this catalogue asked by others from now on; None for none."""
        self._agents = {} if text is None else {digest_of(text): text}
        self.tell(msgspec.structs.replace(self.record, agents="".join(self._agents)))

    def ended(self, node: str, epoch: str) -> None:
        """What a roster tells of epochs that are over: if it is ours, and we live, it is said again."""
        lease = self._presence.lease
        if lease is not None and (lease.node, lease.epoch) == (node, epoch):
            self._counters.add("mesh.said_again")
            self._stirred.set()

    def anew(self) -> None:
        """What a roster tells when all was told anew: the store may have been lost, with the catalogues in it."""
        self._stored.clear()
        self._stirred.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say it until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(KEPT / 4):
                await self._stirred.wait()
            self._stirred = trio.Event()
            try:
                with trio.fail_after(PATIENCE):
                    await self._say()
            except (CallError, DuplicateName, trio.TooSlowError) as exc:
                log.info("what this node says was not told node=%s reason=%r", self._presence.node, exc)
                self._stirred.set()
            await trio.sleep(self._rng.uniform(*PAUSE))

    async def _say(self) -> None:
        """Store what is offered, and then say that it is."""
        record, texts = self.record, self._texts | self._agents
        now = trio.current_time()
        self._stored = {digest: at for digest, at in self._stored.items() if digest in texts}
        for digest, text in texts.items():
            if now - self._stored.get(digest, -KEPT) > KEPT / 4:
                await self._catalogues.put(text)
                self._stored[digest] = now
        await self._presence.say(record)
