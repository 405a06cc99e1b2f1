from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cord_trio.agents.budget import Budget
from cord_trio.agents.handlers import find_handlers, options_of, supervisors_of
from cord_trio.agents.mailbox import Mailbox
from cord_trio.config import AgentConfig, BudgetConfig, MailboxConfig, SupervisorConfig
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODE = """
from functools import partial
import json

async def triage(ctx, payload): ...
async def _hidden(ctx, payload): ...
def plain(ctx, payload): ...
async def stream(ctx, payload):
    yield 1

class Ledger:
    async def __call__(self, ctx, payload): ...

class Entered:
    async def __aenter__(self): ...

class Nothing:
    def __call__(self, ctx, payload): ...

made = Ledger()
bound = partial(Ledger)

class desk:
    clerk = staticmethod(triage)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from; what was imported is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tried_desk.py").write_text(CODE)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("tried_")]:
        del sys.modules[name]


def found(handler: str) -> object:
    return find_handlers({"it": AgentConfig(name="it", handler=handler)})["it"]


def problem(handler: str) -> str:
    with pytest.raises(ConfigError) as refused:
        found(handler)
    (one,) = refused.value.problems
    return str(one)


@pytest.mark.parametrize("name", ["triage", "Ledger", "Entered", "made", "desk.clerk"])
def test_what_is_called_like_an_agent_is_one(name: str, modules: Path) -> None:
    assert getattr(found(f"tried_desk:{name}"), "__module__", "") == "tried_desk"


def test_a_partial_of_a_class_is_one(modules: Path) -> None:
    assert isinstance(found("tried_desk:bound"), partial)


@pytest.mark.parametrize("name", ["plain", "stream", "Nothing", "json"])
def test_what_is_not_async_is_none(name: str, modules: Path) -> None:
    remedy = "write `async def handler(ctx, payload)`, or a class with that"
    assert problem(f"tried_desk:{name}") == f"tried_desk:{name}: {name} is no agent; {remedy}"


def test_a_missing_attribute_says_what_there_is(modules: Path) -> None:
    assert problem("tried_desk:triag") == (
        "tried_desk:triag: tried_desk has no triag; it has Entered, Ledger, made, triage"
    )
    (modules / "tried_empty.py").write_text("import json")
    assert problem("tried_empty:x").endswith("tried_empty has no x; it has no async function of its own")


def test_a_missing_module_says_which(modules: Path) -> None:
    (modules / "tried_needy.py").write_text("import tried_missing")
    remedy = "start in the folder where it lies, or install it"
    assert problem("tried_none:x") == f"tried_none:x: there is no module tried_none; {remedy}"
    assert problem("tried_none.deep:x") == f"tried_none.deep:x: there is no module tried_none; {remedy}"
    assert problem("tried_needy:x") == (
        "tried_needy:x: importing tried_needy failed: No module named 'tried_missing'; install what it needs"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_says_how(code: str, words: str, modules: Path) -> None:
    (modules / "tried_bad.py").write_text(code)
    text = problem("tried_bad:x")
    assert text.startswith(f"tried_bad:x: importing tried_bad failed: {words}")
    assert text.endswith("; try `python -c 'import tried_bad'`")


def test_every_problem_is_told_with_its_place(modules: Path) -> None:
    agents = {name: AgentConfig(name=name, handler=f"tried_desk:{name}") for name in ("plain", "triage", "none")}
    with pytest.raises(ConfigError) as refused:
        find_handlers(agents, "cord.toml")
    assert [(one.file, one.path) for one in refused.value.problems] == [
        ("cord.toml", "agents.plain.handler"),
        ("cord.toml", "agents.none.handler"),
    ]


def test_a_configured_agent_is_made_as_it_says() -> None:
    desk = SupervisorConfig(name="desk", strategy="rest_for_one", max_restarts=1, within=2.0, parent="all")
    supervisors = supervisors_of({"desk": desk, "all": SupervisorConfig(name="all", gives_up="fail")})
    assert supervisors["desk"].parent is supervisors["all"]
    assert (supervisors["desk"].strategy, supervisors["desk"].max_restarts, supervisors["desk"].within) == (
        *("rest_for_one", 1),
        2.0,
    )
    assert (supervisors["desk"].gives_up, supervisors["all"].gives_up) == ("stop", "fail")
    agent = AgentConfig(
        name="a", handler="m:f", agents="b", topics="news", mailbox=MailboxConfig(size=8, full="fail"),
        budget=BudgetConfig(calls=2, money=0.5), deadline=3.0, grace=1.0, restart="temporary", supervisor="desk",
        tools="t", turn=2, export=True,
    )  # fmt: skip
    assert options_of(agent, supervisors) == {
        "turn": 2, "tools": ("t",), "agents": ("b",), "topics": ("news",), "export": True,
        "mailbox": Mailbox(8, "fail"), "budget": Budget(calls=2, money=0.5), "deadline": 3.0, "grace": 1.0,
        "restart": "temporary", "supervisor": supervisors["desk"],
    }  # fmt: skip
    plain = options_of(AgentConfig(name="a", handler="m:f"), {})
    assert (plain["mailbox"], plain["budget"], plain["deadline"], plain["supervisor"]) == (None, None, math.inf, None)
