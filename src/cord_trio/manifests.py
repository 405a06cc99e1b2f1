"""What sources listed the last time, in a folder: their tools are listed before they run.

One file for each source and way to start it, so that what another command listed is never taken for its. A file
that cannot be used is as good as none; it is replaced as a whole, so that no crash leaves half of one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio
from msgspec import Raw

from cord_trio.client import CAPABILITY, DECODERS
from cord_trio.config import Http, InProcess, Stdio, WebSocket
from cord_trio.errors import Malformed
from cord_trio.handshake import Greeting
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.eras import ERAS
from cord_trio.snapshot import KINDS, Listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.config import Source
    from cord_trio.counters import Counters
    from cord_trio.snapshot import Kind

log = logging.getLogger("cord_trio.link")

SCHEMA: Final = 1
"""Of the files. Those of another one are not read."""

MAX_MANIFEST: Final = 64 * 1024 * 1024
"""Bytes of one file; longer lists are not kept."""

GATHER: Final = 0.1
"""Seconds in which further changes of the lists join the first, to be written together."""

UNFINISHED: Final = 60.0
"""Seconds after which a file that never got its name is somebody's who died over it."""

MEMBERS: Final[Mapping[Kind, str]] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "templates": "resourceTemplates",
}
"""Under which member a page of each kind holds its items."""


class _File(msgspec.Struct, frozen=True):
    schema: int
    source: str
    digest: str
    revision: str
    modern: bool
    capabilities: dict[str, Any]
    server_info: dict[str, Any]
    instructions: str | None
    lists: dict[str, Raw]


@attrs.frozen
class Manifest:
    """What a source listed, and what it said of itself."""

    greeting: Greeting
    lists: Mapping[Kind, Listed]


def state_folder(configured: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where what outlives a fabric is kept (XDG base directories, XDG_STATE_HOME)."""
    if configured:
        return Path(configured)
    given = environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored, says its specification.
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "cord_trio"


def digest(source: Source) -> str:
    """Names how `source` is started or reached, with all that it is given; secrets cannot be told from it."""
    way: list[object]
    match source:
        case Stdio():
            way = [source.command, source.args, sorted(source.env.items()), source.cwd]
        case Http():
            way = [source.transport, source.url, sorted(source.headers.items())]
        case WebSocket():
            way = [source.url, sorted(source.headers.items())]
        case InProcess():
            serve = source.serve
            way = [getattr(serve, "__module__", ""), getattr(serve, "__qualname__", type(serve).__qualname__)]
    told = [type(source).__name__, source.name, source.era, way]
    return hashlib.sha256(jsonrpc.encode(told)).hexdigest()[:32]


class Stored:
    """The stored manifest of one source.

    Attributes:
        path: of its file.

    """

    def __init__(self, source: Source, folder: Path, counters: Counters) -> None:
        self._source = source
        self._counters = counters
        self._digest = digest(source)
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", source.name)[:64]
        self.path = folder / "manifests" / f"{plain}-{self._digest[:12]}.json"
        self._lists: dict[Kind, Listed] = {}
        self._greeting: Greeting | None = None
        self._changed = trio.Event()
        self._written = b""

    def read(self) -> tuple[Manifest | None, str]:
        """What is stored, None if nothing can be used, and a note if something is there all the same."""
        try:
            # Without waiting: whatever stands there, such as a pipe that nobody writes to, must not hold up all others.
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                about = os.fstat(fd)
                if not stat.S_ISREG(about.st_mode):
                    return None, self._ignored("is no file")
                if about.st_uid != os.getuid():
                    return None, self._ignored("belongs to another user")
                with open(fd, "rb", closefd=False) as file:
                    data = file.read(MAX_MANIFEST + 1)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None, ""
        except OSError as exc:
            return None, self._ignored(f"cannot be read: {exc.strerror}")
        try:
            stored = msgspec.json.decode(data, type=_File)
            lists: dict[Kind, Listed] = {}
            for kind in KINDS:
                if kind in stored.lists:
                    page = DECODERS[kind](Raw(b'{"%b":%b}' % (MEMBERS[kind].encode(), stored.lists[kind])))
                    if page.skipped:  # we store no item that cannot be used
                        return None, self._ignored("is damaged")
                    lists[kind] = Listed(page.items)
        except (msgspec.MsgspecError, Malformed, UnicodeDecodeError, RecursionError):
            return None, self._ignored("is damaged")
        era = ERAS.get(stored.revision)
        if stored.schema != SCHEMA:
            return None, self._ignored(f"is of schema {stored.schema}, not {SCHEMA}")
        if (stored.source, stored.digest) != (self._source.name, self._digest):
            return None, self._ignored("is that of another source")
        if era is None or era.modern is not stored.modern:
            return None, self._ignored("is damaged")
        greeting = Greeting(
            stored.revision, stored.modern, stored.capabilities, stored.server_info, stored.instructions
        )  # fmt: skip
        self._written = data
        return Manifest(greeting, lists), ""

    def told(self, greeting: Greeting, lists: Mapping[Kind, Listed]) -> None:
        """Have `run` write these lists, beside those that were told of before."""
        self._greeting = greeting
        self._lists.update(lists)
        self._changed.set()

    async def run(self) -> None:
        """Write what was told, until cancelled. What cannot be written is counted and logged, no more."""
        while True:
            await self._changed.wait()
            await trio.sleep(GATHER)
            self._changed = trio.Event()
            data = self._encoded()
            if data == self._written:
                continue
            try:
                if len(data) > MAX_MANIFEST:
                    raise OSError(0, f"it is longer than {MAX_MANIFEST} bytes")
                # Abandoned if cancelled: a disk that hangs must not hold up the end, and the file is whole or old.
                await trio.to_thread.run_sync(_replace, self.path, data, abandon_on_cancel=True)
            except OSError as exc:
                self._counters.add("manifests.not_written")
                log.warning(
                    "manifest not written source=%s path=%s error=%s", self._source.name, self.path, exc.strerror
                )
            else:
                self._written = data
                self._counters.add("manifests.written")

    def _encoded(self) -> bytes:
        greeting = self._greeting
        assert greeting is not None  # `told` comes first
        lists: dict[str, Raw] = {
            kind: Raw(b"[%b]" % b",".join([item.encode(item.key) for item in listed.items]))
            for kind, listed in self._lists.items()
            if CAPABILITY[kind] in greeting.capabilities
        }
        return msgspec.json.encode(
            _File(
                SCHEMA, self._source.name, self._digest, greeting.revision, greeting.modern,
                dict(greeting.capabilities), dict(greeting.server_info), greeting.instructions, lists,
            )
        )  # fmt: skip

    def _ignored(self, why: str) -> str:
        self._counters.add("manifests.ignored")
        log.warning("manifest ignored source=%s path=%s why=%s", self._source.name, self.path, why)
        return f"the stored manifest {self.path} {why}: it is not used"


def _replace(path: Path, data: bytes) -> None:
    """Put `data` into the file at `path`, all or nothing. It is nobody else's: a list can tell much of its owner."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):  # by who was killed over it
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > UNFINISHED:
                left.unlink()
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
