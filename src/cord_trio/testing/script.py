"""What a scripted MCP server can do: its tools, its options, its faults. Standard library only."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self, TypeAlias

    Json: TypeAlias = Any

LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

TOOLS: dict[str, tuple[str, dict[str, str], bool]] = {
    # name: (description, argument types, read-only and idempotent)
    "echo": ("Gives its text back", {"text": "string"}, True),
    "add": ("The sum of two numbers", {"a": "number", "b": "number"}, True),
    "sleep": ("Answers after some seconds, never once cancelled", {"seconds": "number"}, True),
    "big": ("A text of this many bytes", {"size": "integer"}, True),
    "fail": ("A tool failure with this text", {"text": "string"}, True),
    "error": ("A JSON-RPC error", {"code": "integer"}, True),
    "progress": ("Reports steps evenly over some seconds", {"steps": "integer", "seconds": "number"}, True),
    "crash": ("The server ends at once", {"status": "integer", "signal": "integer"}, False),
    "flood": ("This many log lines before the answer, asked for or not", {"lines": "integer"}, False),
    "stderr": ("Writes this many bytes to stderr", {"bytes": "integer"}, False),
    "change_tools": ("Adds a tool and says so", {}, False),
    "ask": ("Asks the client, answers with its answer", {"method": "string", "params": "object"}, False),
    "spawn": ("Starts a grandchild that sleeps, in a session of its own if so wished", {"detached": "boolean"}, False),
    "count": ("Counts up by one: how often it ran", {}, False),
    "whoami": ("What this server knows about itself", {}, True),
}


class Options:
    """What the server does, faults included. Every attribute is an option of the program: `--exit-on METHOD`."""

    name = "tool-server"
    era = "auto"
    """auto (decided by each message), modern or legacy."""
    revision = ""
    """The one legacy revision it speaks; all of them if empty."""
    tools = 0
    """Tools beside the usual ones, called tool_1 and so on; they echo."""
    discover_error = -32601
    """The code that answers `server/discover` where only legacy is spoken."""
    page = 0
    """Tools on a page of the list; all if 0."""
    logs = 0.0
    """Log notifications a second, once a legacy client has initialized."""
    stderr_logs = 0.0
    """Log lines a second on stderr, whatever the era."""
    record = ""
    """A file that every received line is appended to."""
    instructions = ""
    silent = False
    """Reads and never answers."""
    silent_on = ""
    """Never answers this method."""
    exit_at_start = False
    exit_on = ""
    """Exits when asked this method."""
    exit_status = 3
    banner = ""
    """A line on stdout before everything else."""
    crlf = False
    stderr = 0
    """Bytes written to stderr at the start, blocking."""
    ignore_eof = False
    ignore_term = False
    slow = 0.0
    """Seconds by which every answer is late."""
    garbage = False
    """A line that is no JSON and no UTF-8 before every answer."""
    twice = False
    """Every answer is sent two times."""
    string_ids = False
    """Numbers in ids come back as strings."""
    same_cursor = False
    """The list never ends: each page names the same next cursor."""
    no_newline_flood = False
    """From the first message on, bytes without a line end, for ever."""

    def __init__(self, **given: Json) -> None:
        for name, value in given.items():
            if not hasattr(type(self), name) or name.startswith("_"):
                raise TypeError(f"no option {name!r}")
            setattr(self, name, value)

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        """The options in command-line arguments. Raises `SystemExit` for one that does not exist."""
        given: dict[str, Json] = {}
        waiting = iter(arguments)
        for argument in waiting:
            name = argument.removeprefix("--").replace("-", "_")
            default = getattr(cls, name, None)
            if not argument.startswith("--") or callable(default) or default is None:
                raise SystemExit(f"no option {argument}")
            given[name] = True if isinstance(default, bool) else type(default)(next(waiting))
        return cls(**given)

    def arguments(self) -> list[str]:
        """The command-line arguments that give these options."""
        found: list[str] = []
        for name, value in vars(self).items():
            if value != getattr(type(self), name):
                found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return found


class World:
    """What all conversations of one server share, and what it does to the world outside.

    Attributes:
        functions: further tools, each from its arguments to a text or a JSON value.
        added: tools added by `change_tools`.
        received: requests and notifications, counted by method.
        cancelled: requests withdrawn while they ran.

    """

    def __init__(self, options: Options, functions: Mapping[str, Callable[[Json], object]] | None = None) -> None:
        self.options = options
        self.functions = dict(functions or {})
        self.added = self.cancelled = self.count = 0
        self.received: dict[str, int] = {}
        self.revisions = (options.revision,) if options.revision else LEGACY

    def exit(self, status: int, signal_number: int = 0) -> None:
        """End the server at once."""
        if signal_number:
            os.kill(os.getpid(), signal_number)
        os._exit(status)

    def write_stderr(self, data: bytes) -> None:
        while data:
            data = data[os.write(2, data) :]

    def spawn(self, detached: bool) -> int:
        return os.posix_spawn("/bin/sleep", ["sleep", "1000"], dict(os.environ), setsid=detached)

    def tools(self) -> list[Json]:
        """The tools as they are listed."""
        more = [f"tool_{number}" for number in range(1, self.options.tools + 1)]
        more += [f"added_{number}" for number in range(1, self.added + 1)]
        table = TOOLS | {name: ("Gives its text back", {"text": "string"}, True) for name in more}
        listed: list[Json] = [
            {
                "name": name,
                "description": description,
                "inputSchema": {"type": "object", "properties": {key: {"type": kind} for key, kind in types.items()}},
                "annotations": {"readOnlyHint": safe, "idempotentHint": safe, "destructiveHint": False},
            }
            for name, (description, types, safe) in table.items()
        ]
        return listed + [{"name": name, "inputSchema": {"type": "object"}} for name in self.functions]
