"""One cell of the fault matrix, in a process of its own: `python -m bench.cell '{"fault": …, "way": …}'`.

A fabric has a well server and a sick one. It prints what a caller of the sick one got, how late calls of the well one
came before and meanwhile, when the sick one came back, and what was left, as one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio

import cord_trio as cord
from bench import processes
from cord_trio.config import Bounds

SICK = str(Path(__file__).parent / "programs" / "sick.py")
CALL = 1.0
"""Seconds that a call of the sick source may take."""
CONNECT = 1.0
MESSAGE = 1 << 20
"""Bytes of one message from it."""
PACE = 0.004
"""Seconds between calls of the well source."""
WITHOUT = 1.0
"""Seconds that it is called without the other."""
BACK = 10.0
"""Seconds in which it must be back once it is well."""
AT_START = ("crash-start", "hang-connect", "hang-list")
HUGE = "u" * (2 << 20)
"""What is sent to a server that does not read."""


def fields(way, port, **more):
    common = {
        "name": "sick",
        "deadline": CALL,
        "connect": CONNECT,
        "first_list": CONNECT,
        "max_message": MESSAGE,
        **more,
    }
    match way:
        case "http":
            return cord.Http(url=f"http://127.0.0.1:{port}/mcp", **common)
        case "sse":
            return cord.Http(url=f"http://127.0.0.1:{port}/sse", transport="sse", **common)
        case "ws":
            return cord.WebSocket(url=f"ws://127.0.0.1:{port}/", **common)


def command(way, control, ledger, port=0, name="sick"):
    options = ["--way", way, "--control", control, "--name", name]
    options += ["--ledger", ledger] if ledger else []
    return [sys.executable, "-I", "-S", SICK, *options, *(["--port", str(port)] if port else [])]


async def keep_server(args):
    """Run a server, and start it anew whenever it ends, as an operator's supervisor does."""
    while True:
        process = await trio.lowlevel.open_process(args, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            await process.stdin.aclose()
        await trio.sleep(0.1)


def tasks():
    """How many tasks of ours there are."""
    count, nurseries = 0, list(trio.lowlevel.current_root_task().child_nurseries)
    for nursery in nurseries:
        for task in nursery.child_tasks:
            count += 1
            nurseries += task.child_nurseries
    return count


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


class Well:
    """Calls the well source at a steady pace, and notes how long each took."""

    def __init__(self, fabric):
        self.fabric = fabric
        self.took = []
        self.wrong = 0

    async def run(self):
        n = 0
        while True:
            n += 1
            started = time.perf_counter()
            result = await self.fabric.call("well__echo", {"n": -n, "text": "w"})
            self.took.append(time.perf_counter() - started)
            self.wrong += result.text != f"{-n}:1"
            await trio.sleep(PACE)

    def p99(self):
        taken, self.took = self.took, []
        return percentile(taken, 0.99)


def told(exc):
    """An error in one line, with what is known of its call."""
    text = str(exc).replace("\n", " ")
    text = text if len(text) < 110 else text[:107] + "..."
    return f"{type(exc).__name__}({exc.executed}): {text}"


class Caller:
    """Calls the sick source, each call with a number of its own."""

    def __init__(self, fabric):
        self.fabric = fabric
        self.n = 0
        self.outcomes = Counter()
        self.longest = 0.0
        self.wrong = 0
        self.not_run = set()
        self.run = set()

    async def call(self, text="s"):
        """What came of one call."""
        self.n += 1
        n = self.n
        started = trio.current_time()
        try:
            result = await self.fabric.call("sick__echo", {"n": n, "text": text})
        except cord.CallError as exc:
            got = told(exc)
            if exc.executed == "no":
                self.not_run.add(n)
        else:
            right = result.text == f"{n}:{len(text)}" and not result.is_error
            self.wrong += not right
            self.run.add(n)
            got = "answer" if right else f"WRONG {result.text[:40]}"
        return got, trio.current_time() - started

    async def meet(self, text="s"):
        got, seconds = await self.call(text)
        self.outcomes[got] += 1
        self.longest = max(self.longest, seconds)


async def suffer(cell, caller, set_fault):
    """Make the calls that meet the fault."""
    match cell["fault"]:
        case "reset":
            size = cell["size"]
            step = max(1, size // cell["points"])
            for place in range(0, size + 1, step):
                set_fault(f"reset {place}")
                with trio.move_on_after(5):
                    while caller.fabric.links["sick"].state != "ready":  # noqa: ASYNC110  # as any looker-on
                        await trio.sleep(0.005)
                await caller.meet()
        case "unread":
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(caller.meet, HUGE)
        case "clock":
            true = time.time
            for jump in (86400.0, -86400.0):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller.meet)
                    await trio.lowlevel.checkpoint()
                    time.time = lambda jump=jump: true() + jump
                await caller.meet()
            time.time = true
        case fault:
            async with trio.open_nursery() as nursery:
                # What stops within a message would only be cut by the next one.
                for _ in range(1 if fault in ("half", "drip") else 3):
                    nursery.start_soon(caller.meet)


async def run(cell, folder):
    control, ledger = os.path.join(folder, "control"), os.path.join(folder, "ledger")
    fault, way = cell["fault"], cell["way"]
    word = {"large": f"large {2 * MESSAGE}", "clock": "", "reset": ""}.get(fault, fault)

    def set_fault(text):
        with open(control + ".new", "w") as file:
            file.write(text)
        os.replace(control + ".new", control)

    set_fault("")
    before = tasks(), descriptors()
    port = processes.free_port() if way != "stdio" else 0
    figures = {}
    async with trio.open_nursery() as world:
        if port:
            if fault == "crash-start":
                set_fault(word)
            world.start_soon(keep_server, command(way, control, ledger, port))
            sick = fields(way, port, era=cell["era"] if way != "sse" else "auto")
        else:
            name, *args = command(way, control, ledger)
            sick = cord.Stdio(
                name="sick", command=name, args=args, deadline=CALL, connect=CONNECT, first_list=CONNECT,
                max_message=MESSAGE, era=cell["era"],
            )  # fmt: skip
        name, *args = command("stdio", os.devnull, "", name="well")
        well = cord.Stdio(name="well", command=name, args=args)
        bounds = Bounds(
            backoff_first=0.1, backoff_longest=0.1 if fault == "reset" else 1.0, stop_close=0.5, stop_terminate=0.5
        )
        async with cord.open_fabric(cord.Config(sources=[well], bounds=bounds)) as fabric:
            await fabric.wait_started()
            pacer, caller = Well(fabric), Caller(fabric)
            world_scope = trio.CancelScope()

            async def pace():
                # An error of the cell itself is the one to be told.
                with world_scope, contextlib.suppress(cord.Draining):
                    await pacer.run()

            world.start_soon(pace)
            await trio.sleep(0.2)
            pacer.p99()
            await trio.sleep(cell["without"])
            figures["p99_without"] = pacer.p99()
            # The sick source
            if fault in AT_START or (way == "ws" and (fault.isdigit() or fault == "redirect")):
                set_fault(word)
                fabric.reconfigure(cord.Config(sources=[well, sick]))
            else:
                with trio.move_on_after(5):
                    while True:
                        with contextlib.suppress(cord.CallError):
                            await fabric.connect(sick)
                            break
                        await trio.sleep(0.1)
                await caller.call()
                set_fault(word)
                await trio.sleep(0.06)  # it looks
            pacer.p99()
            begun = trio.current_time()
            with trio.move_on_after(CALL + 60) as scope:
                await suffer(cell, caller, set_fault)
            if scope.cancelled_caught:
                caller.outcomes["HUNG"] += 1
            if trio.current_time() - begun < cell["without"]:
                await trio.sleep(begun + cell["without"] - trio.current_time())
            figures["p99_with"] = pacer.p99()
            link = fabric.links["sick"]
            figures["state"] = f"{link.state}: {link.reason}" if link.reason else link.state
            set_fault("")
            lifted = trio.current_time()
            figures["back"] = None
            while trio.current_time() < lifted + BACK:
                got, _ = await caller.call()
                if got == "answer":
                    figures["back"] = trio.current_time() - lifted
                    break
                figures["last"] = got
                await trio.sleep(0.05)
            await trio.sleep(0.1)
            slots, listening = fabric.slots["sick"], any(client.greeting.modern for _, client in link.open())
            figures["pending"] = link.in_flight - listening + len(link.waiting) + slots.taken + slots.waiting
            world_scope.cancel("the cell is done")
            await trio.sleep(0.05)
            counts = fabric.counters.snapshot()
        world.cancel_scope.cancel("the cell is done")
    for _ in range(50):
        if not processes.children() and descriptors() <= before[1]:
            break
        await trio.sleep(0.02)
    after = tasks(), descriptors()
    written = Path(ledger).read_text() if os.path.exists(ledger) else ""  # noqa: ASYNC240  # all is over
    ran = Counter(map(int, written.split()))
    figures |= {
        "got": caller.outcomes.most_common(),
        "seconds": caller.longest,
        "wrong": caller.wrong + pacer.wrong,
        "doubled": sum(1 for count in ran.values() if count > 1),
        "lost": len(caller.run - ran.keys()),
        "lied": len(caller.not_run & ran.keys()),
        "left": {
            "tasks": after[0] - before[0],
            "descriptors": after[1] - before[1],
            "processes": len(processes.children()),
            "pending": figures.pop("pending"),
        },
        "counters": counts,
    }
    return figures


def main():
    processes.adopt_orphans()
    cell = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="bench-cell-", dir=cell.get("folder")) as folder:
        figures = trio.run(run, cell, folder, strict_exception_groups=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
