"""What lies around the calls of sources and of single tools, as frozen values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cord_trio.config.checks import check_numbers, raise_problems
from cord_trio.config.rules import Quota, Rule
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cord_trio.call import Layer
    from cord_trio.config.checks import Fault
    from cord_trio.config.table import Table
    from cord_trio.protocol.jsonrpc import Json


def _rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


def in_order(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers as they are kept."""
    return tuple(layers)


LEAST: Mapping[str, int | float] = {
    "deadline": 0.0, "attempt": 0.0, "slots": 1, "queue": 0, "rate": 0.0, "burst": 1, "retries": 0, "breaker": 1,
    "approval": 0.0, "cache": 0,
}  # fmt: skip
"""What the numbers are at least, or above where it is a `float`."""


@attrs.frozen(kw_only=True)
class Layered:
    """The layers of a source. As a value of its own: those of all sources that do not say.

    Attributes:
        read_only: whether only tools may be called that say they only read, and are trusted.
        rules: which calls are allowed, denied, or need a person's yes; the first that matches decides.
        approval: seconds that a person has for it.
        deadline: seconds for one call, all attempts together.
        budget: how much it may be used.
        cache: seconds for which answers are kept that may be: those of tools that are trusted to only read, and
            resources for as long as the server says, at most; 0 only makes equal calls at once one. None for never.
        attempt: seconds for one attempt, from when it has a slot; None for as long as the call may take.
        slots: calls in flight at once.
        adaptive: whether the slots follow what it can take, up to `slots`.
        queue: calls that may wait for a slot.
        shed: whether calls are refused at once that would probably wait for a slot longer than they have.
        rate: calls a second; None for no limit.
        burst: calls that may go at once when the rate was not used; None for one second's worth.
        retries: further attempts of a call that is known not to have run, or safe to run again.
        breaker: failures of its calls one after the other, from which on they are refused until a probe of it
            succeeds, as they are if more than half of many failed; None for never.
        tell_deadline: whether it is told how long each call may take, as `_meta["cord_trio/deadlineMs"]`.

    """

    read_only: bool = False
    rules: tuple[Rule, ...] = attrs.field(default=(), converter=_rules)
    approval: float = 300.0
    deadline: float = 60.0
    budget: Quota | None = None
    cache: float | None = None
    attempt: float | None = None
    slots: int = 32
    adaptive: bool = False
    queue: int = 1024
    shed: bool = False
    rate: float | None = None
    burst: int | None = None
    retries: int = 2
    breaker: int | None = None
    tell_deadline: bool = False

    def __attrs_post_init__(self) -> None:
        raise_problems("layers", self.layer_faults())

    def layer_faults(self) -> Iterator[Fault]:
        """What is wrong with the layers; nothing, once the value exists."""
        yield from check_numbers(self, LEAST)


@attrs.frozen(kw_only=True)
class ToolSettings:
    """What is different for some tools of a source; None for what is not.

    Slots, rate and budget of tools count beside those of their source, and of every tool for itself.

    Attributes:
        deadline: as of a source.
        budget: of one such tool.
        cache: as of a source.
        attempt: likewise.
        slots: calls of one such tool in flight at once.
        rate: calls a second of one such tool.
        burst: as of a source, for `rate`.
        retries: as of a source.
        repeatable: whether they may run twice, whatever the server says of them.
        layers: of the user's own, around their calls and within those of the source; in code only.

    """

    deadline: float | None = None
    budget: Quota | None = None
    cache: float | None = None
    attempt: float | None = None
    slots: int | None = None
    rate: float | None = None
    burst: int | None = None
    retries: int | None = None
    repeatable: bool = False
    layers: tuple[Layer, ...] = attrs.field(default=(), converter=in_order)

    def __attrs_post_init__(self) -> None:
        raise_problems("tool", self._faults())

    def _faults(self) -> Iterator[Fault]:
        names = {field.name for field in attrs.fields(ToolSettings)}
        yield from check_numbers(self, {name: low for name, low in LEAST.items() if name in names})
        if self.burst is not None and self.rate is None:
            yield "burst", "means nothing without a rate", "give a rate too"


LAYER_MEMBERS = tuple(field.name for field in attrs.fields(Layered))
"""What may be said of all sources, and of one."""

TOOL_MEMBERS = tuple(field.name for field in attrs.fields(ToolSettings) if field.name != "layers")
"""What may be said of some tools of one source."""

_NUMBERS = ("deadline", "attempt", "rate", "approval", "cache")
_COUNTS = ("slots", "queue", "burst", "retries", "breaker")
_FLAGS = ("read_only", "adaptive", "shed", "tell_deadline", "repeatable")


def read_layers(table: Table, known: Iterable[str]) -> dict[str, Json]:
    """Those of the members `known` that `table` has, each of its type; what is not is reported."""
    readers: dict[str, Callable[[str], Json]] = {
        **dict.fromkeys(_NUMBERS, table.number),
        **dict.fromkeys(_COUNTS, table.count),
    }
    readers |= dict.fromkeys(_FLAGS, table.flag)
    readers |= {"rules": lambda _: _read_rules(table), "budget": lambda _: _read_budget(table)}
    found: dict[str, Json] = {name: readers[name](name) for name in known}
    return {name: value for name, value in found.items() if value is not None}


def read_tools(table: Table) -> dict[str, ToolSettings]:
    """The settings of single tools: each a table below `tool`, named by the server's name or a glob over it."""
    tools: dict[str, ToolSettings] = {}
    inner = table.table("tool")
    for name in inner.members if inner else ():
        entry = inner.table(name) if inner else None
        if entry is None:
            continue
        entry.only(TOOL_MEMBERS)
        try:
            tools[name] = ToolSettings(**read_layers(entry, TOOL_MEMBERS))
        except ConfigError as exc:
            _report(exc, "tool", entry)
    return tools


def _read_rules(table: Table) -> tuple[Rule, ...] | None:
    rules: list[Rule] = []
    for entry in table.tables("rules") or ():
        globs = ("tools", "prompts", "resources", "principals")
        entry.only((*globs, "arguments", "then"))
        given: dict[str, Json] = {name: entry.texts(name) for name in globs} | {"then": entry.text("then")}
        if (arguments := entry.table("arguments")) is not None:
            found = {name: arguments.texts(name) for name in arguments.members}
            given["arguments"] = {name: texts for name, texts in found.items() if texts is not None}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            rules.append(Rule(**{"then": "", **given}))
        except ConfigError as exc:
            _report(exc, "rule", entry)
    return None if table.members.get("rules") is None else tuple(rules)


def _read_budget(table: Table) -> Quota | None:
    entry = table.table("budget")
    if entry is None:
        return None
    entry.only(("calls", "bytes", "every"))
    given: dict[str, Json] = {name: entry.count(name) for name in ("calls", "bytes")}
    given["every"] = entry.number("every")
    try:
        return Quota(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as exc:
        _report(exc, "budget", entry)
        return None


def _report(error: ConfigError, place: str, table: Table) -> None:
    reported = {problem.path for problem in table.report.problems}
    for problem in error.problems:
        path = problem.path.removeprefix(place).removeprefix(".")
        at = table.at(path) if path else table.path
        if at not in reported:  # such as an item that is no text
            table.report.add(at, problem.what, problem.remedy)
