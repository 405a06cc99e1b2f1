from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.counters import Counters
from cord_trio.observe import Node, control
from cord_trio.observe.control import folders, look, open_control, pid_of, sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = {"pid": 1, "tree": Node("fabric", "it").data()}


@contextmanager
def place() -> Iterator[Path]:
    """A folder that is not there yet, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cord") as folder:
        yield Path(folder, "run")


async def asked(path: Path, request: bytes) -> bytes:
    """All that is answered to these bytes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        return b"".join([bytes(piece) async for piece in stream])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def dead_socket(path: Path) -> None:
    """A socket whose process died."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(path))


async def test_it_answers_one_line_and_leaves_nothing() -> None:
    with place() as folder:
        async with open_control(lambda: ANSWER, counters=Counters(), places=[folder]) as path:
            assert path is not None
            assert pid_of(path) == os.getpid()
            assert await look(path) == ANSWER
            assert json.loads(await asked(path, b"tree\r\n")) == ANSWER
            assert sockets(places=[folder]) == [path]
            assert sockets(os.getpid() + 1, places=[folder]) == []
        assert list(folder.iterdir()) == []
        assert await look(path) is None


async def test_only_its_user_may_enter() -> None:
    with place() as folder:
        async with open_control(lambda: ANSWER, counters=Counters(), places=[folder]) as path:
            assert path is not None
            assert (mode(folder), mode(path)) == (0o700, 0o600)


@pytest.mark.parametrize("request_", [b"stop\n", b"\n", b"tree\ntree\n", b"x" * 64, b"tree" + b"x" * 100 + b"\n"])
async def test_nothing_else_may_be_asked(request_: bytes) -> None:
    counters = Counters()
    with place() as folder:
        async with open_control(lambda: ANSWER, counters=counters, places=[folder]) as path:
            assert path is not None
            with trio.move_on_after(1):
                try:
                    reply = await asked(path, request_)
                except trio.BrokenResourceError:  # hung up on, with bytes unread
                    reply = b'{"error":"only \'tree\' may be asked"}\n'
            assert json.loads(reply) == {"error": "only 'tree' may be asked"}
            assert counters["control.refused"] == 1
            assert await look(path) == ANSWER


async def test_another_user_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    with place() as folder:
        async with open_control(lambda: ANSWER, counters=counters, places=[folder]) as path:
            assert path is not None
            monkeypatch.setattr(control, "_user", lambda _: os.geteuid() + 1)
            assert await look(path) is None
            assert counters["control.strangers"] == 1


def test_the_user_at_the_other_end_is_known() -> None:
    if not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("the system does not tell")
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        assert control._user(ours) == os.geteuid()


async def test_those_who_say_nothing_take_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.3)
    counters = Counters()
    with place() as folder:
        async with open_control(lambda: ANSWER, counters=counters, places=[folder]) as path:
            assert path is not None
            silent = [await trio.open_unix_socket(path) for _ in range(control.CONNECTIONS)]
            await wait_all_tasks_blocked()
            assert await asked(path, b"") == b""
            assert counters["control.overloaded"] == 1
            for stream in silent:
                assert await stream.receive_some(1) == b""
                await stream.aclose()
            assert counters["control.expired"] == control.CONNECTIONS
            assert await look(path) == ANSWER


async def test_an_answer_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> dict[str, object]:
        raise ValueError("a bug")

    with place() as folder:
        async with open_control(fail, counters=Counters(), places=[folder]) as path:
            assert path is not None
            assert await look(path) is None
            assert json.loads(await asked(path, b"tree\n")) == {"error": "ValueError('a bug')"}
    assert "the tree could not be shown" in caplog.text


async def test_an_error_in_the_block_leaves_as_it_was_raised() -> None:
    with place() as folder:
        with pytest.raises(KeyError, match="mine"):
            async with open_control(lambda: ANSWER, counters=Counters(), places=[folder]):
                raise KeyError("mine")
        assert list(folder.iterdir()) == []


async def test_the_sockets_of_the_dead_are_removed_and_no_others() -> None:
    with place() as folder:
        folder.mkdir(mode=0o700)
        dead_socket(folder / "1-a.sock")
        dead_socket(folder / ".2-new")
        dead_socket(folder / ".3-old")
        os.utime(folder / ".3-old", (0, time.time() - 2 * control.UNFINISHED))
        (folder / "4-notes.sock").write_text("no socket")
        async with open_control(lambda: ANSWER, counters=Counters(), places=[folder]) as path:
            assert path is not None
            assert {one.name for one in folder.iterdir()} == {path.name, ".2-new", "4-notes.sock"}
            dead_socket(folder / "5-b.sock")
            assert path in sockets(places=[folder])
            assert not (folder / "5-b.sock").exists()


async def test_a_folder_that_others_may_enter_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with place() as folder:
        folder.mkdir(mode=0o755)
        second = folder.with_name("second")
        async with open_control(lambda: ANSWER, counters=Counters(), places=[folder, second]) as path:
            assert path is not None
            assert path.parent == second
        long = folder.with_name("x" * 120)
        file = folder.with_name("file")
        file.write_text("")
        link = folder.with_name("link")
        link.symlink_to(second)
        places = [folder, long, file, link, folder / "no" / "parent"]
        async with open_control(lambda: ANSWER, counters=Counters(), places=places) as path:
            assert path is None
    assert "no socket for `tree` and `top`" in caplog.text
    for words in ("is not this user's alone", "AF_UNIX path too long", "file is no folder", "link is no folder"):
        assert words in caplog.text


def test_the_runtime_folder_comes_before_the_temporary_one() -> None:
    shared = Path(tempfile.gettempdir(), f"cord_trio-{os.geteuid()}")
    assert folders({"XDG_RUNTIME_DIR": "/run/user/7"}) == [Path("/run/user/7/cord_trio"), shared]
    assert folders({"XDG_RUNTIME_DIR": "relative"}) == folders({}) == [shared]


@pytest.mark.parametrize("reply", [b"", b"no json", b"[]", b'{"tree":1}'])
async def test_who_answers_something_else_is_no_fabric(reply: bytes) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(reply)

    with place() as folder:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.fspath(folder))
            made.listen()
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(made))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, talk, [listener])
                assert await look(folder) is None
                nursery.cancel_scope.cancel("the test is over")


async def test_a_reply_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_LIMIT", 100)
    with place() as folder:
        async with open_control(lambda: {**ANSWER, "x": "y" * 200}, counters=Counters(), places=[folder]) as path:
            assert path is not None
            assert await look(path) is None
