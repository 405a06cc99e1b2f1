"""What nodes say to each other about agents: a question, and its answer, as the params and the result of a call. Pure.

What is given to an agent, what it answers and what it emits must be JSON here, or what a tool answered; it arrives as
plain values. An error keeps its class where it is one of ours; any other exception arrives as a crash.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from cord_trio.agents.agent import PLACE, Step
from cord_trio.agents.answering import Question
from cord_trio.agents.budget import COUNTERS, Budget
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    AgentError,
    AgentGone,
    AgentNotFound,
    AgentNotGranted,
    BadReply,
    BudgetExceeded,
    CallCycle,
    CallError,
    HandoffRefused,
    NoMailbox,
)
from cord_trio.mesh.frames import Frame
from cord_trio.mesh.outcomes import failure_of, outcome_of
from cord_trio.mesh_errors import BadFrame, NoOwner, NotJson, OwnerFailed, OwnerLost, OwnerRefused
from cord_trio.protocol.jsonrpc import UNREADABLE, encode, encode_finite, parse
from cord_trio.protocol.mcp import ToolResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cord_trio.agents.budget import Account, Amounts

ASK: Final = "agents/ask"
TELL: Final = "agents/tell"
EMIT: Final = "agents/emit"
INQUIRE: Final = "agents/inquire"
MOVE: Final = "agents/move"
HOLD: Final = "agents/hold"
TAKE: Final = "agents/take"
"""Methods of calls between nodes that are about agents, and of the notification of what one emits."""

ABOUT_AGENTS: Final = frozenset((ASK, TELL, INQUIRE, MOVE, HOLD, TAKE))
"""The methods among them."""

MAX_PATH: Final = 64
"""Names of the agents that led to one that are told: the last ones."""

MAX_NOTES: Final = 8
"""Notes of an exception that cross."""

MAX_AMOUNT: Final = 10**30
"""Of a counter that crosses; to write the longest numbers that can be said takes a machine's memory."""

_LETTER: Final = "letter"
_NONE: Final = Raw(b"null")


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """A payload or an answer: JSON, or what a tool answered."""

    json: Raw = _NONE
    tool: bool = False


class _Step(msgspec.Struct, frozen=True):
    agent: str
    payload: Value


class Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent of another node is asked, or told.

    Attributes:
        payload: what it is given.
        path: the names of the agents that led to it, its own last.
        hops: handoffs so far.
        ways: of the nodes that wait for it: `node.token` of each one's ask, the first first.
        steps: the transcript.
        limits: what is left of each counter of its asker's budget; without those that have no limit.
        spent: of that budget by those that handed on, by counter.

    """

    payload: Value
    path: tuple[str, ...] = ()
    hops: int = 0
    ways: tuple[str, ...] = ()
    steps: tuple[_Step, ...] = ()
    limits: dict[str, Decimal] = {}
    spent: dict[str, Decimal] = {}

    @property
    def transcript(self) -> tuple[Step, ...]:
        """What the agents before it left to see."""
        return tuple(Step(step.agent, unpacked(step.payload)) for step in self.steps)

    @property
    def budget(self) -> Budget | None:
        """What it may use; None for no limit."""
        if not self.limits:
            return None
        given: dict[str, Any] = {
            name: amount if name == "money" else int(amount) for name, amount in self.limits.items() if name in COUNTERS
        }
        return Budget(**given)


class _Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why there is no answer; `kind` is the name of the error's class, and empty for one of a call, in `call`."""

    node: str
    kind: str = ""
    executed: str = ""
    facts: tuple[Any, ...] = ()
    text: str = ""
    call: Raw = _NONE
    notes: tuple[str, ...] = ()


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    answer: Value = Value()
    fault: _Fault | None = None
    spent: dict[str, Decimal] = {}


_LETTERS: Final = msgspec.json.Decoder(Letter)
_REPLIES: Final = msgspec.json.Decoder(_Reply)

_FACTS: Final[Mapping[str, tuple[Callable[..., Exception], tuple[str, ...]]]] = {
    "AgentError": (AgentError, ()),
    "AgentNotFound": (AgentNotFound, ("name",)),
    "AgentGone": (AgentGone, ("name", "generation")),
    "AgentNotGranted": (AgentNotGranted, ("agent", "name", "granted")),
    "HandoffRefused": (HandoffRefused, ("target", "reason")),
    "CallCycle": (CallCycle, ("chain",)),
    "NoMailbox": (NoMailbox, ("name",)),
    "AgentDown": (AgentDown, ("name", "reason")),
    "BudgetExceeded": (BudgetExceeded, ("counter", "limit", "agent")),
    "NotJson": (NotJson, ("what", "reason")),
    "NoOwner": (NoOwner, ("name", "reason")),
    "OwnerLost": (OwnerLost, ("node", "epoch", "reason")),
    "OwnerFailed": (OwnerFailed, ("node", "kind", "reason", "executed")),
    "OwnerRefused": (OwnerRefused, ("node", "reason", "text")),
}
"""Of each error of agents that crosses as itself: what makes it, of which attributes."""


def packed(value: object, what: str) -> Value:
    """`value` as it crosses.

    Raises:
        NotJson: it cannot; names `what` it is.

    """
    if isinstance(value, ToolResult):
        return Value(value.raw, tool=True)
    try:
        return Value(Raw(encode_finite(value)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotJson(what, str(exc)) from exc


def unpacked(value: Value) -> object:
    """What crossed."""
    return ToolResult(value.json) if value.tool else parse(value.json)


def steps_of(transcript: Sequence[Step]) -> tuple[_Step, ...]:
    """A transcript as it crosses. Raises as `packed` does."""
    return tuple(_Step(step.agent, packed(step.payload, f"what agent {step.agent!r} was given")) for step in transcript)


def limits_of(account: Account | None) -> dict[str, Decimal]:
    """What is left of each counter that has a limit."""
    if account is None or account.parent is None:  # no budget was given
        return {}
    left = {name: account.left(name) for name in COUNTERS}
    return {name: Decimal(str(amount)) for name, amount in left.items() if amount != float("inf")}


def spent_of(amounts: Amounts, before: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """What was spent in all: now, and by those before."""
    sums = {name: before.get(name, Decimal(0)) + Decimal(str(amounts[name])) for name in COUNTERS}
    return {name: amount for name, amount in sums.items() if amount}


def amounts_of(spent: Mapping[str, Decimal]) -> dict[str, Any]:
    """Amounts as accounts take them."""
    return {name: amount if name == "money" else int(amount) for name, amount in spent.items() if name in COUNTERS}


def _are_amounts(amounts: Mapping[str, Decimal]) -> bool:
    return all(each.is_finite() and 0 <= each <= MAX_AMOUNT for each in amounts.values())


def params_with(letter: Letter) -> dict[str, Raw]:
    """The params of a call that carries it."""
    return {_LETTER: Raw(msgspec.json.encode(letter))}


def letter_in(params: Mapping[str, Raw]) -> Letter:
    """What a call carries.

    Raises:
        BadFrame: it is no letter.

    """
    try:
        letter = _LETTERS.decode(bytes(params.get(_LETTER, _NONE)))
    except UNREADABLE as exc:
        raise BadFrame(f"what is asked of an agent cannot be read: {exc}") from exc
    if not (_are_amounts(letter.limits) and _are_amounts(letter.spent)):
        raise BadFrame("what is asked of an agent has a budget of no amounts")
    return letter


def questions_with(questions: Mapping[str, Question], token: str) -> dict[str, Raw]:
    """The params of a call that asks back whoever waits under `token`."""
    return {"token": Raw(encode(token)), "questions": Raw(msgspec.json.encode(questions))}


def questions_in(params: Mapping[str, Raw]) -> tuple[dict[str, Question], str]:
    """What is asked back, and the token of who is asked.

    Raises:
        BadFrame: it is no question.

    """
    try:
        token = msgspec.json.decode(params.get("token", _NONE), type=str)
        return msgspec.json.decode(params.get("questions", _NONE), type=dict[str, Question]), token
    except UNREADABLE as exc:
        raise BadFrame(f"what an agent asks back cannot be read: {exc}") from exc


def reply_of(answer: object, what: str, spent: dict[str, Decimal]) -> Raw:
    """The result that tells an answer. Raises as `packed` does."""
    return Raw(msgspec.json.encode(_Reply(packed(answer, what), spent=spent)))


def refusal_of(error: Exception, agent: str, node: str, spent: dict[str, Decimal]) -> Raw:
    """The result that tells why `agent` of `node` did not answer."""
    notes = tuple(str(note) for note in getattr(error, "__notes__", ())[-MAX_NOTES:])
    kind = type(error).__name__
    made = _FACTS.get(kind)
    if made is not None and made[1]:
        facts = tuple(getattr(error, name) for name in made[1])
        fault = _Fault(node, kind, getattr(error, "executed", ""), facts, notes=notes)
    elif isinstance(error, CallError):
        fault = _Fault(node, call=Raw(failure_of(error).body), notes=notes)
    elif isinstance(error, AgentCrashed):
        fault = _Fault(node, "AgentCrashed", facts=(error.agent,), text=str(error), notes=notes)
    elif isinstance(error, AgentError):
        fault = _Fault(node, "AgentError", facts=(str(error),), notes=notes)
    else:
        at = f"{agent}@{node}"
        fault = _Fault(node, "AgentCrashed", facts=(at,), text=f"agent {at} crashed: {error!r}", notes=notes)
    return Raw(msgspec.json.encode(_Reply(fault=fault, spent=spent)))


def read_reply(result: Raw, name: str) -> tuple[object, Exception | None, dict[str, Decimal]]:
    """What an agent answered, or the exception that says why it did not, and what it spent.

    Args:
        result: of the call.
        name: of the agent.

    """
    try:
        reply = _REPLIES.decode(bytes(result))
        answer = unpacked(reply.answer)
    except UNREADABLE as exc:
        return None, BadReply(f"what agent {name!r} said cannot be read: {exc}"), {}
    if not _are_amounts(reply.spent):
        return None, BadReply(f"what agent {name!r} said that it spent are no amounts"), {}
    return answer, None if reply.fault is None else _error_in(reply.fault, name), reply.spent


def _error_in(fault: _Fault, name: str) -> Exception:
    error: Exception
    if not fault.kind:
        try:
            outcome_of(Frame("err", body=bytes(fault.call)), fault.node, name)
            error = BadReply(f"agent {name!r} failed, and did not say how")
        except CallError as exc:
            error = exc.with_traceback(None)
    else:
        error = AgentCrashed(str(fault.facts[0]) if fault.facts else name, "")
        error.args = (fault.text or f"agent {name} failed: {fault.kind}",)
        made = _FACTS.get(fault.kind)
        if made is not None:
            try:
                error = made[0](*fault.facts)
            except (TypeError, ValueError):
                pass  # one of a later version has other facts
        if type(error) is AgentNotFound and fault.node and PLACE not in error.name:
            error = AgentNotFound(f"{error.name}{PLACE}{fault.node}")  # there, and not where it is told
        if isinstance(error, CallError) and fault.executed in ("no", "unknown", "yes"):
            error.executed = fault.executed  # type: ignore[assignment]  # mypy does not narrow to literals
    for note in fault.notes[:MAX_NOTES]:
        error.add_note(note)
    return error
