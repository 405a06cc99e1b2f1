"""A configuration file → `Config`: ours and the pasted dialects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import pytest

from cord_trio.config import (
    AgentConfig,
    BudgetConfig,
    Config,
    Http,
    MailboxConfig,
    Stdio,
    SupervisorConfig,
    ToolFilter,
    WebSocket,
    load_config,
    parse_config,
)
from cord_trio.config.documents import MAX_FILE
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {"HOME": "/home/me", "TOKEN": "hunter2"}


def toml(text: str) -> Config:
    return parse_config(text, format="toml", file="cord.toml", environ=ENVIRON)


def pasted(document: object, file: str = ".mcp.json") -> Config:
    return parse_config(json.dumps(document), format="json", file=file, environ=ENVIRON)


def servers(**entries: object) -> Config:
    return pasted({"mcpServers": entries})


def fatal(text: str, format: Literal["toml", "json"] = "toml") -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, format=format, file="f", environ=ENVIRON)
    assert {problem.file for problem in caught.value.problems} == {"f"}
    return [(problem.path, problem.what) for problem in caught.value.problems]


def told(config: Config) -> list[tuple[str, str]]:
    assert not any(problem.fatal for problem in config.problems)
    return [(problem.path, problem.what) for problem in config.problems]


def test_the_documented_file_is_read() -> None:
    config = toml("""
        [gateway]
        http = "[::1]:0"
        allowed_hosts = ["cord.test"]

        [bounds]
        slots = 8
        drain = 3

        [sources.time]
        command = "mcp-server-time"
        args = ["--local-timezone", "UTC"]
        env = { TOKEN = "${TOKEN}" }
        cwd = "~/work"

        [sources.docs]
        url = "https://docs.example.org/mcp"
        prefix = "d"
        deadline = 20
        slots = 4
        rate = 2.5
        tools = { allow = ["search*"], rename = { search_docs = "search" } }

        [sources.live]
        url = "wss://docs.example.org/mcp"
        headers = { Authorization = "Bearer ${TOKEN}" }

        [agents.triage]
        handler = "support.agents:triage"
        tools = ["time__*", "docs__search"]
        export = true
    """)
    assert config.problems == ()
    assert config.sources == {
        "time": Stdio(
            name="time",
            command="mcp-server-time",
            args=("--local-timezone", "UTC"),
            env={"TOKEN": "hunter2"},
            cwd="/home/me/work",
            slots=8,
        ),
        "docs": Http(
            name="docs",
            url="https://docs.example.org/mcp",
            prefix="d",
            deadline=20.0,
            slots=4,
            rate=2.5,
            tools=ToolFilter(allow=("search*",), rename={"search_docs": "search"}),
        ),
        "live": WebSocket(
            name="live", url="wss://docs.example.org/mcp", headers={"Authorization": "Bearer hunter2"}, slots=8
        ),
    }
    assert list(config.sources) == ["time", "docs", "live"]
    assert config.agents == {
        "triage": AgentConfig(
            name="triage", handler="support.agents:triage", tools=("time__*", "docs__search"), export=True
        )
    }
    assert (config.gateway.http, config.gateway.grace, config.gateway.allowed_hosts) == ("[::1]:0", 3.0, ("cord.test",))
    assert (config.bounds.slots, config.file) == (8, "cord.toml")


def test_a_fatal_problem_is_told_with_all_others() -> None:
    text = """
        [gateway]
        http = "0.0.0.0:1"
        grac = 3
        [bounds]
        slot = 1
        calls = 0
        [agents.a]
        handler = "nothing"
        [agents]
        b = 1
        c = {}
        [sources.time]
        comand = "x"
        [gatway]
    """
    text = text.replace("[agents]\n        b = 1\n        c = {}\n", "[agents.b]\n")
    assert fatal(text) == [
        ("gatway", "is not known"),
        ("bounds.slot", "is not known"),
        ("bounds.calls", "is too small"),
        ("gateway.grac", "is not known"),
        ("gateway.http", "'0.0.0.0' is not a loopback address, and there is no authentication yet"),
        ("agents.a.handler", "does not name a function"),
        ("agents.b", "has no handler"),
        ("sources.time.comand", "is not known"),
        ("sources.time", "has neither a command nor a url"),
    ]


def test_an_unknown_name_is_told_with_the_nearest_known() -> None:
    config = toml('[sources.a]\ncommand = "x"\ndeadlin = 3\ntools = { alow = [] }')
    remedies = {problem.path: problem.remedy for problem in config.problems}
    assert remedies == {"sources.a.deadlin": "did you mean deadline?", "sources.a.tools.alow": "did you mean allow?"}
    assert list(config.broken) == ["a"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sources = 3", "sources"),
        ("agents = 3", "agents"),
        ("agents.a = 3", "agents.a"),
        ("bounds = 3", "bounds"),
        ("gateway = 3", "gateway"),
        ("gateway.http = 3", "gateway.http"),
        ('gateway.http = "nowhere:x"', "gateway.http"),
        ('gateway.allowed_hosts = "x"', "gateway.allowed_hosts"),
        ('gateway.allowed_origins = ["x", 1]', "gateway.allowed_origins[1]"),
        ("bounds.calls = 1.5", "bounds.calls"),
        ("bounds.call = 1979-05-27", "bounds.call"),
    ],
)
def test_a_wrong_type_is_told_where_it_is(text: str, path: str) -> None:
    assert [found for found, _ in fatal(text)] == [path]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("3", "sources.a"),
        ("{}", "sources.a"),
        ('{ command = "x", url = "http://h/" }', "sources.a"),
        ("{ command = 3 }", "sources.a.command"),
        ('{ command = "" }', "sources.a.command"),
        ('{ command = "x", args = "y" }', "sources.a.args"),
        ('{ command = "x", args = ["y", 1] }', "sources.a.args[1]"),
        ('{ command = "x", env = ["y"] }', "sources.a.env"),
        ('{ command = "x", env = { "A.B" = true } }', 'sources.a.env."A.B"'),
        ('{ command = "x", env = { A = 0x' + "f" * 9999 + " } }", "sources.a.env.A"),
        ('{ command = "x", enabled = "no" }', "sources.a.enabled"),
        ('{ command = "x", deadline = "20s" }', "sources.a.deadline"),
        ('{ command = "x", deadline = 0x' + "f" * 9999 + " }", "sources.a.deadline"),
        ('{ command = "x", deadline = -1 }', "sources.a.deadline"),
        ('{ command = "x", slots = 1.5 }', "sources.a.slots"),
        ('{ command = "x", slots = true }', "sources.a.slots"),
        ('{ command = "x", era = "old" }', "sources.a.era"),
        ('{ command = "x", prefix = "a b" }', "sources.a.prefix"),
        ('{ command = "x", prefix = "cord" }', "sources.a.prefix"),
        ('{ command = "x", tools = 3 }', "sources.a.tools"),
        ('{ command = "x", tools = { rename = { x = "a b" } } }', "sources.a.tools.rename.x"),
        ('{ command = "x", type = "carrier pigeon" }', "sources.a.type"),
        ('{ command = "x", type = "http" }', "sources.a"),
        ('{ url = "http://h/", type = "stdio" }', "sources.a"),
        ('{ url = "ftp://h/" }', "sources.a.url"),
        ('{ url = "https://h/", transport = "ws" }', "sources.a.url"),
        ('{ url = "https://h/", transport = "sse", era = "modern" }', "sources.a.era"),
        ('{ url = "https://h/", headers = { Host = "x" } }', "sources.a.headers.Host"),
    ],
)
def test_x01_a_bad_entry_is_told_and_the_others_live(text: str, path: str) -> None:
    config = toml(f'[sources]\na = {text}\ngood = {{ command = "x" }}')
    assert list(config.sources) == ["good"]
    assert [problem.path for problem in config.problems] == [path]
    assert config.broken == {"a": config.problems}
    (problem,) = config.problems
    assert (problem.file, problem.source, problem.fatal, bool(problem.remedy)) == ("cord.toml", "a", False, True)


def test_x01_bad_pasted_entries_are_told_and_the_others_live() -> None:
    config = servers(good={"command": "x"}, none={}, both={"command": "x", "url": "http://h"}, number=3)
    assert list(config.sources) == ["good"]
    assert told(config) == [
        ("mcpServers.none", "has neither a command nor a url"),
        ("mcpServers.both", "has both a command and a url"),
        ("mcpServers.number", "is a number, not a table"),
    ]


def test_x01_a_name_given_twice_is_told_and_the_first_is_used() -> None:
    text = '{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}, "b": {"command": "x", "command": "y"}}}'
    config = parse_config(text, format="json", file="", environ={})
    assert told(config) == [
        ("mcpServers.a", "is given twice; the first is used"),
        ("mcpServers.b.command", "is given twice; the first is used"),
    ]
    assert config.sources == {name: Stdio(name=name, command="x") for name in "ab"}


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"command": "${NOPE}"}, "command"),
        ({"command": "x", "args": ["a", "--key=${NOPE}"]}, "args[1]"),
        ({"command": "x", "env": {"KEY": "${env:NOPE}"}}, "env.KEY"),
        ({"command": "x", "cwd": "${NOPE}/y"}, "cwd"),
        ({"url": "https://h/${NOPE}"}, "url"),
        ({"url": "https://h/", "headers": {"Authorization": "Bearer ${NOPE}"}}, "headers.Authorization"),
        ({"serverUrl": "https://h/${NOPE}"}, "serverUrl"),
    ],
)
def test_x02_an_unset_variable_breaks_its_source_alone(entry: object, path: str) -> None:
    config = servers(bad=entry, good={"command": "x"})
    assert list(config.sources) == ["good"]
    (problem,) = config.broken["bad"]
    assert (problem.file, problem.path, problem.source) == (".mcp.json", f"mcpServers.bad.{path}", "bad")
    assert problem.what == "the variable NOPE is not set"


def test_names_that_become_one_prefix_are_told_and_the_first_keeps_it() -> None:
    config = servers(**{"my server": {"command": "x"}, "my_server": {"command": "x"}, "ok": {"command": "x"}})
    assert list(config.sources) == ["my server", "ok"]
    assert told(config) == [("mcpServers.my_server", "its prefix 'my_server' is that of 'my server' too")]


def test_a_name_in_two_places_is_told_and_the_first_is_used() -> None:
    config = toml('[sources.a]\ncommand = "x"\n[mcpServers.a]\ncommand = "y"')
    assert config.sources == {"a": Stdio(name="a", command="x")}
    assert told(config) == [("mcpServers.a", "is configured at sources.a already; that one is used")]


def test_unknown_members_of_pasted_blocks_are_passed_over_with_a_note() -> None:
    config = servers(a={"command": "x", "comand": "y", "alwaysAllow": [], "timeout": 5000, "trust": True, "_note": 1})
    assert config.sources == {"a": Stdio(name="a", command="x")}
    (problem,) = config.problems
    assert (problem.path, problem.remedy, problem.source) == ("mcpServers.a.comand", "did you mean command?", None)


def test_a_disabled_source_is_kept_out_of_the_way() -> None:
    config = servers(a={"command": "x", "disabled": True}, b={"command": "${NOPE}", "disabled": True})
    assert (list(config.sources), config.enabled, config.problems, config.broken) == (["a"], {}, (), {})
    assert told(servers(a={"command": "x", "disabled": "no"})) == [("mcpServers.a.disabled", "is a text")]


def test_what_is_wrong_with_a_disabled_source_is_told_but_for_what_is_not_set() -> None:
    config = servers(a={"command": "${NOPE}", "args": [5], "deadline": -1, "disabled": True}, b={"command": "x"})
    assert (list(config.sources), config.broken) == (["b"], {})
    assert told(config) == [("mcpServers.a.args[0]", "is a number"), ("mcpServers.a.deadline", "is too small")]


def test_claude_cursor_and_windsurf_blocks_work() -> None:
    config = pasted(
        {
            "globalShortcut": "",
            "mcpServers": {
                "files": {"command": "npx", "args": ["-y", "files", "~/x"], "env": {"PORT": 3000, "NONE": None}},
                "web": {"type": "http", "url": "https://h/mcp", "headers": {"Authorization": "Bearer ${TOKEN}\n"}},
                "surf": {"serverUrl": "https://h/mcp", "disabledTools": ["x"]},
                "stream": {"type": "streamable-http", "url": "https://h/mcp", "tools": ["*"], "command": None},
            },
        }
    )
    assert config.problems == ()
    assert config.sources == {
        "files": Stdio(name="files", command="npx", args=["-y", "files", "/home/me/x"], env={"PORT": "3000"}),
        "web": Http(name="web", url="https://h/mcp", headers={"Authorization": "Bearer hunter2"}),
        "surf": Http(name="surf", url="https://h/mcp", tools=ToolFilter(deny="x")),
        "stream": Http(name="stream", url="https://h/mcp"),
    }


def test_a_block_without_what_is_around_it_works() -> None:
    assert pasted({"a": {"command": "x"}}).sources == {"a": Stdio(name="a", command="x")}


@pytest.mark.parametrize("wrap", [lambda block: block, lambda block: {"mcp": block, "editor.fontSize": 12}])
def test_vs_code_blocks_work_and_inputs_come_from_the_environment(wrap: object) -> None:
    assert callable(wrap)
    block = {
        "inputs": [{"type": "promptString", "id": "api-key", "password": True}],
        "servers": {
            "a": {"type": "stdio", "command": "x", "env": {"KEY": "${input:api-key}"}, "dev": {}},
            "b": {"type": "stdio", "command": "x", "envFile": ".env"},
        },
    }
    config = pasted(wrap(block))
    asked, unread = config.problems
    assert (asked.source, asked.remedy) == ("a", "set the variable CORD_INPUT_API_KEY")
    assert (unread.source, unread.what) == ("b", "is not read")
    text = json.dumps(wrap(block))
    found = parse_config(text, format="json", environ={"CORD_INPUT_API_KEY": "k"}).sources["a"]
    assert found == Stdio(name="a", command="x", env={"KEY": "k"})


def test_zed_blocks_work() -> None:
    config = pasted(
        {
            "theme": "One Dark",
            "context_servers": {
                "old": {"command": {"path": "x", "args": ["y"], "env": {"A": "b"}}, "settings": {}},
                "new": {"source": "custom", "command": "x", "enabled": False},
                "bad": {"command": {"path": "x", "args": ["${NOPE}"]}},
            },
        }
    )
    assert config.sources == {
        "old": Stdio(name="old", command="x", args=["y"], env={"A": "b"}),
        "new": Stdio(name="new", command="x", enabled=False),
    }
    assert [path for path, _ in told(config)] == ["context_servers.bad.command.args[0]"]


def test_codex_blocks_work() -> None:
    config = toml("""
        model = "x"
        [agents]
        max_threads = 3
        [mcp_servers.a]
        command = "x"
        env_vars = ["TOKEN", "NOPE"]
        startup_timeout_ms = 5000
        tool_timeout_sec = 7
        enabled_tools = ["y"]
        [mcp_servers.b]
        url = "https://h/mcp"
        bearer_token_env_var = "TOKEN"
        http_headers = { X-A = "a" }
        env_http_headers = { X-B = "TOKEN" }
        startup_timeout_sec = 3
        [mcp_servers.c]
        url = "https://h/mcp"
        bearer_token_env_var = "NOPE"
    """)
    headers = {"X-A": "a", "X-B": "hunter2", "Authorization": "Bearer hunter2"}
    assert config.sources == {
        "a": Stdio(
            name="a", command="x", env={"TOKEN": "hunter2"}, connect=5.0, deadline=7.0, tools=ToolFilter(allow="y")
        ),
        "b": Http(name="b", url="https://h/mcp", headers=headers, connect=3.0),
    }
    assert told(config) == [("mcp_servers.c.bearer_token_env_var", "the variable NOPE is not set")]


def test_gemini_blocks_work_and_a_bare_url_is_legacy_sse() -> None:
    config = servers(
        a={"httpUrl": "https://h/mcp", "url": "https://h/sse", "timeout": 1, "trust": True, "includeTools": ["x"]},
        b={"url": "https://h/sse"},
    )
    assert config.sources == {
        "a": Http(name="a", url="https://h/mcp", tools=ToolFilter(allow="x")),
        "b": Http(name="b", url="https://h/sse", transport="sse"),
    }
    found = pasted({"mcpServers": {"a": {"url": "https://h/"}}}, "/home/me/.gemini/settings.json").sources
    assert found == {"a": Http(name="a", url="https://h/", transport="sse")}
    found = pasted({"mcpServers": {"a": {"url": "https://h/", "type": "http"}}}, ".gemini/settings.json").sources
    assert found == {"a": Http(name="a", url="https://h/")}


def test_a_type_of_sse_is_the_older_transport() -> None:
    config = servers(a={"type": "sse", "url": "https://h/sse"})
    assert config.sources == {"a": Http(name="a", url="https://h/sse", transport="sse")}
    assert not config.problems


def test_the_gateway_serves_the_older_transport_only_if_told() -> None:
    assert toml("[gateway]\nsse = true").gateway.sse


def test_a_recording_is_configured_with_the_gateway() -> None:
    gateway = toml('[gateway]\nrecord = "calls.jsonl"\nrecord_secrets = ["pin"]').gateway
    assert (gateway.record, gateway.record_secrets) == ("calls.jsonl", ("pin",))
    assert toml("[gateway]\nsse = true").gateway.record == ""
    assert not toml("[gateway]").gateway.sse


def test_members_of_the_other_kind_are_told() -> None:
    assert told(servers(a={"url": "https://h/", "args": ["x"], "env": {}})) == [
        ("mcpServers.a.args", "means nothing for a source with a url")
    ]


def test_agents_beside_a_pasted_block_are_read() -> None:
    config = toml('[mcp_servers.a]\ncommand = "x"\n[agents.b]\nhandler = "m:f"')
    assert list(config.agents) == ["b"]


def test_a_configuration_of_nothing_is_told() -> None:
    assert told(toml("[sources]")) == [("", "configures no source and no agent")]


def test_no_problem_repeats_a_secret() -> None:
    config = servers(
        a={"url": "${TOKEN}", "headers": {"Bad Name": "${TOKEN}", "X": "${TOKEN}\u00e9"}},
        b={"command": "x ${TOKEN}"},
        c={"url": "https://me:${TOKEN}@h/?k=${TOKEN}"},
    )
    assert len(config.broken) == 3
    assert "hunter2" not in repr(config) + "".join(map(str, config.problems))


def test_the_file_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no cord\.toml or \.mcp\.json in this folder"):
        load_config()
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"a": {"command": "x"}}}')
    assert (load_config().file, list(load_config().sources)) == (".mcp.json", ["a"])
    (tmp_path / "cord.toml").write_text('[sources.b]\ncommand = "${X}"')
    assert (load_config(environ={"X": "y"}).file, list(load_config(environ={"X": "y"}).sources)) == ("cord.toml", ["b"])


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.toml").write_bytes(b"#" * (MAX_FILE + 1))
    (tmp_path / "closed.toml").write_text("")
    found = {}
    for name in ("missing.toml", "big.toml", "", "a\0b", "closed.toml/x"):
        with pytest.raises(ConfigError) as caught:
            load_config(f"{tmp_path}/{name}")
        (problem,) = caught.value.problems
        found[name] = problem.what
    assert found == {
        "missing.toml": "does not exist",
        "big.toml": "is larger than 1,048,576 bytes",
        "": "is a folder",
        "a\0b": "cannot be read: the name is not a file's",
        "closed.toml/x": "cannot be read: Not a directory",
    }

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # a test may run as root, who may read anything
    with pytest.raises(ConfigError, match="may not be read"):
        load_config(tmp_path / "closed.toml")


def test_roots_of_the_gateway_are_read() -> None:
    config = parse_config('[gateway]\nroots = ["/tmp"]\n', format="toml", file="cord.toml", environ=ENVIRON)
    assert config.gateway.roots == ("/tmp",)


def test_when_a_source_starts_is_read() -> None:
    config = toml("""
        state_dir = "~/state"
        [sources.x]
        command = "x"
        start = "manifest"
        idle = 90
    """)
    assert (config.sources["x"].start, config.sources["x"].idle) == ("manifest", 90)
    assert config.state_dir == "/home/me/state"


def test_a_start_that_is_none_and_a_short_idle_are_told() -> None:
    config = toml("""
        [sources.x]
        command = "x"
        start = "later"
        idle = 0.5
    """)
    assert set(told(config)) == {
        ("sources.x.start", "is not a way to start"),
        ("sources.x.idle", "is too small"),
    }


def test_a_state_dir_with_an_unset_variable_stops_the_start() -> None:
    assert fatal('state_dir = "${NOT_SET}"') == [("state_dir", "the variable NOT_SET is not set")]


def test_agents_have_mailboxes_budgets_and_supervisors() -> None:
    config = toml(
        """
        [agents.ledger]
        handler = "support:Ledger"
        agents = ["triage"]
        topics = ["orders"]
        mailbox = { size = 8, full = "drop_oldest" }
        budget = { calls = 20, seconds = 30, money = 0.5 }
        deadline = 60
        grace = 2
        restart = "transient"
        supervisor = "desk"

        [agents.triage]
        handler = "support:triage"
        mailbox = 16
        singleton = true
        where = { region = "north" }

        [supervisors.desk]
        strategy = "one_for_all"
        max_restarts = 5
        within = 10
        parent = "all"

        [supervisors.all]
        gives_up = "fail"
        """
    )
    assert config.agents["ledger"] == AgentConfig(
        name="ledger",
        handler="support:Ledger",
        agents=("triage",),
        topics=("orders",),
        mailbox=MailboxConfig(size=8, full="drop_oldest"),
        budget=BudgetConfig(calls=20, seconds=30.0, money=0.5),
        deadline=60.0,
        grace=2.0,
        restart="transient",
        supervisor="desk",
    )
    assert config.agents["triage"].mailbox == MailboxConfig(size=16)
    assert config.agents["triage"].singleton
    assert [config.agents["triage"].belongs(labels) for labels in (None, {}, {"region": "north"})] == [
        True,
        False,
        True,
    ]
    assert config.supervisors == {
        "desk": SupervisorConfig(name="desk", strategy="one_for_all", max_restarts=5, within=10.0, parent="all"),
        "all": SupervisorConfig(name="all", gives_up="fail"),
    }


def test_what_is_wrong_with_agents_and_supervisors_is_told_at_once_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        toml(
            """
            [agents.a]
            handler = "m:f"
            topics = ["news"]
            budget = { calls = -1, cash = 3 }
            restart = "always"
            grace = 0
            [agents.b]
            handler = "m:f"
            supervisor = "none"
            mailbox = { size = 0, full = "explode" }
            [agents.c]
            handler = "m:f"
            mailbox = "big"
            restart = "elsewhere"
            [agents.d]
            handler = "m:f"
            singleton = true
            turn = 2
            restart = "elsewhere"
            [agents.e]
            handler = "m:f"
            singleton = true
            restart = "elsewhere"
            [supervisors]
            e = 3
            [supervisors.x]
            strategy = "all"
            [supervisors.y]
            parent = "z"
            [supervisors.z]
            parent = "y"
            [supervisors.w]
            parent = "v"
            """
        )
    assert sorted(problem.path for problem in caught.value.problems) == [
        *("agents.a.budget.calls", "agents.a.budget.cash", "agents.a.grace", "agents.a.restart", "agents.a.topics"),
        *("agents.b.mailbox.full", "agents.b.mailbox.size", "agents.c.mailbox", "agents.c.restart"),
        *("agents.d.restart", "supervisors.e"),
        *("supervisors.w.parent", "supervisors.x.strategy", "supervisors.y.parent", "supervisors.z.parent"),
    ]


def test_an_agent_whose_supervisor_is_missing_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no supervisor none") as caught:
        Config(agents=[AgentConfig(name="a", handler="m:f", supervisor="none")])
    assert [problem.path for problem in caught.value.problems] == ["agents.a.supervisor"]
    with pytest.raises(ConfigError, match="there is no supervisor none; there are desk"):
        toml('[agents.a]\nhandler = "m:f"\nsupervisor = "none"\n[supervisors.desk]\n')


def test_several_servers_of_one_source_are_read() -> None:
    config = toml("""
        [sources.x]
        command = "x"
        replicas = 3
        [sources.y]
        urls = ["https://a/mcp", "https://b/${TOKEN}"]
        [sources.z]
        url = "https://a/mcp"
        urls = ["https://b/mcp"]
    """)
    x, y, z = config.sources.values()
    assert isinstance(x, Stdio)
    assert isinstance(y, Http)
    assert isinstance(z, Http)
    assert x.replicas == 3
    assert (y.url, y.urls) == ("https://a/mcp", ("https://b/hunter2",))
    assert (z.url, z.urls) == ("https://a/mcp", ("https://b/mcp",))


def test_wrong_replicas_and_urls_are_told_where_they_are() -> None:
    config = toml("""
        [sources.x]
        command = "x"
        replicas = 0
        [sources.y]
        urls = ["https://a/mcp", "ftp://b"]
    """)
    assert set(told(config)) == {
        ("sources.x.replicas", "is out of range"),
        ("sources.y.urls[1]", "is not a URL that can be reached"),
    }
