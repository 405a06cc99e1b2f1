"""Variables in configured text."""

from __future__ import annotations

import pytest

from cord_trio.config.expand import MAX_NESTING, expand

ENVIRON = {"A": "1", "EMPTY": "", "HOME": "/home/me", "HIDDEN": "${A}", "CORD_INPUT_API_KEY": "k"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain $A $$ }", "plain $A $$ }"),
        ("x${A}y${A}", "x1y1"),
        ("${env:A}", "1"),
        ("${A:-d}", "1"),
        ("${B:-d}", "d"),
        ("${B:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${env:B:-http://h:1/}", "http://h:1/"),
        ("${B:-${A}}", "1"),
        ("${B:-{}}", "{}"),
        ("${HIDDEN}", "${A}"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${B:-$${A}}", "${A}"),
        ("${input:api-key}", "k"),
        ("${input:other:-d}", "d"),
        ("${userHome}/x", "/home/me/x"),
        ("~/x", "~/x"),
    ],
)
def test_variables_are_replaced(text: str, value: str) -> None:
    assert expand(text, ENVIRON) == (value, ())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Bearer ${TOKEN}", "the variable TOKEN is not set"),
        ("${env:TOKEN}", "the variable TOKEN is not set"),
        ("${B:-${TOKEN}}", "the variable TOKEN is not set"),
        ("${input:token}", "asks for input 'token', which nobody is here to give"),
        ("${A", "holds `${` without its `}`"),
        ("${", "holds `${` without its `}`"),
        ("${}", "what stands between `${` and `}` is not a variable"),
        ("${1}", "`${1}` is not a variable"),
        ("${command:x}", "`${command:x}` is not a variable"),
    ],
)
def test_x02_what_cannot_be_replaced_is_a_fault_and_never_left_in_place(text: str, what: str) -> None:
    value, faults = expand(text, ENVIRON)
    assert "${" not in value
    assert [fault for fault, _ in faults] == [what]


def test_every_unset_variable_is_told() -> None:
    assert [what for what, _ in expand("${X} ${Y}", {})[1]] == [
        "the variable X is not set",
        "the variable Y is not set",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("~", "/home/me"), ("~/x", "/home/me/x"), ("~you/x", "~you/x"), ("a~/x", "a~/x"), ("${B:-~/x}", "~/x")],
)
def test_a_leading_tilde_is_the_home_folder(text: str, value: str) -> None:
    assert expand(text, ENVIRON, home=True) == (value, ())


def test_a_tilde_without_home_is_a_fault() -> None:
    assert [what for what, _ in expand("~/x", {}, home=True)[1]] == ["the variable HOME is not set"]


def test_nested_defaults_end() -> None:
    deep = "${X:-" * 5000 + "}" * 5000
    assert [what for what, _ in expand(deep, {})[1]] == ["nests too many defaults"]
    allowed = "${X:-" * MAX_NESTING + "d" + "}" * MAX_NESTING
    assert expand(allowed, {}) == ("d", ())
