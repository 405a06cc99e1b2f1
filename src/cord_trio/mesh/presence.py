"""Being there: a node's name, its incarnation, and the lease that says so.

A node holds `hb.<node>.<epoch>`, a key that ends by itself, and renews it; `up.<node>` says which epoch has the name,
and what it offers. Nobody compares wall clocks, and nobody decides by what was read: a name is taken by compare and
set, and that a lease has ended is proved by creating its key. The holder lets go first: its own deadline runs from
before it asked, with a margin, on Trio's clock; it is the deadline of the nursery in which all that others asked of
this epoch runs.
"""

from __future__ import annotations

import logging
import math
import random
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError
from cord_trio.mesh.frames import is_inbox
from cord_trio.mesh.overdue import Overdue
from cord_trio.mesh.recent import Recent
from cord_trio.mesh_errors import Conflict, DuplicateName, NoResponders
from cord_trio.protocol.jsonrpc import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cord_trio.mesh.contracts import Link, Store
    from cord_trio.nats.wire import Message

log = logging.getLogger("cord_trio.mesh")

LEASE: Final = 15
"""Seconds that a node is believed to be there without a word. Less does not outlive an election in the store."""

MARGIN: Final = 0.1
"""Part of the lease by which its holder lets go before others can take it: for clocks that run at other speeds."""

MAX_RECORD: Final = 4096
"""Bytes of the longest record of a node."""

PING_PATIENCE: Final = 1.0
"""Seconds that the holder of a name has to say that it is there, before it is believed all the same."""

AGAIN: Final = (0.2, 2.0)
"""Seconds before a name is asked for again, at least and at most."""

RENEWALS: Final = 4
"""Renewals in one lease. With what is given up of its end, and the time of a try, each of them may be 8 s late: a store
of three replicas elects a leader within that, and no less than that is certain to outlive it."""

TRY: Final = 1.0
"""Seconds that one try to renew it takes: what is asked while a leader is elected is answered neither then nor
later."""

RENEW_AGAIN: Final = (0.1, 0.5)
"""Seconds before a renewal that was not done is tried again, at least and at most."""

REJOIN: Final = (0.5, 5.0)
"""Seconds before a node that lost its lease comes back, at least and at most; twice as many each time that it loses it
soon again, up to a lease: whoever has no time to renew has less to do so."""

STEADY: Final = 4.0 * LEASE
"""Seconds that an incarnation must have lasted for its end not to count as one of a row."""

FAREWELL: Final = 1.0
"""Seconds for giving the name back."""

STALE: Final = 0.02
"""Seconds until what was read just after it was written is the new value."""

TAKEN: Final = b"taken"
"""What proves that a lease has ended: its key, with this."""

_NODE: Final = re.compile(r"[a-z0-9_-]{1,48}")
_EPOCH: Final = re.compile(r"[0-9a-f]{8}")
WIRE: Final = (1, 1)
"""First and last version of the mesh's own protocol that we speak."""


class NodeRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself to all.

    Attributes:
        epoch: its incarnation; filled in by its presence.
        wire: first and last version of the mesh's own protocol that it speaks.
        draining: whether it takes no new work.
        labels: what it is chosen by.
        servers: what it offers, with the digest of each one's catalogue.
        groups: of those servers of which others have the like: what all of them are called together.
        agents: the digest of the catalogue of its agents; "" for none.
        watches: whether it may take away the records of others whose leases have ended.

    """

    epoch: str = ""
    wire: tuple[int, int] = WIRE
    draining: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    servers: dict[str, str] = msgspec.field(default_factory=dict)
    groups: dict[str, str] = msgspec.field(default_factory=dict)
    agents: str = ""
    watches: bool = True


@attrs.frozen
class Lease:
    """One incarnation of a node, for as long as it may act for the mesh.

    Attributes:
        node: its name.
        epoch: which incarnation.
        nursery: of what others asked of it; cancelled when it has to let go.
        recent: the calls that went through the node.

    """

    node: str
    epoch: str
    nursery: trio.Nursery
    recent: Recent = attrs.field(factory=Recent)


class Presence:
    """A node's being in a mesh. Made by `join`.

    Attributes:
        mesh: its name.
        node: its name in it.
        lease: the incarnation that holds the name now; None between two.
        margin: seconds that were left of the lease when it was last renewed; small ones are the early warning.
        recent: the calls that went through the node, over all incarnations.

    """

    def __init__(
        self,
        link: Link,
        store: Store,
        *,
        mesh: str,
        node: str,
        record: NodeRecord,
        take: Callable[[Message], None] | None,
        begun: Callable[[Lease], None] | None,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self.mesh = mesh
        self.node = node
        self.lease: Lease | None = None
        self.margin = math.inf
        self.recent = Recent()
        self._link = link
        self._store = store
        self._record = record
        self._take = take
        self._begun = begun
        self._rng = rng
        self._counters = counters
        self._gone: set[str] = set()  # epochs that are ours, or were proved to be no more
        self._overdue = Overdue(LEASE, TAKEN)
        self._last = ""  # epoch of ours
        self._missed = trio.Event()  # set when our record was not there

    def subject(self, epoch: str, node: str | None = None) -> str:
        """What messages to one incarnation of a node are published to; the caller's name follows."""
        return f"c1.{self.mesh}.call.{node or self.node}.{epoch}"

    async def say(self, record: NodeRecord) -> None:
        """Let others know `record`; its epoch is filled in.

        Raises:
            ValueError: it is too long.
            CallError: the store could not be told; the next incarnation does.
            DuplicateName: another has the name by now.

        """
        _encode(record)
        self._record = record
        if self.lease is not None:
            await self._claim(self.lease.epoch)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the name until cancelled, in one incarnation after the other.

        Raises:
            DuplicateName: another has the name, at the start; later it is waited for.
            CallError: the store cannot be had, at the start.

        """
        joined, fences = False, 0  # fences: in a row

        def started() -> None:
            nonlocal joined
            if not joined:
                joined = True
                task_status.started()

        while True:
            reason = "the lease ended"
            began = trio.current_time()
            try:
                await self._hold(started)
            except (CallError, DuplicateName, trio.TooSlowError) as exc:
                if not joined:
                    raise
                reason = str(exc)
            self._counters.add("mesh.fences")
            log.warning("let go of the name, and comes back by itself node=%s reason=%s", self.node, reason)
            fences = 0 if trio.current_time() - began > STEADY else fences
            least, most = REJOIN
            await trio.sleep(self._rng.uniform(least, min(LEASE, most * 2**fences)))
            fences = min(fences + 1, 10)
            await self._link.wait_connected()  # else it would be no try

    async def _hold(self, started: Callable[[], None]) -> None:
        """One incarnation. Returns when it had to let go."""
        # A predecessor's lease may have to end first, which takes longer than ours would last.
        await self._free()
        epoch = f"{self._rng.getrandbits(32):08x}"
        self._gone.add(epoch)
        self._last = epoch
        key = f"hb.{self.node}.{epoch}"
        until = trio.current_time() + LEASE * (1 - MARGIN)
        with trio.CancelScope(deadline=until) as scope:
            revision = await self._store.create(key, b"", ttl=LEASE)
            calls = self._link.subscribe(f"{self.subject(epoch)}.*", tell=self._told)
            try:
                await self._link.flush()
                await self._claim(epoch)
                self._missed = trio.Event()
                async with trio.open_nursery() as nursery:
                    self.lease = Lease(self.node, epoch, nursery, self.recent)
                    nursery.start_soon(self._renew, key, revision, scope)
                    log.info("holds the name node=%s epoch=%s", self.node, epoch)
                    if self._begun is not None:
                        self._begun(self.lease)
                    started()
            finally:
                self.lease = None
                calls.close()

    async def _renew(self, key: str, revision: int, scope: trio.CancelScope) -> None:
        """Hold the lease, and have the record there, until somebody else has the lease."""
        pause = LEASE / RENEWALS
        while True:
            with trio.move_on_after(pause):
                # Where our record was lost the lease is too, and those who watch doubt us from now on.
                await self._missed.wait()
            self._missed = trio.Event()
            asked = trio.current_time()
            self.margin = scope.deadline - asked
            pause = self._rng.uniform(*RENEW_AGAIN)  # unless it is done, when there is more time
            try:
                with trio.move_on_after(TRY):
                    revision = await self._again(key, revision)
                    scope.deadline = asked + LEASE * (1 - MARGIN)
                    await self._claim(key.rpartition(".")[2], only_lost=True)
                    pause = LEASE / RENEWALS
            except (Conflict, DuplicateName) as exc:
                scope.cancel(f"another has the lease: {exc}")
                return
            except CallError as exc:
                log.info("the lease was not renewed node=%s reason=%s", self.node, exc)
                await self._link.wait_connected()

    async def _again(self, key: str, revision: int) -> int:
        """Renew the lease; returns its new revision.

        Raises:
            Conflict: another has proved it to have ended.

        """
        try:
            return await self._store.put(key, b"", revision=revision, ttl=LEASE)
        except Conflict:
            pass
        # An earlier renewal may have been done without our knowing; or the store was lost, since before our own
        # deadline the key cannot have ended.
        entry = await self._store.get(key)
        if entry is None:
            return await self._store.create(key, b"", ttl=LEASE)
        if entry.value == TAKEN:
            raise Conflict(key, revision)
        return await self._store.put(key, b"", revision=entry.revision, ttl=LEASE)

    async def _claim(self, epoch: str, *, only_lost: bool = False) -> int:
        """Let the name be that of `epoch`; returns the revision that says so. With `only_lost`, if nobody has it."""
        key = f"up.{self.node}"
        data = _encode(msgspec.structs.replace(self._record, epoch=epoch))
        while True:
            entry = await self._store.get(key)
            try:
                if entry is None:
                    revision = await self._store.create(key, data)
                    self._missed.set()
                    return revision
                if entry.value == data or (only_lost and decode_record(entry.value).epoch == epoch):
                    return entry.revision
                await self._prove_gone(decode_record(entry.value).epoch)
                return await self._store.put(key, data, revision=entry.revision)
            except Conflict:
                await trio.sleep(self._rng.uniform(*AGAIN))

    async def _free(self) -> None:
        """Return once no other epoch holds the name."""
        while True:
            entry = await self._store.get(f"up.{self.node}")
            if entry is None:
                return
            try:
                return await self._prove_gone(decode_record(entry.value).epoch)
            except Conflict:
                await trio.sleep(self._rng.uniform(*AGAIN))

    async def _prove_gone(self, epoch: str) -> None:
        """Return if the lease of `epoch` has ended, or is our own.

        Raises:
            Conflict: it has not, but its holder is not there; or another proves the same just now.
            DuplicateName: its holder is there.

        """
        if epoch in self._gone or not is_epoch(epoch):  # no record that can be used names one that cannot be
            return
        key = f"hb.{self.node}.{epoch}"
        conflict: Conflict | None = None
        try:
            await self._store.create(key, TAKEN, ttl=LEASE)
        except Conflict as exc:
            conflict = exc
        if conflict is not None:
            entry = await self._store.get(key)
            if entry is not None and entry.value != TAKEN and await self._is_there(epoch):
                raise DuplicateName(self.node, epoch)
            if not await self._overdue.end(self._store, key, entry):
                raise conflict
        self._gone.add(epoch)

    async def _is_there(self, epoch: str) -> bool:
        """Whether the holder of a lease is to be believed in: it answers, or is silent; nobody listening is an end."""
        try:
            with trio.move_on_after(PING_PATIENCE):
                await self._link.request(f"{self.subject(epoch)}.{self.node}", headers={"C-Op": "ping"})
        except NoResponders:
            return False
        return True

    def _told(self, message: Message) -> None:
        if message.reply and not is_inbox(message.reply):
            self._counters.add("mesh.bad_frames")
            return
        op = message.header("C-Op")
        if op == "trace":
            if message.reply:
                self._link.publish(message.reply, self.recent.answer(message.data), headers={"C-K": "trace"})
        elif op == "ping" and message.header("C-Id") is None:
            if message.reply:
                margin = {} if self.margin == math.inf else {"C-Margin": f"{self.margin:.1f}"}
                self._link.publish(message.reply, headers={"C-K": "pong", **margin})
        elif self._take is not None:
            self._take(message)

    async def leave(self) -> None:
        """Give the name back, where we hold it."""
        if not self._last:
            return
        key = f"up.{self.node}"
        try:
            while not await self._unsay(key):  # noqa: ASYNC110  # the store says when it has written, not when it shows that
                await trio.sleep(STALE)
            await self._store.delete(f"hb.{self.node}.{self._last}")
        except CallError as exc:
            log.info("the name was not given back node=%s reason=%s", self.node, exc)

    async def _unsay(self, key: str) -> bool:
        """Let nobody have the name, if it is ours, and say before that we leave; False if an old value was read."""
        entry = await self._store.get(key)
        try:
            if entry is not None and decode_record(entry.value).epoch == self._last:
                at = await self._store.put(key, _encode(NodeRecord(self._last, draining=True)), revision=entry.revision)
                await self._store.delete(key, revision=at)
        except Conflict:
            return False
        return True


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a node, or of a mesh."""
    return _NODE.fullmatch(text) is not None


def is_epoch(text: str) -> bool:
    """Whether `text` can be an incarnation."""
    return _EPOCH.fullmatch(text) is not None


def decode_record(data: bytes) -> NodeRecord:
    """What a node said of itself; an empty record if it cannot be read, or names what can have no name."""
    try:
        record = _RECORD.decode(data)
    except UNREADABLE:
        return NodeRecord()
    named = "".join((*record.servers, *record.groups.values()))
    return record if named.isprintable() else NodeRecord()


def _encode(record: NodeRecord) -> bytes:
    data = msgspec.json.encode(record)
    if len(data) > MAX_RECORD:
        raise ValueError(f"the record of a node is {len(data)} bytes long, where {MAX_RECORD} may be; offer less")
    return data


_RECORD: Final = msgspec.json.Decoder(NodeRecord)


@asynccontextmanager
async def join(
    link: Link,
    store: Store,
    *,
    mesh: str,
    node: str,
    record: NodeRecord | None = None,
    take: Callable[[Message], None] | None = None,
    begun: Callable[[Lease], None] | None = None,
    rng: random.Random | None = None,
    counters: Counters | None = None,
) -> AsyncGenerator[Presence]:
    """A node's being in `mesh`, for as long as the block runs. The block's own errors leave as raised.

    Args:
        link: the node's way to the others.
        store: of the mesh.
        mesh: its name.
        node: the node's name, unlike that of any other: 1 to 48 of a-z, 0-9, `_` and `-`.
        record: what it says of itself.
        take: told each message to it, in the reader's turn; must not block.
        begun: told each incarnation; what it starts in the lease's nursery is cancelled when that has to let go.
        rng: draws epochs and pauses.
        counters: where to count.

    Raises:
        ValueError: a name or the record cannot be used.
        DuplicateName: another node has the name.
        CallError: the store cannot be had.

    """
    for name in (mesh, node):
        if not is_name(name):
            raise ValueError(f"no name of a node or mesh: {name[:100]!r}; one has 1 to 48 of a-z, 0-9, _ and -")
    _encode(record or NodeRecord())
    presence = Presence(
        link, store, mesh=mesh, node=node, record=record or NodeRecord(), take=take, begun=begun,
        rng=rng or random.Random(), counters=counters or Counters(),
    )  # fmt: skip
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(presence.keep)
                yield presence
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                failure = exc
            nursery.cancel_scope.cancel("the node leaves the mesh")
    finally:  # also if it is cancelled: else its successor would wait for the lease to end
        with trio.move_on_after(FAREWELL, shield=True):
            await presence.leave()
    if failure is not None:
        raise failure
