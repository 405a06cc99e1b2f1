"""The file of a recording: JSON lines. Pure.

The first line says what it is; then come, as they happen, what a source lists (the last line of each source counts)
and one line for each call. A last line that is torn was being written when its process died.
"""

from __future__ import annotations

from collections import deque
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import msgspec
from msgspec import Raw

from cord_trio.call import Complete, Error, InputRequired, Task
from cord_trio.errors import CallError, ConfigError, Problem
from cord_trio.protocol.jsonrpc import parse
from cord_trio.protocol.uris import import_uri, relink
from cord_trio.redacting import REMOVED, Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cord_trio.layers.record import Taken

VERSION: Final = 1
"""Of the format."""

MAX_LINE: Final = 1024 * 1024
"""Bytes of one call that is recorded with all it holds: reading a longer one for secrets would hold up the loop."""

MAX_SHOWN: Final = 200
"""Characters of what was asked, in an error."""

NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Under which member a request says what it is about."""

KINDS: Final = {"tools": "tools", "prompts": "prompts", "resources": "resources", "templates": "resourceTemplates"}
"""What is listed, and as which member."""

Json: TypeAlias = Any
_encode = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="sorted").encode


class Catalogue(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one source lists and says of itself; `lists` by the words of `KINDS`."""

    source: str
    prefix: str | None = None
    capabilities: dict[str, Json] = {}
    server_info: dict[str, Json] = {}
    instructions: str | None = None
    lists: dict[str, list[Json]] = {}


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call.

    Attributes:
        outcome: result, error, input_required, task; failed for no answer, cancelled for one that its caller gave up.
        value: the result, or the error's members.
        events: seconds after the start, method, params.
        executed: what was known of it.

    """

    source: str
    method: str
    outcome: str
    value: Json
    name: str | None = None
    params: dict[str, Json] = {}
    events: list[tuple[float, str, Json]] = []
    seconds: float = 0.0
    executed: str = "yes"


class _Header(msgspec.Struct, frozen=True):
    cord_trio: str
    version: int
    keys: tuple[str, ...] = ()


def header(keys: Iterable[str] = ()) -> bytes:
    """The first line; `keys` are further names of secrets, which are removed from what is asked later too."""
    return _encode(_Header("recording", VERSION, tuple(keys))) + b"\n"


def catalogue_line(catalogue: Catalogue, redactor: Redactor) -> bytes:
    """A line of the file, without secrets. Names of tools and prompts stay: they are what is called."""
    lists: dict[str, list[Json]] = {}
    for kind, items in catalogue.lists.items():
        lists[kind] = [
            {**redactor.json(item), **({"name": item["name"]} if kind in ("tools", "prompts") else {})}
            for item in items
        ]
    told = msgspec.structs.replace(
        catalogue, lists=lists, server_info=redactor.json(catalogue.server_info),
        instructions=None if catalogue.instructions is None else redactor.text(catalogue.instructions),
    )  # fmt: skip
    return _encode(told) + b"\n"


def call_line(taken: Taken, redactor: Redactor) -> bytes:
    """A line of the file, without secrets; what is too long is replaced by an error that says so."""
    if taken.size > MAX_LINE:
        told: tuple[str, Json, str] = "failed", {"message": f"longer than {MAX_LINE} bytes, so not recorded"}, "unknown"
        params: dict[str, Json] = {}
        if sum(len(bytes(value)) for value in taken.params.values()) <= MAX_LINE:
            params = {name: parse(value) for name, value in taken.params.items()}
    else:
        told = _told(taken)
        params = {name: parse(value) for name, value in taken.params.items()}
    outcome, value, executed = told
    name = taken.name if taken.method in NAMED else None
    if name is not None and taken.method == "resources/read":
        name = redactor.text(name)
    line = Line(
        taken.source, taken.method, outcome, redactor.json(value), name, redactor.json(params),
        [(round(at, 6), kind, redactor.json(parse(about))) for at, kind, about in taken.events]
        if taken.size <= MAX_LINE else [],
        round(taken.seconds, 6), executed,
    )  # fmt: skip
    return _encode(line) + b"\n"


def _told(taken: Taken) -> tuple[str, Json, str]:
    outcome = taken.outcome
    if isinstance(outcome, Complete):
        return "result", parse(_own(taken, outcome.result)), "yes"
    if isinstance(outcome, InputRequired):
        return "input_required", parse(outcome.result), "unknown"
    if isinstance(outcome, Task):
        return "task", parse(outcome.result), "yes"
    if isinstance(outcome, Error):
        data = {"data": parse(outcome.data)} if outcome.data else {}
        return "error", {"code": outcome.code, "message": outcome.message, **data}, "yes"
    if isinstance(outcome, CallError):
        return "failed", {"message": str(outcome), "kind": type(outcome).__name__}, outcome.executed
    if isinstance(outcome, Exception):
        return "failed", {"message": type(outcome).__name__, "kind": type(outcome).__name__}, "unknown"
    return "cancelled", {"message": "its caller gave it up"}, "unknown"


def _own(taken: Taken, result: Raw) -> Raw:
    """The result with the server's own URIs again."""
    if not taken.prefix:
        return result

    def own(uri: str) -> str:
        found = import_uri((taken.prefix,), uri)
        return uri if found is None else found[1]

    return relink(taken.method, result, own)


@attrs.define(eq=False)
class Recorded:
    """One source of a recording, which answers what it was asked then.

    Args:
        catalogue: what it lists.
        lines: its calls, in recorded order.
        redactor: of what is asked now, so that it can be found.
        strict: whether the last answer to a question is given once only.

    """

    catalogue: Catalogue
    lines: list[Line]
    redactor: Redactor = attrs.field(factory=Redactor)
    strict: bool = False
    _left: dict[bytes, deque[Line]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for line in sorted(self.lines, key=_is_cancelled):
            left = self._left.setdefault(_key(line.method, line.name, line.params), deque())
            if not (left and _is_cancelled(line)):  # the other half of a hedge, or of a race, is no answer
                left.append(line)

    def anew(self, *, strict: bool) -> Recorded:
        """The same, of which nothing has been asked yet."""
        return Recorded(self.catalogue, self.lines, self.redactor, strict)

    def answer(self, method: str, name: str | None, params: Mapping[str, Json]) -> Line:
        """What it answered to this then; the next time what came next, and the last one for ever unless strict.

        Raises:
            LookupError: it was not asked this; says what it was asked instead.

        """
        if name is not None and method == "resources/read":
            name = self.redactor.text(name)
        asked = self.redactor.json(dict(params))
        left = self._left.get(_key(method, name, asked))
        if left is None:  # secrets that only the recording process knew are holes in what it kept
            alike = (line for line in self.lines if line.method == method and fits(line.name, name))
            found = next((line for line in alike if fits(line.params, asked)), None)
            if found is None:
                raise LookupError(self._unknown(method, name, asked))
            left = self._left[_key(method, found.name, found.params)]
        if not left:
            raise LookupError(f"{_shown(method, name, asked)} was not recorded as often as this")
        return left.popleft() if self.strict or len(left) > 1 else left[0]

    def _unknown(self, method: str, name: str | None, params: Json) -> str:
        what = _shown(method, name, params)
        same = dict.fromkeys(_shown(line.method, line.name, line.params) for line in self.lines)
        near = get_close_matches(what, list(same)[:MAX_SHOWN], 1, 0.3)
        hint = f"; the nearest that was: {near[0]}" if near else "; no call of it was" if not same else ""
        return f"{what} was not recorded{hint}"


def fits(recorded: Json, given: Json) -> bool:
    """Whether `given` may be what was recorded, secrets apart."""
    if isinstance(recorded, str) and REMOVED in recorded:
        if recorded == REMOVED:
            return True
        if not isinstance(given, str):
            return False
        first, *middle, last = recorded.split(REMOVED)
        if not given.startswith(first) or not given.endswith(last):
            return False
        at = len(first)
        for part in middle:
            at = given.find(part, at)
            if at < 0:
                return False
            at += len(part)
        return at <= len(given) - len(last)
    if isinstance(recorded, dict) and isinstance(given, dict):
        return recorded.keys() == given.keys() and all(fits(each, given[key]) for key, each in recorded.items())
    if isinstance(recorded, list) and isinstance(given, list):
        return len(recorded) == len(given) and all(map(fits, recorded, given))
    return type(recorded) is type(given) and bool(recorded == given)


def decode(lines: Iterable[bytes], file: str) -> dict[str, Recorded]:
    """The sources of a recording, by name.

    Raises:
        ConfigError: it is none, is of a newer format, or is damaged before its last line.

    """
    wrong = partial(_wrong, file)
    catalogues: dict[str, Catalogue] = {}
    calls: dict[str, list[Line]] = {}
    keys: set[str] = set()
    number = 0
    for number, text in enumerate(lines, 1):
        if number == 1:
            keys.update(_head(text, wrong).keys)
            continue
        if not text.endswith(b"\n"):
            break  # torn
        try:
            if text.startswith(b'{"cord_trio":'):
                keys.update(msgspec.json.decode(text, type=_Header).keys)
            elif b'"outcome":' in text and b'"method":' in text:
                line = msgspec.json.decode(text, type=Line)
                calls.setdefault(line.source, []).append(line)
            else:
                catalogue = msgspec.json.decode(text, type=Catalogue)
                catalogues[catalogue.source] = catalogue
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise wrong(f"line {number} is damaged", "remove that line") from None
    if not number:
        raise wrong("is empty", "name a file that `serve --record` wrote")
    redactor = Redactor(keys=keys)
    return {
        name: Recorded(catalogues.get(name, Catalogue(name)), calls.get(name, []), redactor)
        for name in dict.fromkeys((*catalogues, *calls))
    }


def _head(text: bytes, wrong: partial[ConfigError]) -> _Header:
    try:
        head = msgspec.json.decode(text, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        head = _Header("", 0)
    if head.cord_trio != "recording":
        raise wrong("is no recording", "name a file that `serve --record` wrote")
    if head.version > VERSION:
        raise wrong(f"is a recording of format {head.version}, and this release reads {VERSION}", "use a newer release")
    return head


def check_head(text: bytes, file: str) -> None:
    """Raise `ConfigError` unless `text` is the first line of a recording that can be read here."""
    _head(text, partial(_wrong, file))


def _wrong(file: str, what: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(file, "", what, remedy)])


def _is_cancelled(line: Line) -> bool:
    return line.outcome == "cancelled"


def _key(method: str, name: str | None, params: Mapping[str, Json]) -> bytes:
    return _sorted((method, name, params))


def _shown(method: str, name: str | None, params: Json) -> str:
    text = f"{method} {name or ''} {_sorted(params).decode()}".replace("  ", " ")
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
