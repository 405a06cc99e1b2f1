from __future__ import annotations

import pytest

from cord_trio.agents.turn import Branch, Turn
from cord_trio.errors import CallCycle


def test_whoever_is_refused_does_not_wait() -> None:
    turn = Turn("a", 1)
    holder = Branch(None, ("a",), 0)
    assert turn.take(holder)
    below = Branch(holder, ("a", "b"), 0)
    holder.children[below] = None
    with pytest.raises(CallCycle):
        turn.park(below)
    assert below.waits is None
    assert list(holder.waiting()) == []
