"""Leases that the store has kept past their end.

A store that was killed may come back with keys that had ended before, and keep them for ever: nats-server 2.15 does, of
those that ended before it last wrote down which keys are to end. So the store alone is not believed. Whoever holds a
lease renews it several times in its length; one that was not for twice its length, by the clock of whoever looks, is
nobody's, and is ended by compare and set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from cord_trio.mesh.contracts import Store
    from cord_trio.nats.kv import Entry

LENGTHS: Final = 2
"""Lengths of a lease for which it must have been seen without a renewal."""


class Overdue:
    """What one node has seen of leases.

    Args:
        lease: seconds that one lasts.
        taken: what its key holds once it is proved to have ended.

    """

    def __init__(self, lease: int, taken: bytes) -> None:
        self._lease = lease
        self._taken = taken
        self._seen: dict[str, tuple[int, float]] = {}  # by key: its revision, and since when that is known

    def see(self, key: str, revision: int) -> bool:
        """Whether the lease has been at `revision` for too long."""
        now = trio.current_time()
        known, since = self._seen.get(key, (0, now))
        if known != revision:
            since = now
        self._seen[key] = revision, since
        return now - since >= LENGTHS * self._lease

    def forget(self, key: str) -> None:
        """It has ended."""
        self._seen.pop(key, None)

    def clear(self) -> None:
        """Nothing is known."""
        self._seen.clear()

    def due(self) -> list[tuple[str, int]]:
        """Those that were not renewed for too long, and their revisions."""
        return [(key, revision) for key, (revision, _) in self._seen.items() if self.see(key, revision)]

    async def end(self, store: Store, key: str, entry: Entry | None) -> bool:
        """Whether the lease that was read as `entry` was overdue, and is ended now.

        Raises:
            Conflict: it was renewed meanwhile, or another has ended it.

        """
        if entry is None or entry.value == self._taken or not self.see(key, entry.revision):
            await trio.lowlevel.checkpoint()
            return False
        await store.put(key, self._taken, revision=entry.revision, ttl=self._lease)
        self.forget(key)
        return True
