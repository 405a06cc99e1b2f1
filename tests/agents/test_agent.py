from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cord_trio.agents import Agent, Agents, Context, last
from cord_trio.registry import Snapshot

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome


async def handler(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
    return payload


async def no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)


def test_an_agent_has_an_identity() -> None:
    assert repr(Agent("triage", handler)) == "triage#1"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_a_name_that_cannot_be_addressed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Agent(name, handler)


def test_an_agent_needs_a_turn() -> None:
    with pytest.raises(ValueError, match="turn"):
        Agent("triage", handler, turn=0)


def test_a_name_is_given_once() -> None:
    agents = Agents(no_tools, Snapshot)
    agents.add("triage", handler)
    with pytest.raises(ValueError, match="already"):
        agents.add("triage", handler)
    assert (len(agents), list(agents)) == (1, ["triage"])


@pytest.mark.parametrize(
    ("tools", "tool", "granted"),
    [
        (("*",), "web__get", True),
        (("web__*", "docs__search"), "web__get", True),
        (("web__*", "docs__search"), "docs__search", True),
        (("web__*",), "notes__get", False),
        (("web__*",), "WEB__get", False),
        ((), "web__get", False),
    ],
)
def test_a_grant_is_a_list_of_globs(tools: tuple[str, ...], tool: str, granted: bool) -> None:
    assert Agent("triage", handler, tools=tools).may_call(tool) == granted


def test_nobody_keeps_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="less"):
        last(-1)
