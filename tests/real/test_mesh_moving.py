"""An agent of which there is one moves between processes, one of which, or the broker, is killed in the middle."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.errors import AgentDown, AgentError, CallError, HandoffRefused
from cord_trio.fabric import open_fabric
from cord_trio.mesh import calling, keeping, presence, singletons
from cord_trio.mesh.joining import in_mesh
from tests.real.mesh_movers import WORK
from tests.real.nats_server import FOUND, running
from tests.real.processes import running_module

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from cord_trio.fabric import Fabric
    from tests.real.nats_server import Broker

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

LEASE = 3
PLACES = "ab"


@contextmanager
def movers(broker: Broker, ledger: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two nodes that stand by; the first has had the time to have it."""
    given = ("tests.real.mesh_movers", broker.url)
    with (
        running_module(*given, "a", str(ledger), str(LEASE), says=b"stands by\n") as a,
        running_module(*given, "b", str(ledger), str(LEASE), says=b"stands by\n") as b,
    ):
        yield {"a": a, "b": b}


class Askers:
    """They ask all the time, from a node that does not stand by, and note what they learn."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.asked = 0
        self.answered: dict[int, list[int]] = {}
        self.failed: dict[int, Exception] = {}
        self.stopping = False

    async def ask(self) -> list[int]:
        number, self.asked = self.asked, self.asked + 1
        try:
            with trio.fail_after(20):
                known = await self.fabric.ask("clerk", number)
        except (CallError, AgentError, trio.TooSlowError) as exc:
            self.failed[number] = exc
            raise
        assert isinstance(known, list)
        self.answered[number] = known
        return known

    async def go_on(self) -> None:
        while not self.stopping:
            try:
                await self.ask()
            except (CallError, AgentError, trio.TooSlowError):
                await trio.sleep(0.1)

    def check(self, ledger: Path, known: list[int]) -> None:
        """One of it ran at a time, nothing twice, nobody was told wrong, and what was answered is known."""
        rows = [line.split() for line in ledger.read_text().splitlines()]
        begun, fences = [int(row[0]) for row in rows], [int(row[1]) for row in rows]
        assert len(begun) == len({*begun})
        assert fences == sorted(fences)
        assert len({(row[1], row[2]) for row in rows}) == len({row[1] for row in rows})
        assert {*self.answered} <= {*known} <= {*begun}
        assert len(known) == len({*known})
        for number, exc in self.failed.items():
            assert not isinstance(exc, HandoffRefused)
            assert isinstance(exc, CallError | AgentDown), repr(exc)
            if isinstance(exc, CallError) and exc.executed == "no":
                assert number not in begun, repr(exc)


@pytest.mark.limit(90)
@pytest.mark.parametrize("after", [0.1, WORK + 0.05])
@pytest.mark.parametrize("victim", ["source", "target", "broker"])
async def test_of_an_agent_there_is_one_whoever_is_killed_while_it_moves(
    victim: str, after: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "GRACE", 0.5)
    ledger = tmp_path / "ledger"
    ledger.touch()
    with running(jetstream=True) as broker, movers(broker, ledger) as nodes:
        settings = MeshConfig(servers=[broker.url], node="c")
        for module in (presence, singletons, keeping):
            monkeypatch.setattr(module, "LEASE", LEASE)
        async with open_fabric(Config(mesh=settings), mesh=in_mesh(settings), rng=Random(1)) as fabric:
            with trio.fail_after(80):
                askers = Askers(fabric)
                source = await there(fabric, askers)
                askers.failed.clear()  # it was not known yet
                target = PLACES.replace(source, "")
                said: list[object] = []

                async def move() -> None:
                    try:
                        with trio.fail_after(30):
                            said.append(await fabric.move("clerk", target))
                    except (CallError, AgentError, trio.TooSlowError) as exc:
                        said.append(exc)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(askers.go_on)
                    nursery.start_soon(askers.go_on)
                    await trio.sleep(
                        2.3 * WORK
                    )  # in the middle of a run, so that the first comes before the agent is given away
                    nursery.start_soon(move)
                    await trio.sleep(after)
                    if victim == "broker":
                        broker.kill()
                        await trio.sleep(0.5)
                        broker.start()
                    else:
                        nodes[source if victim == "source" else target].send_signal(signal.SIGKILL)
                    answered = len(askers.answered)
                    while len(askers.answered) < answered + 4:  # noqa: ASYNC110  # until it is asked and answers
                        await trio.sleep(0.1)
                    askers.stopping = True
                known = await askers.ask()
                askers.check(ledger, known)
                assert len(said) == 1
                if victim == "broker":
                    assert said == [target] or isinstance(said[0], CallError | AgentError)


async def there(fabric: Fabric, askers: Askers) -> str:
    """Who has it, once that can be asked, and both stand by."""
    while True:
        try:
            await askers.ask()
            await fabric.move("clerk", "a")
            return await fabric.move("clerk", "b")
        except (CallError, AgentError):
            await trio.sleep(0.1)
