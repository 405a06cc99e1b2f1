"""An agent fabric for the Model Context Protocol, on Trio.

`open_fabric` holds the connections to MCP servers and runs agents that call their tools; `serve_gateway`
shows all of it as one MCP server. Everything lives in one nursery tree, and what is exported here is the
whole public API.
"""

from cord_trio.agents import Context as Context, Handoff as Handoff, last as last
from cord_trio.call import Call as Call, Handler as Handler, Layer as Layer, Outcome as Outcome, stack as stack
from cord_trio.config import (
    Config as Config,
    Http as Http,
    InProcess as InProcess,
    Stdio as Stdio,
    WebSocket as WebSocket,
    load_config as load_config,
)
from cord_trio.errors import (
    AgentError as AgentError,
    AgentNotFound as AgentNotFound,
    BadReply as BadReply,
    CallCycle as CallCycle,
    CallError as CallError,
    CallFailed as CallFailed,
    ConfigError as ConfigError,
    ConnectFailed as ConnectFailed,
    ConnectionLost as ConnectionLost,
    CordError as CordError,
    DeadlineExceeded as DeadlineExceeded,
    Draining as Draining,
    HandoffRefused as HandoffRefused,
    HttpFailed as HttpFailed,
    InputNeeded as InputNeeded,
    Malformed as Malformed,
    Overloaded as Overloaded,
    Refused as Refused,
    SourceDown as SourceDown,
    ToolNotFound as ToolNotFound,
)
from cord_trio.fabric import Fabric as Fabric, open_fabric as open_fabric
from cord_trio.layers import deadline as deadline, limit as limit, rate as rate, retry as retry
from cord_trio.protocol.mcp import Content as Content, Tool as Tool, ToolResult as ToolResult
from cord_trio.registry import Snapshot as Snapshot
from cord_trio.version import __version__ as __version__
