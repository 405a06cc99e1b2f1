"""A bucket of keys in JetStream: put, compare and set, get, delete, keys that end by themselves, and watching.

Source: ADR-8 (key-value stores), ADR-43 (time to live of messages), ADR-48 (markers).
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs
import msgspec

from cord_trio.errors import BadReply
from cord_trio.mesh_errors import Conflict, NoResponders, StoreFailed
from cord_trio.nats.watch import Watch
from cord_trio.nats.wire import check_subject

if TYPE_CHECKING:
    from collections.abc import Generator

    from cord_trio.nats.client import Nats
    from cord_trio.nats.wire import Message

Json: TypeAlias = Any

log = logging.getLogger("cord_trio.nats")

MARKERS: Final = 60
"""Seconds that what is known of a deleted key is kept, so that watchers hear of it."""

LEAST_TTL: Final = 1
"""Seconds after which a key can end at the earliest; whole seconds only."""

NO_STREAM: Final = 10059
"""JetStream's number for a bucket that is not there."""

_EXISTS_OTHERWISE: Final = 10058
_WRONG_REVISION: Final = (10071, 10164)


class Entry(msgspec.Struct, frozen=True):
    """What a key holds.

    Attributes:
        key: its name.
        value: what was put.
        revision: grows with every change of the bucket.

    """

    key: str
    value: bytes
    revision: int


class _Gone(msgspec.Struct, frozen=True):
    """What is left of a key that was deleted."""

    revision: int


@attrs.frozen
class BucketOptions:
    """How a bucket is made, where it is not there yet.

    Attributes:
        replicas: servers that keep it.
        storage: where they do.
        max_bytes: of all keys together; -1 for no bound of its own.
        markers: seconds that deletions are known.

    """

    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    max_bytes: int = -1
    markers: int = MARKERS


class Bucket:
    """A bucket, and the way to it.

    Attributes:
        name: of the bucket.
        created: when the server says that it was made: revisions start again in one that was made anew.

    """

    def __init__(self, nats: Nats, name: str, options: BucketOptions) -> None:
        self.name = name
        self.created = ""
        self._nats = nats
        self._options = options
        self._prefix = f"$KV.{name}."
        self._stream = f"KV_{name}"
        self._told = False  # that it has fewer replicas than it should

    async def put(self, key: str, value: bytes, *, revision: int | None = None, ttl: int | None = None) -> int:
        """Let `key` hold `value`; returns the new revision.

        Args:
            key: tokens separated by dots, as in subjects.
            value: at most as long as a message.
            revision: only if the key is at this one; 0: only if there is no such key.
            ttl: whole seconds after which the key ends; None for never.

        Raises:
            ValueError: the key or `ttl` cannot be used.
            Conflict: the key is at another revision.
            StoreFailed: the store refuses.
            CallError: as `Nats.request`; `executed` says whether it may have been put.

        """
        headers = {}
        if ttl is not None:
            if ttl < LEAST_TTL or ttl != int(ttl):
                raise ValueError(f"a key ends after whole seconds, {LEAST_TTL} at least; not {ttl}")
            headers["Nats-TTL"] = f"{int(ttl)}s"
        if revision is None:
            return await self._write(key, value, headers)
        try:
            return await self._write(key, value, headers, revision)
        except Conflict as exc:
            conflict = exc
        # What is left of a deleted key has a revision too, which is the one to expect.
        gone = await self._last(key) if not revision else None
        if not isinstance(gone, _Gone):
            raise conflict
        return await self._write(key, value, headers, gone.revision)

    async def create(self, key: str, value: bytes, *, ttl: int | None = None) -> int:
        """Let `key` hold `value` if there is no such key. As `put` with revision 0."""
        return await self.put(key, value, revision=0, ttl=ttl)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Let `key` be no more; only if it is at `revision`, where one is given. Raises as `put` does."""
        await self._write(key, b"", {"KV-Operation": "DEL", "Nats-TTL": f"{self._options.markers}s"}, revision)

    async def get(self, key: str) -> Entry | None:
        """What `key` holds; None if there is no such key. A replica may answer, with what it knows.

        Raises:
            ValueError: the key cannot be used.
            StoreFailed: the store refuses.
            CallError: as `Nats.request`.

        """
        last = await self._last(key)
        return last if isinstance(last, Entry) else None

    @contextmanager
    def watch(self, pattern: str = ">") -> Generator[Watch, None, None]:
        """What happens to keys that match `pattern`, for as long as the block runs."""
        watch = Watch(self._nats, self, check_subject(self._prefix + pattern, pattern=True), len(self._prefix))
        try:
            yield watch
        finally:
            watch.close()

    async def open(self) -> None:
        """Make the bucket, if it is not there.

        Raises:
            StoreFailed: it cannot be made, or one is there that cannot let keys end.
            CallError: as `Nats.request`.

        """
        options = self._options
        config = {
            "name": self._stream,
            "subjects": [f"{self._prefix}>"],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "storage": options.storage,
            "num_replicas": options.replicas,
            "max_bytes": options.max_bytes,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": options.markers * 10**9,
        }
        try:
            info = await self.api(f"STREAM.CREATE.{self._stream}", config)
        except StoreFailed as exc:
            if exc.code != _EXISTS_OTHERWISE:
                raise
            info = await self.api(f"STREAM.INFO.{self._stream}")
        if not (info["config"].get("allow_msg_ttl") and info["config"].get("allow_direct")):
            raise StoreFailed(0, f"bucket {self.name} was made by others, without keys that end; use another name")
        has = info["config"].get("num_replicas", 1)
        if has < options.replicas and not self._told:
            self._told = True
            log.warning(
                "a bucket has fewer replicas than are configured, and keeps them bucket=%s has=%d configured=%d",
                self.name, has, options.replicas,
            )  # fmt: skip
        self.created = info["created"]

    async def api(self, what: str, body: Json = None) -> Json:
        """Ask JetStream itself.

        Raises:
            StoreFailed: it refuses, or there is none.
            BadReply: it does not answer in JSON.
            CallError: as `Nats.request`.

        """
        try:
            data = b"" if body is None else json.dumps(body).encode()
            answer = await self._nats.request(f"$JS.API.{what}", data)
        except NoResponders:
            raise StoreFailed(0, "the NATS server has no JetStream; start it with `jetstream {}`") from None
        return _answer(answer)

    async def _write(self, key: str, value: bytes, headers: dict[str, str], revision: int | None = None) -> int:
        subject = check_subject(self._prefix + key)
        if revision is not None:
            headers = {**headers, "Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            answer = await self._nats.request(subject, value, headers=headers)
        except NoResponders:
            # The bucket was lost. What it holds is kept alive by those who put it there.
            await self.open()
            answer = await self._nats.request(subject, value, headers=headers)
        try:
            return int(_answer(answer)["seq"])
        except StoreFailed as exc:
            if exc.code in _WRONG_REVISION and revision is not None:
                raise Conflict(key, revision, exc.code) from None
            raise

    async def _last(self, key: str) -> Entry | _Gone | None:
        """What is known of `key`."""
        check_subject(self._prefix + key)
        try:
            message = await self._nats.request(f"$JS.API.DIRECT.GET.{self._stream}.{self._prefix}{key}")
        except NoResponders:
            await self.open()
            return None
        if message.status == 404:
            return None
        if message.status:
            raise StoreFailed(message.status, message.description or "no reason given")
        revision = int(message.header("Nats-Sequence") or 0)
        return _Gone(revision) if is_deletion(message) else Entry(key, message.data, revision)


async def open_bucket(nats: Nats, name: str, options: BucketOptions | None = None) -> Bucket:
    """The bucket `name`, which is made if it is not there. Raises as `Bucket.open` does."""
    bucket = Bucket(nats, name, options or BucketOptions())
    check_subject(f"KV_{name}")
    await bucket.open()
    return bucket


def is_deletion(message: Message) -> bool:
    """Whether a message of a bucket says that its key is no more: deleted, or ended."""
    operation = message.header("KV-Operation")
    return operation in ("DEL", "PURGE") or message.header("Nats-Marker-Reason") is not None


def _answer(message: Message) -> Json:
    try:
        answer: Json = json.loads(message.data)
    except ValueError:
        raise BadReply("JetStream did not answer in JSON") from None
    error = answer.get("error")
    if error is not None:
        raise StoreFailed(error.get("err_code", 0), error.get("description", "no reason given"))
    return answer
