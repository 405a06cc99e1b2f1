"""cord_trio alone: what the layers of a source add to a call that goes through, `layers_cord.py SECONDS`."""

from __future__ import annotations

import gc
import statistics
from importlib.metadata import version
from time import perf_counter as clock

import trio
from agents_common import run
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.config import Http, Stdio
from cord_trio.fabric import open_fabric
from cord_trio.stacking import Ends, stacked

CALLS = 500
DONE = Complete(Raw(b"{}"))
ALL = {"breaker": 5, "shed": True, "adaptive": True, "attempt": 20, "rate": 1e9, "tell_deadline": True}


async def answer(call):  # noqa: ASYNC124  # async by contract
    return DONE


async def measure(seconds):
    ends = Ends(
        answer, answer, answer, annotations=lambda _: None, own_name=lambda name: name, version=lambda: 0,
        may_hedge=None, own=lambda call: (call.name, call.params),
    )  # fmt: skip
    async with open_fabric() as fabric:
        around = fabric._around
        handlers = {
            "bare": answer,
            "stdio": stacked(Stdio(name="a", command="-"), ends, around).call,
            "http": stacked(Http(name="b", url="http://127.0.0.1/mcp"), ends, around).call,
            "all": stacked(Stdio(name="c", command="-", **ALL), ends, around).call,
        }
        call = Call("tools/call", "a__x")
        took = {name: [] for name in handlers}
        gc.collect()
        gc.freeze()
        until = clock() + seconds
        while clock() < until:
            for name, handler in handlers.items():  # in turns, so that a noisy moment hits all of them
                began = clock()
                for _ in range(CALLS):
                    await handler(call)
                took[name].append((clock() - began) / CALLS)
    us = {name: statistics.median(each) * 1e6 for name, each in took.items()}
    return {
        **{f"{name}_us": us[name] - us["bare"] for name in ("stdio", "http", "all")},
        "wrong": int((await handlers["all"](call)) is not DONE),
        "versions": {"cord-trio": version("cord-trio")},
    }


if __name__ == "__main__":
    run(lambda seconds: trio.run(measure, seconds))
