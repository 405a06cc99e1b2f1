"""Buckets in this process: as much of JetStream as `nats.kv` asks of it."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import attrs
import trio

from cord_trio.nats.wire import encode_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.nats.wire import Message

Json: TypeAlias = Any

NOT_FOUND: Final = b"NATS/1.0 404 Message Not Found\r\n\r\n"

_WRONG_REVISION: Final = {"code": 400, "err_code": 10071, "description": "wrong last sequence"}
_NO_STREAM: Final = {"code": 404, "err_code": 10059, "description": "stream not found"}
_UNKNOWN: Final = {"code": 400, "err_code": 10025, "description": "bad request"}


class Broker(Protocol):
    """Whom the streams belong to."""

    def publish(self, subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> None: ...
    def deliver(self, to: str, subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> None: ...
    def listened_to(self, subject: str) -> bool: ...
    def at(self, time: float, act: Callable[[], None]) -> None: ...


@attrs.define(eq=False)
class _Stored:
    """The last message of one subject."""

    revision: int
    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def marker(self) -> bool:
        return "KV-Operation" in self.headers or "Nats-Marker-Reason" in self.headers


@attrs.define(eq=False)
class _Consumer:
    """One watch."""

    inbox: str
    filter: str
    heartbeat: float
    count: int = 0


class _Stream:
    def __init__(self, name: str, created: str, config: Json) -> None:
        self.name = name
        self.created = created
        self.config = config
        self.last = 0
        self.messages: dict[str, _Stored] = {}
        self.consumers: dict[str, list[_Consumer]] = {}  # by what they ask for: many ask for the same


class LocalStreams:
    """All buckets of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._streams: dict[str, _Stream] = {}
        self._made = 0

    def lose(self, bucket: str) -> None:
        """Forget a bucket and all it held, as a broker does whose disk is lost."""
        self._streams.pop(f"KV_{bucket}", None)

    def take(self, message: Message) -> bool:
        """Do what a message asks; False if nobody listens to it."""
        subject = message.subject
        if subject.startswith("$KV."):
            stream = self._streams.get(f"KV_{subject.split('.')[1]}")
            if stream is not None:
                self._answer(message, self._put(stream, message))
            return stream is not None
        _, _, kind, verb, *rest = subject.split(".")
        if (kind, verb) == ("DIRECT", "GET"):
            return self._get(message, rest[0], ".".join(rest[1:]))
        name = rest[0] if rest else ""
        stream = self._streams.get(name)
        match kind, verb:
            case "STREAM", "CREATE":
                if stream is None:
                    self._made += 1
                    stream = self._streams[name] = _Stream(name, f"local {self._made}", json.loads(message.data))
                self._answer(message, {"config": stream.config, "created": stream.created})
            case _ if stream is None:
                self._answer(message, {"error": _NO_STREAM})
            case "STREAM", "INFO":
                self._answer(message, {"config": stream.config, "created": stream.created})
            case "STREAM", "DELETE":
                del self._streams[name]
                self._answer(message, {"success": True})
            case "CONSUMER", "CREATE":
                self._consume(stream, message)
            case _:
                self._answer(message, {"error": _UNKNOWN})
        return True

    def _answer(self, message: Message, answer: Json) -> None:
        if message.reply:
            self._broker.publish(message.reply, json.dumps(answer).encode())

    def _get(self, message: Message, name: str, subject: str) -> bool:
        stream = self._streams.get(name)
        if stream is None:
            return False
        stored = stream.messages.get(subject)
        if stored is None:
            self._broker.publish(message.reply, b"", head=NOT_FOUND)
        else:
            told = {**stored.headers, "Nats-Subject": subject, "Nats-Sequence": str(stored.revision)}
            self._broker.publish(message.reply, stored.data, head=encode_headers(told))
        return True

    def _put(self, stream: _Stream, message: Message) -> Json:
        headers = dict(message.headers())
        expected = headers.pop("Nats-Expected-Last-Subject-Sequence", None)
        before = stream.messages.get(message.subject)
        if expected is not None and int(expected) != (before.revision if before is not None else 0):
            return {"error": _WRONG_REVISION}
        self._store(stream, message.subject, headers, message.data)
        return {"stream": stream.name, "seq": stream.last}

    def _store(self, stream: _Stream, subject: str, headers: dict[str, str], data: bytes) -> None:
        stream.last += 1
        stored = stream.messages[subject] = _Stored(stream.last, subject, headers, data)
        ttl = headers.get("Nats-TTL")
        if ttl is not None:
            due = trio.current_time() + float(ttl.removesuffix("s"))
            self._broker.at(due, partial(self._expire, stream, stored))
        for pattern, consumers in stream.consumers.items():
            if _matches(pattern, subject):
                for consumer in consumers:
                    self._send(stream, consumer, stored, 0)

    def _expire(self, stream: _Stream, stored: _Stored) -> None:
        if stream.messages.get(stored.subject) is not stored:
            return  # it was put again since
        del stream.messages[stored.subject]
        if not stored.marker:
            keep = stream.config["subject_delete_marker_ttl"] // 10**9
            marker = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{keep}s"}
            self._store(stream, stored.subject, marker, b"")

    def _consume(self, stream: _Stream, message: Message) -> None:
        config = json.loads(message.data)["config"]
        consumer = _Consumer(config["deliver_subject"], config["filter_subject"], config["idle_heartbeat"] / 10**9)
        start = config.get("opt_start_seq", 0)
        found = [one for one in stream.messages.values() if _matches(consumer.filter, one.subject)]
        found = sorted((one for one in found if one.revision >= start), key=lambda one: one.revision)
        self._answer(message, {"num_pending": len(found)})
        for left, stored in zip(range(len(found) - 1, -1, -1), found, strict=True):
            self._send(stream, consumer, stored, left)
        stream.consumers.setdefault(consumer.filter, []).append(consumer)
        self._beat(stream, consumer, -1)

    def _beat(self, stream: _Stream, consumer: _Consumer, count: int) -> None:
        """Say that nothing happened, if nothing did; forget a watch that nobody listens to."""
        if not self._broker.listened_to(consumer.inbox) or self._streams.get(stream.name) is not stream:
            alike = stream.consumers[consumer.filter]
            alike.remove(consumer)
            if not alike:
                del stream.consumers[consumer.filter]
            return
        if count == consumer.count:
            idle = f"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {count}\r\n\r\n"
            self._broker.publish(consumer.inbox, b"", head=idle.encode())
        again = partial(self._beat, stream, consumer, consumer.count)
        self._broker.at(trio.current_time() + consumer.heartbeat, again)

    def _send(self, stream: _Stream, consumer: _Consumer, stored: _Stored, left: int) -> None:
        consumer.count += 1
        reply = f"$JS.ACK.{stream.name}.local.1.{stored.revision}.{consumer.count}.0.{left}"
        head = encode_headers(stored.headers) if stored.headers else b""
        self._broker.deliver(consumer.inbox, stored.subject, stored.data, reply=reply, head=head)


def _matches(pattern: str, subject: str) -> bool:
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)
