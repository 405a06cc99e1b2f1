"""An immutable mapping of names that costs little to change in part, with fifty thousand names as with ten.

All names lie in one plain dict, which is looked up in half the time of many small ones, and is shared by those that
came one from another. Whoever changes it in place first notes for the older ones, as far as somebody still has them,
what they held before: so they never change, and only the newest is quick.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Iterator

V = TypeVar("V")
D = TypeVar("D")

ELDERS: Final = 8
"""Older mappings that share a dict with the newest; one more gets a dict of its own, as does each that differs much."""

_ABSENT: Final[Any] = object()


class Names(Mapping[str, V]):
    """What several parts hold together, by name; in the order of the parts, then of each part.

    Invariants: it never changes, as long as nobody changes a part; no name is in two parts.

    Attributes:
        parts: by whose they are.

    """

    # `get` is the shared dict's own, as long as that says what we hold: a frame of Python for each of the two look-ups
    # that a call makes was a fiftieth of its instructions.
    __slots__ = ("__weakref__", "_elders", "_held", "_names", "_size", "get", "parts")

    parts: Mapping[str, Mapping[str, V]]

    def __init__(self, parts: Mapping[str, Mapping[str, V]] | None = None) -> None:
        """Take `parts` as they are.

        Raises:
            ValueError: a name is in two of them.

        """
        self.parts = {} if parts is None else parts
        self._size = sum(map(len, self.parts.values()))
        self._elders: list[weakref.ref[Names[V]]] | None = []
        """Older ones that share the dict, the oldest first; None in such a one."""
        self._own()
        if len(self._names) != self._size:
            raise ValueError("a name is in two parts")

    def _own(self) -> None:
        """Have the names in a dict of our own."""
        self._names: dict[str, V] = {}
        self._held: dict[str, V] = {}
        """What we hold of names that a newer one has changed in the dict."""
        for part in self.parts.values():
            self._names.update(part)
        self.get = self._names.get  # type: ignore[method-assign, assignment]  # a slot, see above

    def changed(self, whose: str, part: Mapping[str, V]) -> Names[V]:
        """These names with another part in the place of `whose`, or behind all others if there is none.

        Raises:
            ValueError: a name of it is in another part.

        """
        old: Mapping[str, V] = self.parts.get(whose, {})
        if self._elders is None:  # not the newest of those that share the dict
            return Names({**self.parts, whose: part})
        names = self._names
        before, new = _copy(old), _copy(part)
        added: set[str] = set()
        gone: set[str] = set()
        if new.keys() != before.keys():
            added, gone = new.keys() - before.keys(), before.keys() - new.keys()
            if added and not names.keys().isdisjoint(added):
                raise ValueError(f"{min(added & names.keys())!r} is in two parts")
            before.update(dict.fromkeys(added, _ABSENT))
        elders, self._elders = [each for each in self._elders if each() is not None], None
        elders.append(weakref.ref(self))
        while elders and (len(elders) > ELDERS or self._differs_much(elders[0])):
            eldest = elders.pop(0)()
            if eldest is not None:
                eldest._own()
        for each in elders:
            elder = each()
            if elder is not None:
                held = elder._held
                if not held:  # as that which was the newest until now
                    held.update(before)
                    elder.get = partial(_look, held, names)  # type: ignore[method-assign, assignment]
                    continue
                for name, value in before.items():  # in place: what somebody keeps is to cost no more each time
                    held.setdefault(name, value)
        for name in gone:
            del names[name]
        names.update(new)
        newest: Names[V] = Names.__new__(Names)
        newest.parts, newest._size = {**self.parts, whose: part}, self._size - len(old) + len(part)
        newest._names, newest._held, newest._elders = names, {}, elders
        newest.get = names.get  # type: ignore[method-assign, assignment]
        return newest

    @staticmethod
    def _differs_much(elder: weakref.ref[Names[V]]) -> bool:
        found = elder()
        return found is not None and len(found._held) > max(256, found._size // 4)

    if TYPE_CHECKING:

        @overload
        def get(self, name: str, default: None = None, /) -> V | None: ...
        @overload
        def get(self, name: str, default: D, /) -> V | D: ...
        def get(self, name: str, default: object = None, /) -> object:
            """The item of this name; `default` if there is none."""

    def __getitem__(self, name: str) -> V:
        if not self._held:
            return self._names[name]
        found = _look(self._held, self._names, name, _ABSENT)
        if found is _ABSENT:
            raise KeyError(name)
        return found  # type: ignore[return-value]  # what is there is an item

    def __contains__(self, name: object) -> bool:
        if not self._held:
            return name in self._names
        return isinstance(name, str) and _look(self._held, self._names, name, _ABSENT) is not _ABSENT

    def __iter__(self) -> Iterator[str]:
        for part in self.parts.values():
            yield from part

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Names({dict(self)!r})"


def _look(held: Mapping[str, V], names: Mapping[str, V], name: str, default: object = None) -> object:
    """The item of this name in `names`, but for what is `held` otherwise."""
    found = held.get(name, held)
    if found is held:  # no newer one has changed it
        return names.get(name, default)
    return default if found is _ABSENT else found


def _copy(part: Mapping[str, V]) -> dict[str, V]:
    """A dict of one's own. Those who have a `copy`, as dicts and their proxies do, are not asked for each item."""
    if isinstance(part, dict | MappingProxyType):
        return part.copy()
    return dict(part)
