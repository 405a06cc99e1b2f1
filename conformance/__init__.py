"""The official conformance suite of MCP, against the gateway and against the client: see README.md beside this file."""
