"""The fabric is killed in the middle of everything, and started anew on what it left."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from cord_trio.recording import decode

HOST = """
import json, sys, trio
from contextlib import closing
from pathlib import Path
import cord_trio as cord
from cord_trio.observe.control import open_control, sockets
from cord_trio.recorder import Recorder
from cord_trio.testing import ToolServer

folder, marker = Path(sys.argv[1]), sys.argv[2]
servers = [ToolServer(name=f"{marker}{letter}").source(name=letter, era="modern") for letter in "ab"]
launcher = cord.Stdio(
    name="c",
    command="/bin/sh",
    args=("-c", f"setsid sleep {marker} & sleep {marker} & exec \\"$@\\"", "sh", servers[0].command, *servers[0].args),
)
extra = ToolServer(name=f"{marker}d").source(name="d", era="modern")
stored = ToolServer(name=f"{marker}m").source(name="m", era="modern", start="manifest")

async def worker(ctx, payload):
    await ctx.checkpoint(payload)
    await ctx.call("b__sleep", {"seconds": 0.01})
    return payload

async def waiter(ctx, payload):
    await trio.sleep(0 if "again" in sys.argv else 30)
    return "done"

async def keep_calling(fabric):
    while True:
        await fabric.call("a__echo", {"text": "x"})

async def keep_starting(fabric):
    while True:
        await (await fabric.start("worker", "x" * 1000)).result()

async def keep_changing(fabric, sources):
    while True:
        fabric.reconfigure(cord.Config(sources=[*sources, extra], state_dir=str(folder)))
        await trio.sleep(0.05)
        fabric.reconfigure(cord.Config(sources=sources, state_dir=str(folder)))
        await trio.sleep(0.05)

async def keep_listing(fabric):
    while True:
        await fabric.call("m__change_tools")  # has its manifest written anew
        await trio.sleep(0.05)

async def main():
    sources = [*servers, launcher, stored]
    journal = cord.SqliteJournal(folder / "journal")
    config = cord.Config(sources=sources, state_dir=str(folder))
    with closing(Recorder(folder / "recording")) as recorder:
        await run(config, journal, recorder, sources)

async def run(config, journal, recorder, sources):
    async with cord.open_fabric(config, journal=journal, recorder=recorder) as fabric:
        async with open_control(lambda: {}, counters=fabric.counters, places=[folder / "control"]) as control:
            fabric.agent("worker", worker, turn=8)
            fabric.agent("waiter", waiter)
            await fabric.wait_started()
            if "again" in sys.argv:
                listed = [fabric.links["m"].state, "m__echo" in fabric.registry.snapshot.tools]
                jobs = await fabric.resume()
                told = {
                    "ready": [name for name, link in fabric.links.items() if link.state == "ready"],
                    "agents": sorted({job.agent for job in jobs}),
                    "states": sorted({job.state for job in jobs}),
                    "waiter": await next(job for job in jobs if job.agent == "waiter").result(),
                    "new": await (await fabric.start("worker", "new")).result(),
                    "manifest": [*listed, (await fabric.call("m__echo", {"text": "x"})).text],
                    "control": sockets(places=[folder / "control"]) == [control],
                }
                print(json.dumps(told), flush=True)
            else:
                await fabric.start("waiter")
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(keep_calling, fabric)
                        nursery.start_soon(keep_starting, fabric)
                    nursery.start_soon(keep_changing, fabric, sources)
                    nursery.start_soon(keep_listing, fabric)
                    while not list(folder.glob("manifests/*.json")) or not recorder.counters["record.lines"]:
                        await trio.sleep(0.05)
                    await trio.sleep(0.2)
                    print("busy", flush=True)
                    await trio.sleep_forever()

trio.run(main)
"""


def alive(marker: str) -> list[str]:
    """Command lines of processes that carry `marker`, but for the host's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if marker in line and "open_fabric" not in line:
                found.append(line)
    return found


def test_p10_a_fabric_killed_in_the_middle_of_everything_leaves_no_process_and_starts_again(tmp_path: Path) -> None:
    marker = f"73.{os.getpid()}"
    command = [sys.executable, "-c", HOST, str(tmp_path), marker]
    host = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == b"busy\n"
        assert len(alive(marker)) >= 6  # four servers, and two whom the launcher left
    finally:
        host.kill()
        host.communicate()
    end = time.monotonic() + 2
    while left := alive(marker):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    again = subprocess.run([*command, "again"], capture_output=True, text=True, timeout=30, check=False)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["states"] in (["in_doubt", "running"], ["running"])
    assert {**told, "states": None, "agents": None} == {
        "ready": ["a", "b", "c"], "agents": None, "states": None, "waiter": "done", "new": "new", "control": True,
        "manifest": ["manifest", True, "x"],
    }  # fmt: skip
    assert again.stderr == ""
    with sqlite3.connect(tmp_path / "journal") as journal:
        assert journal.execute("pragma integrity_check").fetchall() == [("ok",)]
        kept = [json.loads(data) for (data,) in journal.execute("select data from conversations")]
    journal.close()
    lines = (tmp_path / "recording").read_bytes()
    assert lines.endswith(b"\n")
    assert {"a", "b", "c", "m"} <= decode(lines.splitlines(keepends=True), "recording").keys()
    assert all(conversation["calls"] for conversation in kept)  # those in doubt wait for a person, no other is left
    assert alive(marker) == []
