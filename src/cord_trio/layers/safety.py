"""Which calls may run twice, and which only read: what retries, hedges and caches may do at all.

Hints of a server that is not trusted decide nothing (MCP 2025-11-25, tools/annotations).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call
    from cord_trio.protocol.mcp import Annotations

READS: Final = frozenset({"resources/read", "completion/complete", "server/discover"})
"""Methods that change nothing, beside those that end in `/list` and `/get` (MCP 2026-07-28)."""


def repeatable(
    *, trusted: bool, annotations: Callable[[str], Annotations | None] | None, said: bool = False
) -> Callable[[Call], bool]:
    """Whether a call may run twice: a read, or a tool that is known to be safe to repeat.

    Args:
        trusted: whether the server's annotations are believed.
        annotations: of the tool with an exported name; None if there is no such tool.
        said: whether the operator says so, of every tool that comes here.

    """

    def may_run_twice(call: Call) -> bool:
        method = call.method
        if method in READS or method.endswith(("/list", "/get")):
            return True
        if call.name is None or method != "tools/call":
            return False
        if said:
            return True
        if not trusted or annotations is None:
            return False
        hints = annotations(call.name)
        return hints is not None and (hints.read_only_hint or hints.idempotent_hint)

    return may_run_twice


def only_reads(*, trusted: bool, annotations: Callable[[str], Annotations | None]) -> Callable[[Call], bool]:
    """Whether a call is of a resource, or of a tool that a trusted server says only reads."""

    def reads(call: Call) -> bool:
        if call.method == "resources/read":
            return True
        if not trusted or call.method != "tools/call" or call.name is None:
            return False
        hints = annotations(call.name)
        return hints is not None and hints.read_only_hint

    return reads
