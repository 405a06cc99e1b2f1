"""Tools that a server runs only as tasks, called by whoever waits for the result, in either era.

In the legacy one such a call is two requests: one begins the task, and one stays open until the task has ended. The
second takes the call's place: its stream carries the server's questions, and its id is the token of the call's
progress (MCP 2025-11-25, tasks). In the modern one the task is asked about again and again, and what it wants to know
comes back as any server's question, with the task's id as the state: nothing is held (tasks extension).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Error, InputRequired, Outcome, Task
from cord_trio.errors import BadReply, CallError, CallFailed, DeadlineExceeded, Malformed
from cord_trio.protocol.eras import MISSING_CAPABILITY
from cord_trio.protocol.jsonrpc import encode, encode_request, members, object_of, parse
from cord_trio.protocol.mcp import PROGRESS_TOKEN, TASKS_EXTENSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cord_trio.call import Call
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Tool
    from cord_trio.session import Session

log = logging.getLogger("cord_trio.session")

RESULT: Final = "tasks/result"
CANCEL: Final = "tasks/cancel"

TTL: Final = 3_600_000
"""Milliseconds for which a legacy server is asked to keep a task: longer than any call of ours goes on."""

PAUSES: Final = (0.05, 1.0, 30.0)
"""Seconds between two looks at a modern server's task: at least, unless it says, and at most."""

RELATED: Final = "io.modelcontextprotocol/related-task"
"""The `_meta` member that names a task, by an id that is the server's alone."""

MARK: Final = "cord-task:"
"""Begins the state that a call brings back which has become a task."""


class Client(Protocol):
    """One server's conversation; see `client.Client`."""

    @property
    def session(self) -> Session: ...

    def message(self, id: int, call: Call, name: str | None, /) -> bytes: ...

    def headers(self, call: Call, name: str, /) -> Sequence[tuple[str, str]]: ...

    def params(self, call: Call, members: Mapping[str, Raw | bytes], /) -> bytes: ...

    def outcome(self, method: str, result: Raw, /) -> Outcome: ...


def longest(call: Call) -> Call:
    """`call`, with all the time that progress could give it: a task is expected to be slow, and may tell nothing."""
    return replace(call, deadline=call.latest) if call.patience else call


# The legacy era


def only_as_tasks(capabilities: Mapping[str, Json], tools: Iterable[Tool]) -> dict[str, None]:
    """Those of a legacy server's tools that cannot be called otherwise, by the server's own names."""
    try:
        able = isinstance(capabilities["tasks"]["requests"]["tools"]["call"], dict)
    except (KeyError, TypeError):
        able = False
    return {tool.name: None for tool in tools if _required(tool)} if able else {}


async def call_as_task(client: Client, call: Call, name: str) -> Outcome:
    """How a legacy server ended `call` of a tool that it runs only as a task. Raises as `Client.call`."""
    session, call = client.session, longest(call)
    id = session.peer.mint()
    task = await begin_task(client, call, name, id)
    if not isinstance(task, str):
        return task
    try:
        result = await session.exchange(
            id, awaiting(id, task), method=RESULT, cancellable=False, deadline=call.deadline, events=call.events
        )
    except CallFailed as exc:
        return Error(exc.code, exc.message, exc.data)
    except (CallError, trio.Cancelled) as exc:
        cancel_task(session, task, exc)
        raise
    return client.outcome("tools/call", ended(result))


async def begin_task(client: Client, call: Call, name: str, id: int) -> str | Outcome:
    """Have a legacy server run `call` as a task: the task's id, or how it ended if it became none.

    What is told of its progress belongs to our request `id`. Raises as `Client.call`.
    """
    meta = object_of({**call.meta, PROGRESS_TOKEN: encode(id)})
    params = {"name": encode(name), **call.params, "task": b'{"ttl":%d}' % TTL, "_meta": meta}
    try:
        result = await client.session.request("tools/call", object_of(params), deadline=call.deadline)
    except CallFailed as exc:
        return Error(exc.code, exc.message, exc.data)
    try:
        task = members(result).get("task")
        return client.outcome("tools/call", result) if task is None else _text(members(task), "taskId")
    except Malformed as exc:
        raise BadReply(f"not a task: {exc}") from exc


def awaiting(id: int, task: str) -> bytes:
    """The request `id` that is answered with what became of `task`, once that has ended."""
    return encode_request(id, RESULT, b'{"taskId":%b}' % encode(task))


def ended(result: Raw) -> Raw:
    """The result of a task as that of a call."""
    if RELATED.encode() not in bytes(result):
        return result
    parts: dict[str, Raw | bytes] = {**members(result)}
    meta = {name: value for name, value in members(parts.pop("_meta", b"{}")).items() if name != RELATED}
    return Raw(object_of({**parts, "_meta": object_of(meta)} if meta else parts))


def cancel_task(session: Session, task: str, why: BaseException | None = None, params: bytes = b"") -> None:
    """Tell the server that nobody waits for `task`; nobody waits for its answer either.

    What ended the wait, `why`, says from now on that the call may have run.
    """
    if isinstance(why, CallError):
        why.executed = "unknown"
    id = session.peer.mint()
    params = params or b'{"taskId":%b}' % encode(task)
    try:
        session.transport.send(encode_request(id, CANCEL, params), id=id, method=CANCEL, name=task)
    except CallError as exc:
        log.debug("cancel unsent peer=%s task=%s error=%s", session.name, task, exc)


def _required(tool: Tool) -> bool:
    if b'"execution"' not in bytes(tool.text):
        return False
    raw = tool.members.get("execution")
    return raw is not None and parse(raw).get("taskSupport") == "required"


# The modern era


def insists(error: CallFailed, declared: bytes) -> bool:
    """Whether a modern server refused a call because it runs it only as a task, whose caller does not know those."""
    if error.code != MISSING_CAPABILITY or TASKS_EXTENSION.encode() in declared:
        return False
    try:
        return TASKS_EXTENSION in parse(error.data)["requiredCapabilities"]["extensions"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


async def call_in_background(client: Client, call: Call, name: str) -> Outcome:
    """How a modern server ended `call` of a tool that it runs only as a task, or what it wants to know.

    Raises:
        CallError: it ended without an answer of the server.

    """
    if TASKS_EXTENSION.encode() in call.capabilities:  # who knows of tasks is given one
        return await _ask(client, call, name)
    call = replace(longest(call), capabilities=_with_tasks(call.capabilities))
    state = parse(call.params.get("requestState", Raw(b"null")))
    if isinstance(state, str) and state.startswith(MARK):
        task = state[len(MARK) :]
    else:
        outcome = await _ask(client, call, name)
        if not isinstance(outcome, Task):
            return outcome
        task = _text(members(outcome.result), "taskId")
    try:
        return await _follow(client, call, task)
    except (CallError, trio.Cancelled) as exc:
        cancel_task(client.session, task, exc, client.params(call, {"taskId": encode(task)}))
        raise


async def _ask(client: Client, call: Call, name: str) -> Outcome:
    session = client.session
    id = session.peer.mint()
    try:
        result = await session.exchange(
            id, client.message(id, call, name), method=call.method, name=name, headers=client.headers(call, name),
            deadline=call.deadline, events=call.events,
        )  # fmt: skip
    except CallFailed as exc:
        return Error(exc.code, exc.message, exc.data)
    return client.outcome(call.method, result)


async def _follow(client: Client, call: Call, task: str) -> Outcome:
    """Bring the answers of `call`, and look at `task` until it has ended or asks something else."""
    answers = call.params.get("inputResponses")
    told: set[str] = set()
    if answers is not None:
        told.update(members(answers))
        await _about(client, call, task, "tasks/update", {"inputResponses": bytes(answers)})
    while True:
        state = await _about(client, call, task, "tasks/get")
        match _text(state, "status"):
            case "completed":
                return client.outcome("tools/call", state.get("result", Raw(b"null")))
            case "failed":
                error = parse(state.get("error", Raw(b"{}"))) or {}
                return Error(error.get("code", 0), error.get("message", "the task failed"), _data(error))
            case "cancelled":
                raise CallError("the server cancelled the task that this call had become", "unknown")
            case "input_required":
                asked = members(state.get("inputRequests", Raw(b"{}")))
                new = {key: value for key, value in asked.items() if key not in told}
                if new:
                    parts = {"inputRequests": object_of(new), "requestState": encode(MARK + task)}
                    return InputRequired(Raw(object_of({"resultType": b'"input_required"', **parts})))
        await trio.sleep(poll_pause(state.get("pollIntervalMs")))


async def _about(
    client: Client, call: Call, task: str, method: str, more: Mapping[str, bytes] | None = None
) -> Mapping[str, Raw]:
    session = client.session
    id = session.peer.mint()
    message = encode_request(id, method, client.params(call, {"taskId": encode(task), **(more or {})}))
    if call.deadline <= trio.current_time():
        raise DeadlineExceeded(f"{session.name}: {method}", "unknown")
    try:
        return members(await session.exchange(id, message, method=method, name=task, deadline=call.deadline))
    except Malformed as exc:
        raise BadReply(f"{session.name}: not about a task: {exc}") from exc


def poll_pause(told: Raw | None) -> float:
    """Seconds until a task is looked at again, of which its server said that these milliseconds are the least."""
    least, usual, most = PAUSES
    given = None if told is None else parse(told)
    if isinstance(given, bool) or not isinstance(given, int | float):
        return usual
    return min(max(given / 1000, least), most)


def _with_tasks(capabilities: bytes) -> bytes:
    try:
        value = parse(capabilities)
    except msgspec.DecodeError:
        value = {}
    value = value if isinstance(value, dict) else {}
    extensions = value.get("extensions")
    return encode(
        {**value, "extensions": {**(extensions if isinstance(extensions, dict) else {}), TASKS_EXTENSION: {}}}
    )


def _data(error: Mapping[str, Json]) -> bytes:
    return encode(error["data"]) if "data" in error else b""


def _text(parts: Mapping[str, Raw], name: str) -> str:
    value = parse(parts.get(name, Raw(b"null")))
    if not isinstance(value, str):
        raise BadReply(f"a task without {name}")
    return value
