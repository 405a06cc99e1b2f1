"""Each entry is handed back exactly once, and no id is used twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cord_trio.protocol.peer import Peer

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Id


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.peer: Peer[object, object] = Peer()
        self.waiting: dict[int, object] = {}
        self.minted: list[int] = []
        self.asked: dict[tuple[type, Id], object] = {}
        self.misses = 0

    @rule()
    def request(self) -> None:
        id = self.peer.mint()
        assert id not in self.minted
        self.minted.append(id)
        self.waiting[id] = self.peer.open[id] = object()

    @rule(number=st.integers(-1, 12), as_text=st.booleans())
    def reply(self, number: int, as_text: bool) -> None:
        entry = self.peer.close(str(number) if as_text else number)
        assert entry is self.waiting.pop(number, None)
        self.misses += entry is None

    @rule(text=st.sampled_from(["", "x", "01", "-0", " 1", "1 "]))
    def nonsense(self, text: str) -> None:
        assert self.peer.close(text) is None
        self.misses += 1

    @rule(number=st.integers(1, 12))
    def abandon(self, number: int) -> None:
        assert self.peer.abandon(number) is self.waiting.pop(number, None)

    @rule(take=st.integers(0, 12))
    def lose(self, take: int) -> None:
        closing = self.peer.close_all()
        for _, (id, entry) in zip(range(take), closing, strict=False):
            assert self.waiting.pop(id) is entry

    @rule(id=st.sampled_from([1, "1", 2, "2", ""]))
    def ask(self, id: Id) -> None:
        entry = object()
        known = (type(id), id) in self.asked
        assert self.peer.ask(id, entry) is not known
        self.asked.setdefault((type(id), id), entry)

    @rule(id=st.sampled_from([1, "1", 2, "2", ""]))
    def answer(self, id: Id) -> None:
        assert self.peer.asking(id) is self.asked.get((type(id), id))
        assert self.peer.answered(id) is self.asked.pop((type(id), id), None)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.peer.open == self.waiting
        assert len(self.peer.asked) == len(self.asked)
        assert self.peer.late + self.peer.unknown == self.misses


TestConversation = Conversation.TestCase
