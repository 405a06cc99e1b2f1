"""The revisions of MCP, one frozen value each: what may be said in it, and how."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEADER_MISMATCH: Final = -32020
"""Modern HTTP: a routing header is missing, doubled, undecodable, or not what the body says."""
MISSING_CAPABILITY: Final = -32021
"""Modern: the request needs a client capability that it did not declare; `data.requiredCapabilities`."""
UNSUPPORTED_VERSION: Final = -32022
"""Modern: the revision is not served; `data.supported`, `data.requested`."""
RESOURCE_NOT_FOUND: Final = -32002
"""Legacy: no such resource; `data.uri`. Accepted in both eras, said only in legacy."""
URL_ELICITATION_REQUIRED: Final = -32042
"""2025-11-25 only: open the URLs in `data.elicitations`, then ask again."""
REQUEST_CANCELLED: Final = -32800
"""What some legacy servers end a cancelled request's stream with."""

_LEGACY_REQUESTS: Final = frozenset(
    {
        "initialize",
        "ping",
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
        "logging/setLevel",
    }
)
_LEGACY_ASKS: Final = frozenset({"ping", "sampling/createMessage", "roots/list"})
_LEGACY_TELLS: Final = frozenset(
    {
        "notifications/cancelled",
        "notifications/progress",
        "notifications/message",
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    }
)
_LEGACY_TOLD: Final = frozenset(
    {
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)
_TASKS: Final = frozenset({"tasks/get", "tasks/result", "tasks/list", "tasks/cancel"})


@attrs.frozen
class Era:
    """One revision.

    Attributes:
        revision: its date, as it stands in `protocolVersion`.
        modern: each request describes itself; no handshake, no session, no questions from the server.
        batches: an array of messages is legal.
        version_header: HTTP requests carry `MCP-Protocol-Version` (legacy: after the handshake).
        priming: an HTTP server may begin an event stream with an id and empty data (SEP-1699).
        requests: methods that a client may ask a server.
        asks: methods that a server may ask a client.
        notices: notifications that a client may send.
        tells: notifications that a server may send.
        blocks: types of content blocks in a tool's result.
        structured: which `structuredContent` exists: "none", "object" or "any".

    """

    revision: str
    modern: bool
    requests: frozenset[str]
    asks: frozenset[str]
    notices: frozenset[str]
    tells: frozenset[str]
    blocks: frozenset[str]
    structured: str
    batches: bool = False
    version_header: bool = True
    priming: bool = False


_2024_11_05: Final = Era(
    revision="2024-11-05",
    modern=False,
    requests=_LEGACY_REQUESTS,
    asks=_LEGACY_ASKS,
    notices=_LEGACY_TOLD,
    tells=_LEGACY_TELLS,
    blocks=frozenset({"text", "image", "resource"}),
    structured="none",
    version_header=False,
)
_2025_03_26: Final = attrs.evolve(
    _2024_11_05, revision="2025-03-26", batches=True, blocks=_2024_11_05.blocks | {"audio"}
)
_2025_06_18: Final = attrs.evolve(
    _2025_03_26,
    revision="2025-06-18",
    batches=False,
    version_header=True,
    asks=_LEGACY_ASKS | {"elicitation/create"},
    blocks=_2025_03_26.blocks | {"resource_link"},
    structured="object",
)
_2025_11_25: Final = attrs.evolve(
    _2025_06_18,
    revision="2025-11-25",
    priming=True,
    requests=_LEGACY_REQUESTS | _TASKS,
    asks=_2025_06_18.asks | _TASKS,
    notices=_LEGACY_TOLD | {"notifications/tasks/status"},
    tells=_LEGACY_TELLS | {"notifications/elicitation/complete", "notifications/tasks/status"},
)
_2026_07_28: Final = Era(
    revision="2026-07-28",
    modern=True,
    requests=frozenset(
        {
            "server/discover",
            "tools/list",
            "tools/call",
            "prompts/list",
            "prompts/get",
            "resources/list",
            "resources/templates/list",
            "resources/read",
            "completion/complete",
            "subscriptions/listen",
        }
    ),
    asks=frozenset(),
    notices=frozenset({"notifications/cancelled"}),
    tells=_LEGACY_TELLS | {"notifications/subscriptions/acknowledged"},
    blocks=_2025_11_25.blocks,
    structured="any",
)

ERAS: Final[Mapping[str, Era]] = MappingProxyType(
    {era.revision: era for era in (_2026_07_28, _2025_11_25, _2025_06_18, _2025_03_26, _2024_11_05)}
)
"""Every revision that we speak, the best first."""

MODERN: Final = tuple(era.revision for era in ERAS.values() if era.modern)
"""Modern revisions, the best first."""
LEGACY: Final = tuple(era.revision for era in ERAS.values() if not era.modern)
"""Legacy revisions, the best first."""
LATEST_MODERN: Final = MODERN[0]
LATEST_LEGACY: Final = LEGACY[0]

NAME_MEMBER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tools/call": "name",
        "prompts/get": "name",
        "resources/read": "uri",
        "tasks/get": "taskId",
        "tasks/update": "taskId",
        "tasks/cancel": "taskId",
    }
)
"""The member of `params` that HTTP's `Mcp-Name` repeats, by method (MCP 2026-07-28, transports)."""

CACHEABLE: Final = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
"""Methods whose complete result carries `ttlMs` and `cacheScope` in modern."""

INPUT_METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Methods that may answer `input_required` in modern."""


def choose_modern(offered: Iterable[str]) -> str | None:
    """The best modern revision that is in `offered` and that we speak; None if there is none."""
    wanted = set(offered)
    return next((revision for revision in MODERN if revision in wanted), None)


def choose_legacy(requested: str) -> str:
    """The revision to answer `initialize` with: the requested one, else our latest (MCP 2025-11-25, lifecycle)."""
    return requested if requested in LEGACY else LATEST_LEGACY
