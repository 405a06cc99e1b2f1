from __future__ import annotations

import os
import pty
import signal
from typing import TYPE_CHECKING

import trio

from cord_trio.cli import reloading, serve
from cord_trio.cli.common import load
from cord_trio.errors import ConfigError, Problem
from tests.cli.helpers import Said, configure, server
from tests.cli.test_serve import arguments

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    import pytest

    from cord_trio.config import Config


async def reload_now() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    await trio.lowlevel.checkpoint()


async def test_a_changed_file_is_taken_over_and_a_bad_one_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "LOOK", 0.05)
    configure(folder, one=server())
    lines, interrupted = Said(capsys), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(), interrupted)
        await lines.wait_for("serving 1 source")
        configure(folder, one=server(), two=server())
        assert await lines.wait_for("added") == ".mcp.json was taken over: added two"
        (folder / ".mcp.json").write_text('{"mcpServers": {"one"')
        assert (await lines.wait_for("error: ")).startswith("error: .mcp.json: line 1")
        await lines.wait_for(".mcp.json was not taken over: everything goes on as it was")
        (folder / ".mcp.json").unlink()
        await lines.wait_for("error: .mcp.json: does not exist")
        configure(folder, one=server(name="other"), three={"command": "${UNSET_IN_TESTS}"})
        assert await lines.wait_for("replaced one") == ".mcp.json was taken over: removed two; replaced one"
        assert "UNSET_IN_TESTS" in await lines.wait_for("warning: .mcp.json")
        interrupted.set()


async def test_what_changes_between_its_reading_and_its_watching_is_seen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "LOOK", 0.02)
    configure(folder, one=server())

    def read_and_change(args: argparse.Namespace) -> Config:
        config = load(args)
        configure(folder, one=server(), two=server())
        return config

    monkeypatch.setattr(reloading, "load", read_and_change)
    lines, interrupted = Said(capsys), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(), interrupted)
        await lines.wait_for(".mcp.json was taken over: added two")
        interrupted.set()


async def test_however_the_file_is_changed_or_broken_it_is_followed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file moved there, a link that points elsewhere, a file in two steps, one that may not be read, a pipe."""
    monkeypatch.setattr(reloading, "LOOK", 0.02)
    file, other = folder / "cord.toml", folder / "other.toml"
    file.write_text('[sources.one]\ncommand = "cat"\n')
    lines, interrupted = Said(capsys), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(), interrupted)
        await lines.wait_for("serving 1 source")

        other.write_text('[sources.two]\ncommand = "cat"\n')
        other.rename(file)
        await lines.wait_for("cord.toml was taken over: added two; removed one")

        other.write_text('[sources.three]\ncommand = "cat"\n')
        (folder / "link").symlink_to(other)
        (folder / "link").rename(file)
        await lines.wait_for("cord.toml was taken over: added three; removed two")

        file.unlink()
        file.write_text("")
        await lines.wait_for("error: cord.toml: is empty")
        file.write_text('[sources.four]\ncommand = "cat"\n')
        await lines.wait_for("cord.toml was taken over: added four; removed three")

        with monkeypatch.context() as patch:
            patch.setattr("cord_trio.config.load._read", _refuse)  # we may be root, who may read everything
            file.write_text('[sources.five]\ncommand = "cat"\n')
            await lines.wait_for("error: cord.toml: may not be read")
        file.chmod(0o600)  # nothing else changes
        await lines.wait_for("cord.toml was taken over: added five; removed four")

        file.unlink()
        os.mkfifo(file)
        await lines.wait_for("error: cord.toml: is no plain file")
        interrupted.set()


def _refuse(file: str) -> bytes:
    raise ConfigError([Problem(file, "", "may not be read", "give this user the right to")])


async def test_a_source_that_cannot_be_used_any_more_stays_and_other_parts_take_a_restart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cord.toml").write_text('[sources.one]\ncommand = "cat"\n')
    lines, interrupted = Said(capsys), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(), interrupted)
        await lines.wait_for("serving 1 source")
        await reload_now()
        await lines.wait_for("cord.toml was taken over: no source has changed")
        (folder / "cord.toml").write_text('[sources.one]\ncommand = "${UNSET_IN_TESTS}"\n[gateway]\npage_size = 7\n')
        await reload_now()
        await lines.wait_for("as before, since it cannot be used any more: one")
        await lines.wait_for("warning: cord.toml: what is new in gateway takes a restart")
        interrupted.set()


async def test_a_terminal_that_is_gone_ends_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP from a terminal that hung up is no wish for the file to be read."""
    configure(folder, one=server())
    there = True
    monkeypatch.setattr(reloading, "_has_terminal", lambda: there)
    interrupted = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.run, arguments(), interrupted)
            await Said(capsys).wait_for("serving 1 source")
            there = False
            await reload_now()
            await interrupted.wait()


def test_a_terminal_is_known_to_be_there_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    held, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr("sys.__stderr__", stream)
        assert not reloading._has_terminal()  # it is not the one that controls us
        os.close(held)
        assert not reloading._has_terminal()
