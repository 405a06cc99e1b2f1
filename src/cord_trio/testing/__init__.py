"""For tests of agents, tools and servers: a scripted MCP server, searched schedules, state machines, strategies.

`machine` and `strategies` need Hypothesis, `plugin` needs pytest, so they are imported by their own names.
"""

from __future__ import annotations

from cord_trio.testing.schedule import Schedule as Schedule
from cord_trio.testing.schedule import scheduled as scheduled
from cord_trio.testing.server import HttpToolServer as HttpToolServer
from cord_trio.testing.server import ToolServer as ToolServer
from cord_trio.testing.server import open_http_tool_server as open_http_tool_server

__all__ = ["HttpToolServer", "Schedule", "ToolServer", "open_http_tool_server", "scheduled"]
