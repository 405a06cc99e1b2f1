"""Laws of the configuration: any document is a `Config` or a `ConfigError`; expansion."""

from __future__ import annotations

import json
from typing import Literal

from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.config import Config, ToolFilter, parse_config
from cord_trio.config.checks import glob_faults
from cord_trio.config.documents import decode_document, decode_text, strip_comments
from cord_trio.config.expand import escape, expand
from cord_trio.errors import ConfigError

NAMES = st.sampled_from(
    [
        "mcpServers", "servers", "mcp", "context_servers", "mcp_servers", "sources", "agents", "gateway", "bounds",
        "command", "args", "env", "cwd", "url", "httpUrl", "headers", "type", "transport", "tools", "allow", "deny",
        "rename", "prefix", "deadline", "slots", "rate", "disabled", "enabled", "envFile", "env_vars", "path", "http",
        "bearer_token_env_var", "env_http_headers", "startup_timeout_ms", "handler", "turn", "calls", "inputs", "a",
    ]
) | st.text(max_size=5)  # fmt: skip
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "x",
        "${A}",
        "${B}",
        "~",
        "http://h/",
        "wss://h",
        "http://[",
        "sse",
        "stdio",
        "http",
        "m:f",
        "127.0.0.1:0",
        "\ud800",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=20
)
ENTRIES = st.dictionaries(NAMES, VALUES, max_size=6)
SOUND = st.sampled_from([{"command": "x"}, {"url": "http://h/"}, {"url": "wss://h/", "headers": {"A": "${A}"}}])
LIKELY = st.builds(
    lambda sound, entry: {**entry, **sound}, SOUND, st.dictionaries(NAMES, LEAVES, max_size=2) | st.just({})
)
CONTAINERS = st.sampled_from(["mcpServers", "servers", "context_servers", "mcp_servers", "sources"])
DOCUMENTS = st.dictionaries(CONTAINERS, st.dictionaries(NAMES, LIKELY, max_size=4), max_size=2) | st.dictionaries(
    NAMES, st.dictionaries(NAMES, ENTRIES | VALUES, max_size=4) | VALUES, max_size=4
)
FORMATS: st.SearchStrategy[Literal["toml", "json"]] = st.sampled_from(["toml", "json"])
ENVIRON = {"A": "1", "HOME": "/h"}


def holds(text: str, format: Literal["toml", "json"]) -> None:
    try:
        config = parse_config(text, format=format, file="f", environ=ENVIRON)
    except ConfigError as exc:
        problems = exc.problems
        assert any(problem.fatal for problem in problems)
    else:
        assert not any(problem.fatal for problem in config.problems)
        assert not config.sources.keys() & config.broken.keys()
        assert all(name == source.name for name, source in config.sources.items())
        told = {problem.source for problem in config.problems if problem.source is not None}
        assert told == set(config.broken)
        Config(sources=config.sources)
        problems = config.problems
    for problem in problems:
        assert problem.file == "f"
        assert problem.what
        assert problem.remedy


def as_toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "1979-05-27"
        case float():
            return repr(value) if "e" not in repr(value) else "1.5"
        case int():
            return str(value)
        case str():
            return json.dumps(value.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    raise AssertionError(value)


@given(DOCUMENTS)
@example({"mcpServers": {"a": {"command": "x", "env": {"A": 10**300}, "deadline": 10**400}}})
@example({"sources": {"": {"command": "x", "prefix": "a"}}})
def test_any_json_document_is_a_config_or_a_config_error(document: dict[str, object]) -> None:
    holds(json.dumps(document), "json")


@given(DOCUMENTS)
def test_any_toml_document_is_a_config_or_a_config_error(document: dict[str, object]) -> None:
    holds("\n".join(f"{as_toml(key)} = {as_toml(value)}" for key, value in document.items()), "toml")


@given(st.text(alphabet=st.sampled_from('{}[]",:/*\\ \n=.#\'ab1-"\ufeff') | st.characters(), max_size=60), FORMATS)
def test_any_text_is_a_config_or_a_config_error(text: str, format: Literal["toml", "json"]) -> None:
    holds(text, format)


@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_a_config_error(data: bytes) -> None:
    try:
        text = decode_text(data, file="f")
    except ConfigError as exc:
        (problem,) = exc.problems
        assert problem.remedy
    else:
        assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")


@given(VALUES, st.integers(0, 3))
def test_comments_change_nothing(value: object, indent: int) -> None:
    text = json.dumps({"a": value}, indent=indent, allow_nan=True)
    noisy = text.replace("\n", ' // x, ] "\n/* , } */') if indent else text
    if "NaN" not in text and "Infinity" not in text:
        assert decode_document("/* x */" + noisy, format="json", file="") == json.loads(text)


@given(st.text(alphabet=st.sampled_from('"\\/*,]} \nx'), max_size=30))
def test_stripping_keeps_every_place(text: str) -> None:
    stripped = strip_comments(text)
    assert len(stripped) == len(text)
    assert [at for at, character in enumerate(stripped) if character == "\n"] == [
        at for at, character in enumerate(text) if character == "\n"
    ]
    assert strip_comments(stripped).count(",") <= stripped.count(",")


PIECES = st.lists(st.sampled_from(["$", "{", "}", "${", "$${", "${A}", "${B}", "${B:-", ":-", "A", "x", "~/", "env:"]))


@given(PIECES.map("".join))
def test_expansion_ends_and_says_what_it_could_not_do(text: str) -> None:
    value, faults = expand(text, ENVIRON)
    if "$${" not in text and not faults:
        assert "${" not in value.replace("$${", "")
    assert all(what and remedy for what, remedy in faults)


@given(PIECES.map("".join) | st.text())
def test_escaped_text_comes_back(text: str) -> None:
    assert expand(escape(text), ENVIRON) == (text, ())


@given(st.text(), st.text(), st.text())
def test_a_value_is_never_expanded_again(before: str, value: str, after: str) -> None:
    text = escape(before + "|") + "${V}" + escape(after)
    assert expand(text, {"V": value}) == (f"{before}|{value}{after}", ())


GLOBS = st.text(alphabet="ab*?[]-!").filter(lambda glob: not any(glob_faults("", [glob])))


@given(GLOBS, GLOBS, st.text(alphabet="ab[]"))
def test_deny_wins(allow: str, deny: str, tool: str) -> None:
    if ToolFilter(allow=[allow], deny=[deny]).exports(tool) is not None:
        assert ToolFilter(allow=[deny]).exports(tool) is None
        assert ToolFilter(allow=[allow]).exports(tool) == tool
