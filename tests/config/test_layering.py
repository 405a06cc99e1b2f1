"""What is said of the layers of all sources, of one, and of one tool."""

from __future__ import annotations

import pytest

from cord_trio.config import Config, Layered, Quota, Rule, Stdio, ToolSettings, parse_config
from cord_trio.errors import ConfigError


def toml(text: str) -> Config:
    return parse_config(text, format="toml", file="cord.toml", environ={})


def test_layers_are_those_of_every_source_that_does_not_say() -> None:
    config = toml("""
        [bounds]
        slots = 9
        call = 50

        [layers]
        deadline = 20
        attempt = 5
        retries = 1

        [sources.a]
        command = "a"

        [sources.b]
        command = "b"
        deadline = 7
        retries = 0
    """)
    a, b = config.sources.values()
    assert (a.deadline, a.attempt, a.retries, a.slots) == (20.0, 5.0, 1, 9)
    assert (b.deadline, b.attempt, b.retries, b.slots) == (7.0, 5.0, 0, 9)


def test_a_tool_has_settings_of_its_own_and_the_first_glob_counts() -> None:
    config = toml("""
        [sources.a]
        command = "a"
        tools = { allow = ["s*"] }

        [sources.a.tool.search]
        deadline = 5
        repeatable = true

        [sources.a.tool."s*"]
        rate = 2
        burst = 1
    """)
    source = config.sources["a"]
    assert source.settings_of("search") == ToolSettings(deadline=5.0, repeatable=True)
    assert source.settings_of("send") == ToolSettings(rate=2.0, burst=1)
    assert source.settings_of("other") is None


def test_what_is_wrong_with_layers_is_told_where_it_stands() -> None:
    with pytest.raises(ConfigError) as caught:
        toml("[layers]\ndeadline = -1\nshed = 3\nbrake = 2\n[sources.a]\ncommand = 'a'")
    assert [(problem.path, problem.what) for problem in caught.value.problems] == [
        ("layers.brake", "is not known"),
        ("layers.shed", "is a number"),
        ("layers.deadline", "is too small"),
    ]


def test_what_is_wrong_with_a_tools_settings_breaks_its_source_alone() -> None:
    config = toml("""
        [sources.a]
        command = "a"
        [sources.a.tool.x]
        retries = -1
        burst = 3
        trust = true
        [sources.b]
        command = "b"
        [sources.c]
        command = "c"
        tool = { y = 3 }
    """)
    assert list(config.sources) == ["b"]
    assert [(problem.path, problem.what) for problem in config.problems] == [
        ("sources.a.tool.x.trust", "is not known"),
        ("sources.a.tool.x.retries", "is too small"),
        ("sources.a.tool.x.burst", "means nothing without a rate"),
        ("sources.c.tool.y", "is a number"),
    ]


def test_layers_beside_a_pasted_block_count_for_it() -> None:
    text = '{"mcpServers": {"a": {"command": "a", "attempt": 3}}, "layers": {"deadline": 9}}'
    [source] = parse_config(text, format="json", environ={}).sources.values()
    assert (source.deadline, source.attempt) == (9.0, 3.0)


def test_layers_are_checked_in_code_too() -> None:
    with pytest.raises(ConfigError, match=r"layers\.slots: is too small"):
        Layered(slots=0)
    with pytest.raises(ConfigError, match=r"sources\.a\.attempt: is too small"):
        Stdio(name="a", command="a", attempt=0.0)


def test_rules_and_budgets_are_read() -> None:
    config = toml("""
        [layers]
        rules = [{ then = "deny" }]
        budget = { bytes = 5 }

        [sources.a]
        command = "a"
        cache = 0
        read_only = true
        rules = [
            { tools = ["s*"], arguments = { "to.name" = ["me"], all = ["true"] }, principals = ["*@n"], then = "ask" },
            { then = "allow" },
            { prompts = ["p*"], resources = ["file:///a/*"], principals = ["*@n"], then = "deny" },
        ]
        budget = { calls = 3, every = 60 }
        tool = { x = { cache = 2.5, budget = { calls = 1 } } }

        [sources.b]
        command = "b"
    """)
    a, b = config.sources.values()
    assert a.rules == (
        Rule(tools=("s*",), arguments={"to.name": ("me",), "all": ("true",)}, principals=("*@n",), then="ask"),
        Rule(then="allow"),
        Rule(prompts=("p*",), resources=("file:///a/*",), principals=("*@n",), then="deny"),
    )
    assert (a.rules[1].tools, a.rules[2].tools) == (("*",), ())
    assert (a.budget, a.cache, a.read_only) == (Quota(calls=3, every=60.0), 0.0, True)
    assert a.tool["x"] == ToolSettings(cache=2.5, budget=Quota(calls=1))
    assert (b.rules, b.budget, b.cache) == ((Rule(then="deny"),), Quota(bytes=5), None)


def test_what_is_wrong_with_rules_and_budgets_is_told_where_it_stands() -> None:
    config = toml("""
        [sources.a]
        command = "a"
        cache = -1
        rules = [{ tools = "x" }, 3, { then = "maybe", when = 1, arguments = { a = "b" } },
                 { prompts = ["[a"], arguments = { a = ["b"] }, then = "ask" }]
        budget = { calls = 0, each = 3 }
        [sources.b]
        command = "b"
        rules = { then = "ask" }
        budget = 3
    """)
    assert [(problem.path, problem.what) for problem in config.problems] == [
        ("sources.a.rules[1]", "is a number"),
        ("sources.a.rules[0].tools", "is a text"),
        ("sources.a.rules[0].then", "is none of the three"),
        ("sources.a.rules[2].when", "is not known"),
        ("sources.a.rules[2].arguments.a", "is a text"),
        ("sources.a.rules[2].then", "is none of the three"),
        ("sources.a.rules[3].then", "asks a person, who is asked about tools alone"),
        ("sources.a.rules[3].arguments", "are looked at of tools alone"),
        ("sources.a.rules[3].prompts[0]", "is no glob: its `[` is never closed"),
        ("sources.a.budget.each", "is not known"),
        ("sources.a.budget.calls", "is too small"),
        ("sources.a.cache", "is too small"),
        ("sources.b.rules", "is a table"),
        ("sources.b.budget", "is a number"),
    ]


@pytest.mark.parametrize(
    ("member", "path", "what"),
    [
        ("budget = {}", "budget", "limits nothing"),
        ('rules = [{ tools = ["["], then = "deny" }]', "rules[0].tools[0]", "is no glob: its `[` is never closed"),
        ('rules = [{ tools = [""], then = "deny" }]', "rules[0].tools[0]", "is an empty glob, which matches nothing"),
        ('rules = [{ tools = [], then = "deny" }]', "rules[0].tools", "names no tool, so the rule is about none"),
        ('rules = [{ tools = [5], then = "deny" }]', "rules[0].tools[0]", "is a number"),
        ('tools = { deny = ["a[b"] }', "tools.deny[0]", "is no glob: its `[` is never closed"),
    ],
)
def test_what_would_limit_or_match_nothing_is_told(member: str, path: str, what: str) -> None:
    text = f'[sources.x]\ncommand = "x"\n{member}\n'
    config = parse_config(text, format="toml", file="f", environ={})
    assert [(problem.path, problem.what) for problem in config.problems] == [(f"sources.x.{path}", what)]


def test_a_glob_with_brackets_that_are_closed_is_one() -> None:
    assert Rule(tools=["[ab]*", "[]x]", "[!a]"], then="deny").is_about("bcd")


def test_what_belongs_to_one_source_is_not_taken_for_a_layer_of_another_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("[layers]\nhedge = true\nshet = true\n", format="toml", file="f", environ={})
    assert [(problem.path, problem.what, problem.remedy) for problem in caught.value.problems] == [
        ("layers.hedge", "is of one source", "write it into [sources.NAME]"),
        ("layers.shet", "is not known", "did you mean shed?"),
    ]
