"""Questions to a legacy client, each a request of ours on the stream of the call that needs the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio.cell import Cell
from cord_trio.protocol.jsonrpc import encode, encode_notification, encode_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cord_trio.gateway.steps import Answered
    from cord_trio.protocol.jsonrpc import Json

LEG: Final = 600.0
"""Seconds for a person to answer."""


class Asked:
    """The questions of one session or pipe that await an answer. Ids are never used twice."""

    __slots__ = ("_cells", "_minted")

    def __init__(self) -> None:
        self._cells: dict[int | str, Cell[Answered]] = {}
        self._minted = 0

    def __len__(self) -> int:
        return len(self._cells)

    def mint(self) -> tuple[int, Cell[Answered]]:
        """A new id, and the cell that its answer settles."""
        self._minted += 1
        cell = self._cells[self._minted] = Cell()
        return self._minted, cell

    def settle(self, answered: Answered) -> bool:
        """Give an answer to who waits for it; False if nobody does."""
        cell = self._cells.pop(answered.id, None) if not isinstance(answered.id, bool) else None
        return cell is not None and cell.settle(answered)

    def drop(self, id: int) -> bool:
        """Nobody waits for the answer to `id` any more; False if it has come."""
        return self._cells.pop(id, None) is not None


class Channel(msgspec.Struct, frozen=True):
    """A way to ask a legacy client during one call.

    Attributes:
        asked: of its session or pipe.
        send: writes one message to the call's own stream, whatever else waits there.

    """

    asked: Asked
    send: Callable[[bytes], None]

    async def ask(self, questions: Sequence[tuple[str, Mapping[str, Json]]]) -> list[Answered | None]:
        """The answers to all `questions`, put at the same time; None for those that did not come in time.

        A question that nobody waits for any more is withdrawn, also if this is cancelled.
        """
        pending: list[tuple[int, Cell[Answered]]] = []
        answers: list[Answered | None] = [None] * len(questions)
        try:
            for method, params in questions:
                pending.append(self.asked.mint())
                self.send(encode_request(pending[-1][0], method, encode(params)))
            with trio.move_on_after(LEG):
                for place, (_, cell) in enumerate(pending):
                    answers[place] = await cell.wait(_nothing)
        finally:
            for id, _ in pending:
                if self.asked.drop(id):
                    reason = b'{"requestId":%d,"reason":"the answer is no longer needed"}' % id
                    self.send(encode_notification("notifications/cancelled", reason))
        return answers


def _nothing() -> None:
    """The question is withdrawn by whoever asked it."""
