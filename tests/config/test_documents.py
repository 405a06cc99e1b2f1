"""Text → document."""

from __future__ import annotations

import time
from typing import Literal

import pytest

from cord_trio.config.documents import MAX_FILE, decode_document, decode_text, guess_format, strip_comments
from cord_trio.errors import ConfigError, Problem


def refused(text: str | bytes, format: Literal["toml", "json"] = "json") -> Problem:
    with pytest.raises(ConfigError) as caught:
        decode_document(text if isinstance(text, str) else decode_text(text, file="f"), format=format, file="f")
    (problem,) = caught.value.problems
    assert problem.file == "f"
    assert problem.remedy
    assert problem.fatal
    return problem


def test_json_may_hold_comments_and_trailing_commas() -> None:
    text = """{ // one
      "a": "http://x /* no */ ,] \\" // no", /* two
      lines */ "b": [1, 2, /* three */ ], # """
    assert decode_document(text[:-2] + "}", format="json", file="") == {
        "a": 'http://x /* no */ ,] " // no',
        "b": [1, 2],
    }


def test_what_is_stripped_leaves_everything_in_its_place() -> None:
    assert strip_comments('{"a":1, // x\n/* y\n*/ }') == '{"a":1      \n    \n   }'


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', "line 3, column 3"),
        ('{ // a comment\n "a": x }', "line 2, column 7"),
        ('{"a": 1', "line 1, column 8"),
        ('{"a": "x', "line 1, column 7"),
        ("{} {}", "line 1, column 4"),
    ],
)
def test_json_errors_say_where(text: str, path: str) -> None:
    assert refused(text).path == path


@pytest.mark.parametrize(
    ("text", "path"),
    [("a = 1\nb = \n", "line 2, column 5"), ("a = 1\na = 2", "line 2"), ('a = """\nx', "line 2")],
)
def test_toml_errors_say_where(text: str, path: str) -> None:
    assert refused(text, "toml").path == path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        (" // only this\n", "is empty"),
        ("[]", "is a list, not a table"),
        ("null", "is null, not a table"),
        ('{"a": NaN}', "holds a number that JSON does not have, or too long a one"),
        ('{"a": ' + "1" * 5000 + "}", "holds a number that JSON does not have, or too long a one"),
        ('{"a":' + "[" * 100_000, "is nested too deeply"),
        ("x" * (MAX_FILE + 1), "is larger than 1,048,576 characters"),
    ],
)
def test_json_that_is_no_configuration_is_one_problem(text: str, what: str) -> None:
    assert refused(text).what == what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("\n \n", "is empty"),
        ("a = " + "[" * 100_000, "is nested too deeply"),
        ("a = " + "1" * 5000, "not TOML: holds a number or a date that does not exist"),
    ],
)
def test_toml_that_is_no_configuration_is_one_problem(text: str, what: str) -> None:
    assert refused(text, "toml").what == what


@pytest.mark.parametrize(
    ("data", "path", "what"),
    [
        (b"{}\n\n\xff", "line 3", "is not UTF-8 (byte 0xFF)"),
        ("{}".encode("utf-16"), "", "is UTF-16"),
        (b"x" * (MAX_FILE + 1), "", "is larger than 1,048,576 bytes"),
    ],
)
def test_bytes_that_are_no_text_are_one_problem(data: bytes, path: str, what: str) -> None:
    problem = refused(data)
    assert (problem.path, problem.what) == (path, what)


def test_a_byte_order_mark_is_no_harm() -> None:
    assert decode_document(decode_text(b'\xef\xbb\xbf{"a": 1}', file=""), format="json", file="") == {"a": 1}
    assert decode_document("\ufeffa = 1", format="toml", file="") == {"a": 1}


def test_of_a_member_given_twice_the_first_is_kept() -> None:
    assert decode_document('{"a": 1, "a": 2}', format="json", file="") == {"a": 1}


@pytest.mark.parametrize(
    ("file", "text", "format"),
    [
        ("a.toml", "{", "toml"),
        (".mcp.json", "", "json"),
        ("A.JSONC", "", "json"),
        ("mcp", "// x\n {}", "json"),
        ("mcp", "a = 1", "toml"),
    ],
)
def test_the_format_is_the_suffix_or_how_it_begins(file: str, text: str, format: str) -> None:
    assert guess_format(file, text) == format


def test_hostile_text_is_stripped_in_linear_time() -> None:
    begin = time.process_time()
    for text in ('"' + '\\"' * 100_000, "/*" * 100_000, ", " * 100_000, "/" * 200_000):
        strip_comments(text)
    assert time.process_time() - begin < 2
