"""Every exception that cord_trio raises on purpose.

::

    CordError
    ├── ConfigError            the configuration is wrong; holds every problem at once
    ├── Malformed              the peer sent bytes that are no message (pure rooms raise it)
    │   └── TooDeep            they are nested deeper than is allowed; names the bound
    ├── ConnectFailed          a source could not be brought up; says at which step and what to do
    ├── CallError              a call ended without a result; `executed` says what is known
    │   ├── CallFailed         the peer answered with a JSON-RPC error
    │   ├── BadReply           the peer answered with something that the protocol does not allow
    │   ├── InputNeeded        the peer asked for input that nobody here can give
    │   ├── ToolNotFound       no such tool in the registry
    │   │   └── ToolNotGranted the agent may not call it; names its grant
    │   ├── SourceDown         the source that owns the tool is not connected
    │   ├── ConnectionLost     the connection ended before the answer came
    │   │   └── DrainTimeout   we ended it ourselves: the grace of a drain was over; names it
    │   ├── DeadlineExceeded   the configured deadline passed
    │   ├── HttpFailed         the server answered with an HTTP status that is no success
    │   │   └── Refused        it turned the request away for now: too many, or not at this moment
    │   ├── Denied             a rule, or a person, does not allow it
    │   ├── Overloaded         one of our own bounds was met; names it
    │   │   ├── TooLate        it could not go before its deadline
    │   │   └── MessageTooLong what was to be sent is longer than any message may be
    │   └── Draining           the fabric takes no new work
    └── AgentError             an agent could not be asked, or did not answer
        ├── AgentNotFound      no agent has this name
        │   ├── AgentGone      that generation of the agent is no more
        │   └── AgentNotGranted the agent may not ask it; names its grant
        ├── HandoffRefused     the handoff may not happen
        ├── CallCycle          waiting here would wait for itself
        ├── NoMailbox          it takes no messages
        ├── AgentCrashed       its handler raised; the cause is what
        ├── AgentDown          it was stopped, or gave up
        ├── RestartIntensity   agents crashed too often; the cause is the last crash
        ├── BudgetExceeded     a budget is used up; names the counter and the agent
        ├── JobNotFound        no started conversation has this id
        ├── JobCancelled       it was cancelled
        └── InDoubt            it called tools that may have run, and is not run again unasked

Those of many machines are in `mesh_errors`.

Facts are attributes; the text is made from them. `executed` is "no" (provably not run), "unknown"
(it may have run) or "yes" (the server answered).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

Executed: TypeAlias = Literal["no", "unknown", "yes"]


class CordError(Exception):
    """Base of all errors that cord_trio raises on purpose."""


@attrs.frozen
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        file: where it was read from, as the user named it; "" for values given in code.
        path: where in the file, such as `sources.time.command`.
        what: what is wrong.
        remedy: what to do about it.
        fatal: False if only the source named by `source` is affected.
        source: the source that cannot be used because of it, if one.

    """

    file: str
    path: str
    what: str
    remedy: str
    fatal: bool = True
    source: str | None = None

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.file, self.path, self.what) if part)
        return f"{text}; {self.remedy}" if self.remedy else text


class ConfigError(CordError):
    """The configuration cannot be used. Holds every problem, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class Malformed(CordError):
    """Bytes that are not one JSON-RPC message.

    Attributes:
        code: the JSON-RPC error code to answer with: -32700 not JSON, -32600 not a message.
        id: the request's id where it could be read.

    """

    def __init__(self, code: int, what: str, id: int | str | None = None) -> None:
        super().__init__(what)
        self.code = code
        self.id = id


class TooDeep(Malformed):
    """JSON of more levels than `bounds.json_depth`."""


class ConnectFailed(CordError):
    """A source could not be connected.

    Attributes:
        source: its name.
        step: spawn, connect, tls, http, authorize, handshake or list.
        reason: what happened, in words.
        remedy: what a person can do; may be empty.

    """

    def __init__(self, source: str, step: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{source}: {step}: {reason}" + (f"; {remedy}" if remedy else ""))
        self.source = source
        self.step = step
        self.reason = reason
        self.remedy = remedy


class CallError(CordError):
    """A call ended without a result.

    Attributes:
        executed: "no", "unknown" or "yes": whether the server may have run it.

    """

    executed: Executed = "unknown"

    def __init__(self, text: str, executed: Executed | None = None) -> None:
        super().__init__(text)
        if executed is not None:
            self.executed = executed


class CallFailed(CallError):
    """The peer answered with a JSON-RPC error: its `code`, `message`, and `data` as JSON bytes."""

    executed: Executed = "yes"

    def __init__(self, code: int, message: str, data: bytes = b"", executed: Executed | None = None) -> None:
        super().__init__(f"{message} ({code})", executed)
        self.code = code
        self.message = message
        self.data = data


class BadReply(CallError):
    """The peer's answer breaks the protocol. The call may well have run."""

    executed: Executed = "yes"


class InputNeeded(CallError):
    """The server asked for input (elicitation, sampling, roots) and nobody here can answer.

    Attributes:
        methods: what it asked for.

    """

    executed: Executed = "unknown"

    def __init__(self, name: str, methods: Sequence[str]) -> None:
        super().__init__(f"{name} asks for {', '.join(methods) or 'another round'}, which nobody here can answer")
        self.methods = tuple(methods)


class ToolNotFound(CallError):
    """No tool has this name. `near` holds the closest names that exist."""

    executed: Executed = "no"

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"no tool named {name!r}{hint}")
        self.name = name
        self.near = tuple(near)


class ToolNotGranted(ToolNotFound):
    """The agent may not call this tool, whether it exists or not. `granted` holds the globs of those it may."""

    def __init__(self, agent: str, tool: str, granted: Sequence[str]) -> None:
        super().__init__(tool)
        self.args = (f"agent {agent!r} may not call {tool!r}: it is granted {', '.join(granted) or 'no tool'}",)
        self.agent = agent
        self.granted = tuple(granted)


class SourceDown(CallError):
    """The source is not connected, and did not come up in time.

    Attributes:
        source: its name.
        reason: why, in words.
        next_try: Trio time of the next attempt to connect, if one is planned.

    """

    executed: Executed = "no"

    def __init__(self, source: str, reason: str, next_try: float | None = None) -> None:
        super().__init__(f"source {source!r} is down: {reason}")
        self.source = source
        self.reason = reason
        self.next_try = next_try


class ConnectionLost(CallError):
    """The connection ended before the answer came. `reason` says how."""

    def __init__(self, reason: str, executed: Executed = "unknown") -> None:
        super().__init__(f"connection lost: {reason}", executed)
        self.reason = reason

    def fresh(self, executed: Executed) -> ConnectionLost:
        """The same for one more call: an error that is raised belongs to who caught it."""
        return ConnectionLost(self.reason, executed)


class DrainTimeout(ConnectionLost):
    """A drain cut the call off: it did not end within the grace.

    Attributes:
        what: what drains, such as `the fabric`.
        grace: seconds that were given.

    """

    def __init__(self, what: str, grace: float, executed: Executed = "unknown") -> None:
        super().__init__(f"{what} drains, and its grace of {grace:g} s is over", executed)
        self.args = (f"cut off: {self.reason}",)
        self.what = what
        self.grace = grace

    def fresh(self, executed: Executed) -> DrainTimeout:
        return DrainTimeout(self.what, self.grace, executed)


class DeadlineExceeded(CallError):
    """The deadline of the call passed. The server was told to stop if it had been asked."""

    def __init__(self, what: str, executed: Executed = "unknown") -> None:
        super().__init__(f"deadline exceeded: {what}", executed)


class HttpFailed(CallError):
    """The server answered with an HTTP status that is no success, and with no JSON-RPC error.

    Attributes:
        status: the HTTP status.
        text: the start of the body, for diagnosis.
        challenge: the `WWW-Authenticate` header, if it came.

    """

    def __init__(self, status: int, text: str = "", *, challenge: str = "", executed: Executed | None = None) -> None:
        super().__init__(f"HTTP status {status}" + (f": {text}" if text else ""), executed)
        self.status = status
        self.text = text
        self.challenge = challenge
        if executed is None:
            # A server that ran the request answers 2xx, or fails with 5xx.
            self.executed = "no" if 300 <= status < 500 else "unknown"


class Refused(HttpFailed):
    """The server turned the request away for now (429, 503), before running it.

    Attributes:
        retry_after: seconds after which it may be asked again, if it said so.

    """

    executed: Executed = "no"

    def __init__(self, reason: str = "", *, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(status, reason, executed="no")
        self.reason = reason
        self.retry_after = retry_after


class Overloaded(CallError):
    """One of our bounds was met. `bound` is its name, `limit` its value."""

    executed: Executed = "no"

    def __init__(self, bound: str, limit: float) -> None:
        super().__init__(f"bound {bound} = {limit:.12g} is met; try later, or raise it")
        self.bound = bound
        self.limit = limit


class MessageTooLong(Overloaded):
    """What was to be sent is longer than a message may be: no later attempt is shorter."""

    def __init__(self, bound: str, limit: float, size: int) -> None:
        super().__init__(bound, limit)
        self.args = (f"a message of {size} bytes is longer than bound {bound} = {limit:.12g}; send less, or raise it",)
        self.size = size


class TooLate(Overloaded):
    """Its turn would have come after its deadline: told at once, since no later attempt comes sooner."""


class Denied(CallError):
    """A rule, or a person, does not allow the call. `name` is what was called, `reason` says why."""

    executed: Executed = "no"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is denied: {reason}")
        self.name = name
        self.reason = reason


class Draining(CallError):
    """The fabric is shutting down and takes no new work."""

    executed: Executed = "no"

    def __init__(self) -> None:
        super().__init__("the fabric is draining and takes no new work")


class AgentError(CordError):
    """An agent could not be asked, or did not answer."""


class AgentNotFound(AgentError):
    """No agent has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no agent named {name!r}" + ("; no node stands behind its '@'" if name.endswith("@") else ""))
        self.name = name


class HandoffRefused(AgentError):
    """The handoff may not happen: the target is missing, or the hops are used up."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"handoff to {target!r} refused: {reason}")
        self.target = target
        self.reason = reason


class CallCycle(AgentError):
    """Waiting for this agent's turn would wait for ourselves. `chain` shows the circle."""

    def __init__(self, chain: Sequence[str]) -> None:
        super().__init__(f"call cycle: {' > '.join(chain)}")
        self.chain = tuple(chain)


class AgentGone(AgentNotFound):
    """The agent was made anew since: `address` names a generation that is no more."""

    def __init__(self, address: str, generation: int) -> None:
        super().__init__(address)
        self.args = (f"{address!r} is no more: the agent is in generation {generation}",)
        self.generation = generation


class AgentNotGranted(AgentNotFound):
    """The agent may not ask this one, whether it exists or not. `granted` holds the globs of those it may."""

    def __init__(self, agent: str, target: str, granted: Sequence[str]) -> None:
        super().__init__(target)
        self.args = (f"agent {agent!r} may not ask {target!r}: it is granted {', '.join(granted) or 'nobody'}",)
        self.agent = agent
        self.granted = tuple(granted)


class NoMailbox(AgentError):
    """The agent takes asks only: it was made without a mailbox."""

    def __init__(self, name: str) -> None:
        super().__init__(f"agent {name!r} has no mailbox, so it takes no messages; give it one")
        self.name = name


class AgentCrashed(AgentError):
    """The handler of a mailbox agent raised; `__cause__` is what. `agent` is its name and generation."""

    def __init__(self, agent: str, what: str) -> None:
        super().__init__(f"agent {agent} crashed: {what}")
        self.agent = agent


class AgentDown(AgentError):
    """The agent was stopped, or gave up. A message that it had begun may have had effects."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"agent {name!r} is down: {reason}")
        self.name = name
        self.reason = reason


class RestartIntensity(AgentError):
    """The agents of one supervisor crashed too often; `__cause__` is the last crash.

    Attributes:
        agent: whose crash was the last.
        restarts: those that were made.
        within: seconds that they were made in.

    """

    def __init__(self, agent: str, restarts: int, within: float) -> None:
        super().__init__(f"agent {agent} crashed again after {restarts} restarts within {within:g} s")
        self.agent = agent
        self.restarts = restarts
        self.within = within


class BudgetExceeded(AgentError):
    """A budget does not hold what was asked of it.

    Attributes:
        counter: calls, seconds, tokens, money, bytes or hops.
        limit: of that counter.
        agent: who asked for more than there was.

    """

    def __init__(self, counter: str, limit: object, agent: str) -> None:
        super().__init__(f"budget of {limit} {counter} does not hold what agent {agent!r} asks for")
        self.counter = counter
        self.limit = limit
        self.agent = agent


class JobNotFound(AgentError):
    """No started conversation has this id, or its result was let go of."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no conversation with id {id!r}")
        self.id = id


class JobCancelled(AgentError):
    """The started conversation was cancelled, for `reason`."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"conversation {id} was cancelled: {reason}")
        self.id = id
        self.reason = reason


class InDoubt(AgentError):
    """The conversation was cut off after it called `calls`, which may have run: a person must decide."""

    def __init__(self, id: str, calls: Sequence[str]) -> None:
        super().__init__(f"conversation {id} is not run again by itself: {', '.join(calls)} may have run already")
        self.id = id
        self.calls = tuple(calls)
