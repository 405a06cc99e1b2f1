"""Who is in the mesh: one task that watches, and the immutable, numbered value that others read.

What is known is a function of the store alone: a node is here if its record is there and can be read. So after any
gap, however long, everybody who has caught up knows the same. A record that is too long, or cannot be read, is none;
nodes past a bound are none either, until there is room. Only where the store itself was lost does a missing record say
nothing of its node: that is taken to be here for a lease more, within which it says again that it is, or lets go.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from cord_trio.cell import Cell
from cord_trio.counters import Counters
from cord_trio.mesh.presence import LEASE, MAX_RECORD, NodeRecord, decode_record, is_epoch, is_name
from cord_trio.nats.watch import Change, Reset, Synced

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from cord_trio.mesh.contracts import Store, Watching
    from cord_trio.nats.watch import WatchEvent

    Ended: TypeAlias = Callable[[str, str], None]

log = logging.getLogger("cord_trio.mesh")

MAX_NODES: Final = 2000
"""Nodes of a mesh that are known; past it, meshes are to be joined rather than grown."""

ROOM: Final = 1.0
"""Seconds before those are looked for again that had no room, once there is some."""

_PREFIX: Final = "up."
_MAX_TOLD: Final = 1000


@attrs.frozen(eq=False)
class Members:
    """Who is in the mesh, at one moment. Never changes, so it is safe to keep.

    Attributes:
        number: of changes so far; a later value has a higher one.
        nodes: what each says of itself, by its name; the node that reads is one of them, once it has joined.

    """

    number: int = 0
    nodes: Mapping[str, NodeRecord] = attrs.field(factory=dict)


class Roster:
    """Knows the nodes of a mesh for as long as `run` runs, which alone changes what is known.

    Readers need no `await`. Invariants: `number` only rises; a value that was read never changes; of each epoch that
    was known its end is told once, after it is known no more.

    Args:
        store: of the mesh.
        counters: where to count.
        max_nodes: that are known at most.

    """

    def __init__(self, store: Store, *, counters: Counters | None = None, max_nodes: int = MAX_NODES) -> None:
        self._store = store
        self._counters = Counters() if counters is None else counters
        self._max_nodes = max_nodes
        self._nodes: dict[str, NodeRecord] = {}
        self._number = 0
        self._members = Members()
        self._seen: set[str] | None = set()  # while all is told anew: who was
        self._lost = False  # the store, since all were told last
        self._unsaid: dict[str, float] = {}  # nodes whose records it lost, and until when they are waited for
        self._left_out = False  # whether some had no room
        self._told: set[str] = set()  # nodes whose bad records were logged
        self._hearing: dict[object, tuple[Ended, Callable[[], None] | None, Callable[[str], None] | None]] = {}
        self._waiting: dict[Cell[None], None] = {}
        self._over = False

    @property
    def number(self) -> int:
        """Changes so far."""
        return self._number

    @property
    def members(self) -> Members:
        """Who is in the mesh now."""
        # Made when it is asked for: of a thousand changes in a row nobody reads more than a few.
        if self._members.number != self._number:
            self._members = Members(self._number, MappingProxyType(dict(self._nodes)))
        return self._members

    @property
    def nodes(self) -> Mapping[str, NodeRecord]:
        """What each node says of itself, by its name, now; never changes."""
        return self.members.nodes

    def is_unsaid(self, node: str) -> bool:
        """Whether the store lost what `node` said of itself, and it has not said it again yet."""
        return node in self._unsaid

    def epoch(self, node: str) -> str | None:
        """The incarnation of `node` that is there now; None if it is not."""
        record = self._nodes.get(node)
        return None if record is None else record.epoch

    async def changed(self, after: int) -> Members:
        """Who is in the mesh, as soon as `number` is above `after`; changes in between are skipped.

        Raises:
            trio.BrokenResourceError: `run` has ended.

        """
        if self._over:
            raise trio.BrokenResourceError
        if self._number > after:
            await trio.lowlevel.checkpoint()
        else:
            cell = Cell[None]()
            self._waiting[cell] = None
            await cell.wait(partial(self._forget, cell))
        return self.members

    @contextmanager
    def hearing(
        self, ended: Ended, *, anew: Callable[[], None] | None = None, drains: Callable[[str], None] | None = None
    ) -> Generator[None, None, None]:
        """While the block runs, `ended` is told node and epoch of each incarnation that is no more.

        It is told in the roster's turn, so it must not block; `epoch` says no more by then that it is there. `anew` is
        told each time that all had to be told anew, after a long gap, or since the store was lost; `drains` each node
        that says that it drains, also where that is the last it says, so that `changed` may skip it.
        """
        key = object()
        self._hearing[key] = (ended, anew, drains)
        try:
            yield
        finally:
            del self._hearing[key]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; started once all nodes are known.

        Raises:
            NotPermitted: the store does not let us.

        """
        try:
            while True:
                self._take(Reset())
                with self._store.watch(f"{_PREFIX}>") as watching:
                    while not (self._left_out and len(self._nodes) < self._max_nodes and self._seen is None):
                        event = await self._next(watching)
                        if event is None:
                            self._wait_no_more(trio.current_time())
                            continue
                        self._take(event)
                        if isinstance(event, Synced):
                            task_status.started()
                            task_status = trio.TASK_STATUS_IGNORED
                # Those who had no room say nothing again by themselves.
                await trio.sleep(ROOM)
        finally:
            self._end()

    async def _next(self, watching: Watching) -> WatchEvent | None:
        """What happens next; None if that is that somebody was waited for in vain."""
        if not self._unsaid:
            return await watching.receive()
        with trio.CancelScope(deadline=next(iter(self._unsaid.values()))):
            return await watching.receive()
        return None

    @trio.lowlevel.enable_ki_protection
    def _wait_no_more(self, now: float) -> None:
        for name in [name for name, until in self._unsaid.items() if until <= now]:
            del self._unsaid[name]
            self._set(name, None)

    def _forget(self, cell: Cell[None]) -> None:
        self._waiting.pop(cell, None)

    @trio.lowlevel.enable_ki_protection
    def _take(self, event: WatchEvent) -> None:
        match event:
            case Reset(lost):
                self._seen = set()
                self._lost = self._lost or lost
                self._left_out = False
            case Synced():
                seen, self._seen = self._seen or set(), None
                until = trio.current_time() + LEASE
                for name in self._nodes.keys() - seen:
                    if self._lost:
                        self._unsaid.setdefault(name, until)
                    if name not in self._unsaid:
                        self._set(name, None)
                self._lost = False
                for _, anew, _ in tuple(self._hearing.values()):
                    if anew is not None:
                        self._tell(anew)
            case Change(key, value):
                name = key.removeprefix(_PREFIX)
                record = None if value is None else self._read(name, value)
                if record is not None and name not in self._nodes and len(self._nodes) >= self._max_nodes:
                    self._counters.add("mesh.roster_full")
                    if not self._left_out:
                        log.warning("there are more nodes than are known max_nodes=%d", self._max_nodes)
                    self._left_out = True
                    return
                if record is not None and self._seen is not None:
                    self._seen.add(name)
                self._set(name, record)

    def _read(self, name: str, data: bytes) -> NodeRecord | None:
        """What a node says of itself, if that can be used."""
        if len(data) <= MAX_RECORD and is_name(name):
            record = decode_record(data)
            if is_epoch(record.epoch):
                self._told.discard(name)
                return record
        self._counters.add("mesh.bad_record")
        if name not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(name)
            log.warning("the record of a node is of no use node=%s bytes=%d", name[:100], len(data))
        return None

    def _set(self, name: str, record: NodeRecord | None) -> None:
        before = self._nodes.get(name)
        again = self._unsaid.pop(name, None) is not None
        if record == before and not again:
            return
        if record is None:
            del self._nodes[name]
        else:
            self._nodes[name] = record
        self._number += 1
        waiting, self._waiting = self._waiting, {}
        for cell in waiting:
            cell.settle(None)
        if record is not None and record.draining:
            for _, _, drains in tuple(self._hearing.values()):
                if drains is not None:
                    self._tell(partial(drains, name))
        if before is None or (record is not None and record.epoch == before.epoch):
            return
        self._counters.add("mesh.epochs_ended")
        for ended, _, _ in tuple(self._hearing.values()):
            self._tell(partial(ended, name, before.epoch))

    def _tell(self, hear: Callable[[], None]) -> None:
        try:
            hear()
        except Exception:
            log.exception("what hears of nodes failed")

    @trio.lowlevel.enable_ki_protection
    def _end(self) -> None:
        self._over = True
        for cell in self._waiting:
            cell.fail(trio.BrokenResourceError())
        self._waiting.clear()
