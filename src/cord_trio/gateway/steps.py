"""What is to be done about one message: the words between the pure front and the endpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import msgspec
from msgspec import Raw

from cord_trio.call import LOCAL, Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cord_trio.call import EventSink
    from cord_trio.gateway.ports import Lines
    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Id

OK: Final = 200
ACCEPTED: Final = 202
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
UNAVAILABLE: Final = 503

STRANGER: Final = "the gateway does not know who sends this"
"""The refusal of a request that no principal may have sent."""

Kind: TypeAlias = Literal["tools", "prompts", "resources", "templates"]
"""What can be listed."""

CHANGING: Final = ("tools", "prompts", "resources")
"""The kinds whose changes are told; templates are resources in that."""

ANSWERS: Final = "inputResponses"
STATE: Final = "requestState"


@attrs.frozen
class Client:
    """A legacy client, as its `initialize` said; it stays so for its whole session (MCP 2025-11-25, lifecycle).

    Attributes:
        era: the revision that was agreed.
        capabilities: what it can be asked in that revision, as JSON text.
        info: its name and version, as JSON text; for display alone.

    """

    era: Era
    capabilities: bytes = b"{}"
    info: bytes = b"{}"


class Caller(msgspec.Struct, frozen=True):
    """Whose message it is, as far as the transport knows.

    Attributes:
        headers: of the HTTP request; None on a pipe.
        client: the legacy client of this session or pipe, once it has initialized.
        named: whether the HTTP request names a session, known or not.
        principal: who it is.
        askable: whether a legacy client's questions can travel where its answers do.
        level: the least severe log notification that a legacy client wants; None for none.

    """

    headers: Lines | None = None
    client: Client | None = None
    named: bool = False
    principal: str = LOCAL
    askable: bool = True
    level: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """Answer at once. `message` None: there is nothing to say."""

    message: bytes | None
    status: int = OK


@attrs.frozen
class Open:
    """A legacy client initializes: remember `client`, then answer."""

    id: Id
    message: bytes
    client: Client


class Run(msgspec.Struct, frozen=True):
    """Ask whoever owns `name`, then answer.

    Attributes:
        id: of the request.
        era: of the request.
        method: one of those that are relayed.
        name: what it is about: a tool's or prompt's exported name, a URI or a URI's template.
        params: the other members, without those of a retry.
        meta: the members of `_meta` that are relayed.
        capabilities: what the client can be asked during this request, as JSON text.
        token: the client's progress token as JSON text, empty if it has none.
        level: the least severe log notification that it wants; None for none.
        principal: who asks.
        state: the `requestState` that a retry brings back; None if it brings none.
        answers: the `inputResponses` of a retry, as JSON text; empty if there are none.
        deadline: Trio time by which all of it ends, infinite if whoever asks did not say.
        trace: the client's `traceparent`, empty if it gave none that is one.

    """

    id: Id
    era: Era
    method: str
    name: str
    params: Mapping[str, Raw]
    meta: Mapping[str, Raw]
    capabilities: bytes
    token: bytes = b""
    level: str | None = None
    principal: str = LOCAL
    state: str | None = None
    answers: bytes = b""
    deadline: float = math.inf
    trace: str = ""

    def call(self, events: EventSink | None) -> Call:
        """The call that the fabric is asked to make."""
        params = self.params if not self.answers else {**self.params, ANSWERS: Raw(self.answers)}
        return Call(
            self.method,
            name=self.name,
            params=params,
            meta=self.meta,
            principal=self.principal,
            deadline=self.deadline,
            events=events,
            capabilities=self.capabilities,
            log_level=self.level,
            revision=self.era.revision,
            trace=self.trace,
        )


@attrs.frozen
class List:
    """List what is of one kind, from `cursor` on, then answer."""

    id: Id
    era: Era
    cursor: str | None
    kind: Kind = "tools"
    principal: str = LOCAL


@attrs.frozen
class Listen:
    """Acknowledge, then tell of changes until the stream ends (MCP 2026-07-28, subscriptions).

    Attributes:
        id: of the request, and of the subscription.
        era: of the request.
        kinds: of lists whose changes are told.
        uris: of resources whose updates are told.
        principal: who listens.
        tasks: sealed ids of tasks whose states are told.
        capabilities: what the client declares, as JSON text.

    """

    id: Id
    era: Era
    kinds: tuple[str, ...]
    uris: tuple[str, ...] = ()
    principal: str = LOCAL
    tasks: tuple[str, ...] = ()
    capabilities: bytes = b"{}"


@attrs.frozen
class Subscribe:
    """Tell a legacy session of updates of a resource from now on, or no longer; then answer."""

    id: Id
    uri: str
    wanted: bool


@attrs.frozen
class Level:
    """A legacy session wants log notifications from `level` on; then answer."""

    id: Id
    level: str


@attrs.frozen
class Answered:
    """A legacy client answers one of our questions: with a result, else with an error. Both are JSON text."""

    id: Id
    result: bytes
    error: bytes


@attrs.frozen
class Cancel:
    """Stop the request `id` of the same session or pipe, if it still runs."""

    id: Id
    reason: str


@attrs.frozen
class Batch:
    """Do all of these, and answer with one array (MCP 2025-03-26 alone)."""

    steps: Sequence[Step]


Work: TypeAlias = Run | List | Listen
"""What takes its time."""

Step: TypeAlias = Reply | Open | Run | List | Listen | Subscribe | Level | Answered | Cancel | Batch
