"""Agents on other nodes, as those meet them who ask for them here: found where there is none of that name here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from cord_trio.agents.agent import Agent, base_of
from cord_trio.agents.turn import WAITING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cord_trio.agents.agent import AgentFunction, AgentMade
    from cord_trio.agents.turn import Branch
    from cord_trio.protocol.jsonrpc import Json

Tell: TypeAlias = "Callable[[Branch, object], Awaitable[bool]]"


class Distant(Agent):
    """Stands here for an agent of other nodes. Whoever has it sees to its turn, its grants and its state.

    It is asked as any other: so what its asker may do, and has, is looked at here, before anything crosses.

    Attributes:
        send: puts a payload into its mailbox, on behalf of a branch.

    """

    __slots__ = ("send",)

    def __init__(self, address: str, ask: AgentFunction, send: Tell) -> None:
        super().__init__(base_of(address), ask, turn=WAITING, reentrant=True, raises=(Exception,))
        self.name = self.turn.name = address
        self.generation = 0
        self.send = send


@attrs.frozen(eq=False)
class Singleton:
    """An agent of which there is one in the mesh, as a node that stands by for it makes it.

    Attributes:
        function: its handler, or what makes one.
        options: as `Fabric.agent` takes them.

    """

    function: AgentMade
    options: Mapping[str, Json]


class Elsewhere(Protocol):
    """The other nodes, as far as agents need them.

    Attributes:
        here: the name of this one.

    """

    here: str

    def find(self, address: str) -> Distant | None:
        """Who stands for the agent at `name`, `name@node` or `name@key=value`; None if nobody is known to have it."""

    def covers(self, place: str) -> bool:
        """Whether a place, a node or the labels of one, is here."""

    async def move(self, name: str, node: str) -> str:
        """Let an agent of which there is one go to another node, with its state; returns which that is."""

    def changed(self) -> None:
        """Take note that agents of ours were added or removed."""
