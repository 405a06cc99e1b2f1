"""One table of a document, read member by member; each wrong member is noted with its path.

The model is that of cattrs: a failure carries where it happened, and does not stop the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

import attrs

from cord_trio.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cord_trio.errors import ConfigError

Member: TypeAlias = object
"""Any value of a JSON or TOML document."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Members(dict[str, Member]):
    """A JSON object. Of a name that is given twice the first is kept, and `twice` tells it."""

    def __init__(self, pairs: Iterable[tuple[str, Member]] = ()) -> None:
        super().__init__()
        self.twice: list[str] = []
        for name, value in pairs:
            if name in self:
                self.twice.append(name)
            else:
                self[name] = value


def below(path: str, *names: str) -> str:
    """The path of a member below `path`, names quoted where they need it."""
    quoted = [
        name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=not name.isprintable()) for name in names
    ]
    return ".".join([path, *quoted] if path else quoted)


def kind(value: Member) -> str:
    """What `value` is, in a user's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case Mapping():
            return "a table"
        case _:
            return "a date or time"


def _is_short(number: int) -> bool:
    return number.bit_length() <= 128


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for the unknown `name`: the one that was probably meant, else all."""
    names = sorted(known)
    close = get_close_matches(name[:64], names, 1) or get_close_matches(name[:64].lower(), names, 1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


@attrs.define(eq=False)
class Report:
    """The problems found so far in one file, or about one source of it."""

    file: str
    source: str | None = None
    problems: list[Problem] = attrs.field(factory=list)

    def add(self, path: str, what: str, remedy: str) -> None:
        """Note what makes the file, or the source that this report is about, unusable."""
        self.problems.append(Problem(self.file, path, what, remedy, self.source is None, self.source))

    def note(self, path: str, what: str, remedy: str) -> None:
        """Note what was passed over."""
        self.problems.append(Problem(self.file, path, what, remedy, fatal=False))


class Table:
    """Members of a table by name, checked for their type.

    Each reader returns None for a member that is absent (or null), and for one of another type, which it
    reports. `origins` tells what the user called a member that came from another name.
    """

    def __init__(
        self, members: Mapping[str, Member], path: str, report: Report, *, origins: Mapping[str, str] | None = None
    ) -> None:
        self.members = members
        self.path = path
        self.report = report
        self._origins = origins or {}
        self._tell_twice(members, path)

    def at(self, name: str) -> str:
        """The path of a member (or of something within it), as the user wrote it."""
        head, mark, rest = name.partition(".") if "." in name else name.partition("[")
        theirs = self._origins.get(name) or f"{self._origins.get(head, head)}{mark}{rest}"
        return ".".join(part for part in (self.path, theirs) if part)

    def wrong(self, name: str, expected: str) -> None:
        """Report that a member is of the wrong type."""
        self.report.add(self.at(name), f"is {kind(self.members.get(name))}", f"give {expected}")

    def text(self, name: str) -> str | None:
        value = self.members.get(name)
        if value is None or isinstance(value, str):
            return value
        self.wrong(name, "a text")
        return None

    def flag(self, name: str) -> bool | None:
        value = self.members.get(name)
        if value is None or isinstance(value, bool):
            return value
        self.wrong(name, "true or false")
        return None

    def count(self, name: str) -> int | None:
        value = self.members.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        self.wrong(name, "a whole number")
        return None

    def number(self, name: str) -> float | None:
        value = self.members.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if value is not None:
                self.wrong(name, "a number, such as 20")
            return None
        try:
            return float(value)
        except OverflowError:
            self.report.add(self.at(name), "is too large", "give a smaller number")
            return None

    def texts(self, name: str) -> tuple[str, ...] | None:
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.wrong(name, 'a list of texts, such as ["one", "two"]')
            return None
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self.report.add(f"{self.at(name)}[{index}]", f"is {kind(item)}", "give a text")
        return tuple(item if isinstance(item, str) else "" for item in value)

    def pairs(self, name: str) -> dict[str, str] | None:
        """A table of texts. Numbers become text; a null leaves its name out."""
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.wrong(name, "a table of texts")
            return None
        self._tell_twice(value, self.at(name))
        pairs: dict[str, str] = {}
        for key, item in value.items():
            if isinstance(item, str):
                pairs[key] = item
            elif isinstance(item, float) or (isinstance(item, int) and not isinstance(item, bool) and _is_short(item)):
                pairs[key] = repr(item)
            elif item is not None:
                self.report.add(below(self.at(name), key), f"is {kind(item)}", "give a text")
        return pairs

    def table(self, name: str) -> Table | None:
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.wrong(name, "a table")
            return None
        return Table(value, self.at(name), self.report)

    def tables(self, name: str) -> list[Table] | None:
        """A list of tables."""
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.wrong(name, "a list of tables")
            return None
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                self.report.add(f"{self.at(name)}[{index}]", f"is {kind(item)}", "give a table")
        return [
            Table(item, f"{self.at(name)}[{index}]", self.report)
            for index, item in enumerate(value)
            if isinstance(item, Mapping)
        ]

    def only(self, known: Iterable[str]) -> None:
        """Report each member of another name."""
        names = list(known)
        for name in self.members:
            if name not in names:
                self.report.add(below(self.path, name), "is not known", nearest(name, names))

    def _tell_twice(self, members: Mapping[str, Member], path: str) -> None:
        for name in dict.fromkeys(members.twice if isinstance(members, Members) else ()):
            self.report.note(below(path, name), "is given twice; the first is used", "remove the other")


def move(error: ConfigError, place: str, table: Table) -> None:
    """Report the problems of a value at `place` where the user wrote its table."""
    for problem in error.problems:
        table.report.add(table.at(problem.path[len(place) :].removeprefix(".")), problem.what, problem.remedy)
