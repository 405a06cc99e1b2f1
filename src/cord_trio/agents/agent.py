"""Agents as cells: a name, a function, a turn, and what it may use. An idle one has no task."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from cord_trio.agents.turn import Branch, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.agents.conversation import Context
    from cord_trio.call import Handler
    from cord_trio.registry import Snapshot

MAX_HOPS: Final = 16
"""Handoffs in one chain of asks, unless told otherwise."""

EVERYTHING: Final = ("*",)
"""The grant of an agent that may call every tool."""

AgentFunction: TypeAlias = "Callable[[Context, Any], Awaitable[object]]"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@attrs.frozen
class Step:
    """One agent's part of a conversation, as those after it see it: who it was, and what it had been given."""

    agent: str
    payload: object


Keep: TypeAlias = Callable[[Sequence[Step]], Sequence[Step]]
"""Chooses what the taker sees of the transcript. Pure."""


@attrs.frozen
class Handoff:
    """The wish that `target` goes on with `payload`. Does nothing until a handler returns it."""

    target: str
    payload: object
    keep: Keep | None = None


def last(count: int) -> Keep:
    """Keeps the last `count` steps."""
    if count < 0:
        raise ValueError("cannot keep less than nothing")

    def keep(transcript: Sequence[Step]) -> Sequence[Step]:
        return transcript[-count:] if count else ()

    return keep


class Agent:
    """One agent.

    Attributes:
        name: how others ask it.
        generation: counted up when it is made anew.
        function: the handler; runs in the asker's task.
        turn: who may run it.
        tools: globs over the exported names of the tools that it may call.
        every_tool: whether those are all.

    """

    __slots__ = ("every_tool", "function", "generation", "name", "tools", "turn")

    def __init__(self, name: str, function: AgentFunction, *, turn: int = 1, tools: Sequence[str] = EVERYTHING) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for an agent: use 1 to 64 letters, digits, `_`, `-` and `.`")
        self.name = name
        self.generation = 1
        self.function = function
        self.turn = Turn(name, turn)
        self.tools = tuple(tools)
        self.every_tool = "*" in self.tools

    def __repr__(self) -> str:
        return f"{self.name}#{self.generation}"

    def may_call(self, tool: str) -> bool:
        """Whether its grant covers the tool of this exported name."""
        return self.every_tool or any(fnmatchcase(tool, pattern) for pattern in self.tools)


class Agents(Mapping[str, Agent]):
    """All agents of one fabric by name, and what they act upon.

    Attributes:
        handler: takes their calls.
        snapshot: returns the registry's newest snapshot.
        max_hops: handoffs that one ask may take.
        over: whether nobody can be asked any more.
        roots: the asks under way that no agent made.

    """

    def __init__(self, handler: Handler, snapshot: Callable[[], Snapshot], *, max_hops: int = MAX_HOPS) -> None:
        self.handler = handler
        self.snapshot = snapshot
        self.max_hops = max_hops
        self.over = False
        self.roots: dict[Branch, None] = {}
        self._agents: dict[str, Agent] = {}

    def add(self, name: str, function: AgentFunction, *, turn: int = 1, tools: Sequence[str] = EVERYTHING) -> Agent:
        """A new agent.

        Args:
            name: up to 64 letters, digits, `_`, `-` and `.`.
            function: what it does, given a `Context` and the payload; what it returns is the answer.
            turn: how many of its handlers run at once.
            tools: globs over exported names: the tools that it may call.

        Raises:
            ValueError: the name is taken, or is none.

        """
        if name in self._agents:
            raise ValueError(f"there is an agent named {name!r} already")
        agent = self._agents[name] = Agent(name, function, turn=turn, tools=tools)
        return agent

    def __getitem__(self, name: str) -> Agent:
        return self._agents[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._agents)

    def __len__(self) -> int:
        return len(self._agents)
