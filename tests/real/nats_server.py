"""A real nats-server from its wheel, for tests: on a free port, gone with its block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = Any

PATIENCE = 10.0
"""Seconds for a server to start: it takes 0.1 where the machine has nothing else to do."""

FOUND = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


class Broker:
    """One server process.

    Attributes:
        port: where it listens; the same after `start` again.
        websocket: where it listens for WebSockets; 0 if it does not.

    """

    def __init__(self, folder: Path, config: str, *, jetstream: bool, websocket: bool) -> None:
        self.port = -1
        self.websocket = 0
        self._folder = folder
        self._text = config
        self._jetstream = jetstream
        self._with_websocket = websocket
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert FOUND is not None
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        parts = [f'listen: "127.0.0.1:{self.port}"', f'ports_file_dir: "{ports}"', self._text]
        if self._jetstream:
            parts.append(f'jetstream {{ store_dir: "{self._folder}", max_file: 64MB, max_mem: 64MB }}')
        if self._with_websocket:
            parts.append(f'websocket {{ listen: "127.0.0.1:{self.websocket or -1}", no_tls: true }}')
        config = self._folder / "server.conf"
        config.write_text("\n".join(parts), "utf-8")
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen([FOUND, "-c", str(config)], stdout=log, stderr=log)
        ends = time.monotonic() + PATIENCE
        while not (found := list(ports.glob("*.ports"))) or not (said := found[0].read_text("utf-8")):
            if time.monotonic() > ends or self._process.poll() is not None:
                raise AssertionError(f"nats-server did not start: {(self._folder / 'log').read_text('utf-8')[-2000:]}")
            time.sleep(0.01)
        places: Json = json.loads(said)
        self.port = int(places["nats"][0].rpartition(":")[2])
        if self._with_websocket:
            self.websocket = int(places["websocket"][0].rpartition(":")[2])

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def running(config: str = "", *, jetstream: bool = False, websocket: bool = False) -> Iterator[Broker]:
    """A server with `config` beside its addresses, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="cord-nats-") as folder:
        broker = Broker(Path(folder), config, jetstream=jetstream, websocket=websocket)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()
