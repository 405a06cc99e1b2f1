"""What stands in a fabric for a server that other nodes keep: lists from its catalogue, and calls that go to a node."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from cord_trio.config.values import RESERVED_PREFIXES
from cord_trio.errors import CallError, DrainTimeout, SourceDown
from cord_trio.link import Link
from cord_trio.protocol.tools import SEPARATOR
from cord_trio.snapshot import KINDS, NOTHING_LISTED, Listed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, Outcome
    from cord_trio.config import Source
    from cord_trio.errors import Executed
    from cord_trio.following import Subscriptions
    from cord_trio.mesh.catalogues import Catalogue
    from cord_trio.mesh.standing import Trusting
    from cord_trio.snapshot import Kind
    from cord_trio.surroundings import Surroundings

log = logging.getLogger("cord_trio.mesh")


class RemoteLink(Link):
    """One server of other nodes. It is used as a link is, but has no session of its own.

    It is there as long as a node offers the server, so it never looks for a connection.

    Args:
        source: what it is called here.
        around: what all links of the fabric share.
        catalogue: what it lists; whatever it lists is named as its node exports it.
        carry: makes a call on a node that has the server.
        trusting: how long what it lists can be trusted.
        epoch: of the registry's view.
        subscriptions: of the link before it.

    """

    def __init__(
        self,
        source: Source,
        around: Surroundings,
        *,
        catalogue: Catalogue,
        carry: Callable[[Call], Awaitable[Outcome]],
        trusting: Trusting,
        epoch: int = 0,
        subscriptions: Subscriptions | None = None,
    ) -> None:
        super().__init__(source, around, epoch=epoch, subscriptions=subscriptions)
        self._catalogue = catalogue
        self._carry = carry
        self._trusting = trusting
        trusting.greeted(catalogue.greeting)
        self._scopes: set[trio.CancelScope] = set()  # of the calls that run

    @property
    def takes_calls(self) -> bool:
        return not self._over

    @property
    def asks(self) -> bool:
        return False

    @property
    def in_flight(self) -> int:
        return len(self._scopes)

    def trust(self, kind: Kind) -> float:
        return self._trusting.trust(kind)

    def call(self, call: Call, name: str | None) -> Awaitable[Outcome]:
        """How a node that has the server ended `call`. See `Calling.call`; the call is named as here."""
        return self._called(call)

    async def _called(self, call: Call) -> Outcome:
        if self._over:
            raise self._gone()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await self._carry(call)
            finally:
                self._scopes.discard(scope)
        raise self._gone(unknown=True)

    def _gone(self, *, unknown: bool = False) -> CallError:
        executed: Executed = "unknown" if unknown else "no"
        if self.cut is not None:
            return self.cut.fresh(executed)
        error = SourceDown(self.name, self.reason or "no node offers it any more", None)
        error.executed = executed
        return error

    def end(self, reason: str, cut: DrainTimeout | None = None) -> None:
        super().end(reason, cut)
        for scope in tuple(self._scopes):
            scope.cancel(reason)

    async def _keep(self) -> None:
        try:
            self.starts, self.known = 1, True
            # All of them: one that is empty now may not have been before.
            lists = {kind: _allowed(self._catalogue.lists.get(kind, NOTHING_LISTED)) for kind in KINDS}
            await self._publish("ready", lists, self._catalogue.greeting)
            self._set_tried()
            await trio.sleep_forever()
        except trio.BrokenResourceError:
            log.debug("the registry has ended source=%s", self.name)
        finally:
            self._end()


def _allowed(listed: Listed) -> Listed:
    """A list without the names that are kept for the fabric's own: no node takes them from us."""
    items = tuple(item for item in listed.items if item.key.partition(SEPARATOR)[0].lower() not in RESERVED_PREFIXES)
    left_out = len(listed.items) - len(items)
    if not left_out:
        return listed
    return Listed(items, (*listed.notes, f"{left_out} names that are kept for the fabric's own are left out"))
