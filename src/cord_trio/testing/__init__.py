"""For tests of agents, tools and servers: a scripted MCP server, faults, schedules, state machines, strategies.

`machine` and `strategies` need Hypothesis, `plugin` needs pytest, so they are imported by their own names.
"""

from __future__ import annotations

from cord_trio.testing.faults import CallFault as CallFault
from cord_trio.testing.faults import Fault as Fault
from cord_trio.testing.faults import WireFault as WireFault
from cord_trio.testing.faults import faulty as faulty
from cord_trio.testing.recorded import recorded as recorded
from cord_trio.testing.schedule import Schedule as Schedule
from cord_trio.testing.schedule import scheduled as scheduled
from cord_trio.testing.server import HttpToolServer as HttpToolServer
from cord_trio.testing.server import ToolServer as ToolServer
from cord_trio.testing.server import open_http_tool_server as open_http_tool_server
from cord_trio.testing.simulation import Trace as Trace
from cord_trio.testing.simulation import find_failure as find_failure
from cord_trio.testing.simulation import simulate as simulate
from cord_trio.testing.wire import FaultyTransport as FaultyTransport

__all__ = [
    "CallFault",
    "Fault",
    "FaultyTransport",
    "HttpToolServer",
    "Schedule",
    "ToolServer",
    "Trace",
    "WireFault",
    "faulty",
    "find_failure",
    "open_http_tool_server",
    "recorded",
    "scheduled",
    "simulate",
]
