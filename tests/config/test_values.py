"""Sources and settings as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from cord_trio.config import (
    AgentConfig,
    Bounds,
    Config,
    GatewayConfig,
    Http,
    InProcess,
    Source,
    Stdio,
    ToolFilter,
    WebSocket,
    parse_address,
)
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


def problems(make: Callable[[], object]) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(problem.remedy for problem in caught.value.problems)
    return [(problem.path, problem.what) for problem in caught.value.problems]


def test_a_plain_source_has_the_documented_defaults() -> None:
    source = Stdio(name="time", command="mcp-server-time", args=["--utc"])
    assert (source.deadline, source.connect, source.first_list, source.slots) == (60.0, 10.0, 30.0, 32)
    assert (source.rate, source.burst, source.retries, source.era) == (None, None, 2, "auto")
    assert (source.trust, source.enabled, source.max_message, source.args) == (False, True, 16 * 1024**2, ("--utc",))


def test_a_source_reports_every_problem_at_once() -> None:
    assert problems(lambda: Stdio(name="cord", command="npx foo", deadline=-1, slots=0, retries=-1)) == [
        ("sources.cord", "the prefix 'cord' is kept for the fabric's own tools"),
        ("sources.cord.deadline", "is too small"),
        ("sources.cord.slots", "is too small"),
        ("sources.cord.retries", "is too small"),
        ("sources.cord.command", "holds a whole command line"),
    ]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.0, True, 1e300])
def test_a_duration_that_is_none_is_refused(number: float) -> None:
    assert [path for path, _ in problems(lambda: Stdio(name="a", command="x", deadline=number))] == [
        "sources.a.deadline"
    ]


def test_huge_whole_numbers_are_refused() -> None:
    assert problems(lambda: Stdio(name="a", command="x", slots=10**400)) == [("sources.a.slots", "is too large")]
    assert problems(lambda: Stdio(name="a", command="x", slots=-(10**400))) == [("sources.a.slots", "is too small")]


def test_an_unknown_era_is_refused() -> None:
    assert problems(lambda: Stdio(name="a", command="x", era="old")) == [("sources.a.era", "is not an era")]  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("name", "prefix", "exported"),
    [
        ("time", None, "time"),
        ("my server", None, "my_server"),
        ("time", "t", "t"),
        ("日本", "jp", "jp"),
        ("cord", "", ""),
    ],
)
def test_the_prefix_is_the_name_unless_said(name: str, prefix: str | None, exported: str) -> None:
    assert Stdio(name=name, prefix=prefix, command="x").export_prefix == exported


@pytest.mark.parametrize(
    ("name", "prefix", "path"),
    [
        ("日本", None, "sources.日本"),
        ("--", None, "sources.--"),
        ("a" * 41, None, "sources." + "a" * 41),
        ("a", "a b", "sources.a.prefix"),
        ("a", "b" * 41, "sources.a.prefix"),
        ("a", "agent", "sources.a.prefix"),
        ("", "a", "sources."),
        ("a\n", "a", "sources.a\n"),
    ],
)
def test_r27_a_name_that_cannot_be_a_prefix_is_refused(name: str, prefix: str | None, path: str) -> None:
    assert [found for found, _ in problems(lambda: Stdio(name=name, prefix=prefix, command="x"))] == [path]


def test_no_secret_is_in_a_repr() -> None:
    sources: list[Source] = [
        Stdio(name="a", command="x", args=["--token=hunter2"], env={"TOKEN": "hunter2"}),
        Http(name="b", url="https://h/mcp?key=hunter2#hunter2", headers={"Authorization": "Bearer hunter2"}),
        WebSocket(name="c", url="wss://h/mcp?key=hunter2", headers={"Authorization": "Bearer hunter2"}),
    ]
    shown = f"{sources} {Config(sources=sources)!r} {Config(sources=sources)}"
    assert "hunter2" not in shown
    assert "'TOKEN'" in shown
    assert "https://h/mcp" in shown


@pytest.mark.parametrize(
    "url",
    ["", "host/mcp", "ftp://h/", "http://", "http://[::1", "http://h:99999/", "http://h:0/", "http://h /", "http://é/"],
)
def test_a_url_that_cannot_be_reached_is_refused(url: str) -> None:
    assert [path for path, _ in problems(lambda: Http(name="a", url=url))] == ["sources.a.url"]


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        Http(name="a", url="https://me:hunter2@h/")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"a b": "x"},
        {"": "x"},
        {"X": "a\r\nb"},
        {"X": "é"},
        {"X": "\x7f"},
        {"Host": "x"},
        {"mcp-session-id": "x"},
        {"X": "1", "x": "2"},
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(headers: dict[str, str]) -> None:
    assert len(problems(lambda: Http(name="a", url="https://h/", headers=headers))) == 1


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_process_can_be_given_is_refused(text: str) -> None:
    found = problems(lambda: Stdio(name="a", command=text, args=[text], cwd=text, env={"A": text}))
    assert [path for path, _ in found] == ["sources.a." + path for path in ("command", "cwd", "args[0]", "env.A")]
    assert problems(lambda: Stdio(name="a", command="x", env={"A=B": "", "": ""}))


def test_an_undecodable_variable_of_the_environment_may_be_passed_on() -> None:
    value = b"\xff".decode("utf-8", "surrogateescape")
    assert Stdio(name="a", command="x", env={"A": value}).env == {"A": value}


def test_a_websocket_opens_itself() -> None:
    found = problems(lambda: WebSocket(name="a", url="ws://h/", headers={"Sec-WebSocket-Protocol": "x"}))
    assert found == [("sources.a.headers.Sec-WebSocket-Protocol", "is written by the transport")]


def test_legacy_sse_is_a_transport_and_never_modern() -> None:
    assert Http(name="a", url="https://h/sse", transport="sse").transport == "sse"
    assert problems(lambda: Http(name="a", url="https://h/sse", transport="sse", era="modern")) == [
        ("sources.a.era", "is modern, which HTTP+SSE never is")
    ]


def test_an_unknown_transport_is_refused() -> None:
    assert problems(lambda: Http(name="a", url="https://h/", transport="x"))  # type: ignore[arg-type]  # the point


def test_a_filter_exports_what_is_allowed_under_its_new_name() -> None:
    chosen = ToolFilter(allow=["search*", "get"], deny=["search_all"], rename={"search_docs": "search"})
    names = ("search_docs", "search_all", "get", "other", "GET")
    assert [chosen.exports(name) for name in names] == ["search", None, "get", None, None]


def test_r22_a_denied_tool_is_exported_under_no_name() -> None:
    chosen = ToolFilter(deny="danger", rename={"harmless": "danger", "danger": "safe"})
    assert [chosen.exports(name) for name in ("danger", "harmless", "plain")] == [None, None, "plain"]


def test_a_new_name_must_be_exportable_and_its_own() -> None:
    found = problems(lambda: ToolFilter(rename={"a": "x", "b": "x", "c": "no spaces", "d": "", "e": "y" * 65}))
    assert [path for path, _ in found] == ["tools.rename.b", "tools.rename.c", "tools.rename.d", "tools.rename.e"]


def test_two_sources_cannot_share_a_prefix() -> None:
    sources = [Stdio(name="a b", command="x"), Stdio(name="a_b", command="x")]
    assert problems(lambda: Config(sources=sources)) == [("sources.a_b", "its prefix 'a_b' is that of 'a b' too")]
    assert Config(sources=[sources[0], attrs.evolve(sources[1], enabled=False)]).enabled == {"a b": sources[0]}
    assert list(Config(sources=[attrs.evolve(source, prefix="") for source in sources]).sources) == ["a b", "a_b"]


def test_two_sources_of_one_name_are_refused() -> None:
    assert problems(lambda: Config(sources=[Stdio(name="a", command="x"), Stdio(name="a", command="y")]))


def test_a_source_in_this_process_is_given_in_code() -> None:
    async def serve(transport: object) -> None: ...

    assert Config(sources=[InProcess(name="a", serve=serve)]).sources["a"].name == "a"


def test_a_mapping_of_sources_is_copied() -> None:
    sources = {"a": Stdio(name="a", command="x")}
    config = Config(sources=sources)
    sources.clear()
    assert list(config.sources) == ["a"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_gateway_listens_on_loopback(host: str) -> None:
    assert GatewayConfig(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "", "127.1", "::ffff:8.8.8.8"])
def test_the_gateway_refuses_other_addresses_until_there_is_authentication(host: str) -> None:
    (problem,) = problems(lambda: GatewayConfig(host=host))
    assert problem == ("gateway.http", f"{host!r} is not a loopback address, and there is no authentication yet")


def test_the_gateway_shows_its_address() -> None:
    assert (GatewayConfig().http, GatewayConfig(host="::1", port=0).http) == ("127.0.0.1:8931", "[::1]:0")
    assert problems(lambda: GatewayConfig(port=70000)) == [("gateway.http", "70000 is not a port")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:0", ("::1", 0)),
        ("[::1]", ("::1", 8931)),
        ("localhost", ("localhost", 8931)),
        (":80", ("127.0.0.1", 80)),
    ],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":", "a:b", "::1", "a:70000", "a:-1", "http://a:1", "a:1:2", "[x]:1", "a b:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write HOST:PORT|0 to 65535"):
        parse_address(text)


def test_each_bound_is_above_zero() -> None:
    assert len(problems(lambda: Bounds(calls=0, drain=0.0, call=float("nan"), message_in=10, starts=0))) == 5
    assert Bounds(starts=None).hops == 16


def test_an_agent_may_call_what_its_globs_match() -> None:
    agent = AgentConfig(name="a", handler="support.agents:triage", tools=["time__*"])
    assert (agent.may_call("time__now"), agent.may_call("docs__now")) == (True, False)
    assert AgentConfig(name="a", handler="m:f").may_call("anything")


def test_an_agent_that_cannot_be_is_refused() -> None:
    found = problems(lambda: AgentConfig(name="a b", handler="nothing", turn=0))
    assert [path for path, _ in found] == ["agents.a b", "agents.a b.handler", "agents.a b.turn"]


def test_roots_are_folders_of_this_machine() -> None:
    assert GatewayConfig(roots=("~/work", "/tmp", "file:///a")).roots == ("~/work", "/tmp", "file:///a")
    assert GatewayConfig(roots="/tmp").roots == ("/tmp",)
    for wrong in ("", " ", "https://example.org/", "a\nb"):
        with pytest.raises(ConfigError, match=r"roots\[0\]"):
            GatewayConfig(roots=(wrong,))
