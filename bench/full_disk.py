"""The cell of the full disk: a journal whose file cannot grow. `python -m bench.full_disk` prints one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import tempfile

import trio

import cord_trio as cord
from bench import processes
from bench.cell import descriptors, tasks, told
from cord_trio.agents import SqliteJournal


async def outcome(fabric, payload):
    started = trio.current_time()
    try:
        job = await fabric.start("worker", payload)
        got = "answer" if await job.result() == payload else "WRONG"
    except (cord.CordError, OSError) as exc:
        got = f"{type(exc).__name__}: {exc}" if not isinstance(exc, cord.CallError) else told(exc)
    return got, trio.current_time() - started


async def worker(ctx, payload):  # noqa: ASYNC124  # async by contract
    return payload


async def run():
    before = tasks(), descriptors()
    with tempfile.TemporaryDirectory(prefix="bench-journal-") as folder:
        path = os.path.join(folder, "journal.db")
        async with cord.open_fabric(journal=SqliteJournal(path)) as fabric:
            fabric.agent("worker", worker, turn=8)
            first, _ = await outcome(fabric, "before")
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (max(map(os.path.getsize, [path, path + "-wal"])), resource.RLIM_INFINITY)
            )
            got, seconds = await outcome(fabric, "f" * (1 << 20))
            plain = await fabric.ask("worker", "asked")  # asks need no journal
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            lifted = trio.current_time()
            again, _ = await outcome(fabric, "after")
            back = trio.current_time() - lifted if again == "answer" else None
            await trio.sleep(0.05)
            left_running = len(fabric.agents.jobs.running)
        async with cord.open_fabric(journal=SqliteJournal(path)) as fabric:
            fabric.agent("worker", worker, turn=8)
            reopened, _ = await outcome(fabric, "reopened")
    return {
        "got": [[got, 1]],
        "seconds": seconds,
        "wrong": (first != "answer") + (reopened != "answer") + (plain != "asked") + (got == "answer"),
        "back": back,
        "last": again,
        "left": {
            "tasks": tasks() - before[0],
            "descriptors": descriptors() - before[1],
            "processes": len(processes.children()),
            "pending": left_running,
        },
    }


if __name__ == "__main__":
    processes.adopt_orphans()
    print(json.dumps(trio.run(run)))
