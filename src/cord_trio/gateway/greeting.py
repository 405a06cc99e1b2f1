"""What the gateway says of itself, once for all that stands behind it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.gateway.capabilities import TASKS
from cord_trio.protocol.jsonrpc import encode

if TYPE_CHECKING:
    from cord_trio.gateway.ports import Snapshot
    from cord_trio.protocol.jsonrpc import Json

CAPABILITIES: Final[dict[str, Json]] = {
    "completions": {},
    "logging": {},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "tools": {"listChanged": True},
}
"""What we can serve, from the start: a legacy client hears of it once, and sources come and go."""

MAX_INSTRUCTIONS: Final = 16 * 1024
"""Characters of all instructions together."""


def capabilities_of(snapshot: Snapshot, *, modern: bool) -> bytes:
    """What is offered: ours, and the extensions of the servers, each with the settings of who has it first.

    Tasks as an extension are not defined for legacy clients.
    """
    extensions: dict[str, Json] = {}
    for source in snapshot.sources.values():
        offered = source.greeting.capabilities.get("extensions") if source.greeting is not None else None
        if isinstance(offered, dict):
            for name, settings in offered.items():
                if modern or name != TASKS:
                    extensions.setdefault(name, settings)
    return encode(CAPABILITIES | {"extensions": extensions} if extensions else CAPABILITIES)


def instructions_of(snapshot: Snapshot) -> str:
    """What the servers say to models, each under its name if there are several; cut at the bound."""
    said = {
        name: source.greeting.instructions
        for name, source in snapshot.sources.items()
        if source.greeting is not None and source.greeting.instructions
    }
    if len(snapshot.sources) == 1:
        return "".join(text or "" for text in said.values())[:MAX_INSTRUCTIONS]
    return "\n\n".join(f"# {name}\n{text}" for name, text in said.items())[:MAX_INSTRUCTIONS]
