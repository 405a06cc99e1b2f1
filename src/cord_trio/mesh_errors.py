"""The exceptions of many machines: those of NATS, and of what is kept and asked there.

::

    CordError
    ├── NatsMalformed          a NATS server sent bytes that its protocol does not know
    ├── BadFrame               a node said something that the mesh's protocol does not know
    ├── DuplicateName          another node has the name
    ├── AgentTaken             another node has the agent of which there is one
    ├── BadCatalogue           what a server of another node lists cannot be used
    ├── AgentError
    │   ├── AgentDown
    │   │   └── AgentMoved     it is on another node now
    │   └── NotJson            what an agent is given, or answers, cannot go to another node
    └── CallError
        ├── NoOwner            no node that has it can be reached; nothing was run
        ├── OwnerLost          the node that had the call is no more, or cannot be reached
        ├── OwnerFailed        the node that had the call could not do it; says why
        ├── OwnerRefused       the node that has it takes the call not, or not now
        ├── NoResponders       nobody listens to what was asked, says the NATS server
        ├── NotPermitted       the NATS server does not let us
        └── StoreFailed        the store did not do what it was asked
            └── Conflict       the key has another revision than the one expected
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.errors import AgentDown, AgentError, CallError, CordError

if TYPE_CHECKING:
    from cord_trio.errors import Executed


_AFTER: Final[dict[Executed, str]] = {
    "no": "the call did not run: make it again",
    "unknown": "whether the call ran is not known: look before you make it again",
    "yes": "the call ran, and its result is lost",
}
"""What whoever called can do."""

_REMEDIES: Final = {
    "busy": "it runs as many as it may: call again later",
    "draining": "it is about to stop: call again once another node has it",
    "fenced": "it, or this node, has lost its lease, and comes back by itself: call again in some seconds",
}
"""The same, where a node refused, and nothing ran."""


class NatsMalformed(CordError):
    """Bytes of a NATS server that are none of its protocol, or past a bound. `before` holds what came before them."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.before: tuple[object, ...] = ()


class BadFrame(CordError):
    """A message of another node that is none of the mesh's protocol.

    Attributes:
        reason: "" if it is garbage, "unsupported" if it may be of a later version.
        id: of the call that it is about, where that could be read.

    """

    def __init__(self, what: str, reason: str = "") -> None:
        super().__init__(what)
        self.reason = reason
        self.id = ""


class NoOwner(CallError):
    """None of the nodes that have `name` can be reached now."""

    executed: Executed = "no"

    def __init__(self, name: str, reason: str, executed: Executed | None = None) -> None:
        super().__init__(f"no node that has {name!r} can be reached: {reason}", executed)
        self.name = name
        self.reason = reason


class OwnerLost(CallError):
    """Incarnation `epoch` of `node`, which had the call, is no more, or was not heard of for too long."""

    def __init__(self, node: str, epoch: str, reason: str, executed: Executed = "unknown") -> None:
        super().__init__(f"node {node!r} (epoch {epoch}) was lost: {reason}", executed)
        self.node = node
        self.epoch = epoch
        self.reason = reason

    def __str__(self) -> str:
        # What is known of whether it ran may be learnt after it was made.
        return f"{super().__str__()}; {_AFTER[self.executed]}"


class OwnerFailed(CallError):
    """The call failed on `node`; `kind` is the name of the error there, and `reason` its text."""

    def __init__(self, node: str, kind: str, reason: str, executed: Executed) -> None:
        super().__init__(f"on node {node!r}: {reason}", executed)
        self.node = node
        self.kind = kind
        self.reason = reason


class OwnerRefused(CallError):
    """`node` did not take the call: it is `reason` (busy, draining, fenced, nosuch, unsupported, denied)."""

    executed: Executed = "no"

    def __init__(self, node: str, reason: str, text: str = "", executed: Executed | None = None) -> None:
        super().__init__(f"node {node!r} did not take the call: {reason}" + (f", {text}" if text else ""), executed)
        self.node = node
        self.reason = reason
        self.text = text

    def __str__(self) -> str:
        remedy = _REMEDIES.get(self.reason) if self.executed == "no" else None
        return super().__str__() + (f"; {remedy}" if remedy else "")


class NoResponders(CallError):
    """Nobody listens to `subject` now, says the NATS server; it was thrown away."""

    executed: Executed = "no"

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens to {subject!r}")
        self.subject = subject


class NotPermitted(CallError):
    """The NATS server does not let us publish, or listen, to `subject`; `reason` is in its words."""

    executed: Executed = "no"

    def __init__(self, subject: str, reason: str, executed: Executed | None = None) -> None:
        super().__init__(f"the NATS server does not permit it: {reason}", executed)
        self.subject = subject
        self.reason = reason


class StoreFailed(CallError):
    """The store refused, for `reason` in its words, and `code`, its number for that, if it gave one."""

    executed: Executed = "no"

    def __init__(self, code: int, reason: str, executed: Executed | None = None) -> None:
        super().__init__(f"the store refused: {reason}" + (f" ({code})" if code else ""), executed)
        self.code = code
        self.reason = reason


class Conflict(StoreFailed):
    """The key has another revision than the one expected: somebody wrote it in between."""

    def __init__(self, key: str, expected: int, code: int = 0) -> None:
        was = f"no longer at revision {expected}" if expected else "there already"
        super().__init__(code, f"key {key!r} is {was}")
        self.key = key
        self.expected = expected


class DuplicateName(CordError):
    """Another node of the mesh has the name `node`, in incarnation `epoch`, and is there."""

    def __init__(self, node: str, epoch: str) -> None:
        super().__init__(
            f"another node is named {node!r} (epoch {epoch}); give this one another name, or stop that one"
        )
        self.node = node
        self.epoch = epoch


class BadCatalogue(CordError):
    """What is listed under the digest, or by the source, `name` cannot be used, for `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the catalogue {name[:100]!r} cannot be used: {reason}")
        self.name = name
        self.reason = reason


class AgentTaken(CordError):
    """Incarnation `epoch` of `node` has the agent `agent`, of which there is one in the mesh."""

    def __init__(self, agent: str, node: str, epoch: str) -> None:
        super().__init__(f"agent {agent!r} is that of node {node!r} (epoch {epoch}) now; ask it there")
        self.agent = agent
        self.node = node
        self.epoch = epoch


class NotJson(AgentError):
    """`what` cannot go to another node, for `reason`: nothing crosses but JSON, and what a tool answered."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot go to another node: {reason}; let it be plain values, as in JSON")
        self.what = what
        self.reason = reason


class AgentMoved(AgentDown):
    """The agent is on node `node` now. Whoever waited for it is led there, and sees this only if that cannot be."""

    def __init__(self, name: str, node: str) -> None:
        super().__init__(name, f"it is on node {node!r} now")
        self.node = node
