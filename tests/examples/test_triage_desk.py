"""The example of a triage desk: its agents in memory, under searched schedules, and with its real servers."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import cord_trio as cord
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled
from tests.full_server import FullServer, Request, text

if TYPE_CHECKING:
    from collections.abc import Callable

Json: TypeAlias = Any

FOLDER = Path(__file__).parents[2] / "examples" / "triage_desk"
TICKETS = {
    "bug": {"text": "broken since release 2", "amount": None},
    "hours": {"text": "when are you open?", "amount": None},
    "small": {"text": "refund please", "amount": "40"},
    "other": {"text": "refund, charged twice", "amount": "15"},
    "odd": {"text": "refund", "amount": "lots"},
    "large": {"text": "refund everything", "amount": "900"},
}


def load() -> Json:
    spec = importlib.util.spec_from_file_location("triage_desk", FOLDER / "desk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["triage_desk"] = module
    spec.loader.exec_module(module)
    return module


desk = load()


class Store:
    """The tickets, in memory, as the real server has them: it asks before it pays."""

    def __init__(self) -> None:
        self.paid: dict[str, str] = {}
        self.asked: list[str] = []
        self.approved: list[str] = []
        self.twice: list[str] = []
        self.server = FullServer()
        self.server.tools = {"read": self.read, "refunds": self.refunds, "refund": self.refund}

    def read(self, request: Request) -> Json:
        return text(json.dumps(TICKETS[request.arguments["ticket"]]))

    def refunds(self, request: Request) -> Json:
        return text(json.dumps(self.paid))

    def refund(self, request: Request) -> Json:
        ticket, amount = request.arguments["ticket"], request.arguments["amount"]

        def pay() -> str:
            if ticket in self.paid:
                return f"ticket {ticket}: {self.paid[ticket]} was paid already"
            self.paid[ticket] = amount
            return f"ticket {ticket}: paid {amount}"

        def replied(reply: Json) -> None:
            if request.connection.over:
                return
            result = reply.get("result") or {}
            yes = result.get("action") == "accept" and result["content"]["approve"]
            request.answer(text(pay() if yes else f"ticket {ticket}: not approved"))

        if ticket in self.paid:
            return text(pay())
        self.asked.append(ticket)
        request.ask("elicitation/create", {"message": ticket, "requestedSchema": {}}, replied)
        return None


def sources(store: Store) -> list[Json]:
    time = ToolServer({"get_current_time": lambda _: json.dumps({"datetime": "2026-01-02T10:30:00"})})
    git = ToolServer({"git_log": lambda _: "Commit history:\nMessage: Mend the export\n"})
    return [store.server.source(name="tickets"), time.in_process(name="time"), git.in_process(name="git")]


async def yes(_question: str) -> bool:  # noqa: ASYNC124  # async by contract
    return True


async def outcomes_of(
    store: Store, tickets: list[str], approve: Callable[[str], Json] | None = yes
) -> dict[str, tuple[str, str]]:
    """How each ticket ended, handled one after the other."""
    desk.approving.set(approve)
    found = {}
    async with cord.open_fabric(sources(store)) as fabric:
        desk.staff(fabric)
        await fabric.wait_started()
        for ticket in tickets:
            outcome = await desk.handle(fabric, ticket)
            found[ticket] = (outcome.state, outcome.text)
    return found


@pytest.mark.parametrize(
    ("words", "whose"),
    [("A REFUND now", "refunds"), ("broken since release 2", "engineering"), ("hello", "answers"), ("", "answers")],
)
def test_a_ticket_is_somebodys(words: str, whose: str) -> None:
    assert desk.classify(words) == whose


async def test_each_kind_of_ticket_has_its_end(autojump_clock: MockClock) -> None:
    store = Store()
    assert await outcomes_of(store, ["bug", "hours", "small", "odd", "large", "other"]) == {
        "bug": ("done", "ticket bug: for the engineers; last change: Message: Mend the export"),
        "hours": ("done", "ticket hours: we open at 9; now it is 10:30 in UTC"),
        "small": ("done", "ticket small: paid 40"),
        "odd": ("failed", "ticket odd failed: agent ledger#1 crashed: InvalidOperation([<class "
                "'decimal.ConversionSyntax'>])"),
        "large": ("parked", "ticket large waits for a manager: budget of 100 money does not hold what agent 'refunds' "
                  "asks for"),
        "other": ("done", "ticket other: paid 15"),  # after the crash
    }  # fmt: skip
    assert store.paid == {"small": "40", "other": "15"}
    assert store.asked == ["small", "other"]  # nobody is asked about what the budget does not hold


async def test_without_a_person_nothing_is_paid(autojump_clock: MockClock) -> None:
    async def no(_question: str) -> bool:  # noqa: ASYNC124  # async by contract
        return False

    store = Store()
    assert (await outcomes_of(store, ["small"], no))["small"] == ("done", "ticket small: not approved")
    assert (await outcomes_of(store, ["small"], None))["small"][0] in ("failed", "done")
    assert store.paid == {}


async def test_a_person_who_does_not_answer_is_not_waited_for_longer(autojump_clock: MockClock) -> None:
    store = Store()

    async def away(_question: str) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    start = trio.current_time()
    assert (await outcomes_of(store, ["small"], away))["small"][0] == "failed"
    assert trio.current_time() - start < desk.PATIENCE + 15
    assert store.paid == {}


@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(TICKETS)), st.sampled_from([0.0, 0.5, 2.0]), st.booleans(),
            st.sampled_from([0.0, 1.0, 30.0, 200.0]), st.sampled_from([0.3, 5.0, 500.0]),
        ),
        min_size=1, max_size=8,
    ),
    st.lists(st.sampled_from([0.4, 1.2, 20.0]), max_size=2),
    st.integers(0, 2**16),
)  # fmt: skip
@example([("odd", 0.0, True, 0.0, 5.0)] * 8, [], 0)
def test_no_refund_without_a_yes_and_none_twice(
    plan: list[tuple[str, float, bool, float, float]], losses: list[float], seed: int
) -> None:
    """Whoever asks, crashes, leaves, or loses the connection, in whatever order."""
    store = Store()
    states: list[str] = []
    said_yes: set[str] = set()

    async def one(fabric: cord.Fabric, ticket: str, at: float, approves: bool, thinks: float, patience: float) -> None:
        async def approve(question: str) -> bool:
            assert question == ticket, "somebody else's question"
            await trio.sleep(thinks)
            if approves:
                said_yes.add(ticket)
            return approves

        await trio.sleep(at)
        desk.approving.set(approve)
        with trio.move_on_after(patience) as leaves:
            states.append((await desk.handle(fabric, ticket)).state)
        if leaves.cancelled_caught:
            states.append("left")

    async def lose() -> None:
        for moment in sorted(losses):
            await trio.sleep(moment)
            for connection in store.server.connections:
                connection.transport.lose("server exited (signal 9)")

    async def main() -> None:
        with trio.fail_after(100_000):
            async with cord.open_fabric(sources(store), rng=random.Random(0)) as fabric:
                desk.staff(fabric)
                await fabric.wait_started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lose)
                    for entry in plan:
                        nursery.start_soon(one, fabric, *entry)
                assert not fabric.agents.roots
                await fabric.agents.wait_quiet()  # the ledger may still be told
                assert all(not agent.turn.holders for agent in fabric.agents.values())

    with scheduled(random.Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(states) == len(plan)
    assert set(states) <= {"done", "parked", "failed", "left"}
    assert store.paid.keys() <= said_yes
    assert all(Decimal(amount) <= 100 for amount in store.paid.values())
    for state in set(states):
        event(state)


# The real thing

NEEDED = [Path(sys.executable).with_name(name) for name in ("mcp-server-time", "mcp-server-git")]
real = pytest.mark.skipif(
    not all(path.exists() for path in NEEDED), reason="mcp-server-time and mcp-server-git are not installed"
)


def beside() -> dict[str, str]:
    """An environment in which the desk's programs are found."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def copied(folder: Path) -> Path:
    """The desk, with no refund paid yet."""
    desk_folder = folder / "triage_desk"
    desk_folder.mkdir()
    for name in ("desk.py", "ticket_store.py", "cord.toml"):
        (desk_folder / name).write_text((FOLDER / name).read_text())
    return desk_folder


@real
def test_the_desk_works_with_its_real_servers(tmp_path: Path) -> None:
    desk_folder = copied(tmp_path)
    done = subprocess.run(
        [sys.executable, "triage_desk/desk.py"], cwd=tmp_path, input="y\ny\ny\n", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line.partition("ticket ")[2][:1]: line for line in done.stdout.replace("[y/N] ", "\n").splitlines()}
    assert "paid 40" in lines["2"]
    assert "paid 15" in lines["6"]
    assert "we open at 9; now it is" in lines["3"]
    assert lines["4"].startswith("failed")
    assert lines["5"].startswith("parked")
    assert json.loads((desk_folder / "refunds.json").read_text()) == {"2": "40", "6": "15"}


@real
@pytest.mark.parametrize(
    ("ticket", "says"),
    [
        ("3", "done: ticket 3: we open at 9; now it is"),
        ("4", "failed: ticket 4 failed: [<class 'decimal.ConversionSyntax'>]"),
        ("5", "parked: ticket 5 waits for a manager"),
        ("2", "failed: ticket 2 failed: "),  # nobody is there to approve
    ],
)
def test_the_command_line_runs_the_configured_desk(tmp_path: Path, ticket: str, says: str) -> None:
    desk_folder = copied(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "cord_trio", "run", "reception", ticket], cwd=desk_folder, env=beside(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(says)
    assert not (desk_folder / "refunds.json").exists()


def processes_with(argument: str) -> list[int]:
    """The processes that were started with `argument`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if argument.encode() in words:
            found.append(int(path.parent.name))
    return found


@real
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to find the server in")
async def test_a_killed_ticket_store_comes_back_and_pays_nobody_twice(tmp_path: Path) -> None:
    paid = tmp_path / "paid.json"
    command = (str(FOLDER / "ticket_store.py"), str(paid))
    source = cord.Stdio(
        name="tickets", command=sys.executable, args=command, env={"PATH": os.environ["PATH"]}, connect=60.0
    )
    asked: list[str] = []

    async def killing(question: str) -> bool:  # noqa: ASYNC124  # async by contract
        asked.append(question)
        (process,) = processes_with(str(paid))
        if len(asked) == 1:
            os.kill(process, signal.SIGKILL)  # while it waits for this very answer
        return True

    desk.approving.set(killing)
    async with cord.open_fabric([source]) as fabric:
        desk.staff(fabric)
        await fabric.wait_started()
        states = [(await desk.handle(fabric, ticket)).state for ticket in ("2", "2", "6")]
        again = await desk.handle(fabric, "2")
    assert states[1:] == ["done", "done"]
    assert again.text == "ticket 2: 40 was paid already"
    assert json.loads(paid.read_text()) == {"2": "40", "6": "15"}
    assert asked[0] == "Pay 40 for ticket 2?"


@real
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's client leaves generators
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_official_client_approves_through_the_gateway(tmp_path: Path, mode: str) -> None:
    """The same question, put to the person behind an MCP client of either era."""
    command = [sys.executable, str(FOLDER / "ticket_store.py"), str(tmp_path / "paid.json")]
    source = cord.Stdio(name="tickets", command=command[0], args=tuple(command[1:]), connect=60.0)
    asked: list[str] = []

    async def elicited(_context: Json, params: Json) -> Json:  # noqa: ASYNC124  # async by contract
        from mcp.types import ElicitResult

        asked.append(params.message)
        return ElicitResult(action="accept", content={"approve": True})

    mcp = pytest.importorskip("mcp")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with cord.open_fabric([source]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        nursery.start_soon(partial(cord.serve_gateway, fabric, http=[listener]))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
        async with mcp.Client(url, mode=mode, elicitation_callback=elicited) as client:
            for _ in range(2):
                result = await client.call_tool("tickets__refund", {"ticket": "2", "amount": "40"})
        nursery.cancel_scope.cancel("it is answered")
    assert result.content[0].text == "ticket 2: 40 was paid already"
    assert asked == ["Pay 40 for ticket 2?"]
