"""Which era a server speaks, and the greeting that opens a conversation with it.

We ask `server/discover` first (MCP 2026-07-28). Whatever else than a modern answer comes back means a
legacy server, which is greeted with `initialize`. Servers differ in how they refuse what they do not know:
an error of any code, silence, or exiting; after the last two only a fresh connection can be trusted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import trio

from cord_trio.errors import (
    BadReply,
    CallFailed,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    HttpFailed,
    Malformed,
)
from cord_trio.protocol import eras, jsonrpc, mcp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Raw

    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.session import Session

EraChoice: TypeAlias = Literal["auto", "modern", "legacy"]

NOT_LEGACY: Final = frozenset({401, 403, 407, 429, 500, 502, 503, 504})
"""HTTP statuses that say nothing about the era: authorization, overload and failures."""


LAST_WORDS: Final = 1.5
"""Seconds that a connection which fails has to say why: a child's exit is known a moment after its pipes break."""


class FreshNeeded(Exception):
    """The server is legacy, but this connection can no longer be trusted: open another, and say so."""


@attrs.frozen
class Greeting:
    """What a server said of itself when the conversation was opened.

    Attributes:
        revision: the protocol revision in use, such as `2025-11-25`.
        modern: whether that is 2026-07-28 or later: no session, an envelope on each request.
        capabilities: the server's, as it sent them.
        server_info: name, version and more, as it sent them; not to be trusted for behaviour.
        instructions: for the model, if any.

    """

    revision: str
    modern: bool
    capabilities: Mapping[str, Json]
    server_info: Mapping[str, Json]
    instructions: str | None = None


async def negotiate(
    session: Session,
    *,
    era: EraChoice = "auto",
    patience: float,
    client_info: Mapping[str, Json],
    capabilities: Mapping[str, Json],
) -> Greeting:
    """Open the conversation in the best era that the server speaks.

    Args:
        session: fresh; nothing was sent on it.
        era: "auto" asks, the others do not.
        patience: seconds to wait for each answer.
        client_info: our name and version.
        capabilities: what we can be asked for.

    Raises:
        FreshNeeded: legacy, and to be greeted with `era="legacy"` on a new connection.
        ConnectFailed: it speaks no revision of ours, or did not answer at all.

    """
    if era != "legacy":
        found = await _discover(session, patience, client_info, capabilities, must=era == "modern")
        if found is not None:
            return found
    return await _initialize(session, patience, client_info, capabilities)


async def _discover(
    session: Session,
    patience: float,
    client_info: Mapping[str, Json],
    capabilities: Mapping[str, Json],
    *,
    must: bool,
) -> Greeting | None:
    """The modern greeting, or None for a legacy server on a connection that can still be used."""
    if not must:
        # A modern server never asks: one that does is legacy, and may never answer the probe.
        session.on_asked = partial(_give_up, session)
    try:
        revision, raw = await _ask(session, patience, client_info, capabilities)
        found = mcp.decode_discovered(raw)
        if eras.choose_modern(found.revisions) is None:
            _require_legacy(session, found.revisions, must=must)
            return None
    except CallFailed as exc:
        supported = mcp.supported_versions(exc.data)
        if exc.code == eras.UNSUPPORTED_VERSION and (supported or must):
            _require_legacy(session, supported, must=must)
            return None
        if exc.code in (eras.HEADER_MISMATCH, eras.MISSING_CAPABILITY) or must:
            raise ConnectFailed(session.name, "handshake", f"server/discover failed: {exc}") from exc
        return None
    except HttpFailed as exc:
        if exc.status in NOT_LEGACY or must:
            raise refused(session.name, exc) from exc
        return None
    except (Malformed, BadReply) as exc:
        if must:
            raise ConnectFailed(session.name, "handshake", f"server/discover: {exc}") from exc
        return None
    except DeadlineExceeded as exc:
        if must or exc.executed == "no":
            raise _silent(session, "server/discover", patience) from exc
        raise FreshNeeded("no answer to server/discover") from exc
    except ConnectionLost as exc:
        if must or exc.executed == "no":
            raise await unreached(session, exc) from exc  # noqa: ASYNC120  # who cancels wants no reason
        raise FreshNeeded(exc.reason) from exc
    finally:
        session.on_asked = None
    session.modern = True
    return Greeting(revision, True, found.capabilities, found.server_info, found.instructions)


async def _ask(
    session: Session, patience: float, client_info: Mapping[str, Json], capabilities: Mapping[str, Json]
) -> tuple[str, Raw]:
    """The revision in which we asked `server/discover`, and what it found; raises as `session.request`."""
    revision, again = eras.LATEST_MODERN, True
    while True:  # noqa: ASYNC913  # goes on only after an answer
        meta = mcp.envelope_meta(revision, client_info, capabilities)
        params = jsonrpc.object_of({"_meta": jsonrpc.object_of(meta)})
        try:
            # Never withdrawn: a legacy server may choke on a notification before `initialize`.
            raw = await session.request(
                "server/discover", params, deadline=trio.current_time() + patience, cancellable=False
            )
        except CallFailed as exc:
            supported = mcp.supported_versions(exc.data) if exc.code == eras.UNSUPPORTED_VERSION else ()
            named = eras.choose_modern(supported)
            if named is None or not again:
                raise
            # One that it names, if it be the same: the refusal came from another age of it, or of its proxy.
            revision, again = named, False
        else:
            return revision, raw


def _give_up(session: Session) -> None:
    probe = next(iter(session.peer.open.values()), None)
    if probe is not None and probe.method == "server/discover":
        session.withdraw(probe, "a legacy server")
        probe.fail(BadReply("the server asked something before it answered server/discover"))


def _require_legacy(session: Session, supported: tuple[str, ...], *, must: bool) -> None:
    """Return for a server with legacy revisions of ours; refuse one with none."""
    if not must and any(version in eras.LEGACY for version in supported):
        return
    theirs = ", ".join(supported) or "none that it names"
    ours = ", ".join(eras.MODERN if must else (*eras.MODERN, *eras.LEGACY))
    raise ConnectFailed(session.name, "handshake", f"no common protocol revision: it speaks {theirs}; we speak {ours}")


async def _initialize(
    session: Session, patience: float, client_info: Mapping[str, Json], capabilities: Mapping[str, Json]
) -> Greeting:
    """The legacy greeting (MCP 2025-11-25, lifecycle). `initialize` is never cancelled on the wire."""
    params = jsonrpc.encode(
        {"protocolVersion": eras.LATEST_LEGACY, "capabilities": capabilities, "clientInfo": client_info}
    )
    try:
        raw: Raw = await session.request(
            "initialize", params, deadline=trio.current_time() + patience, cancellable=False
        )
        found = mcp.decode_initialized(raw)
    except DeadlineExceeded as exc:
        raise _silent(session, "initialize", patience) from exc
    except ConnectionLost as exc:
        raise await unreached(session, exc) from exc
    except HttpFailed as exc:
        raise refused(session.name, exc) from exc
    except (CallFailed, Malformed, BadReply) as exc:
        raise ConnectFailed(session.name, "handshake", f"initialize failed: {exc}") from exc
    if found.revision not in eras.LEGACY:
        raise ConnectFailed(
            session.name,
            "handshake",
            f"no common protocol revision: it offers {found.revision!r}; we speak {', '.join(eras.LEGACY)}",
        )
    session.batches = eras.ERAS[found.revision].batches
    return Greeting(found.revision, False, found.capabilities, found.server_info, found.instructions)


def refused(name: str, exc: HttpFailed) -> ConnectFailed:
    """What an HTTP status means for a connection, in words that a person can act on."""
    if exc.status == 401:
        remedy = "it asks for authorization: give an Authorization header in `headers`"
        return ConnectFailed(name, "authorize", str(exc), remedy)
    if exc.status == 403:
        return ConnectFailed(name, "authorize", str(exc), "the credentials given are not enough, or our origin is not")
    if exc.status == 407:
        return ConnectFailed(name, "connect", str(exc), "a proxy asks for credentials: user:password@ in its variable")
    if exc.status in (404, 405):
        return ConnectFailed(name, "http", str(exc), "check the path of `url`: no MCP endpoint answers there")
    return ConnectFailed(name, "http", str(exc))


async def unreached(session: Session, exc: ConnectionLost, step: str = "") -> ConnectFailed:
    """A lost connection as a failure to connect, with the reason of whoever knows it best."""
    reason = exc.reason
    if session.ending:
        # Who meets the broken pipe first knows less than who hears of the exit.
        with trio.move_on_after(LAST_WORDS):
            reason = await session.wait_lost()
    return ConnectFailed(session.name, step or ("connect" if exc.executed == "no" else "handshake"), reason)


def _silent(session: Session, method: str, patience: float) -> ConnectFailed:
    reason = f"no answer to {method} within {patience:g} s"
    if any(line.lower().startswith("content-length:") for line in session.noise):
        return ConnectFailed(
            session.name, "handshake", f"{reason}; it writes Content-Length headers, which is not MCP's framing",
            "MCP over stdio is one JSON message a line",
        )  # fmt: skip
    if session.noise:
        return ConnectFailed(
            session.name, "handshake", f"{reason}; it wrote {session.noise[-1]!r}",
            "is it an MCP server? if it only starts slowly, raise `connect`; all but messages belongs on stderr",
        )  # fmt: skip
    return ConnectFailed(session.name, "handshake", reason, "raise `connect` if it needs longer to start")
