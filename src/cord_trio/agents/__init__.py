"""Agents: async functions and classes that call tools, ask and tell each other, and hand work on."""

from cord_trio.agents.agent import GRACE, MAX_HOPS, Agent, AgentFunction, AgentMade, Handoff, Keep, Restart, Step, last
from cord_trio.agents.answering import Answer, Question
from cord_trio.agents.budget import Account, Budget, Reservation
from cord_trio.agents.context import Context
from cord_trio.agents.conversation import converse
from cord_trio.agents.crew import Crew, Promise
from cord_trio.agents.directory import Agents, open_agents
from cord_trio.agents.job import Job, Jobs
from cord_trio.agents.journal import Journal, MemoryJournal, Saved, SqliteJournal
from cord_trio.agents.life import Alarm
from cord_trio.agents.mailbox import Mailbox, latest
from cord_trio.agents.monitor import Monitor, Notice
from cord_trio.agents.stream import Events
from cord_trio.agents.supervisor import Backoff, Supervisor
from cord_trio.agents.tools import call_tool
from cord_trio.agents.turn import Branch, Turn

__all__ = [
    "GRACE",
    "MAX_HOPS",
    "Account",
    "Agent",
    "AgentFunction",
    "AgentMade",
    "Agents",
    "Alarm",
    "Answer",
    "Backoff",
    "Branch",
    "Budget",
    "Context",
    "Crew",
    "Events",
    "Handoff",
    "Job",
    "Jobs",
    "Journal",
    "Keep",
    "Mailbox",
    "MemoryJournal",
    "Monitor",
    "Notice",
    "Promise",
    "Question",
    "Reservation",
    "Restart",
    "Saved",
    "SqliteJournal",
    "Step",
    "Supervisor",
    "Turn",
    "call_tool",
    "converse",
    "last",
    "latest",
    "open_agents",
]
