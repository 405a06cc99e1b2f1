"""The official SDK as client of one node and as server of another: two processes that meet at a real nats-server."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from conformance.build import SDK2
from cord_trio.config import Config, GatewayConfig, MeshConfig
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.gateway import serve_gateway
from cord_trio.mesh.joining import in_mesh
from tests.real.environments import sdk
from tests.real.helpers import running
from tests.real.nats_server import FOUND, Broker
from tests.real.nats_server import running as broker_running

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from tests.real import test_sdk_pairings as pairings  # noqa: E402  # only where the SDK is

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

Json: TypeAlias = Any

pytestmark = [
    *[mark for mark in pairings.pytestmark if mark.name != "parametrize"],
    pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform"),
]

KEY = "k" * 32
EVERY = "test_rows_1_2_5_7_14_15_18_23_24_what_every_client_does"
ASKED = "test_rows_3_4_8_11_12_13_what_a_person_is_asked"
REST = "test_rows_6_9_12_14_16_19_20_23_27_29_31_32_all_the_rest"

RUN: list[tuple[str, str, str]] = [
    # which test, and the eras of its client and its server
    (EVERY, "legacy", "modern"),
    (ASKED, "modern", "legacy"),
    (REST, "legacy", "legacy"),
    (REST, "modern", "modern"),
]


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    """Make them outside of any test's time limit."""
    sdk(SDK2)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with broker_running(jetstream=True) as broker:
        yield broker


@pytest.mark.parametrize(("test", "client", "server"), RUN)
async def test_its_rows_cross_between_two_nodes(
    test: str, client: str, server: str, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0

    @asynccontextmanager
    async def gateway_before(url: str, era: Json, prefix: str = "") -> AsyncGenerator[tuple[Fabric, str]]:
        """A gateway on a node that has its one source from a node in another process."""
        nonlocal number
        number += 1
        mesh = f"{tmp_path.name}-{number}"
        owner = tmp_path / f"owner{number}.toml"
        owner.write_text(
            f'[gateway]\nhttp = "127.0.0.1:0"\n'
            f'[mesh]\nservers = ["{broker.url}"]\nname = "{mesh}"\nnode = "owner"\nkey = "{KEY}"\n'
            f'[sources.far]\nurl = "{url}"\nera = "{era}"\nprefix = "{prefix}"\n',
            "utf-8",
        )
        settings = MeshConfig(servers=[broker.url], name=mesh, node="front", key=KEY)
        config = Config(gateway=GatewayConfig(page_size=30), mesh=settings)
        command = [sys.executable, "-m", "cord_trio", "serve", "--config", str(owner)]
        async with running(command), open_fabric(config, mesh=in_mesh(settings)) as fabric:
            with trio.fail_after(30):
                while "far@owner" not in fabric.registry.snapshot.sources or not fabric.registry.snapshot.tools:
                    await fabric.registry.changed(fabric.registry.snapshot.version)
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: serve_gateway(fabric, http=[listener]))
                yield fabric, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
                nursery.cancel_scope.cancel("the test is over")

    monkeypatch.setattr(pairings, "gateway_before", gateway_before)
    needs: Json = {"tmp_path": tmp_path, "monkeypatch": monkeypatch} if test == REST else {}
    await getattr(pairings, test)(client, server, **needs)
