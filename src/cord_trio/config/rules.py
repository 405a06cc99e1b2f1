"""What the operator allows on a source, and how much of it, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from cord_trio.config.checks import check_numbers, glob_faults, raise_problems, texts
from cord_trio.protocol.jsonrpc import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.config.checks import Fault
    from cord_trio.protocol.jsonrpc import Json

Then: TypeAlias = Literal["allow", "deny", "ask"]

_MISSING: Final = object()


def _globs(values: Mapping[str, Iterable[str]]) -> Mapping[str, tuple[str, ...]]:
    return {name: texts(value) for name, value in values.items()}


def _all_tools(rule: Rule) -> tuple[str, ...]:
    return () if rule.prompts or rule.resources else ("*",)


@attrs.frozen(kw_only=True)
class Rule:
    """What becomes of some calls: of tools, or of prompts and resources, which are then not listed either.

    Attributes:
        prompts: globs over the server's names of prompts.
        resources: globs over the server's URIs, and over templates as they are listed.
        tools: globs over the server's names; all, unless prompts or resources are named.
        arguments: globs by argument, `a.b` for a member of `a`; all of them must match. Of a list each item must
            match where the rule allows, else any.
        principals: globs over who calls, such as `*@NODE` for whoever another node of the mesh calls for.
        then: "allow", "deny", or "ask" a person.

    """

    prompts: tuple[str, ...] = attrs.field(default=(), converter=texts)
    resources: tuple[str, ...] = attrs.field(default=(), converter=texts)
    tools: tuple[str, ...] = attrs.field(default=attrs.Factory(_all_tools, takes_self=True), converter=texts)
    arguments: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=_globs)
    principals: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    then: Then

    def __attrs_post_init__(self) -> None:
        raise_problems("rule", self._faults())

    def is_about(self, tool: str) -> bool:
        """Whether some calls of the server's `tool` are meant."""
        return any(fnmatchcase(tool, glob) for glob in self.tools)

    def is_on(self, kind: str, own: str) -> bool:
        """Whether the server's prompt, resource or template `own` is meant; `kind` is the list that it is in."""
        return any(fnmatchcase(own, glob) for glob in (self.prompts if kind == "prompts" else self.resources))

    def is_for(self, principal: str) -> bool:
        """Whether some calls of `principal` are meant."""
        return any(fnmatchcase(principal, glob) for glob in self.principals)

    def matches(self, arguments: Json) -> bool:
        """Whether a call with these arguments is meant."""
        return all(self._fits(_found(arguments, path), globs) for path, globs in self.arguments.items())

    def _fits(self, value: Json, globs: tuple[str, ...]) -> bool:
        if isinstance(value, list):
            each = (self._fits(item, globs) for item in value)
            return bool(value) and (all(each) if self.then == "allow" else any(each))
        if value is _MISSING:
            return False
        text = value if isinstance(value, str) else encode(value).decode()
        return any(fnmatchcase(text, glob) for glob in globs)

    def _faults(self) -> Iterator[Fault]:
        if self.then not in ("allow", "deny", "ask"):
            yield "then", "is none of the three", 'write "allow", "deny" or "ask"'
        if not (self.tools or self.prompts or self.resources):
            yield "tools", "names no tool, so the rule is about none", 'write ["*"] for all of them, or remove the rule'
        if self.prompts or self.resources:
            if self.then == "ask":
                yield "then", "asks a person, who is asked about tools alone", 'write "allow" or "deny" for the others'
            if self.arguments:
                yield "arguments", "are looked at of tools alone", "have a rule of its own for the tools"
        if not self.principals:
            yield "principals", "names nobody, so the rule is about nothing", 'write ["*"] for all, or remove the rule'
        for place, globs in (("tools", self.tools), ("prompts", self.prompts), ("resources", self.resources)):
            yield from glob_faults(place, globs)
        yield from glob_faults("principals", self.principals)


@attrs.frozen
class Shown:
    """What a rule of another node says of what that lists, by exported names.

    Attributes:
        principals: globs over who calls, as that node knows them.
        then: "allow" or "deny".
        names: that it is about, by the list in which they are.
        number: which of the rules of its source it is.

    """

    principals: tuple[str, ...]
    then: str
    names: Mapping[str, frozenset[str]]
    number: int

    def is_on(self, kind: str, own: str) -> bool:
        """As of a `Rule`."""
        return own in self.names.get(kind, ())

    def is_for(self, principal: str) -> bool:
        """As of a `Rule`."""
        return any(fnmatchcase(principal, glob) for glob in self.principals)


def denying(rules: Iterable[Rule | Shown], kind: str, own: str) -> Rule | Shown | None:
    """The one of some rules for a principal that denies it a prompt, resource or template; None if none does."""
    for rule in rules:
        if rule.is_on(kind, own):
            return rule if rule.then == "deny" else None
    return None


def words_of(rule: Rule | Shown, source: str, rules: Sequence[Rule | Shown]) -> str:
    """What a person knows a rule by that denies something."""
    number = rule.number if isinstance(rule, Shown) else rules.index(rule)
    return f"a rule of source {source!r} says so: rules[{number}]"


@attrs.frozen(kw_only=True)
class Quota:
    """How much a source, or a tool, may be used.

    Attributes:
        calls: that may have run; None for no limit.
        bytes: of arguments and results; None for no limit.
        every: seconds after which all of it is there again.

    """

    calls: int | None = None
    bytes: int | None = None
    every: float = 86_400.0

    def __attrs_post_init__(self) -> None:
        raise_problems("budget", self._faults())

    def _faults(self) -> Iterator[Fault]:
        if self.calls is None and self.bytes is None:
            yield "", "limits nothing", "say how many calls or bytes, or remove it"
        yield from check_numbers(self, {"calls": 1, "bytes": 1, "every": 0.0})


def _found(arguments: Json, path: str) -> Json:
    value = arguments
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value
