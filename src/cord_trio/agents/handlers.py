"""The functions and classes that a configuration names as handlers of its agents."""

from __future__ import annotations

import importlib
import inspect
import math
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import attrs

from cord_trio.agents.budget import Budget
from cord_trio.agents.mailbox import Mailbox
from cord_trio.agents.supervisor import Supervisor
from cord_trio.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.agents.agent import AgentMade
    from cord_trio.config import AgentConfig, SupervisorConfig


def supervisors_of(configured: Mapping[str, SupervisorConfig]) -> dict[str, Supervisor]:
    """The supervisors of a configuration, by name; parents are there, and nobody is above itself."""
    made: dict[str, Supervisor] = {}

    def make(name: str) -> Supervisor:
        if name not in made:
            one = configured[name]
            made[name] = Supervisor(
                one.strategy,
                one.max_restarts,
                one.within,
                gives_up=one.gives_up,
                parent=make(one.parent) if one.parent else None,
            )
        return made[name]

    for name in configured:
        make(name)
    return made


def options_of(agent: AgentConfig, supervisors: Mapping[str, Supervisor]) -> dict[str, Any]:
    """What `Fabric.agent` is given for a configured agent, beside name and function."""
    mailbox, budget = agent.mailbox, agent.budget
    return {
        "turn": agent.turn,
        "tools": agent.tools,
        "agents": agent.agents,
        "topics": agent.topics,
        "export": agent.export,
        "mailbox": None if mailbox is None else Mailbox(mailbox.size, mailbox.full),
        "budget": None if budget is None else Budget(**attrs.asdict(budget)),
        "deadline": math.inf if agent.deadline is None else agent.deadline,
        "grace": agent.grace,
        "restart": agent.restart,
        "supervisor": supervisors.get(agent.supervisor),
    }


def find_handlers(agents: Mapping[str, AgentConfig], file: str = "") -> dict[str, AgentMade]:
    """The handler of each of these agents, by the agent's name. Imports their modules.

    Args:
        agents: as configured.
        file: where they were read from.

    Raises:
        ConfigError: names every handler that is none.

    """
    found: dict[str, AgentMade] = {}
    problems: list[Problem] = []
    for name, agent in agents.items():
        try:
            found[name] = _handler(agent.handler)
        except _NotFound as exc:
            path = f"agents.{name}.handler" if file else ""
            problems.append(Problem(file, path, f"{agent.handler}: {exc.what}", exc.remedy))
    if problems:
        raise ConfigError(problems)
    return found


class _NotFound(Exception):
    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def _handler(place: str) -> AgentMade:
    module, _, attribute = place.partition(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise _NotFound(f"importing {module} failed: {exc}", "install what it needs") from exc
        remedy = "start in the folder where it lies, or install it"
        raise _NotFound(f"there is no module {exc.name}", remedy) from exc
    # A script without a `__main__` guard may even exit.
    except (Exception, SystemExit) as exc:
        what = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise _NotFound(f"importing {module} failed: {what}", f"try `python -c 'import {module}'`") from exc
    try:
        handler: Any = reduce(getattr, attribute.split("."), imported)
    except AttributeError as exc:
        able = [name for name, value in vars(imported).items() if name[:1] != "_" and _is_local(value, module)]
        remedy = f"it has {', '.join(sorted(able)[:8])}" if able else "it has no async function of its own"
        raise _NotFound(f"{module} has no {attribute}", remedy) from exc
    if not _is_async(handler):
        raise _NotFound(f"{attribute} is no agent", "write `async def handler(ctx, payload)`, or a class with that")
    return handler  # type: ignore[no-any-return]  # looked up by its name


def _is_local(value: object, module: str) -> bool:
    return getattr(value, "__module__", None) == module and _is_async(value)


def _is_async(handler: object) -> bool:
    """Whether it is an async function, or a class or an object that is called like one."""
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return True
    if not inspect.isclass(handler):
        return inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004  # what it is matters
    # What entering an instance gives may be the one that is called.
    return hasattr(handler, "__aenter__") or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
