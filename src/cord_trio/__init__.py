"""An agent fabric for the Model Context Protocol, on Trio.

`open_fabric` holds the connections to MCP servers and runs agents that call their tools; `serve_gateway`
shows all of it as one MCP server. Everything lives in one nursery tree, and what is exported here is the
whole public API.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from cord_trio.version import __version__ as __version__

if TYPE_CHECKING:
    from cord_trio.agents import Account as Account
    from cord_trio.agents import Backoff as Backoff
    from cord_trio.agents import Budget as Budget
    from cord_trio.agents import Context as Context
    from cord_trio.agents import Events as Events
    from cord_trio.agents import Handoff as Handoff
    from cord_trio.agents import Job as Job
    from cord_trio.agents import Mailbox as Mailbox
    from cord_trio.agents import MemoryJournal as MemoryJournal
    from cord_trio.agents import Notice as Notice
    from cord_trio.agents import SqliteJournal as SqliteJournal
    from cord_trio.agents import Supervisor as Supervisor
    from cord_trio.agents import last as last
    from cord_trio.agents import latest as latest
    from cord_trio.call import Call as Call
    from cord_trio.call import Handler as Handler
    from cord_trio.call import Layer as Layer
    from cord_trio.call import Outcome as Outcome
    from cord_trio.call import stack as stack
    from cord_trio.config import Config as Config
    from cord_trio.config import Http as Http
    from cord_trio.config import InProcess as InProcess
    from cord_trio.config import Quota as Quota
    from cord_trio.config import Rule as Rule
    from cord_trio.config import Stdio as Stdio
    from cord_trio.config import ToolSettings as ToolSettings
    from cord_trio.config import WebSocket as WebSocket
    from cord_trio.config import load_config as load_config
    from cord_trio.errors import AgentCrashed as AgentCrashed
    from cord_trio.errors import AgentDown as AgentDown
    from cord_trio.errors import AgentError as AgentError
    from cord_trio.errors import AgentGone as AgentGone
    from cord_trio.errors import AgentNotFound as AgentNotFound
    from cord_trio.errors import AgentNotGranted as AgentNotGranted
    from cord_trio.errors import BadReply as BadReply
    from cord_trio.errors import BudgetExceeded as BudgetExceeded
    from cord_trio.errors import CallCycle as CallCycle
    from cord_trio.errors import CallError as CallError
    from cord_trio.errors import CallFailed as CallFailed
    from cord_trio.errors import ConfigError as ConfigError
    from cord_trio.errors import ConnectFailed as ConnectFailed
    from cord_trio.errors import ConnectionLost as ConnectionLost
    from cord_trio.errors import CordError as CordError
    from cord_trio.errors import DeadlineExceeded as DeadlineExceeded
    from cord_trio.errors import Denied as Denied
    from cord_trio.errors import Draining as Draining
    from cord_trio.errors import DrainTimeout as DrainTimeout
    from cord_trio.errors import HandoffRefused as HandoffRefused
    from cord_trio.errors import HttpFailed as HttpFailed
    from cord_trio.errors import InDoubt as InDoubt
    from cord_trio.errors import InputNeeded as InputNeeded
    from cord_trio.errors import JobCancelled as JobCancelled
    from cord_trio.errors import JobNotFound as JobNotFound
    from cord_trio.errors import Malformed as Malformed
    from cord_trio.errors import MessageTooLong as MessageTooLong
    from cord_trio.errors import NoMailbox as NoMailbox
    from cord_trio.errors import Overloaded as Overloaded
    from cord_trio.errors import Refused as Refused
    from cord_trio.errors import RestartIntensity as RestartIntensity
    from cord_trio.errors import SourceDown as SourceDown
    from cord_trio.errors import TooDeep as TooDeep
    from cord_trio.errors import TooLate as TooLate
    from cord_trio.errors import ToolNotFound as ToolNotFound
    from cord_trio.errors import ToolNotGranted as ToolNotGranted
    from cord_trio.fabric import Fabric as Fabric
    from cord_trio.fabric import open_fabric as open_fabric
    from cord_trio.gateway import serve_gateway as serve_gateway
    from cord_trio.layers import deadline as deadline
    from cord_trio.layers import limit as limit
    from cord_trio.layers import rate as rate
    from cord_trio.layers import record as record
    from cord_trio.layers import retry as retry
    from cord_trio.protocol.mcp import Content as Content
    from cord_trio.protocol.mcp import Tool as Tool
    from cord_trio.protocol.mcp import ToolResult as ToolResult
    from cord_trio.recorder import Recorder as Recorder
    from cord_trio.registry import Snapshot as Snapshot
    from cord_trio.trace import TraceContext as TraceContext

_WHENCE = {
    "cord_trio.agents": (
        "Account Backoff Budget Context Events Handoff Job last latest Mailbox MemoryJournal Notice "
        "SqliteJournal Supervisor"
    ),
    "cord_trio.call": "Call Handler Layer Outcome stack",
    "cord_trio.config": "Config Http InProcess load_config Quota Rule Stdio ToolSettings WebSocket",
    "cord_trio.errors": (
        "AgentCrashed AgentDown AgentError AgentGone AgentNotFound AgentNotGranted BadReply BudgetExceeded "
        "CallCycle CallError CallFailed ConfigError ConnectFailed ConnectionLost CordError DeadlineExceeded "
        "Denied Draining DrainTimeout HandoffRefused HttpFailed InDoubt InputNeeded JobCancelled JobNotFound "
        "Malformed MessageTooLong NoMailbox Overloaded Refused RestartIntensity SourceDown TooDeep TooLate "
        "ToolNotFound ToolNotGranted"
    ),
    "cord_trio.fabric": "Fabric open_fabric",
    "cord_trio.gateway": "serve_gateway",
    "cord_trio.layers": "deadline limit rate record retry",
    "cord_trio.protocol.mcp": "Content Tool ToolResult",
    "cord_trio.recorder": "Recorder",
    "cord_trio.registry": "Snapshot",
    "cord_trio.trace": "TraceContext",
}
"""What is exported, by its module: the same as above, for when the program runs."""

_HOME = {name: module for module, names in _WHENCE.items() for name in names.split()}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Import what is asked for, then: the command line must begin in no time, to end quietly if it is interrupted."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *(_HOME.keys() - globals().keys())]
