"""One side's bookkeeping of a conversation: which requests are open, in both directions. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.protocol.jsonrpc import Id

Out = TypeVar("Out")
In = TypeVar("In")


class Peer(Generic[Out, In]):
    """Mints ids for our requests and remembers an entry for each open one; same for the peer's requests.

    Invariants: an id is minted once and never reused; an entry is handed back exactly once, by `close`,
    `abandon` or `close_all`; `1` and `"1"` are different ids of the peer's requests.

    Attributes:
        open: entries of our requests that await a reply, oldest first.
        asked: entries of the peer's requests that we are answering.
        lenient: replies that were matched although the peer turned our number into a string.
        late: replies to requests that were no longer open (abandoned, answered before).
        unknown: replies to ids that were never minted.

    """

    __slots__ = ("_next", "asked", "late", "lenient", "open", "unknown")

    def __init__(self) -> None:
        self._next = 1
        self.open: dict[int, Out] = {}
        self.asked: dict[tuple[bool, Id], In] = {}
        self.lenient = self.late = self.unknown = 0

    @property
    def minted(self) -> int:
        """Ids that were handed out."""
        return self._next - 1

    def mint(self) -> int:
        """A new id for a request of ours."""
        id = self._next
        self._next = id + 1
        return id

    def close(self, id: Id) -> Out | None:
        """The entry that a reply with `id` belongs to, which is open no more; None if there is none."""
        entry = self.open.pop(id, None)  # type: ignore[arg-type]  # a string is simply not there
        if entry is not None:
            return entry
        number: Id = id
        if isinstance(id, str):
            # Some servers send our number back as a string (python-sdk#1720); its plain form is ours alone.
            number = int(id) if id.isascii() and id.isdigit() and len(id) < 19 and str(int(id)) == id else 0
            namesake = self.open.pop(number, None)
            if namesake is not None:
                self.lenient += 1
                return namesake
        if isinstance(number, int) and 0 < number < self._next:
            self.late += 1
        else:
            self.unknown += 1
        return None

    def abandon(self, id: int) -> Out | None:
        """Stop waiting for our request `id`: its entry, or None if a reply came first."""
        return self.open.pop(id, None)

    def close_all(self) -> Iterator[tuple[int, Out]]:
        """Every entry that is open, each handed back once; after that none is."""
        while self.open:
            id = next(iter(self.open))
            yield id, self.open.pop(id)

    def ask(self, id: Id, entry: In) -> bool:
        """Remember that the peer asks `id`. False, and nothing remembered, if that id is being answered."""
        key = (isinstance(id, str), id)
        if key in self.asked:
            return False
        self.asked[key] = entry
        return True

    def answered(self, id: Id) -> In | None:
        """Forget the peer's request `id`: its entry, or None if it is not known."""
        return self.asked.pop((isinstance(id, str), id), None)

    def asking(self, id: Id) -> In | None:
        """The entry of the peer's request `id`, if we are answering it."""
        return self.asked.get((isinstance(id, str), id))
