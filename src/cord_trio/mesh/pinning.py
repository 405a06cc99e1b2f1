"""What only the node knows that made it: while others keep it, it names that node and its incarnation. Pure.

So are tokens of calls that wait, ids of tasks, and states of questions. Whoever brings one back is led there, from any
node, and nothing is remembered for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import InputRequired, Task
from cord_trio.errors import Malformed
from cord_trio.protocol.jsonrpc import UNREADABLE, encode, members, object_of, parse
from cord_trio.routing import TASKS

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome

STATE: Final = "requestState"
TASK_ID: Final = "taskId"

_MARKED: Final = re.compile(r"([a-z0-9_-]{1,48})\.([0-9a-f]{8})\.(.+)", re.DOTALL)


def marked(outcome: Outcome, node: str, epoch: str) -> Outcome:
    """`outcome`, with the name of who it is from in whatever is to be brought back there."""
    match outcome:
        case InputRequired(result, park) if park:
            return InputRequired(result, f"{node}.{epoch}.{park}")
        case InputRequired(result):
            return InputRequired(_with(result, STATE, node, epoch))
        case Task(result):
            return Task(_with(result, TASK_ID, node, epoch))
        case _:
            return outcome


def pin_of(call: Call) -> tuple[str, str, Call] | None:
    """Node and incarnation that `call` must go to, and the call in the words of those; None if any will do."""
    if call.park:
        found, name = _MARKED.fullmatch(call.park), ""
        return ("", "", call) if found is None else (found[1], found[2], replace(call, park=found[3]))
    name = TASK_ID if call.method in TASKS else STATE
    if name not in call.params:
        return None
    try:
        text = parse(call.params[name])
    except (Malformed, *UNREADABLE):
        return None
    found = _MARKED.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    return found[1], found[2], replace(call, params={**call.params, name: Raw(encode(found[3]))})


def _with(result: Raw, name: str, node: str, epoch: str) -> Raw:
    try:
        parts = members(result)
        text = parse(parts[name])
    except (Malformed, *UNREADABLE, KeyError):
        return result
    if not isinstance(text, str):
        return result
    return Raw(object_of({**parts, name: encode(f"{node}.{epoch}.{text}")}))
