"""Three brokers as `docs/mesh.md` configures them: its text is run and started, but for names of machines and ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.config import load_config
from cord_trio.errors import CallError, ConnectFailed
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh.reaching import open_store
from cord_trio.nats.client import open_nats
from tests.real.nats_server import FOUND, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cord_trio.call import Outcome
    from cord_trio.config import MeshConfig

pytestmark = [
    pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "mesh.md").read_text("utf-8")
SECTION = PAGE.partition("## Three brokers in production\n")[2].partition("\n## ")[0]
BROKERS = ("broker-1", "broker-2", "broker-3")


def block(after: str) -> str:
    """What the page has in the first box behind these words."""
    found = re.search(rf"{re.escape(after)}.*?```\w*\n(.*?)```", SECTION, re.DOTALL)
    assert found is not None, after
    return found[1]


class Cluster:
    """The brokers of the page, each with a folder for its `/etc/nats`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: {port: free_port() for port in ("4222", "6222", "8222")} for name in BROKERS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str, name: str) -> str:
        """The text as it must be where all run on one machine."""
        for each, ports in self.ports.items():
            for port, ours in ports.items():
                text = text.replace(f"{each}.example.org:{port}", f"localhost:{ours}")
        for port, ours in self.ports[name].items():
            text = re.sub(rf"(0\.0\.0\.0|127\.0\.0\.1):{port}", rf"127.0.0.1:{ours}", text)
        place = self.folder / name
        return text.replace("/etc/nats", str(place)).replace("/var/lib/nats", str(place / "store"))

    def configure(self) -> None:
        script = block("**Keys.**").replace("python ", f"{sys.executable} ").replace("$broker.example.org", "localhost")
        subprocess.run(["sh", "-e", "-c", script], cwd=self.folder, check=True, capture_output=True)
        for name in BROKERS:
            place = self.folder / name
            place.mkdir()
            own = block("**`/etc/nats/broker.conf`**").replace("broker-1", name)
            for file, text in (
                ("broker.conf", own),
                ("brokers.conf", block("**`/etc/nats/brokers.conf`**")),
                ("mesh.conf", (self.folder / "mesh.conf").read_text()),
            ):
                (place / file).write_text(self.here(text, name))
            for file in ("pem", "key"):
                shutil.copy(self.folder / f"{name}.{file}", place / f"broker.{file}")
            shutil.copy(self.folder / "ca.pem", place)

    def start(self, name: str) -> None:
        assert FOUND is not None
        with (self.folder / name / "log").open("ab") as log:
            command = [FOUND, "-c", str(self.folder / name / "broker.conf")]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def is_well(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]['8222']}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def settings(self, node: str) -> MeshConfig:
        text = self.here(block("**`cord.toml`**"), BROKERS[0]).replace("/etc/cord", str(self.folder))
        path = self.folder / f"{node}.toml"
        path.write_text(text.replace("kitchen", node))
        config = load_config(path, environ=os.environ)
        assert (config.problems, config.mesh is None) == ((), False)
        assert config.mesh is not None
        return config.mesh


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.configure()
    try:
        for name in BROKERS:
            cluster.start(name)
        ends = time.monotonic() + 20
        while not all(map(cluster.is_well, BROKERS)):
            assert time.monotonic() < ends, (cluster.folder / BROKERS[0] / "log").read_text()[-2000:]
            time.sleep(0.05)
        yield cluster
    finally:
        for name in BROKERS:
            cluster.stop(name)


async def double(call: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    return Complete(call.params["arguments"])


@asynccontextmanager
async def opened(cluster: Cluster, name: str) -> AsyncGenerator[tuple[Node, str]]:
    """A node, and the broker that it is at."""
    async with AsyncExitStack() as stack:
        while True:  # the cluster may need a moment to agree on who leads
            try:
                nats, bucket = await stack.enter_async_context(open_store(cluster.settings(name)))
                break
            except (CallError, ConnectFailed):
                await trio.sleep(0.1)
        info = await bucket.api("STREAM.INFO.KV_cord_cord")
        assert info["config"]["num_replicas"] == 3
        port = str(nats.line.server.origin.port)
        (broker,) = [each for each, ports in cluster.ports.items() if str(ports["4222"]) == port]
        async with open_node(nats, bucket, mesh="cord", node=name, handler=double, rng=Random(name)) as node:
            yield node, broker


async def test_the_brokers_of_the_page_carry_a_mesh_and_one_of_them_may_die(cluster: Cluster) -> None:
    async with opened(cluster, "kitchen") as (kitchen, broker), opened(cluster, "cellar") as (cellar, _):
        epochs = kitchen.epoch, cellar.epoch
        while kitchen.roster.epoch("cellar") is None:
            await kitchen.roster.changed(kitchen.roster.number)
        call = Call("tools/call", "t", {"arguments": Raw(b"7")})
        assert await kitchen.calling.call(call, ["cellar"]) == Complete(Raw(b"7"))
        cluster.stop(broker)
        assert await kitchen.calling.call(call, ["cellar"]) == Complete(Raw(b"7"))
        assert (kitchen.epoch, cellar.epoch) == epochs
        assert kitchen.counters["mesh.fences"] + cellar.counters["mesh.fences"] == 0
    cluster.start(broker)


async def test_who_has_no_key_or_does_not_know_the_authority_is_let_in_nowhere(cluster: Cluster) -> None:
    url = cluster.settings("kitchen").servers[1]
    for verify, why in ((False, "without credentials"), (True, "certificate")):
        with pytest.raises(ConnectFailed, match=why):
            async with open_nats(url, verify=verify):
                raise AssertionError


EXAMPLE = Path(__file__).parents[2] / "examples" / "mesh"


def test_the_compose_file_names_what_is_there(tmp_path: Path) -> None:
    """Docker is not needed: the shape of the file, and each command as the container would get it."""
    yaml = pytest.importorskip("yaml")
    text = (EXAMPLE / "compose.yaml").read_text("utf-8")
    whole = yaml.safe_load(text)
    broker, *nodes = (whole["services"][name] for name in ("broker", "kitchen", "cellar"))
    making = re.search(r"python -m cord_trio (mesh permissions .*) > mesh.conf", text)
    assert making is not None
    command = [sys.executable, "-m", "cord_trio", *making[1].split(), "--keys", str(tmp_path)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / "mesh.conf").write_text(made.stdout.replace("/data", str(tmp_path)))
    assert broker["command"][:3] == ["nats-server", "-c", "/etc/nats/mesh.conf"]
    assert FOUND is not None
    subprocess.run([FOUND, "-c", str(tmp_path / "mesh.conf"), "-t"], check=True, capture_output=True)
    mounted = {place.split(":")[0] for service in (broker, *nodes) for place in service["volumes"]} - {"store"}
    assert all((EXAMPLE / place).exists() or (tmp_path / place).exists() for place in mounted), mounted
    for name, node in zip(("kitchen", "cellar"), nodes, strict=True):
        assert (EXAMPLE / node["build"]["context"] / node["build"]["dockerfile"]).exists()
        places = dict(place.split(":")[1::-1] for place in node["volumes"])
        assert node["command"][:3] == ["serve", "--config", "/etc/cord/cord.toml"]
        config = load_config(EXAMPLE / places["/etc/cord/cord.toml"], environ=os.environ)
        assert (config.problems, config.broken, config.mesh is None) == ((), {}, False)
        assert config.mesh is not None
        assert (config.mesh.node, config.mesh.credentials in places) == (name, True)


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode != 0,
    reason="no docker compose here",
)
def test_docker_takes_the_compose_file() -> None:
    subprocess.run(["docker", "compose", "-f", str(EXAMPLE / "compose.yaml"), "config", "-q"], check=True)
