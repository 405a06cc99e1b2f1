"""Agents of the configuration, with their mailboxes, budgets and supervisors, and their tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs

from cord_trio.config.checks import Fault, check_numbers, pairs, raise_problems, texts
from cord_trio.config.table import Table, below, kind, move
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FULL: Final = ("wait", "fail", "drop_oldest", "drop_newest")
RESTART: Final = ("permanent", "transient", "temporary", "elsewhere")
STRATEGIES: Final = ("one_for_one", "one_for_all", "rest_for_one")
GIVES_UP: Final = ("stop", "fail")

AGENT_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HANDLER: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _one_of(value: object, name: str, known: tuple[str, ...]) -> Iterator[Fault]:
    if getattr(value, name) not in known:
        yield name, "is not known", f"give one of {', '.join(known)}"


@attrs.frozen(kw_only=True)
class MailboxConfig:
    """An agent's queue.

    Attributes:
        size: messages in it.
        full: what happens to one more: wait, fail, drop_oldest or drop_newest.

    """

    size: int = 64
    full: Literal["wait", "fail", "drop_oldest", "drop_newest"] = "wait"

    def faults(self) -> Iterator[Fault]:
        """What is wrong with it."""
        yield from _one_of(self, "full", FULL)
        yield from check_numbers(self, {"size": 1})


@attrs.frozen(kw_only=True)
class BudgetConfig:
    """What each run of an agent may use, with all below it; None for as much as its asker has.

    Attributes:
        calls: tool calls.
        seconds: from the ask to its end.
        tokens: of language models, as the agent tells.
        money: as the agent tells.
        bytes: arguments and results of tool calls.
        hops: handoffs.

    """

    calls: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    money: float | None = None
    bytes: int | None = None
    hops: int | None = None

    def faults(self) -> Iterator[Fault]:
        """What is wrong with it."""
        # None of something is a budget too, but no time at all is a slip of the pen.
        yield from check_numbers(self, {"calls": 0, "seconds": 0.0, "tokens": 0, "money": 0, "bytes": 0, "hops": 0})


@attrs.frozen(kw_only=True)
class SupervisorConfig:
    """Agents that belong together: those that name it.

    Attributes:
        name: how they name it.
        strategy: what a crash of one makes anew: one_for_one, one_for_all or rest_for_one.
        max_restarts: so many within `within` seconds, then it gives up.
        within: seconds.
        gives_up: "stop" leaves its agents down, "fail" ends the whole fabric.
        parent: the supervisor to whom giving up is a crash of this whole group; empty for none.

    """

    name: str
    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one"
    max_restarts: int = 3
    within: float = 5.0
    gives_up: Literal["stop", "fail"] = "stop"
    parent: str = ""

    def __attrs_post_init__(self) -> None:
        raise_problems(f"supervisors.{self.name}", self._faults())

    def _faults(self) -> Iterator[Fault]:
        if not AGENT_NAME.fullmatch(self.name):
            yield "", "the name cannot be a supervisor's", "use 1 to 64 letters, digits, `_` and `-`"
        yield from _one_of(self, "strategy", STRATEGIES)
        yield from _one_of(self, "gives_up", GIVES_UP)
        yield from check_numbers(self, {"max_restarts": 0, "within": 0.0})


@attrs.frozen(kw_only=True)
class AgentConfig:
    """An agent by name.

    Attributes:
        name: how others ask it.
        handler: where its function or class is, `module:attribute`.
        tools: globs over exported names: the tools it may call.
        agents: globs over names: the agents it may ask, tell and hand to.
        topics: globs over the topics whose broadcasts it takes, for which it needs a mailbox.
        turn: how many of its tasks run at once.
        export: whether the gateway shows it as a tool.
        mailbox: a queue and a task of its own; None for none.
        budget: of each run; None for its asker's.
        deadline: seconds for each run; None for none.
        grace: seconds that a handler has to end when its agent is stopped, or its asker has gone.
        restart: when it is made anew: permanent, transient, temporary or elsewhere.
        supervisor: the name of who makes it anew, and what else with it; empty for itself alone.
        singleton: whether there is one of it in the mesh, for which this node stands by.
        where: labels that a node of a mesh must have for it to be there; empty for any.

    """

    name: str
    handler: str
    tools: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    agents: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    topics: tuple[str, ...] = attrs.field(default=(), converter=texts)
    turn: int = 1
    export: bool = False
    mailbox: MailboxConfig | None = None
    budget: BudgetConfig | None = None
    deadline: float | None = None
    grace: float = 5.0
    restart: Literal["permanent", "transient", "temporary", "elsewhere"] = "permanent"
    supervisor: str = ""
    singleton: bool = False
    where: Mapping[str, str] = attrs.field(factory=dict, converter=pairs)

    def __attrs_post_init__(self) -> None:
        raise_problems(f"agents.{self.name}", self._faults())

    def may_call(self, tool: str) -> bool:
        """Whether it may call the tool of this exported name."""
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def belongs(self, labels: Mapping[str, str] | None) -> bool:
        """Whether it is on a node with these labels; None for no node of a mesh."""
        return labels is None or all(labels.get(key) == value for key, value in self.where.items())

    def _faults(self) -> Iterator[Fault]:
        if not AGENT_NAME.fullmatch(self.name):
            yield "", "the name cannot be an agent's", "use 1 to 64 letters, digits, `_` and `-`"
        if not _HANDLER.fullmatch(self.handler):
            yield "handler", "does not name a function", 'write "package.module:function"'
        if self.topics and self.mailbox is None:
            yield "topics", "needs a mailbox, to which broadcasts go", "write mailbox = 64"
        yield from _one_of(self, "restart", RESTART)
        if self.restart == "elsewhere" and not self.singleton:
            yield "restart", "elsewhere is for an agent of which there is one", "write singleton = true"
        elif self.restart == "elsewhere" and self.turn != 1:
            yield "restart", "elsewhere keeps the state when nothing runs", "write turn = 1"
        yield from check_numbers(self, {"turn": 1, "deadline": 0.0, "grace": 0.0})
        for part, value in (("mailbox", self.mailbox), ("budget", self.budget)):
            if value is not None:
                yield from ((f"{part}.{path}", what, remedy) for path, what, remedy in value.faults())


def agents_by_name(agents: Mapping[str, AgentConfig] | Iterable[AgentConfig]) -> Mapping[str, AgentConfig]:
    """Each under its name."""
    return dict(agents) if isinstance(agents, Mapping) else {agent.name: agent for agent in agents}


def supervisors_by_name(
    supervisors: Mapping[str, SupervisorConfig] | Iterable[SupervisorConfig],
) -> Mapping[str, SupervisorConfig]:
    """Each under its name."""
    return dict(supervisors) if isinstance(supervisors, Mapping) else {one.name: one for one in supervisors}


def check_supervisors(
    agents: Mapping[str, AgentConfig], supervisors: Mapping[str, SupervisorConfig]
) -> Iterator[Fault]:
    """A fault, at its whole path, for each supervisor that is named and is not there, or is above itself."""
    known = f"there are {', '.join(supervisors)}" if supervisors else "add a table [supervisors.NAME]"
    for agent in agents.values():
        if agent.supervisor and agent.supervisor not in supervisors:
            yield f"agents.{agent.name}.supervisor", f"there is no supervisor {agent.supervisor}", known
    for one in supervisors.values():
        if one.parent and one.parent not in supervisors:
            yield f"supervisors.{one.name}.parent", f"there is no supervisor {one.parent}", known
        above, seen = one.parent, {one.name}
        while above in supervisors and above not in seen:
            seen.add(above)
            above = supervisors[above].parent
        if above == one.name:
            yield f"supervisors.{one.name}.parent", "is above itself", "let one of them have no parent"


def read_agents(top: Table) -> dict[str, AgentConfig]:
    """The agents of a document; what is wrong with them is reported."""
    table = top.table("agents")
    found = {}
    for name in table.members if table else ():
        path, entry = below("agents", name), table.members[name] if table else None
        if not isinstance(entry, Mapping):
            top.report.add(path, f"is {kind(entry)}, not a table", 'write handler = "module:function"')
            continue
        agent = _agent(name, Table(entry, path, top.report))
        if agent is not None:
            found[name] = agent
    return found


def read_supervisors(top: Table) -> dict[str, SupervisorConfig]:
    """The supervisors of a document; what is wrong with them is reported."""
    table = top.table("supervisors")
    found = {}
    for name in table.members if table else ():
        entry = table.table(name) if table else None
        if entry is None:
            continue
        entry.only(("strategy", "max_restarts", "within", "gives_up", "parent"))
        given = {
            "strategy": entry.text("strategy"),
            "max_restarts": entry.count("max_restarts"),
            "within": entry.number("within"),
            "gives_up": entry.text("gives_up"),
            "parent": entry.text("parent"),
        }
        supervisor = _made(partial(SupervisorConfig, name=name), given, f"supervisors.{name}", entry)
        if supervisor is not None:
            found[name] = supervisor
    return found


def _agent(name: str, table: Table) -> AgentConfig | None:
    fields = [field.name for field in attrs.fields(AgentConfig) if field.name != "name"]
    table.only(fields)
    given: dict[str, object] = {
        "handler": table.text("handler"),
        "tools": table.texts("tools"),
        "agents": table.texts("agents"),
        "topics": table.texts("topics"),
        "turn": table.count("turn"),
        "export": table.flag("export"),
        "mailbox": _mailbox(table),
        "budget": _budget(table),
        "deadline": table.number("deadline"),
        "grace": table.number("grace"),
        "restart": table.text("restart"),
        "supervisor": table.text("supervisor"),
        "singleton": table.flag("singleton"),
        "where": table.pairs("where"),
    }
    if table.members.get("handler") is None:
        table.report.add(table.path, "has no handler", 'write handler = "module:function"')
    if given["handler"] is None:
        given["handler"] = "module:function"  # for what else is wrong
    return _made(partial(AgentConfig, name=name), given, f"agents.{name}", table)


def _mailbox(table: Table) -> MailboxConfig | None:
    value = table.members.get("mailbox")
    if value is None or not isinstance(value, Mapping):
        size = None if value is None else table.count("mailbox")  # short for a table with a size
        return None if size is None else MailboxConfig(size=size)
    inner = table.table("mailbox")
    assert inner is not None
    inner.only(("size", "full"))
    given = {"size": inner.count("size"), "full": inner.text("full")}
    return MailboxConfig(**_present(given))


def _budget(table: Table) -> BudgetConfig | None:
    inner = table.table("budget")
    if inner is None:
        return None
    whole = ("calls", "tokens", "bytes", "hops")
    inner.only((*whole, "seconds", "money"))
    given: dict[str, object] = {name: inner.count(name) for name in whole}
    given |= {name: inner.number(name) for name in ("seconds", "money")}
    return BudgetConfig(**_present(given))


def _made(make: Callable[..., T], given: Mapping[str, object], place: str, table: Table) -> T | None:
    """What is made of the members that are there; None, and reported, if it cannot be."""
    try:
        return make(**_present(given))
    except ConfigError as exc:
        move(exc, place, table)
        return None


def _present(given: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
