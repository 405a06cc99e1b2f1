"""FastMCP's proxy over stdio: `fastmcp_stdio.py SOURCES`, SOURCES in JSON."""

from __future__ import annotations

import json
import sys

from fastmcp.server import create_proxy

servers = {s["name"]: {"command": s["command"][0], "args": s["command"][1:]} for s in json.loads(sys.argv[1])}
create_proxy({"mcpServers": servers}).run("stdio", show_banner=False, log_level="error")
