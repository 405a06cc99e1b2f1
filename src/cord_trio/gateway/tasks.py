"""Background tasks of servers (extension `io.modelcontextprotocol/tasks`): relayed, nothing remembered.

The id that a client gets is sealed, and holds which tool's server has the task, so any gateway with the same key
can go on with it, and no client with another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import BadReply, CallFailed, Malformed
from cord_trio.gateway.capabilities import TASKS, lacks
from cord_trio.gateway.params import decode_string
from cord_trio.gateway.shapes import meta_of
from cord_trio.protocol.eras import MISSING_CAPABILITY
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, NOTHING, encode, members, object_of

if TYPE_CHECKING:
    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Call
    from cord_trio.gateway.steps import Run
    from cord_trio.protocol.jsonrpc import Json

TASK_ID: Final = "taskId"

_NEEDED: Final[dict[str, Json]] = {"extensions": {TASKS: {}}}


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
    if lacks(run.capabilities, _NEEDED):
        data = b'{"requiredCapabilities":%b}' % encode(_NEEDED)
        raise CallFailed(MISSING_CAPABILITY, f"{run.method} needs the extension {TASKS}", data, executed="no")


def open_task(sealer: Sealer, run: Run, now: float) -> Ref:
    """Which task a request is about.

    Raises:
        CallFailed: none of this client's.

    """
    try:
        return _decode_ref(sealer.open("task", run.principal, run.name, now))
    except (ValueError, msgspec.DecodeError) as exc:
        raise CallFailed(INVALID_PARAMS, "unknown or expired taskId", executed="no") from exc


def task_call(run: Run, ref: Ref) -> Call:
    """The call that asks the task's server."""
    params = {**run.params, TASK_ID: Raw(encode(ref.id))}
    return msgspec.structs.replace(run.call(None), name=ref.tool, params=params)


def new_task(sealer: Sealer, run: Run, result: Raw, us: bytes) -> bytes:
    """The result that tells a client of the task its call has become.

    Raises:
        BadReply: the client did not ask for one, or it is none.

    """
    if run.method != "tools/call" or not run.era.modern or lacks(run.capabilities, _NEEDED):
        raise BadReply("the server made a background task of it, which nobody asked for")
    try:
        id = decode_string(members(result).get(TASK_ID))
    except Malformed as exc:
        raise BadReply(f"not a task: {exc}") from exc
    if id is None:
        raise BadReply("a task without an id")
    sealed = sealer.seal("task", run.principal, encode(Ref(run.name, id)))
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
