"""Agents: plain async functions under a turn, that call tools, ask each other, and hand work on."""

from cord_trio.agents.agent import MAX_HOPS, Agent, AgentFunction, Agents, Handoff, Keep, Step, last
from cord_trio.agents.answering import Answer, Question
from cord_trio.agents.conversation import Context, converse
from cord_trio.agents.tools import call_tool
from cord_trio.agents.turn import Branch, Turn

__all__ = [
    "MAX_HOPS",
    "Agent",
    "AgentFunction",
    "Agents",
    "Answer",
    "Branch",
    "Context",
    "Handoff",
    "Keep",
    "Question",
    "Step",
    "Turn",
    "call_tool",
    "converse",
    "last",
]
