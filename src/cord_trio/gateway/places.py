"""Where what clients keep for us was sealed: in a mesh it names the node, so any gateway can bring it there. Pure.

Only that node opens it. So no key is shared, no two clocks are compared, and what it says of who it is for is judged by
who has sealed it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Raw
from msgspec.structs import replace

from cord_trio.gateway.params import decode_string
from cord_trio.gateway.steps import ANSWERS, STATE, Run
from cord_trio.protocol.eras import ERAS, LATEST_MODERN
from cord_trio.protocol.jsonrpc import encode
from cord_trio.routing import BROUGHT, TASKS

if TYPE_CHECKING:
    from cord_trio.call import Call, EventSink

TASK_ID: Final = "taskId"

_PLACED: Final = re.compile(r"(?:([a-z0-9_-]{1,48})\.([0-9a-f]{8})\.)?cord-gateway:(.*)", re.DOTALL)


def placed(place: str, sealed: str) -> str:
    """`sealed` with where that was; `place` is node and incarnation, or empty."""
    return f"{place}.{BROUGHT}{sealed}" if place else sealed


def node_of(text: str) -> str:
    """The node that has sealed it; "" if it names none."""
    found = _PLACED.fullmatch(text)
    return "" if found is None else found[1] or ""


def bare(text: str) -> str:
    """It alone, without where it was sealed."""
    found = _PLACED.fullmatch(text)
    return text if found is None else found[3]


def bringing(run: Run, events: EventSink | None) -> Call:
    """The call that brings what the client of `run` keeps to the node that has sealed it."""
    call = run.call(events)
    if run.method in TASKS:
        return replace(call, name=None, params={**call.params, TASK_ID: Raw(encode(run.name))})
    return replace(call, params={**call.params, STATE: Raw(encode(run.state))})


def brought(call: Call) -> Run:
    """What a client wants who came to another node with what we have sealed."""
    params = dict(call.params)
    task = decode_string(params.pop(TASK_ID, None)) if call.method in TASKS else None
    state = None if call.method in TASKS else decode_string(params.pop(STATE, None))
    answers = b"" if call.method in TASKS else bytes(params.pop(ANSWERS, b""))
    who, _, _ = call.principal.rpartition("@")  # that node has put itself behind it
    era = ERAS.get(call.revision, ERAS[LATEST_MODERN])
    return Run(
        0, era, call.method, (call.name if task is None else task) or "", params, call.meta, call.capabilities,
        level=call.log_level, principal=who or call.principal, state=state,
        answers=answers, deadline=call.deadline, trace=call.trace,
    )  # fmt: skip
