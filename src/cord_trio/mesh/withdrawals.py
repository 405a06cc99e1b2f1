"""Ending calls to other nodes that nobody here waits for any more: it is told, at once, and until it was heard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cord_trio.errors import CallError
from cord_trio.mesh.flight import PATIENCE, QUIET, SILENCE
from cord_trio.mesh.frames import Frame, Request, decode_frame, encode_request
from cord_trio.mesh_errors import BadFrame, NoResponders

if TYPE_CHECKING:
    import random

    from cord_trio.counters import Counters
    from cord_trio.mesh.contracts import Link
    from cord_trio.mesh.flight import Flight
    from cord_trio.mesh.owning import Roster

PAUSE: Final = (0.02, 0.2)
"""Seconds before a call is offered again to where nobody listened, at least and at most."""

MAX_WITHDRAWN: Final = 1024
"""Cancels that are not known to have arrived yet."""


class Withdrawals:
    """The calls of one node that were withdrawn.

    Args:
        link: the node's way to the others.
        roster: tells who is there.
        rng: draws pauses.
        counters: where to count.

    Attributes:
        nursery: of the tasks that tell owners again; None while there can be none.

    """

    def __init__(self, link: Link, roster: Roster, *, rng: random.Random, counters: Counters) -> None:
        self.nursery: trio.Nursery | None = None
        self._link = link
        self._roster = roster
        self._rng = rng
        self._counters = counters
        self._untold = 0

    def withdraw(self, flight: Flight) -> None:
        """Tell the owner to stop, at once, and until it is known to have heard."""
        request = Request("cancel", flight.request.id, reason="its caller cancelled it")
        try:
            self._link.publish(flight.subject, headers=encode_request(request))
        except (CallError, ValueError):
            pass  # it is told again
        if self.nursery is None or self._untold >= MAX_WITHDRAWN:
            self._counters.add("mesh.withdrawals_unsure")
            return
        self._untold += 1
        self.nursery.start_soon(self._tell, flight, request)

    async def _tell(self, flight: Flight, request: Request) -> None:
        least, most = PAUSE
        try:
            with trio.move_on_after(PATIENCE):
                while self._roster.epoch(flight.node) == flight.epoch:
                    try:
                        with trio.move_on_after(SILENCE):
                            await self._link.wait_connected()
                            await self._link.request(flight.subject, headers=encode_request(request))
                            if flight.offers == 1 and not flight.handed:  # nothing of it can come after that
                                flight.peer.settle(flight.request.id)
                            return
                    except CallError:
                        await trio.sleep(self._rng.uniform(least, most))
                        most = min(SILENCE, 2 * most)  # one that died may have had hundreds
        finally:
            self._untold -= 1

    async def join(self, flight: Flight, seconds: float) -> None:
        """Return once its owner has ended what was withdrawn, or is no more, or has had so many seconds."""
        headers = encode_request(Request("ping", flight.request.id))
        with trio.move_on_after(seconds, shield=True) as scope:
            while self._roster.epoch(flight.node) == flight.epoch and self._link.connected:
                try:
                    with self._link.open_stream(flight.subject, headers=headers) as stream:
                        with trio.move_on_after(QUIET):  # a word that is lost is asked for again
                            while not _is_over(decode_frame((await stream.receive()).head)):
                                pass
                            return
                except (BadFrame, NoResponders):
                    return  # of a version that we do not know; or not there, so that its lease ends it
                except CallError:
                    await trio.sleep(self._rng.uniform(*PAUSE))
        if scope.cancelled_caught:
            self._counters.add("mesh.join_expired")


def _is_over(frame: Frame) -> bool:
    """Whether what an owner says of a call tells that it does not run there."""
    return frame.kind in ("ok", "err", "end", "rej", "moved") or (frame.kind == "pong" and frame.state != "running")
