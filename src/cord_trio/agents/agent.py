"""Agents as cells: a name, a function, a turn, and what it may use. An idle function has no task."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from cord_trio.agents.turn import Turn
from cord_trio.observe import Node

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cord_trio.agents.budget import Budget
    from cord_trio.agents.context import Context
    from cord_trio.agents.resident import Resident

MAX_HOPS: Final = 16
"""Handoffs in one chain of asks, unless told otherwise."""

GRACE: Final = 5.0
"""Seconds that a handler has to end: when its agent is stopped, and when whoever asked it has gone."""

REMEMBERED: Final = 1024
"""Names of which an agent remembers whether its grant covers them."""

LOOKED_AT: Final = 64
"""Entries of an answer in which handoffs are looked for."""

ONE_ONLY: Final = (
    "an answer is one handoff, not several: return the one that goes on, and for more at once open "
    "`ctx.open_nursery()` and spawn them there"
)
"""Why several handoffs in one answer are refused."""

EVERYTHING: Final = ("*",)
"""The grant of an agent that may use every tool, or every agent."""

PLACE: Final = "@"
"""What stands between the name of an agent and that of its node."""

AgentFunction: TypeAlias = "Callable[[Context, Any], Awaitable[object]]"

AgentMade: TypeAlias = "AgentFunction | Callable[[], AgentFunction | AbstractAsyncContextManager[AgentFunction]]"
"""A function, or a class (or `functools.partial` of one) whose instances are called like one."""

Restart: TypeAlias = Literal["permanent", "transient", "temporary", "elsewhere"]

_STATE: Final = ("state", "restore")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def base_of(address: str) -> str:
    """The name alone, of `name`, `name#generation`, and either of these with `@node`."""
    return address.partition(PLACE)[0].partition("#")[0]


class Step(msgspec.Struct, frozen=True):
    """One agent's part of a conversation, as those after it see it: who it was, and what it had been given."""

    agent: str
    payload: object


Keep: TypeAlias = Callable[[Sequence[Step]], Sequence[Step]]
"""Chooses what the taker sees of the transcript. Pure."""


class Handoff(msgspec.Struct, frozen=True):
    """The wish that `target` goes on with `payload`. Does nothing until a handler returns it."""

    target: str
    payload: object
    keep: Keep | None = None


def handoffs_in(answer: object) -> list[Handoff]:
    """Those in a list or tuple, of which none would happen; none in any other answer."""
    if isinstance(answer, (list, tuple)):
        return [each for each in answer[:LOOKED_AT] if type(each) is Handoff]
    return []


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
        function: the handler, or what makes one.
        turn: who may run it.
        tools: globs over the exported names of the tools that it may call.
        every_tool: whether those are all.
        agents: globs over the names of the agents that it may ask, tell and hand to.
        every_agent: whether those are all.
        granted: what `may_ask` has found so far, by name.
        raises: exceptions that are answers, not crashes.
        repeatable: globs over tools that may be called again when a conversation is resumed.
        topics: globs over the topics whose broadcasts it takes.
        restart: when it is made anew.
        grace: seconds that its handlers have to end.
        deadline: seconds for each of its runs, infinite for none.
        budget: of each of its runs; None for its asker's.
        plain: it is a function in its asker's task without deadline or budget: nothing to do beside running it.
        resident: its task, if it has one.
        fence: of an agent of which there is one in the mesh: a number that each later owner has a higher one of.

    """

    __slots__ = (
        *(
            "agents",
            "budget",
            "deadline",
            "every_agent",
            "every_tool",
            "fence",
            "function",
            "generation",
            "grace",
            "granted",
            "name",
        ),
        *("plain", "raises", "repeatable", "resident", "restart", "tools", "topics", "turn"),
    )

    def __init__(
        self, name: str, function: AgentMade, *, turn: int = 1,
        tools: Sequence[str] = EVERYTHING, agents: Sequence[str] = EVERYTHING, reentrant: bool = False,
        restart: Restart = "permanent", raises: tuple[type[Exception], ...] = (), repeatable: Sequence[str] = (),
        topics: Sequence[str] = (), grace: float = GRACE, deadline: float = math.inf, budget: Budget | None = None,
    ) -> None:  # fmt: skip
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for an agent: use 1 to 64 letters, digits, `_`, `-` and `.`")
        if restart not in ("permanent", "transient", "temporary", "elsewhere"):
            raise ValueError(f"restart={restart!r}: use permanent, transient, temporary or elsewhere")
        if not (grace >= 0 and deadline > 0):
            raise ValueError("grace and deadline are seconds")
        self.name = name
        self.generation = 1
        self.function = function
        self.turn = Turn(name, turn, reentrant=reentrant)
        self.tools = tuple(tools)
        self.every_tool = "*" in self.tools
        self.agents = tuple(agents)
        self.every_agent = "*" in self.agents
        self.raises = raises
        self.repeatable = tuple(repeatable)
        self.topics = tuple(topics)
        self.restart = restart
        self.grace = grace
        self.deadline = deadline
        self.budget = budget
        self.plain = deadline == math.inf and budget is None
        self.resident: Resident | None = None
        self.fence = 0
        self.granted: dict[str, bool] = {}
        if restart == "elsewhere":
            self._require_state(turn, reentrant=reentrant)

    def _require_state(self, turn: int, *, reentrant: bool) -> None:
        """Raise `ValueError` unless there is a state that is whole after each run."""
        why = ""
        if not self.made:
            why = "takes a class, and a function has no state"
        elif not hasattr(self.written, "__aenter__") and not all(map(partial(hasattr, self.written), _STATE)):
            why = "takes a class with `state() -> JSON` and `restore(state)`"
        elif turn != 1 or reentrant:
            why = "takes turn=1, and no reentrant: the state is kept when nothing runs"
        if why:
            raise ValueError(f"agent {self.name!r}: restart='elsewhere' {why}")

    def __repr__(self) -> str:
        return f"{self.name}#{self.generation}"

    def node(self) -> Node:
        """How it is, at this moment."""
        turn, resident = self.turn, self.resident
        facts: dict[str, object] = {"turn": f"{len(turn.holders)}/{turn.size}", "waiting": len(turn.waiting)}
        state = "busy" if turn.holders else "idle"
        if resident is not None:
            if resident.box is not None:
                box = resident.box
                facts |= {"mailbox": f"{len(box)}/{box.size}", "peak": box.peak, "dropped": box.dropped}
                facts["waiting"] = box.lengths()["waiting"]
            facts["lives"] = resident.lives
            if resident.down is not None:
                state, facts["reason"] = "down", resident.down
            elif resident.life is None:
                state = "starting"
        return Node("agent", repr(self), state, facts)

    @property
    def written(self) -> Callable[..., object]:
        """`function` without what `functools.partial` passes to it."""
        function: Callable[..., object] = self.function
        while isinstance(function, partial):
            function = function.func
        return function

    @property
    def made(self) -> bool:
        """Whether `function` makes the handler, and is not it."""
        return inspect.isclass(self.written)

    def may_call(self, tool: str) -> bool:
        """Whether its grant covers the tool of this exported name."""
        return self.every_tool or any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def may_repeat(self, tool: str) -> bool:
        """Whether the tool may be called again when a conversation is resumed."""
        return any(fnmatchcase(tool, pattern) for pattern in self.repeatable)

    def takes(self, topic: str) -> bool:
        """Whether it takes broadcasts of this topic."""
        return topic in self.topics or any(fnmatchcase(topic, pattern) for pattern in self.topics)

    def may_ask(self, agent: str) -> bool:
        """Whether its grant covers the agent at this address: by its name, or with its place."""
        if self.every_agent:
            return True
        granted = self.granted.get(agent)
        if granted is None:
            if len(self.granted) >= REMEMBERED:
                self.granted.clear()
            names = {agent, base_of(agent)}
            granted = self.granted[agent] = any(fnmatchcase(name, glob) for glob in self.agents for name in names)
        return granted
