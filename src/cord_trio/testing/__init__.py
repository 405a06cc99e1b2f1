"""For tests of agents, tools and servers: a scripted MCP server, searched schedules, state machines, strategies."""
