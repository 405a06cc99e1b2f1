"""What lies around every call: plain functions from a handler to a handler, `stack`ed outermost first.

A layer keeps its books synchronously, waits in cells, and never catches a cancellation. From the outside
in: `deadline` bounds everything; `retry` makes attempts; `breaker` refuses those of a source that fails; `rate`
and `limit` admit each attempt, so that no slot is held during a pause; `tell_deadline` tells the server what is left.
"""

from cord_trio.layers.breaker import Breaker, breaker
from cord_trio.layers.deadline import deadline
from cord_trio.layers.limit import Slots, limit
from cord_trio.layers.rate import rate
from cord_trio.layers.remaining import META_DEADLINE, tell_deadline
from cord_trio.layers.retry import RetryBudget, retry

__all__ = [
    "META_DEADLINE", "Breaker", "RetryBudget", "Slots", "breaker", "deadline", "limit", "rate", "retry",
    "tell_deadline",
]  # fmt: skip
