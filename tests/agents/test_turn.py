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


def test_a_message_that_is_about_to_be_let_in_is_no_part_of_a_circle() -> None:
    """Whoever lets messages in is between two of them: it holds no turn, and nobody needs to wait for it."""
    full, free = Turn("full", 1), Turn("free", 1)
    holder = Branch(None, ("full",), 0)
    assert full.take(holder)
    queued = Branch(holder, ("full", "free"), 0)
    holder.children[queued] = None
    free.park(queued)
    waiter = Branch(None, ("full",), 0)
    full.park(waiter)
    assert waiter.waits is full
