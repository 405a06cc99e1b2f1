"""What the tests of agents share: a place for agents without a fabric, and handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cord_trio.agents import Agents, Backoff, Context, Journal, Supervisor, open_agents
from cord_trio.registry import Snapshot

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from random import Random

    from cord_trio.call import Call, Outcome

AT_ONCE = Backoff(0.0, 0.0)


async def no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)


def world(journal: Journal | None = None, rng: Random | None = None) -> AbstractAsyncContextManager[Agents]:
    return open_agents(no_tools, Snapshot, journal=journal, rng=rng)


async def echo(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
    return payload


async def hang(ctx: Context, payload: object) -> object:
    await trio.sleep_forever()


def quick(strategy: str = "one_for_one", **rules: object) -> Supervisor:
    """A supervisor that does not wait."""
    return Supervisor(strategy, backoff=AT_ONCE, **rules)  # type: ignore[arg-type]  # the test says which


def at_rest(agents: Agents) -> bool:
    """Whether nothing is held, waits or runs."""
    assert agents.untold == 0, agents.untold
    for agent in agents.values():
        assert not agent.turn.holders, agent
        assert not agent.turn.waiting, agent
        if agent.resident is not None and agent.resident.box is not None:
            assert not any(agent.resident.box.lengths().values()), agent
    return not agents.roots
