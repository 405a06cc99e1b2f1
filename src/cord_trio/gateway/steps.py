"""What is to be done about one message: the words between the pure front and the endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from cord_trio.call import Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from msgspec import Raw

    from cord_trio.call import EventSink
    from cord_trio.gateway.ports import Lines
    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Id

OK: Final = 200
ACCEPTED: Final = 202
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
UNAVAILABLE: Final = 503


@attrs.frozen
class Client:
    """A legacy client, as its `initialize` said; it stays so for its whole session (MCP 2025-11-25, lifecycle).

    Attributes:
        era: the revision that was agreed.
        capabilities: what it can answer, as JSON text.
        info: its name and version, as JSON text; for display alone.

    """

    era: Era
    capabilities: bytes = b"{}"
    info: bytes = b"{}"


@attrs.frozen
class Caller:
    """Whose message it is, as far as the transport knows.

    Attributes:
        headers: of the HTTP request; None on a pipe.
        client: the legacy client of this session or pipe, once it has initialized.
        named: whether the HTTP request names a session, known or not.

    """

    headers: Lines | None = None
    client: Client | None = None
    named: bool = False


@attrs.frozen
class Reply:
    """Answer at once. `message` None: there is nothing to say."""

    message: bytes | None
    status: int = OK


@attrs.frozen
class Open:
    """A legacy client initializes: remember `client`, then answer."""

    id: Id
    message: bytes
    client: Client


@attrs.frozen
class Run:
    """Call a tool, then answer. `token` is the client's progress token as JSON text, empty if it has none."""

    id: Id
    era: Era
    name: str
    params: Mapping[str, Raw]
    meta: Mapping[str, Raw]
    capabilities: bytes
    token: bytes = b""
    method: str = "tools/call"

    def call(self, events: EventSink | None) -> Call:
        """The call that the fabric is asked to make."""
        return Call(
            self.method,
            name=self.name,
            params=self.params,
            meta=self.meta,
            events=events,
            capabilities=self.capabilities,
        )


@attrs.frozen
class List:
    """List the tools from `cursor` on, then answer."""

    id: Id
    era: Era
    cursor: str | None


@attrs.frozen
class Listen:
    """Acknowledge, then tell of changes until the stream ends (MCP 2026-07-28, subscriptions)."""

    id: Id
    era: Era
    tools: bool


@attrs.frozen
class Cancel:
    """Stop the request `id` of the same session or pipe, if it still runs."""

    id: Id
    reason: str


@attrs.frozen
class Batch:
    """Do all of these, and answer with one array (MCP 2025-03-26 alone)."""

    steps: Sequence[Step]


Step: TypeAlias = Reply | Open | Run | List | Listen | Cancel | Batch
