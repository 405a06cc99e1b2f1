"""Background tasks of servers (extension `io.modelcontextprotocol/tasks`): relayed, nothing remembered.

The id that a client gets is sealed, and holds which tool's server has the task, so any gateway with the same key
can go on with it, and no client with another's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from msgspec import Raw

from cord_trio.background import poll_pause
from cord_trio.call import Call, Complete, Error, Task
from cord_trio.errors import BadReply, CallError, CallFailed, Malformed
from cord_trio.gateway.capabilities import NEEDED_DATA, NEEDS_TASKS, TASKS, lacks
from cord_trio.gateway.params import decode_string
from cord_trio.gateway.places import TASK_ID, bare, placed
from cord_trio.gateway.shapes import meta_of
from cord_trio.protocol.eras import MISSING_CAPABILITY
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, NOTHING, encode, members, object_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Outcome
    from cord_trio.gateway.steps import Listen, Run

log = logging.getLogger("cord_trio.gateway")

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
"""What a task's status says when nothing more will come."""

_HOP: Final = frozenset({TASK_ID, "_meta", "resultType"})


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """What is inside a sealed id.

    Attributes:
        tool: the exported name of the tool whose server has the task.
        id: the server's own id of it.

    """

    tool: str
    id: str


_decode_ref = msgspec.json.Decoder(Ref).decode


def require_tasks(run: Run) -> None:
    """Return if the client knows what tasks are.

    Raises:
        CallFailed: it did not say so in this request, as it must in each.

    """
    if lacks(run.capabilities, NEEDS_TASKS):
        raise CallFailed(MISSING_CAPABILITY, f"{run.method} needs the extension {TASKS}", NEEDED_DATA, executed="no")


def open_task(sealer: Sealer, run: Run, now: float) -> Ref:
    """Which task a request is about.

    Raises:
        CallFailed: none of this client's.

    """
    ref = _opened(sealer, run.principal, run.name, now)
    if ref is None:
        raise CallFailed(INVALID_PARAMS, "unknown or expired taskId", executed="no")
    return ref


def open_tasks(sealer: Sealer, step: Listen, now: float) -> dict[str, Ref]:
    """Those of the tasks that a subscription names which are this client's, by their sealed ids."""
    found = {id: _opened(sealer, step.principal, id, now) for id in step.tasks}
    return {id: ref for id, ref in found.items() if ref is not None}


def _opened(sealer: Sealer, principal: str, id: str, now: float) -> Ref | None:
    try:
        return _decode_ref(sealer.open("task", principal, bare(id), now))
    except (ValueError, msgspec.DecodeError):
        return None


async def watch_task(
    handle: Callable[[Call], Awaitable[Outcome]], step: Listen, sealed: str, ref: Ref, tell: Callable[[bytes], None]
) -> None:
    """Tell of each state of a task, under the id that its client knows, until the last.

    The server is asked as often as it allows: so it need not tell of tasks itself, and nothing is missed.

    Args:
        handle: the fabric's.
        step: who listens.
        sealed: the client's id.
        ref: the task.
        tell: takes the parameters of a notification, without `_meta`. Must not block.

    """
    call = Call(
        "tasks/get", name=ref.tool, params={TASK_ID: Raw(encode(ref.id))}, principal=step.principal,
        capabilities=step.capabilities, revision=step.era.revision,
    )  # fmt: skip
    before = b""
    while True:
        parts: Mapping[str, Raw] = {}
        try:
            outcome = await handle(call)
            if isinstance(outcome, Error):
                return  # it is none any more
            if isinstance(outcome, Complete | Task):
                parts = members(outcome.result)
        except (CallError, Malformed) as exc:
            log.debug("task not seen tool=%s error=%s", ref.tool, exc)
        if parts:
            state = object_of({**{name: parts[name] for name in parts if name not in _HOP}, TASK_ID: encode(sealed)})
            if state != before:
                before = state
                tell(state)
            if decode_string(parts.get("status")) in ENDED:
                return
        await trio.sleep(poll_pause(parts.get("pollIntervalMs")))


def task_call(run: Run, ref: Ref) -> Call:
    """The call that asks the task's server."""
    params = {**run.params, TASK_ID: Raw(encode(ref.id))}
    return msgspec.structs.replace(run.call(None), name=ref.tool, params=params)


def new_task(sealer: Sealer, run: Run, result: Raw, us: bytes, place: str = "") -> bytes:
    """The result that tells a client of the task its call has become.

    Raises:
        BadReply: the client did not ask for one, or it is none.

    """
    if run.method != "tools/call" or not run.era.modern or lacks(run.capabilities, NEEDS_TASKS):
        raise BadReply("the server made a background task of it, which nobody asked for")
    try:
        id = decode_string(members(result).get(TASK_ID))
    except Malformed as exc:
        raise BadReply(f"not a task: {exc}") from exc
    if id is None:
        raise BadReply("a task without an id")
    sealed = placed(place, sealer.seal("task", run.principal, encode(Ref(run.name, id))))
    return task_result(result, us, sealed, "task")


def task_result(result: Raw, us: bytes, sealed: str, kind: str = "complete") -> bytes:
    """What a server says of a task, under the id that its client knows.

    Raises:
        BadReply: it is no object.

    """
    try:
        parts: dict[str, Raw | bytes] = {**members(result)}
    except Malformed as exc:
        raise BadReply(f"not about a task: {exc}") from exc
    meta = meta_of(Raw(bytes(parts.pop("_meta", NOTHING))), us)
    if TASK_ID in parts:
        parts[TASK_ID] = encode(sealed)
    return object_of({**parts, "resultType": encode(kind), "_meta": meta})
