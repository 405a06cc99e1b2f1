"""Secrets out of JSON values: those that are known, and those that their place gives away. Pure.

What is removed errs on the side of removing: a recording is given to others.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec

from cord_trio.config import Http, Stdio, WebSocket
from cord_trio.protocol.jsonrpc import encode, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cord_trio.config import Source
    from cord_trio.protocol.jsonrpc import Json

REMOVED: Final = "[removed]"
"""Stands where a secret was."""

SECRET_KEYS: Final = (
    "password", "passwd", "passphrase", "token", "secret", "authorization", "apikey", "cookie", "credential",
    "privatekey", "accesskey",
)  # fmt: skip
"""Parts of names whose values are secret, without `_` and `-`, lower case."""

SHORTEST: Final = 6
"""Characters from which on a known secret is removed wherever it stands; a shorter one only where it stands alone."""

MAX_INNER: Final = 1024 * 1024
"""Characters of a text that is read as JSON to look for secrets in it."""

_SCHEMAS: Final = frozenset({"inputSchema", "outputSchema", "requestedSchema"})
_SAMPLES: Final = frozenset({"default", "const", "examples", "enum"})
_NOT_KEY: Final = re.compile(r"[_\-.\s]")
_SPELT: Final = (*SECRET_KEYS, "api_key", "api-key", "private_key", "private-key", "access_key", "access-key")
# What follows a word, and in it the secret. Each part is bounded, so that no text takes long.
_VALUE: Final = re.compile(
    r"[\w-]{0,40}[\"']?\s{0,8}[:=]\s{0,8}[\"']?(\[removed\]|(?:(?:bearer|basic)\s{1,8})?[^\s\"',;&<>}\])]+)",
    re.IGNORECASE,
)
_LINE: Final = re.compile(r"\s{0,8}:\s{0,8}([^\r\n\"]+)")
_SCHEME: Final = re.compile(r"\s{1,8}(\[removed\]|[A-Za-z0-9._~+/=-]{8,})")
_QUERY: Final = re.compile(r"(?:[\w-]{0,40})=(\[removed\]|[^&\s#\"']+)")
_USERINFO: Final = re.compile(r"(://)[^/\s@\"'<>]{1,256}@")
_FOLLOWED: Final = (
    *(("cookie", _LINE), ("authorization", _LINE), ("bearer", _SCHEME), ("basic", _SCHEME)),
    *((f"{mark}{word}", _QUERY) for mark in "?&" for word in ("sig", "key", "auth", "code", "x-amz-")),
)


class Redactor:
    """Removes secrets.

    Args:
        values: that are secret wherever they are.
        keys: further parts of names whose values are secret.

    """

    def __init__(self, values: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        known = {each for value in values for each in _spellings(value)}
        self._short = frozenset(each for each in known if len(each) < SHORTEST)
        long = sorted((each for each in known if len(each) >= SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, long))) if long else None
        keys = tuple(keys)
        more = [each for each in map(_plain, keys) if each]
        self._keys = re.compile("|".join(map(re.escape, (*SECRET_KEYS, *more))))
        self._words = (*((each, _VALUE) for each in (*_SPELT, *(key.lower() for key in keys if key))), *_FOLLOWED)

    def json(self, value: Json, *, secret: bool = False, schema: bool = False) -> Json:
        """`value` without secrets; all of it is one if `secret`. Within a `schema` names say nothing of values."""
        if isinstance(value, dict):
            return {
                self.text(key): self._member(key, each, secret=secret, schema=schema) for key, each in value.items()
            }
        if isinstance(value, list):
            return [self.json(each, secret=secret, schema=schema) for each in value]
        if secret and not schema and value is not None and not isinstance(value, bool):
            return REMOVED
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float) and self._known is not None and self._known.fullmatch(str(value)):
            return REMOVED
        return value

    def text(self, text: str) -> str:
        """`text` without secrets."""
        if text in self._short:
            return REMOVED
        start = text[:64].lstrip()[:1]
        if start in ("{", "[") and len(text) <= MAX_INNER:
            try:
                inner = parse(text.encode())
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                pass
            else:
                cleared = self.json(inner)
                return text if cleared == inner else encode(cleared).decode()
        if self._known is not None:
            text = self._known.sub(REMOVED, text)
        if "://" in text:
            text = _USERINFO.sub(rf"\1{REMOVED}@", text)
        return self._without_named(text)

    def is_secret(self, key: str) -> bool:
        """Whether the value of a member of this name is a secret."""
        return self._keys.search(_plain(key)) is not None

    def _without_named(self, text: str) -> str:
        """`text` without what follows words that name secrets.

        Words are looked for one by one: many times as fast as by one expression, which would hold up other threads.
        """
        low = text.lower()
        if len(low) != len(text):  # some letters are two in lower case; then their places would not be the same
            low = "".join(each.lower() if each.isascii() else each for each in text)
        spans: list[tuple[int, int]] = []
        for word, follows in self._words:
            at = low.find(word)
            while at >= 0:
                found = follows.match(text, at + len(word))
                if found is not None:
                    spans.append(found.span(1))
                at = low.find(word, at + 1 if found is None else found.end())
        if not spans:
            return text
        parts: list[str] = []
        done = 0
        for start, end in sorted(spans):
            if start >= done:
                parts += (text[done:start], REMOVED)
            done = max(done, end)
        return "".join((*parts, text[done:]))

    def _member(self, key: str, value: Json, *, secret: bool, schema: bool) -> Json:
        if schema:
            # Below a property that is a secret, what shows one of its values is one.
            if secret and key in _SAMPLES:
                return self.json(value, secret=True)
            return self.json(value, secret=secret or self.is_secret(key), schema=True)
        if key in _SCHEMAS and isinstance(value, dict):
            return self.json(value, schema=True)
        if self.is_secret(key) and not (_plain(key).endswith(("token", "tokens")) and _is_number(value)):
            secret = True  # but for counts of tokens
        return self.json(value, secret=secret)


def secrets_of(sources: Iterable[Source]) -> set[str]:
    """What is secret in the configuration of `sources`: variables, headers, and what URLs and arguments carry."""
    found: set[str] = set()
    for source in sources:
        match source:
            case Stdio():
                found.update(source.env.values())
                found.update(_of_arguments(source.args))
            case Http():
                for url in (source.url, *source.urls):
                    found.update(_of_url(url))
                found.update(_of_headers(source.headers.values()))
            case WebSocket():
                found.update(_of_url(source.url))
                found.update(_of_headers(source.headers.values()))
    return {each for each in found if each.strip()}


def _of_arguments(args: tuple[str, ...]) -> Iterator[str]:
    keys = Redactor()
    before = ""
    for each in args:
        name, equals, value = each.partition("=")
        if "://" in each:
            yield from _of_url(value if equals and "://" in value else each)
        if equals and keys.is_secret(name):
            yield value
        elif before.startswith("-") and "=" not in before and keys.is_secret(before):
            yield each
        before = each


def _of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        yield from (each for each in (parts.password,) if each)
        if parts.username and not parts.password:
            yield parts.username
        yield from (value for _, value in parse_qsl(parts.query))
    except ValueError:
        return


def _of_headers(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield value
        scheme, space, rest = value.strip().partition(" ")
        if space and rest.strip():
            yield rest.strip()
            if scheme.lower() == "basic":
                try:
                    yield base64.b64decode(rest.strip()).decode().partition(":")[2]
                except ValueError:
                    continue


def _spellings(value: str) -> Iterator[str]:
    """How a secret may be written: as it is, and within a URL."""
    if value:
        yield value
        yield quote(value, safe="")


def _plain(key: str) -> str:
    return _NOT_KEY.sub("", key).lower()


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
