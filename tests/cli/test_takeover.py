"""Deploys without a refused connection: inherited sockets, systemd's, and those of the process before."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import main
from cord_trio.cli.sockets import Notify, inherit, passed
from tests.cli.helpers import configure, server
from tests.gateway.fakes import headers_of, modern

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
SERVE = [sys.executable, "-m", "cord_trio", "serve"]


def begin(folder: Path, *args: str, **more: object) -> subprocess.Popen[bytes]:
    """A gateway, started as people start it."""
    return subprocess.Popen([*SERVE, *args], cwd=folder, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]  # forwards


def port_of(gateway: subprocess.Popen[bytes]) -> int:
    """Where it says that it serves."""
    assert gateway.stderr is not None
    for line in gateway.stderr:
        if line.startswith(b"serving"):
            return int(line.rsplit(b":", 1)[1].split(b"/")[0])
    raise AssertionError("it does not serve")


def echo(connection: http.client.HTTPConnection, text: str) -> tuple[str, bool]:
    """What the tool answers over this connection; and whether it is kept."""
    message = modern(1, "tools/call", {"name": "it__echo", "arguments": {"text": text}})
    connection.request("POST", "/mcp", message, {**JSON, **dict(headers_of(message))})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    return body["result"]["content"][0]["text"], not answer.will_close


class Hammer:
    """Clients that ask all the time: one over a new connection each time, one over one for as long as it is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.right = 0
        self.wrong: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(kept,)) for kept in (False, True)]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let them finish what they ask."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kept: bool) -> None:
        number = 0
        while not self._over.is_set():
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
                goes_on = True
                while goes_on and not self._over.is_set():
                    number += 1
                    try:
                        said, goes_on = echo(connection, f"{kept} {number}")
                        if said == f"{kept} {number}":
                            self.right += 1
                        else:
                            self.wrong.append(said)
                    except (OSError, http.client.HTTPException, KeyError, ValueError) as exc:
                        self.wrong.append(exc)
                        break
                    goes_on = goes_on and kept


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a configured server, where no other fabric is seen."""
    # The path of a socket has room for 107 bytes, which pytest's own folders may take alone.
    with tempfile.TemporaryDirectory(prefix="cord-", dir="/tmp") as short:
        monkeypatch.chdir(short)
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", short)  # which remembers
        configure(Path(short), it=server())
        yield Path(short)
        monkeypatch.undo()  # it is left before it goes


def test_no_client_notices_that_another_process_takes_over(places: Path) -> None:
    with begin(places, "--http", "127.0.0.1:0", "--grace", "5") as old:
        try:
            port = port_of(old)
            with Hammer(port) as hammer:
                with begin(places, "--takeover") as new:
                    try:
                        assert port_of(new) == port
                        assert old.wait(20) == 0
                        before = hammer.right
                        while hammer.right < before + 20 and not hammer.wrong:
                            time.sleep(0.02)
                        hammer.stop()
                        new.send_signal(signal.SIGTERM)
                        assert new.wait(20) == 0
                    finally:
                        new.kill()
            assert hammer.wrong == []
            assert hammer.right > 40
            assert old.stderr is not None
            assert b"has taken over" in old.stderr.read()
        finally:
            old.kill()


def test_a_process_that_fails_to_take_over_changes_nothing(places: Path) -> None:
    with begin(places, "--http", "127.0.0.1:0") as old:
        try:
            port = port_of(old)
            while not (controls := list((places / "cord_trio").glob("*.sock"))):
                time.sleep(0.02)
            (control,) = controls
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as dying:
                    dying.connect(str(control))
                    dying.sendall(b"handover\n")
                    said, numbers, _, _ = socket.recv_fds(dying, 64, 4)
                    assert said == b"sockets\n"
                    for number in numbers:
                        os.close(number)
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                assert echo(connection, "still here")[0] == "still here"
        finally:
            old.kill()


def test_whichever_side_is_killed_while_sockets_are_handed_over_the_other_serves(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, how in (("hung", {"silent": True}), ("slow", {"slow": 0.3})):
        (places / f"{name}.json").write_text(json.dumps({"mcpServers": {"it": server(), "other": server(**how)}}))
    with begin(places, "--http", "127.0.0.1:0", "--grace", "1") as old:
        try:
            port = port_of(old)
            with begin(places, "--takeover", "--config", "hung.json") as dying:
                try:
                    assert port_of(dying) == port  # it has the sockets, and waits for its sources
                    assert main(["serve", "--takeover"]) == 1
                    assert capsys.readouterr().err == "error: another process is taking over already\n"
                finally:
                    dying.kill()
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                assert echo(connection, "still here")[0] == "still here"
            with begin(places, "--takeover", "--config", "slow.json") as new:
                try:
                    assert port_of(new) == port
                    old.kill()
                    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
                        assert echo(connection, "waited")[0] == "waited"
                    new.send_signal(signal.SIGTERM)
                    assert new.wait(20) == 0
                finally:
                    new.kill()
        finally:
            old.kill()


def test_who_comes_second_is_told_that_somebody_has_taken_over(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with begin(places, "--http", "127.0.0.1:0", "--grace", "30") as old:
        try:
            port = port_of(old)
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as kept:
                echo(kept, "busy")
                control = next((places / "cord_trio").glob("*.sock"))
                with begin(places, "--takeover", "--grace", "1") as new:
                    try:
                        assert port_of(new) == port  # else there is nothing to wait for
                        assert old.stderr is not None
                        while b"has taken over" not in old.stderr.readline():
                            pass
                        assert main(["serve", "--takeover", str(old.pid)]) == 1
                        told = "error: another process is taking over just now, or has; try again\n"
                        assert capsys.readouterr().err == told
                        with socket.socket(socket.AF_UNIX) as late:  # who had looked before
                            late.connect(str(control))
                            late.sendall(b"handover\n")
                            assert late.recv(64) == b"gone\n"
                    finally:
                        new.kill()
        finally:
            old.kill()


@pytest.mark.parametrize("way", ["--fd", "systemd"])
def test_it_serves_at_a_socket_that_was_there_before(way: str, places: Path) -> None:
    code = (
        "import os, sys\n"
        "number, way, *args = sys.argv[1:]\n"
        "os.dup2(int(number), 3)\n"
        "if way == 'systemd':\n"
        "    os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'http'}\n"
        "else:\n"
        "    args += ['--fd', '3']\n"
        "os.execv(args[0], args)\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        closing(http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=20)) as early,
    ):
        manager.bind(str(places / "notify"))
        manager.settimeout(20)
        early.connect()  # before anybody accepts
        number = listening.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", code, str(number), way, *SERVE, "--grace", "1"], cwd=places, pass_fds=[number, 3],
            stderr=subprocess.PIPE, env={**os.environ, "NOTIFY_SOCKET": str(places / "notify")},
        ) as gateway:  # fmt: skip
            try:
                assert port_of(gateway) == listening.getsockname()[1]
                assert manager.recv(1000) == f"READY=1\nMAINPID={gateway.pid}".encode()
                assert echo(early, "waited")[0] == "waited"
                gateway.send_signal(signal.SIGTERM)
                assert manager.recv(1000) == b"STOPPING=1"
                assert gateway.wait(20) == 0
            finally:
                gateway.kill()


# What is wrong


@pytest.mark.parametrize("kind", ["closed", "file", "datagram", "deaf", "world"])
def test_what_is_no_socket_to_serve_at_is_refused_with_the_reason(
    kind: str, places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "closed": "is not open", "file": "is no socket", "datagram": "is no socket of TCP", "deaf": "does not listen",
        "world": "no loopback address, and there is no authentication yet",
    }[kind]  # fmt: skip
    with socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as made:
        made.bind(("0.0.0.0" if kind == "world" else "127.0.0.1", 0))
        if kind == "world":
            made.listen()
        number = os.open(os.devnull, os.O_RDONLY) if kind == "file" else os.dup(made.fileno())
        if kind == "closed":
            os.close(number)
            number = 900  # that nothing takes meanwhile
        try:
            assert main(["serve", "--fd", str(number)]) == 1
        finally:
            if kind == "file":
                os.close(number)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: descriptor {number} ")
    assert words in line


def test_nothing_to_take_over_says_so(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--takeover"]) == 1
    assert capsys.readouterr().err == "error: no `serve` runs that this user could take over\n"


def test_sockets_passed_to_another_process_are_not_ours() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "PATH": "/bin"}
    assert passed(environ) == []
    assert environ == {"PATH": "/bin"}, "children would take them for theirs"
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}
    with pytest.raises(ValueError, match="LISTEN_FDS='many' is no number of sockets"):
        passed(environ)


def test_an_inherited_socket_is_not_inherited_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = os.dup(listening.fileno())
        os.set_inheritable(number, True)
        with inherit(number) as ours:
            assert not ours.get_inheritable()
            assert ours.gettimeout() == 0


def test_where_nobody_wants_to_be_notified_nothing_happens(tmp_path: Path) -> None:
    Notify({}).ready()
    environ = {"NOTIFY_SOCKET": str(tmp_path / "gone")}
    Notify(environ).stopping()
    assert environ == {}


def test_one_that_does_not_answer_is_asked_again_and_told_of(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (places / "cord_trio").mkdir(mode=0o700)
    asked = 0
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(places / "cord_trio" / "77-busy.sock"))
        busy.listen()

        def hang_up() -> None:
            nonlocal asked
            with suppress(OSError):
                while True:
                    with busy.accept()[0] as asking:
                        asked += asking.recv(64) == b"tree\n"

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert main(["serve", "--takeover"]) == 1
        busy.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert capsys.readouterr().err == "error: process 77 does not answer; try again\n"
    assert asked == 2
