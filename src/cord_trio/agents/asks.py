"""The asks under way as nodes of the live tree: who waits for whom, and with how much left."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents import conversation
from cord_trio.agents.budget import COUNTERS
from cord_trio.agents.post import Post
from cord_trio.observe import Node

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from cord_trio.agents.agent import Agent
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.turn import Branch

DEEPEST: Final = 64
"""Asks within asks that are shown."""

LOOKED_AT: Final = 10_000
"""Agents with a task of their own that are looked at to see whether they run: the rest is shown as it comes."""

RUN_HANDLERS: Final = frozenset(
    function.__code__ for function in (conversation.converse, conversation._run, Post._work)
)
"""Functions that await a handler, and have its `agent`."""

NAMED: Final = 4
"""Holders of one turn that are named."""


def ask_nodes(branches: Iterable[Branch], most: float = math.inf) -> tuple[list[Node], int]:
    """A node for each of `branches`, what it asked below it, and how many were left out for want of room.

    Args:
        branches: the asks.
        most: nodes to make, those below included.

    """
    writer = _Writer(most)
    return writer.nodes(branches, 0), writer.left_out


def agent_of(frame: FrameType) -> str | None:
    """The agent whose handler a frame runs, as `name#generation`; None if it runs none itself."""
    agent = frame.f_locals.get("agent") if frame.f_code in RUN_HANDLERS else None
    return None if agent is None else repr(agent)


def busiest(agents: Agents, most: int) -> list[Agent]:
    """So many agents, those that are not idle before the others. Costs what it shows, and what runs."""
    found: dict[str, Agent] = {}
    todo = list(agents.roots)
    for branch in todo:
        if branch.holds is not None:
            _add(found, agents.get(branch.holds.name))
        todo += branch.children
    for agent in islice(agents.residents(), LOOKED_AT):
        if agent.turn.holders:
            _add(found, agent)
    for agent in agents.values():
        if len(found) >= most:
            break
        _add(found, agent)
    return list(islice(found.values(), most))


def _add(found: dict[str, Agent], agent: Agent | None) -> None:
    if agent is not None:  # else it was removed meanwhile, and its run goes on
        found.setdefault(agent.name, agent)


class _Writer:
    """Makes nodes until there are enough."""

    def __init__(self, most: float) -> None:
        self.left_out = 0
        self._room = most
        self._now = trio.current_time()

    def nodes(self, branches: Iterable[Branch], depth: int) -> list[Node]:
        made = []
        for branch in branches:
            if self._room < 1 or depth >= DEEPEST:
                self.left_out += 1
            else:
                self._room -= 1
                made.append(self._node(branch, depth))
        return made

    def _node(self, branch: Branch, depth: int) -> Node:
        facts: dict[str, object] = {}
        if branch.waits is not None:
            state = "waiting"
            facts["waits_for"] = branch.waits.name
            holders = list(branch.waits.holders)
            more = [f"{len(holders) - NAMED} more"] if len(holders) > NAMED else []
            facts["held_by"] = ", ".join([*(_way(holder) for holder in holders[:NAMED]), *more])
        else:
            state = "passing" if branch.holds is None else "running"
        if branch.deadline != math.inf:
            facts["deadline_in"] = round(branch.deadline - self._now, 3)
        facts["hops"] = branch.hops or None
        if branch.trace is not None:
            facts["trace"], facts["span"] = branch.trace.id, f"{branch.span:016x}"
        if branch.job is not None and branch.parent is None:
            facts["conversation"] = branch.job.id
        if branch.account is not None:
            for counter in (*COUNTERS, "seconds"):
                left = branch.account.left(counter)
                if left != math.inf:
                    exact = isinstance(left, int) or (isinstance(left, Decimal) and left == int(left))
                    facts[f"{counter}_left"] = int(left) if exact else round(float(left), 3)
        return Node("ask", _way(branch), state, facts, tuple(self.nodes(list(branch.children), depth + 1)))


def _way(branch: Branch) -> str:
    return " > ".join(branch.path)
