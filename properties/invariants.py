"""What an agent fabric promises, by number, and which property proves it.

`python -m properties.invariants` writes the table in the docs. The numbers stand in the names and comments of tests.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T", bound="Callable[..., object] | type")
Number = int | str

INVARIANTS: Final[Mapping[Number, str]] = {
    1: "every ask ends in exactly one of result, error, cancelled",
    2: "a reply reaches only the task that asked",
    3: "a handler starts at most once for an ask",
    4: "an ask that is abandoned while it waits never starts",
    5: "no handler runs past its caller's deadline",
    6: "the deadline that counts never moves back along a chain, a handoff or a mailbox",
    7: "when a cancelled ask returns, whom it asked is finished, or the grace has passed and that is recorded",
    8: "what was taken to be admitted, and turns, return to zero",
    9: "no turn is given to more than its capacity, and turns are first come, first served",
    10: "no set of asks waits for itself: it is refused where it would wait, never by a deadline",
    11: "a lone chain of asks that does not meet itself is never refused",
    12: "a chain without contention costs one tick of the scheduler an ask",
    13: "at most one agent is active in a branch of a conversation",
    14: "the giver's children are finished before the taker starts",
    15: "the taker sees exactly what `keep` keeps, and the giver's transcript is unchanged",
    16: "hops stay within the limit, and the next one is an error",
    17: "a handoff that fails tells the asker once, and monitors once",
    18: "a taker has its own grants, never more by its giver",
    19: "versions of the registry are 1, 2, 3 … without a gap",
    20: "a source's epochs only rise; what is stale or comes twice changes nothing",
    21: "a snapshot that was published never changes",
    22: "who got an acknowledgement reads at least that version",
    23: "a watcher sees rising versions, and the last one",
    24: "a source that is down runs no call, though its tools stay listed",
    25: "a run sees the tools of one snapshot",
    26: "ids are never used again",
    27: "a call that is abandoned after it was written tells the server exactly once; before, it is never written",
    28: "a cancelled call gives its slot back at once",
    29: "on a loss everybody who waits fails at once, and is told whether the call may have run",
    30: "late, doubled and unknown replies change nothing",
    31: "frames leave whole and in order",
    32: "a call travels only on a connection of its own principal",
    33: "`initialize` is never cancelled",
    34: "restarts are bounded, and then there is one escalation that carries the cause",
    35: "a strategy restarts exactly its set, stopped in reverse and started in order",
    36: "the asker of a crash is told, and what is queued survives it",
    37: "a reference by generation never reaches a newer one",
    38: "nothing is made anew while it drains",
    39: "after the fabric's block there are as many tasks, descriptors, children and threads as before",
    40: "a drain drops no call that was accepted",
    41: "a drain ends within its grace and that of what it stops",
    42: "no queue is longer than its bound, at any tick",
    43: "what children of a budget use and reserve is within their parent's, and nothing stays reserved",
    44: "a flood delays a call of another source by no more than a quantum for each source that floods",
    45: "an open source sees no call but the probe; retries stay within what their budget holds in any window",
    46: "two fabrics in one process do not observe each other",
    47: "cancelled at any tick, 1, 8 and 39 hold",
    "layers.pass": "a layer that passes on changes no outcome",
    "layers.rest": "permits, tokens and reserves are zero at rest",
    "layers.attempts": "attempts stay within their number, and none starts after the deadline",
    "layers.once": "a call that is not safe to repeat is written at most once",
    "layers.breaker": "a breaker goes from closed to open, on to half-open, and from there to either, no other way",
    "layers.limit": "slots stay between one and the most, and fall only after a sign of overload",
    "layers.policy": "only what is allowed, or approved in time by whoever was asked, reaches its source",
    "layers.trace": "who watches calls is told of each once, and of its one end, which is what the caller gets",
    "layers.hedge": "two hedged attempts yield one response, and the loser is cancelled once",
    "layers.flight": "equal reads at once are one, and nobody ends with the one that made it",
    "layers.shed": "a call that is refused for want of room or time never reaches the wire",
    "mesh.1": "a call between nodes runs at most once, over all that have the same",
    "mesh.2": "it returns by its deadline, and is cancelled where it runs by then",
    "mesh.3": "what is said of whether it ran is true, and a success ran once",
    "mesh.5": "of one name there is one node at a time",
    "mesh.6": "of an agent of which there is one there is never more than one, and later ones have higher fences",
    "mesh.7": "a cancel reaches all that the call set off, at the latest when its caller is known to be gone",
    "mesh.8": "what a node keeps of others' calls is bounded, and in the end it keeps nothing",
    "mesh.9": "a broker that loses its store, and is away for a moment, ends no incarnation, and so no call",
    "mesh.10": "what an agent whose state is kept has answered it still knows, whatever node has it",
}
"""By number; those of the layers, and of calls between nodes, by name."""

PAGE: Final = Path(__file__).parent.parent / "docs" / "invariants.md"
HERE: Final = Path(__file__).parent


def proves(*numbers: Number) -> Callable[[T], T]:
    """Say which invariants a property proves. Stands above `@given`."""

    def mark(test: T) -> T:
        test.proves = numbers  # type: ignore[union-attr]  # functions and classes take attributes
        return test

    return mark


def proofs() -> dict[Number, list[str]]:
    """Which properties prove each invariant, as `file::name`."""
    found: dict[Number, list[str]] = {number: [] for number in INVARIANTS}
    for path in sorted(HERE.glob("test_*.py")):
        module = importlib.import_module(f"properties.{path.stem}")
        for name, test in sorted(vars(module).items()):
            for number in getattr(test, "proves", ()) if getattr(test, "__module__", "") == module.__name__ else ():
                found[number].append(f"{path.name}::{name}")
    return found


def page() -> str:
    """The table, as it stands in the docs."""
    lines = [
        "# What is proved, and where",
        "",
        "Each property runs random programs under searched orders of tasks, with cancels, deadlines and losses;",
        "[Testing](testing.md) says how. This page is made by `python -m properties.invariants`.",
        "",
        "| number | invariant | properties |",
        "|---|---|---|",
    ]
    for number, tests in proofs().items():
        shown = "<br>".join(f"`{test}`" for test in tests)
        lines.append(f"| {number} | {INVARIANTS[number]} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.exit(0)
