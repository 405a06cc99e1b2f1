"""The live tree as a value: what runs, in which state, below what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@attrs.frozen
class Node:
    """One thing that lives in the fabric, at one moment.

    Attributes:
        kind: fabric, source, mesh, session, agent, ask, question, conversation or hog.
        name: of this one.
        state: in one word.
        facts: what else is known, in the order to show it: numbers, texts, None.
        children: what lives below it.

    """

    kind: str
    name: str
    state: str = ""
    facts: Mapping[str, object] = attrs.field(factory=dict[str, object])
    children: tuple[Node, ...] = ()

    def data(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        plain: dict[str, object] = {"kind": self.kind, "name": self.name, "state": self.state, **self.facts}
        if self.children:
            plain["children"] = [child.data() for child in self.children]
        return plain

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Node:
        """The node whose `data` this is."""
        facts = {name: value for name, value in data.items() if name not in ("kind", "name", "state", "children")}
        below = data.get("children")
        children = tuple(cls.of(one) for one in below if isinstance(one, dict)) if isinstance(below, list) else ()
        return cls(str(data.get("kind")), str(data.get("name")), str(data.get("state", "")), facts, children)

    def lines(self, indent: str = "") -> Iterator[str]:
        """One line of text for each node, children indented."""
        facts = " ".join(f"{name}={_line(value)}" for name, value in self.facts.items() if value not in (None, ""))
        yield f"{indent}{self.kind} {self.name} {self.state} {facts}".rstrip()
        for child in self.children:
            yield from child.lines(indent + "  ")


def _line(value: object) -> object:
    """A fact as it stands in its node's line: what a child said in several lines, in one."""
    return " ".join(value.split()) if isinstance(value, str) else value
