"""`recorded`: the servers of a recording, in this process; each answers what it was asked when it was recorded."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import msgspec
import trio
from msgspec import Raw

from cord_trio.config import InProcess
from cord_trio.errors import ConfigError, ConnectionLost, Malformed, Overloaded, Problem
from cord_trio.protocol.eras import MODERN
from cord_trio.protocol.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    decode,
    encode,
    encode_error,
    encode_notification,
    encode_result,
    members,
    parse,
)
from cord_trio.protocol.mcp import META_LOG_LEVEL, META_SERVER_INFO, PROGRESS_TOKEN, TASKS_EXTENSION
from cord_trio.recording import KINDS, NAMED, Recorded
from cord_trio.recording import decode as decode_recording

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from cord_trio.errors import CallError
    from cord_trio.protocol.jsonrpc import Envelope
    from cord_trio.recording import Line
    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any

LISTS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "templates",
}
MAX_READ: Final = 64 * 1024 * 1024
"""Bytes of one line that are read."""


def recorded(
    path: str | Path, *, only: str | None = None, strict: bool = False, speed: float = 0.0, **common: Json
) -> tuple[InProcess, ...]:
    """The sources of a recording, for a configuration, under the prefixes that they had.

    Each answers by method, name and parameters, in recorded order; what was not recorded gets an error that names the
    nearest call that was. An answer is given by whichever connection asks first.

    Args:
        path: of a file that `serve --record` or a `Recorder` wrote.
        only: the one source to have; None for all.
        strict: whether a call that is made more often than it was recorded gets an error, not the last answer again.
        speed: 1 for answers as late as they were, 2 for twice as fast; 0 for at once.
        common: fields of every source, such as `deadline` and `prefix`.

    Raises:
        ConfigError: it is no recording, or has no such source.

    """
    try:
        with open(path, "rb") as file:
            sources = decode_recording(_lines(file), str(path))
    except OSError as exc:
        what = f"cannot be read: {exc.strerror}"
        raise ConfigError([Problem(str(path), "", what, "name a file that `serve --record` wrote")]) from exc
    if only is not None:
        if only not in sources:
            known = ", ".join(sources) or "none"
            raise ConfigError([Problem(str(path), "", f"has no source {only!r}", f"it has {known}")])
        sources = {only: sources[only]}
    found = []
    for name, source in sources.items():
        server = RecordedServer(source.anew(strict=strict), speed)
        fields: Json = {"name": name, "prefix": source.catalogue.prefix, **common}
        found.append(InProcess(serve=server.serve, **fields))
    return tuple(found)


def is_torn(path: str | Path) -> bool:
    """Whether the last line of a recording is cut off: its process died over it. It is passed over."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            return bool(end) and (file.seek(end - 1), file.read(1))[1] != b"\n"
    except OSError:
        return False


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_READ):
        yield line


class RecordedServer:
    """A server of the modern era that answers from a recording.

    Args:
        source: what it answers; shared by all connections.
        speed: at which recorded time passes; 0 for not at all.

    """

    def __init__(self, source: Recorded, speed: float = 0.0) -> None:
        self._source = source
        self._speed = speed

    async def serve(
        self, transport: MemoryTransport, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer on `transport` until the client leaves or this is cancelled."""
        with transport:
            async with trio.open_nursery() as nursery:
                connection = _Connection(self._source, self._speed, transport, nursery)
                nursery.start_soon(connection.send_rest)
                await nursery.start(transport.run, connection)
                task_status.started()


@attrs.define(eq=False)
class _Connection:
    """One conversation; its Receiver."""

    source: Recorded
    speed: float
    transport: MemoryTransport
    nursery: trio.Nursery
    backlog: deque[bytes] = attrs.field(factory=deque)
    waiting: trio.Event = attrs.field(factory=trio.Event)

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in messages:
            try:
                envelope = decode(message)
            except Malformed as exc:
                self.send(encode_error(exc.id, exc.code, str(exc)))
                continue
            if envelope.is_request:
                self._answer(envelope)

    def fail(self, id: int | str, error: CallError, /) -> None:
        """Nothing to do: it asks nothing."""

    def lost(self, error: ConnectionLost, /) -> None:
        self.nursery.cancel_scope.cancel(f"connection lost: {error.reason}")

    def waits(self, id: int | str, /) -> bool:
        return False

    def send(self, message: bytes) -> None:
        """Send, now or as soon as the client takes it."""
        if not self.backlog:
            try:
                self.transport.send(message)
            except ConnectionLost:
                return
            except Overloaded:
                pass
            else:
                return
        self.backlog.append(message)
        self.waiting.set()

    async def send_rest(self) -> None:
        """Send what the client did not take at once."""
        while True:
            await self.waiting.wait()
            await self.transport.wait_uncongested()
            self.waiting = trio.Event()
            rest, self.backlog = self.backlog, deque()
            for message in rest:
                self.send(message)

    def _answer(self, envelope: Envelope) -> None:
        id, method = envelope.id, envelope.method or ""
        assert isinstance(id, int | str)  # it is a request
        try:
            params = members(envelope.params)
            meta = members(params.pop("_meta", Raw(b"{}")))
            asked = {name: parse(value) for name, value in params.items()}
        except (Malformed, msgspec.DecodeError) as exc:
            self.send(encode_error(id, INVALID_PARAMS, str(exc)))
            return
        catalogue = self.source.catalogue
        if method == "server/discover":
            self.send(encode_result(id, encode(self._discovered())))
        elif method in LISTS:
            kind = LISTS[method]
            items = catalogue.lists.get(kind, [])
            page = {"resultType": "complete", KINDS[kind]: items, "ttlMs": 0, "cacheScope": "private"}
            self.send(encode_result(id, encode(page)))
        elif method == "ping":
            self.send(encode_result(id, b"{}"))
        else:
            name = asked.pop(NAMED[method], None) if method in NAMED else None
            try:
                line = self.source.answer(method, name, asked)
            except LookupError as exc:
                code = INVALID_PARAMS if self.source.lines else METHOD_NOT_FOUND
                self.send(encode_error(id, code, str(exc.args[0]), b'{"executed":"no"}'))
                return
            if self.speed > 0:
                self.nursery.start_soon(self._in_time, id, meta, line)
            else:
                for _, kind, about in line.events:
                    self._tell(meta, kind, about)
                self.send(_reply(id, line))

    async def _in_time(self, id: int | str, meta: Mapping[str, Raw], line: Line) -> None:
        began = trio.current_time()
        for at, kind, about in line.events:
            await trio.sleep_until(began + at / self.speed)
            self._tell(meta, kind, about)
        await trio.sleep_until(began + line.seconds / self.speed)
        self.send(_reply(id, line))

    def _tell(self, meta: Mapping[str, Raw], kind: str, about: Json) -> None:
        """Send a notification of a call, if its caller wants such."""
        if kind == "notifications/progress":
            if PROGRESS_TOKEN not in meta:
                return
            about = {**about, PROGRESS_TOKEN: meta[PROGRESS_TOKEN]}
        elif META_LOG_LEVEL not in meta:
            return
        self.send(encode_notification(kind, encode(about)))

    def _discovered(self) -> Json:
        catalogue = self.source.catalogue
        said = catalogue.capabilities
        able: dict[str, Json] = {
            name: {} for name in ("prompts", "resources", "completions", "logging") if name in said
        }
        if "tools" in said or not said:
            able["tools"] = {}
        if any(line.outcome == "task" for line in self.source.lines):
            able["extensions"] = {TASKS_EXTENSION: {}}
        told = {
            "resultType": "complete", "supportedVersions": list(MODERN), "capabilities": able, "ttlMs": 0,
            "cacheScope": "private", "_meta": {META_SERVER_INFO: catalogue.server_info},
        }  # fmt: skip
        return {**told, "instructions": catalogue.instructions} if catalogue.instructions is not None else told


def _reply(id: int | str, line: Line) -> bytes:
    value = line.value
    if line.outcome in ("result", "input_required", "task"):
        return encode_result(id, encode(value))
    if line.outcome == "error":
        return encode_error(
            id, value["code"], value["message"], encode(value["data"]) if "data" in value else b""
        )  # fmt: skip
    told = {"executed": line.executed, "kind": value.get("kind", line.outcome)}
    return encode_error(id, INTERNAL_ERROR, f"when it was recorded: {value['message']}", encode(told))
