"""The calls that wait for a source to be connected."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cord_trio.cell import Cell
from cord_trio.client import Client
from cord_trio.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.cell import Timer
    from cord_trio.errors import CallError


class Awaiting(dict[Cell[Client], None]):
    """Those calls, the first one first; each ends by `admit`, `refuse` or its deadline."""

    async def wait(self, deadline: float, timer: Timer, late: Callable[[], str]) -> Client:
        """The client that calls go to, as soon as there is one.

        Raises:
            DeadlineExceeded: there was none by `deadline`; `late` gives the words.
            CallError: there will be none.

        """
        cell: Cell[Client] = Cell()
        self[cell] = None

        def expire() -> None:
            self.pop(cell, None)
            cell.fail(DeadlineExceeded(late(), "no"))

        timer.add(cell, deadline, expire)
        try:
            return await cell.wait(partial(self.pop, cell, None))
        finally:
            timer.discard(cell)

    def admit(self, client: Client) -> None:
        """Let all of them go to `client`."""
        for cell in self:
            cell.settle(client)
        self.clear()

    def refuse(self, why: Callable[[], CallError]) -> None:
        """Tell each of them why there will be none."""
        for cell in self:
            cell.fail(why())
        self.clear()
