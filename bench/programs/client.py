"""Measures one client in a process of its own: `client.py JOB`, JOB in JSON; prints one line of JSON.

JOB: `adapter` (a module beside this file), `runtime`, `kind` (calls, connect, logs or flood), `sources` (each with
`name` and `command` or `url`), `era`, `seconds`, `warm`, `in_flight`.

An adapter has `versions()` and `open_clients(runtime, sources, *, era, in_flight)`, an async context manager
that yields one `Client` a source (see runtime.py). It has listed the tools of each by then.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import resource
import sys
from time import perf_counter

from runtime import RUNTIMES


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # not Linux: the peak is the best to be had, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Calls:
    """Calls that were made and checked."""

    def __init__(self):
        self.number = 0
        self.wrong = 0
        self.seconds = []

    async def keep_calling(self, echo, until):
        """Call again and again until the clock says `until`; the first wrong answer is shown."""
        while (started := perf_counter()) < until:
            self.number += 1
            text = f"hello {self.number}"
            answer = await echo(text)
            self.seconds.append(perf_counter() - started)
            if answer != text:
                if not self.wrong:
                    print(f"wrong answer: {answer!r} to {text!r}", file=sys.stderr)
                self.wrong += 1

    def percentile(self, share):
        """Microseconds."""
        return sorted(self.seconds)[int((len(self.seconds) - 1) * share)] * 1e6


async def measure(runtime, echo, seconds, workers):
    calls = Calls()
    cpu_before, started = cpu(), perf_counter()
    if workers == 1:
        await calls.keep_calling(echo, started + seconds)
    else:
        async with runtime.tasks() as start:
            for _ in range(workers):
                start(calls.keep_calling, echo, started + seconds)
    wall, cpu_used = perf_counter() - started, cpu() - cpu_before
    return {
        "calls": len(calls.seconds),
        "calls_s": len(calls.seconds) / wall,
        "p50_us": calls.percentile(0.5),
        "p99_us": calls.percentile(0.99),
        "cpu_us": cpu_used / len(calls.seconds) * 1e6,
        "wrong": calls.wrong,
    }


async def run_calls(runtime, open_clients, job):
    async with open_clients as clients:
        echo = clients[0].echo
        await measure(runtime, echo, job["warm"], 1)
        one = await measure(runtime, echo, job["seconds"], 1)
        await measure(runtime, echo, job["warm"], job["in_flight"])
        many = await measure(runtime, echo, job["seconds"], job["in_flight"])
        rss = rss_mb()
    return {
        **{f"one_{key}": value for key, value in one.items()},
        **{f"many_{key}": value for key, value in many.items()},
        "rss_mb": rss,
        "wrong": one["wrong"] + many["wrong"],
    }


async def run_connect(runtime, open_clients, job):
    cpu_before, started = cpu(), perf_counter()
    async with open_clients as clients:
        wall, cpu_used = perf_counter() - started, cpu() - cpu_before
        wrong = 0
        for number, client in enumerate(clients):
            wrong += await client.echo(f"hello {number}") != f"hello {number}"
        wrong += len(clients) != len(job["sources"])
        rss = rss_mb()
        started = perf_counter()
    return {
        "connect_s": wall,
        "connect_cpu_s": cpu_used,
        "rss_mb": rss,
        "close_s": perf_counter() - started,
        "wrong": wrong,
    }


RATE = 320
"""Calls a second, whether or not the ones before are answered."""

AGENTS = 16
"""That call without pause."""


async def keep_pace(runtime, clients, rng, until):
    """Call sources at random at a steady rate; each call's time counts from when it was due."""
    calls = Calls()

    async def call(number, due):
        text = f"hello {number}"
        calls.wrong += await rng.choice(clients).echo(text) != text
        calls.seconds.append(perf_counter() - due)

    async with runtime.tasks() as start:
        due = perf_counter()
        while due < until:
            if (pause := due - perf_counter()) > 0:
                await runtime.sleep(pause)
            calls.number += 1
            start(call, calls.number, due)
            due += 1 / RATE
    return calls


async def without_pause(runtime, clients, rng, until):
    calls = Calls()

    async def agent(rng):
        while (started := perf_counter()) < until:
            calls.number += 1
            text = f"hello {calls.number}"
            calls.wrong += await rng.choice(clients).echo(text) != text
            calls.seconds.append(perf_counter() - started)

    async with runtime.tasks() as start:
        for _ in range(AGENTS):
            start(agent, random.Random(rng.random()))
    return calls


async def counters(clients):
    """What all servers have sent together, and what they could not."""
    each = [json.loads(await client.stats()) for client in clients]
    return sum(one["sent"] for one in each), sum(one["blocked"] for one in each)


async def run_logs(runtime, open_clients, job):
    """Servers that stream logs, while calls go to them: first at a steady rate, then without pause."""
    rng = random.Random(1)
    async with open_clients as clients:
        gc.collect()
        gc.freeze()
        await keep_pace(runtime, clients, rng, perf_counter() + job["warm"])
        sent, _ = await counters(clients)
        cpu_before, started = cpu(), perf_counter()
        paced = await keep_pace(runtime, clients, rng, started + job["seconds"])
        wall, cpu_used = perf_counter() - started, cpu() - cpu_before
        now_sent, blocked = await counters(clients)
        began = perf_counter()
        closed = await without_pause(runtime, clients, rng, began + job["seconds"])
        closed_wall = perf_counter() - began
        rss = rss_mb()
    return {
        "p50_us": paced.percentile(0.5),
        "p99_us": paced.percentile(0.99),
        "core": cpu_used / wall,
        "logs_s": (now_sent - sent) / wall,
        "blocked": blocked,
        "closed_s": len(closed.seconds) / closed_wall,
        "closed_p99_us": closed.percentile(0.99),
        "rss_mb": rss,
        "wrong": paced.wrong + closed.wrong,
    }


async def run_flood(runtime, open_clients, job):
    """Servers that stream logs as fast as the pipes take them, while one caller calls each in turn."""
    async with open_clients as clients:
        calls, number = Calls(), 0
        sent, _ = await counters(clients)
        began = perf_counter()
        until = began + job["seconds"]
        while (started := perf_counter()) < until:
            number += 1
            calls.wrong += await clients[number % len(clients)].echo(f"hello {number}") != f"hello {number}"
            calls.seconds.append(perf_counter() - started)
        now_sent, _ = await counters(clients)
        wall = perf_counter() - began
    return {
        "flood_s": (now_sent - sent) / wall,
        "flood_calls_s": len(calls.seconds) / wall,
        "flood_p50_us": calls.percentile(0.5),
        "wrong": calls.wrong,
    }


def main():
    job = json.loads(sys.argv[1])
    adapter = importlib.import_module(job["adapter"])
    runtime = RUNTIMES[job["runtime"]]()
    run = {"calls": run_calls, "connect": run_connect, "logs": run_logs, "flood": run_flood}[job["kind"]]

    async def entry():
        clients = adapter.open_clients(runtime, job["sources"], era=job["era"], in_flight=job["in_flight"])
        return await run(runtime, clients, job)

    result = runtime.run(entry)
    print(json.dumps({**result, "versions": adapter.versions()}))


main()
