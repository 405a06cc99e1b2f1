"""Writes a recording while a fabric runs: no call waits for it, and what does not fit is counted, not kept."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio import layers
from cord_trio.counters import Counters
from cord_trio.errors import ConfigError, Problem
from cord_trio.protocol.jsonrpc import parse
from cord_trio.recording import KINDS, MAX_LINE, Catalogue, call_line, catalogue_line, check_head, header
from cord_trio.redacting import Redactor, secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cord_trio.call import Layer
    from cord_trio.config import Source
    from cord_trio.layers.record import Own, Taken
    from cord_trio.registry import Registry
    from cord_trio.snapshot import SourceView

log = logging.getLogger("cord_trio.record")

MAX_FILE: Final = 64 * 1024 * 1024
"""Bytes of a recording, unless told otherwise."""

MAX_WAITING: Final = 8 * 1024 * 1024
"""Bytes of calls that wait to be written; further ones are dropped."""

GATHER: Final = 0.02
"""Seconds in which further calls join the first, to be written together."""

PATIENCE: Final = 5.0
"""Seconds for one writing; a disk that takes longer ends the recording, and nothing else."""


class Recorder:
    """Keeps the calls of a fabric in a file, which is nobody else's. Made before the fabric; `close` it after.

    Invariants: the file holds whole lines but for the last, and no more than `most` bytes; nothing in it was written
    before secrets were removed.

    Args:
        path: of the file; one that is a recording already goes on.
        most: bytes of it.
        keys: further parts of names whose values are secret.
        counters: counts what was kept, and what was not.

    Raises:
        ConfigError: the file cannot be written, or is something else.

    """

    def __init__(
        self, path: str | Path, *, most: int = MAX_FILE, keys: Sequence[str] = (), counters: Counters | None = None
    ) -> None:
        self.path = str(path)
        self.counters = counters or Counters()
        self._most = most
        self._keys = tuple(keys)
        self._values: set[str] = set()
        self._redactor = Redactor(keys=self._keys)
        self._taken: list[Taken] = []
        self._prefixes: dict[str, str | None] = {}
        self._lists: dict[str, tuple[SourceView, str | None]] = {}
        self._noted: list[str] = []  # what the thread has to count, which is not its to do
        self._seen: dict[str, SourceView] = {}
        self._waiting = 0
        self._wake = trio.Event()
        self._over = False
        try:
            self._file, self._size = _open(self.path)
        except OSError as exc:
            raise ConfigError(
                [Problem(self.path, "", f"cannot be recorded to: {exc.strerror}", "name another file")]
            ) from exc
        try:
            self._put(header(self._keys))
        except OSError as exc:
            self.close()
            raise ConfigError([Problem(self.path, "", f"cannot be written: {exc.strerror}", "make room")]) from exc

    def close(self) -> None:
        """Close the file; what was not written is lost."""
        self._over = True
        file, self._file = self._file, -1
        if file >= 0:
            with suppress(OSError):
                os.close(file)

    def conceal(self, sources: Iterable[Source]) -> None:
        """Remove what is secret in these configurations too, from here on."""
        more = secrets_of(sources)
        if not more <= self._values:
            self._values |= more
            self._redactor = Redactor(self._values, self._keys)

    def layer(self, source: Source, own: Own) -> Layer:
        """The layer that keeps the calls of `source`."""
        self.conceal([source])
        self._prefixes[source.name] = source.prefix
        return layers.record(self.keep, source.name, own=own, prefix=source.export_prefix)

    def keep(self, taken: Taken) -> None:
        """Have one call written, soon."""
        if self._over:
            self.counters.add("record.dropped")
            return
        size = min(taken.size, MAX_LINE)
        if self._waiting + size > MAX_WAITING:
            self.counters.add("record.dropped")
            return
        self._waiting += size
        self._taken.append(taken)
        self._wake.set()

    async def run(self, registry: Registry, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is kept, and what sources list, until cancelled; then the rest, and close the file."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, registry)
                task_status.started()
                while True:
                    await self._wake.wait()
                    await trio.sleep(GATHER)
                    await self._write()
        finally:
            with trio.move_on_after(2 * PATIENCE, shield=True):
                self._look(registry)
                await self._write()
            self.close()

    async def _watch(self, registry: Registry) -> None:
        """Keep up with what sources list."""
        while True:
            self._look(registry)
            await registry.changed(registry.snapshot.version)

    def _look(self, registry: Registry) -> None:
        for name, view in registry.snapshot.sources.items():
            before = self._seen.get(name)
            if view.greeting is not None and (
                before is None or (view.lists, view.greeting) != (before.lists, before.greeting)
            ):
                self._seen[name] = view
                self._lists[name] = view, self._prefixes.get(name)
                self._wake.set()

    async def _write(self) -> None:
        """Write what waits. Not cut off in the middle; a disk that hangs ends the recording."""
        self._wake = trio.Event()
        lists, self._lists = self._lists, {}
        taken, self._taken = self._taken, []
        self._waiting = 0
        if self._over or not (lists or taken):
            return
        done = False
        with trio.move_on_after(PATIENCE, shield=True):
            await trio.to_thread.run_sync(
                self._write_now, list(lists.values()), taken, self._redactor, abandon_on_cancel=True
            )
            done = True
        noted, self._noted = self._noted, []
        for each in noted:
            self.counters.add(each)
        if not done:
            self._file = -1  # the thread that hangs has it still
            self._end("the disk takes nothing")
            self.counters.add("record.failed")

    def _write_now(self, lists: list[tuple[SourceView, str | None]], taken: list[Taken], redactor: Redactor) -> None:
        """In a thread: remove secrets, and append."""
        for view, prefix in lists:
            self._append(catalogue_line(_catalogue(view, prefix), redactor))
        for each in taken:
            try:
                line = call_line(each, redactor)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._noted.append("record.dropped")
                continue
            self._append(line)
            if each.size > MAX_LINE:
                self._noted.append("record.too_long")

    def _append(self, line: bytes) -> None:
        if self._over:
            self._noted.append("record.dropped")
            return
        if self._size + len(line) > self._most:
            self._over = True
            self._noted.append("record.full")
            log.warning("recording is full path=%s bytes=%s", self.path, self._size)
            return
        try:
            self._put(line)
        except OSError as exc:
            self._end(exc.strerror or "unknown")
            self._noted.append("record.failed")
            return
        self._noted.append("record.lines")

    def _put(self, line: bytes) -> None:
        """Append a whole line, or nothing."""
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _end(self, why: str) -> None:
        self._over = True
        log.warning("recording ends path=%s error=%s", self.path, why)


def _catalogue(view: SourceView, prefix: str | None) -> Catalogue:
    greeting = view.greeting
    assert greeting is not None  # who has none is not kept
    return Catalogue(
        view.name, prefix, dict(greeting.capabilities), dict(greeting.server_info), greeting.instructions,
        {
            kind: [parse(item.encode(item.key)) for item in view.listed(kind).items]  # type: ignore[arg-type]  # a kind
            for kind in KINDS
        },
    )  # fmt: skip


def _open(path: str) -> tuple[int, int]:
    """The file, and how long it is without a line that was torn.

    Raises:
        ConfigError: it holds something else.
        OSError: it cannot be opened.

    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is no plain file")
        size = os.fstat(file).st_size
        if size:
            check_head(os.pread(file, 64 * 1024, 0).partition(b"\n")[0], path)
            whole = _whole(file, size)
            if whole < size:  # else another process, which is being taken over, may be writing still
                os.ftruncate(file, whole)
            size = whole
        os.fchmod(file, 0o600)
    except BaseException:
        os.close(file)
        raise
    return file, size


def _whole(file: int, size: int) -> int:
    """The length up to the end of the last whole line."""
    end = size
    while end:
        start = max(0, end - 64 * 1024)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
