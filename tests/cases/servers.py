"""Small servers that misbehave in one way each, as real child processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cord_trio.config import Stdio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.fabric import Fabric
    from cord_trio.protocol.jsonrpc import Json

TEMPLATE = """
import json, os, sys, time

def put(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

def said(id, **members):
    put(json.dumps({"jsonrpc": "2.0", "id": id, **members}, ensure_ascii=False).encode() + END)

END = b"\\n"
REVISION = "2025-11-25"
CAPABILITIES = {"tools": {}}
TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}]

def before(message): pass
def content(message): return [{"type": "text", "text": message["params"]["arguments"].get("text", "")}]
def own_answer(message): return None
def reply_id(id): return id

SCRIPT

for line in sys.stdin.buffer:
    message = json.loads(line)
    before(message)
    id, method = message.get("id"), message.get("method")
    if id is None or method is None or own_answer(message):
        continue
    id = reply_id(id)
    if method == "initialize":
        server = {"name": "scripted", "version": "1"}
        said(id, result={"protocolVersion": REVISION, "capabilities": CAPABILITIES, "serverInfo": server})
    elif method == "tools/list":
        said(id, result={"tools": TOOLS})
    elif method == "tools/call":
        said(id, result={"content": content(message)})
    else:
        said(id, error={"code": -32601, "message": "method not found"})
"""


def program(code: str, name: str = "it", **common: Json) -> Stdio:
    """A source that runs this Python program."""
    return Stdio(name=name, command=sys.executable, args=("-I", "-S", "-c", code), **common)


def scripted(script: str = "", name: str = "it", **common: Json) -> Stdio:
    """A legacy server with one tool, `echo`; `script` redefines what it does otherwise."""
    return program(TEMPLATE.replace("SCRIPT", script), name, **common)


def noise(fabric: Fabric, name: str = "it") -> list[str]:
    """What a source sent that was no message, as kept for diagnosis."""
    (client,) = fabric.links[name].sessions.values()
    return list(client.session.noise)


@contextmanager
def refusing(answer: bytes) -> Iterator[int]:
    """A port where every request gets this answer, from a process of its own."""
    code = (
        "import socket, sys\n"
        "door = socket.create_server(('127.0.0.1', 0))\n"
        "print(door.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    one, _ = door.accept()\n"
        "    one.recv(65536)\n"
        f"    one.sendall({answer!r})\n"
        "    one.close()\n"
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port: int = door.getsockname()[1]
    return port
