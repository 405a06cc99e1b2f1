"""Asking nodes how they are, from outside: all at once, by what every node may ask of those that it may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import trio

from cord_trio.errors import CallError
from cord_trio.mesh_errors import NoResponders, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.mesh.contracts import Link
    from cord_trio.mesh.presence import NodeRecord
    from cord_trio.nats.wire import Message

    State: TypeAlias = Literal["answers", "absent", "silent", "forbidden"]

PATIENCE: Final = 2.0
"""Seconds that a node may take to answer."""

AT_ONCE: Final = 64
"""Nodes that are asked at the same time."""


@attrs.frozen
class Answer:
    """How one node answered.

    Attributes:
        state: answers; absent if nobody listens under its name, silent if nobody answered in time, forbidden if the
            broker does not let us ask.
        took: seconds until then.
        message: what it said; None for nothing.

    """

    state: State
    took: float
    message: Message | None = None

    @property
    def margin(self) -> float | None:
        """Seconds that were left of its lease when it was last renewed; None if it did not say."""
        said = None if self.message is None else self.message.header("C-Margin")
        try:
            return None if said is None else float(said)
        except ValueError:
            return None


async def ask_all(
    link: Link, nodes: Mapping[str, NodeRecord], *, mesh: str, node: str, op: str = "ping", body: bytes = b""
) -> dict[str, Answer]:
    """How each of `nodes` answered.

    Args:
        link: to the mesh.
        nodes: whom to ask.
        mesh: its name.
        node: as whom; it need not be in the mesh.
        op: what is asked.
        body: what goes along.

    """
    answers: dict[str, Answer] = {}
    free = trio.CapacityLimiter(AT_ONCE)

    async def ask(name: str, epoch: str) -> None:
        async with free:
            began = trio.current_time()
            state: State = "silent"
            message: Message | None = None
            with trio.move_on_after(PATIENCE):
                try:
                    subject = f"c1.{mesh}.call.{name}.{epoch}.{node}"
                    message = await link.request(subject, body, headers={"C-Op": op})
                    state = "answers"
                except NoResponders:
                    state = "absent"
                except NotPermitted:
                    state = "forbidden"
                except CallError:
                    pass
            answers[name] = Answer(state, trio.current_time() - began, message)

    async with trio.open_nursery() as nursery:
        for name, record in nodes.items():
            nursery.start_soon(ask, name, record.epoch)
    return answers
