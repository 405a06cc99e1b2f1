from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import check, main
from cord_trio.cli.probe import Step
from tests.cases.servers import refusing
from tests.cli.helpers import configure, script, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def nobody() -> Iterator[str]:
    """A place on this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out.splitlines()


def test_a_good_source_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=server(name="shop"), few={**server(name="inn"), "tools": ["echo"]})
    assert main(["check"]) == 0
    shop, inn, total = said(capsys)
    assert shop == "ok   it: shop speaks 2026-07-28, 15 tools"
    assert inn == "ok   few: inn speaks 2026-07-28, 15 tools, 1 of them exported"
    assert total.startswith("2 of 2 sources ready, in ")


def test_a_source_that_starts_when_it_is_needed_is_checked_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it={**server(name="shop"), "start": "lazy"}, bad=script("import sys; sys.exit(3)"))
    assert main(["check", "--json"]) == 1
    told = json.loads(said(capsys)[0])["sources"]
    assert told[0]["what"] == "shop speaks 2026-07-28, 15 tools; started by its first call"
    assert [each["state"] for each in told] == ["ready", "down"]
    configure(folder, it={**server(name="shop"), "start": "lazy"})
    assert main(["tools"]) == 0
    assert said(capsys)[0].startswith("it__echo")


def test_a_source_of_which_several_run_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(
        folder, it={**server(name="shop"), "replicas": 2}, bad={**script("import sys; sys.exit(3)"), "replicas": 2}
    )
    assert main(["check"]) == 1
    shop, bad, *_ = said(capsys)
    assert shop == "ok   it: shop speaks 2026-07-28, 15 tools"
    assert bad.startswith("FAIL bad: ")
    assert "exited with status 3" in bad


def test_a_source_that_its_configuration_leaves_out_says_where_and_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it={"command": "x", "env": {"KEY": "${NEVER_SET_AT_ALL}"}}, wrong={"command": 1, "args": 2})
    assert main(["check"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "FAIL it: mcpServers.it.env.KEY: the variable NEVER_SET_AT_ALL is not set"
    assert lines[1].startswith("       do: set it, or write")
    assert lines[2] == "FAIL wrong: left out for 2 reasons"
    assert [line.split(":")[0].strip() for line in lines[3:5]] == ["mcpServers.wrong.command", "mcpServers.wrong.args"]
    assert lines[-1].startswith("0 of 2 sources ready")


def test_a_source_without_a_name_is_told_with_its_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, **{"": server()})
    assert main(["check"]) == 1
    assert "the name is empty" in "\n".join(said(capsys))


def test_what_costs_no_source_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it={**server(), "colour": "red"})
    assert main(["check"]) == 0
    assert capsys.readouterr().err.startswith("warning: .mcp.json: mcpServers.it.colour: is not known")


@pytest.mark.parametrize(
    ("entry", "words", "remedy"),
    [
        ({"command": "no-such-program-at-all"}, "no such command: 'no-such-program-at-all'", "looked in PATH="),
        ({"command": "./not/here"}, "no such command: './not/here'", "correct the path; it starts from /"),
        ({"command": "true", "cwd": "/not/here"}, "the working folder '/not/here' is not there", "create it"),
        (script("import sys; sys.exit('boom: no key')"), "stderr: boom: no key", "start it by hand"),
        (server(exit_on="initialize", era="legacy"), "exited with status 3", "start it by hand"),
        (
            {**script("import sys; print('hello', flush=True); sys.stdin.read()"), "connect": 0.5},
            "no answer to initialize within 0.5 s; it wrote 'hello'",
            "is it an MCP server?",
        ),
        ({**server(silent=True), "connect": 0.2}, "no answer to initialize within 0.2 s", "raise `connect`"),
        ({"url": "ws://127.0.0.1:1/", "type": "ws"}, "127.0.0.1:1: Connection refused", "is the server running"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_with_what_to_do(
    entry: dict[str, object], words: str, remedy: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it=entry)
    assert main(["check"]) == 1
    verdict, *rest = said(capsys)
    assert verdict.startswith("FAIL it: ")
    assert words in verdict
    assert rest[0].startswith("       do: ")
    assert remedy in rest[0]


def test_a_remote_source_is_looked_at_step_by_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nobody() as place:
        configure(folder, it={"url": f"http://{place}/mcp"})
        assert main(["check"]) == 1
    assert said(capsys)[:-1] == [
        f"FAIL it: connect: cannot connect to {place}: Connection refused",
        "       looked: name ok",
        f"       tcp: port {place.rpartition(':')[2]} of 127.0.0.1: Connection refused",
        "       do: is the server running, and on this port?",
    ]


def test_the_advice_of_the_closer_look_is_given_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refusing(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n") as port:
        configure(folder, it={"url": f"http://127.0.0.1:{port}/mcp"})
        assert main(["check"]) == 1
    lines = said(capsys)
    assert "       looked: name ok, tcp ok" in lines
    assert "       authorize: it asks for authorization (401)" in lines
    assert "       do: give an Authorization header in `headers`" in lines


def test_a_remote_source_that_looks_well_and_is_not_gets_advice_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_well(_: object) -> list[Step]:
        await trio.lowlevel.checkpoint()
        return [Step("proxy", True, "not used", "add it to NO_PROXY"), Step("http", True, "fine")]

    monkeypatch.setattr(check, "look", all_well)
    with nobody() as place:
        configure(folder, it={"url": f"http://{place}/mcp"})
        assert main(["check"]) == 1
    assert said(capsys)[1:4] == [
        "       looked: http ok",
        "       proxy: not used; add it to NO_PROXY",
        "       do: check the path of `url`: an HTTP server answers there, but not as an MCP server does",
    ]


def test_a_disabled_source_is_named_and_not_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it={**server(), "disabled": True})
    assert main(["check"]) == 0
    assert said(capsys)[0] == "off  it: disabled in the configuration"


def test_two_tools_of_one_exported_name_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, a={**server(), "prefix": "", "tools": ["echo"]}, b={**server(), "prefix": "", "tools": ["echo"]})
    assert main(["check"]) == 0
    assert any(line.startswith("note ") and "echo" in line for line in said(capsys))


def test_json_is_one_object_whatever_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nobody() as place:
        configure(
            folder, good=server(), gone={"url": f"http://{place}/mcp"}, unset={"command": "${NEVER_SET_AT_ALL}"},
            off={**server(), "disabled": True},
        )  # fmt: skip
        assert main(["check", "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (out.count("\n"), err) == (1, "")
    assert {source["source"]: source["ok"] for source in found["sources"]} == {
        "unset": False, "good": True, "gone": False,
    }  # fmt: skip
    assert found["sources"][2]["steps"][-1]["name"] == "tcp"
    assert found["disabled"] == ["off"]
    assert len(found["problems"]) == 1
    assert found["file"] == ".mcp.json"


def test_what_a_server_says_drives_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=script("import sys; sys.exit('\\x1b[2J\\r\\nboom')"))
    assert main(["check"]) == 1
    assert "\x1b" not in "".join(said(capsys))


def test_a_source_with_notes_shows_them() -> None:
    finding = check.Finding("it", True, "fine", notes=("tool 'x': left out",))
    assert list(check._lines(finding)) == ["ok   it: fine", "       note: tool 'x': left out"]


def test_an_agent_that_cannot_be_made_is_told_with_its_remedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cord.toml").write_text('[agents.lost]\nhandler = "nowhere:agent"\n')
    assert main(["check"]) == 1
    lines = said(capsys)
    assert lines[0].startswith("FAIL cord.toml: agents.lost")
    assert lines[-1].startswith("0 of 0 sources ready")
    assert main(["check", "--json"]) == 1
    assert "nowhere" in json.loads(said(capsys)[-1])["problems"][0]
