"""What `docs/mesh.md` tells users to paste works as it stands there, in shells that are kept."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli.broker import find_server
from cord_trio.cli.crossing import MARK, marked
from tests.cli.test_documents import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_server = pytest.mark.skipif(find_server() is None, reason="no nats-server for this platform")

PATIENCE = 120.0

SEEN = ("\nclock__echo ", "\nnotes__echo ", "\n3\n")
"""What the commands of the page show once all is there."""


class Shell:
    """A shell that somebody pastes into, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self._process = process
        self._said = said

    def paste(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def looked(self, text: str, *words: str) -> str:
        """What pasted commands say, which are pasted again until they say these words, as a person would do it."""
        until = time.monotonic() + PATIENCE
        said = ""
        for number in count():
            before = len(self._said.read_text())
            self.paste(f"{text}echo look {number} is done\n")
            said = self.wait_for(f"look {number} is done")[before:]
            if all(each in said for each in words) or time.monotonic() >= until:
                break
        return said

    def wait_for(self, words: str) -> str:
        """All that was said, once these words were."""
        until = time.monotonic() + PATIENCE
        while words not in self._said.read_text() and time.monotonic() < until:
            time.sleep(0.05)  # what another process does sets no event
        assert words in self._said.read_text()
        return self._said.read_text()


@contextmanager
def shell(folder: Path, mark: str) -> Iterator[Shell]:
    said = folder / "said"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with ExitStack() as stack:
        out = stack.enter_context(said.open("w"))
        environment = {"PATH": path, "PYTHONPATH": ":".join(sys.path), "HOME": str(folder), MARK: mark}
        process = subprocess.Popen(
            ["bash"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True
        )
        try:
            yield Shell(process, said)
        finally:
            process.communicate("kill $(jobs -p)\nwait\n", timeout=PATIENCE)
    for pid in marked(mark):
        raise AssertionError(f"process {pid} was left behind")


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in taken]


@needs_server
def test_two_nodes_on_one_machine(folder: Path) -> None:
    broker, one, other = free_ports(3)
    start, look, *_ = (
        block.replace("mesh broker &", "mesh broker --port 4222 &")
        .replace("4222", str(broker))
        .replace("8931", str(one))
        .replace("8932", str(other))
        for block in blocks("docs/mesh.md", "sh")
    )
    with shell(folder, f"page-{broker}") as here:
        here.paste(start)
        here.wait_for("node kitchen of mesh cord")
        here.wait_for("node cellar of mesh cord")
        said = here.looked(look, *SEEN)
    assert [each for each in SEEN if each not in said] == []


@needs_server
def test_two_machines_with_keys(folder: Path) -> None:
    broker, one, other = free_ports(3)
    _, _, first, second, look, *_ = (
        block.replace("4222", str(broker)).replace("FIRST-MACHINE", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
        for block in blocks("docs/mesh.md", "sh")
    )
    (folder / "first").mkdir()
    (folder / "second").mkdir()
    mark = f"page-{broker}"
    with shell(folder / "first", mark) as here:
        here.paste(first.replace("serve &", f"serve --http 127.0.0.1:{one} &"))
        here.wait_for("node kitchen of mesh cord")
        shutil.copy(folder / "first" / "cellar.nk", folder / "second")
        with shell(folder / "second", f"{mark}-2") as there:
            there.paste(second.replace("serve &", f"serve --http 127.0.0.1:{other} &"))
            there.wait_for("node cellar of mesh cord, with 1 other node")
            said = here.looked(look, *SEEN, "; nothing wrong")
    assert [each for each in SEEN if each not in said] == []
    rows = [line for line in said.splitlines() if "  ready  " in line]
    assert [row.split()[0] for row in rows] == ["cellar", "kitchen"]
    assert all(" ms, " in row for row in rows)  # both were asked, and answered
    assert "; nothing wrong" in said
