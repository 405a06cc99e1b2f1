"""What lies around every call: plain functions from a handler to a handler, `stack`ed outermost first.

A layer keeps its books synchronously, waits in cells, and never catches a cancellation. From the outside
in: `trace` tells others of all of it; `policy` decides whether a call may be made; `deadline` bounds everything
below; `budget` counts what it costs; `cache` knows the answer already; `shed` refuses what would wait in vain; `retry`
makes attempts; `hedge` makes a second one while the first is slow; `breaker` refuses those of a source that fails;
`rate` and `limit` admit each, so that no slot is held during a pause, and `adapt` finds out how many slots there should
be; `attempt` bounds each; `tell_deadline` tells the server what is left; `record` keeps what was really asked.
"""

from cord_trio.layers.adapt import adapt
from cord_trio.layers.attempt import attempt
from cord_trio.layers.breaker import Breaker, breaker
from cord_trio.layers.budget import Allowance, budget
from cord_trio.layers.cache import Cache, cache
from cord_trio.layers.deadline import deadline
from cord_trio.layers.hedge import hedge
from cord_trio.layers.limit import Slots, limit
from cord_trio.layers.plain import plain
from cord_trio.layers.policy import Approve, Policy, policy
from cord_trio.layers.rate import Meter, rate
from cord_trio.layers.record import record
from cord_trio.layers.remaining import META_DEADLINE, tell_deadline
from cord_trio.layers.retry import RetryBudget, attempts_of, retries, retry
from cord_trio.layers.safety import only_reads, repeatable
from cord_trio.layers.shed import shed
from cord_trio.layers.times import Times, timed
from cord_trio.layers.trace import Ended, Watch, trace
from cord_trio.layers.waits import Waits

__all__ = [
    "META_DEADLINE", "Allowance", "Approve", "Breaker", "Cache", "Ended", "Meter", "Policy", "RetryBudget", "Slots",
    "Times", "Waits", "Watch", "adapt", "attempt", "attempts_of", "breaker", "budget", "cache", "deadline", "hedge",
    "limit", "only_reads", "plain", "policy", "rate", "record", "repeatable", "retries", "retry", "shed",
    "tell_deadline", "timed", "trace",
]  # fmt: skip
