"""Two thousand calls cancelled at random moments, over each transport and in each era: nothing is left, all goes on."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio

from cord_trio.config import Http
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer, open_http_tool_server
from cord_trio.transports import http as http_transport
from tests.real.helpers import START, Record, sdk_over_http, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cord_trio.config import Source
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any
CALLS = 2000
AT_ONCE = 80
LONGEST = {"stdio": 0.02, "http": 0.15}
"""Seconds after which a call is cancelled at the latest, and for which a tool works at most, unless for ever."""


@attrs.frozen
class Holdings:
    """What this process and its fabric hold."""

    descriptors: int
    processes: int
    tasks: int
    pending: int
    timed: int
    posts: int

    @classmethod
    def now(cls, fabric: Fabric) -> Holdings:
        (link,) = fabric.links.values()
        (client,) = link.sessions.values()
        mine = Path("/proc/self")
        return cls(
            descriptors=len(list((mine / "fd").iterdir())),
            processes=sum(len(one.read_text().split()) for one in mine.glob("task/*/children")),
            tasks=trio.lowlevel.current_statistics().tasks_living,
            pending=len(client.session.peer.open),
            timed=len(fabric.timer),
            posts=len(getattr(client.session.transport, "posts", ())),
        )

    def within(self, other: Holdings) -> bool:
        """Whether nothing is more than in `other`."""
        return all(mine <= theirs for mine, theirs in zip(attrs.astuple(self), attrs.astuple(other), strict=True))


async def plain_calls(fabric: Fabric, many: int, seconds: float = 0.0) -> None:
    answers: list[str] = []

    async def ask() -> None:
        answers.append((await fabric.call("up__sleep", {"seconds": seconds})).text)

    async with trio.open_nursery() as nursery:
        for _ in range(many):
            nursery.start_soon(ask)
    assert answers == ["slept"] * many


async def storm(
    fabric: Fabric, tool: str, rng: random.Random, longest: float, arguments: Callable[[int, float], Json], many: int
) -> Counter[str]:
    """Make many calls and cancel them at random moments; how they ended."""
    ended: Counter[str] = Counter()

    async def caller(numbers: range) -> None:
        for number in numbers:
            work = rng.choice((0.0, rng.uniform(0, longest), 60.0))
            with trio.move_on_after(rng.choice((0.0, *(rng.uniform(0, longest) for _ in range(4))))) as scope:
                await fabric.call(tool, arguments(number, work))
            ended["cancelled" if scope.cancelled_caught else "answered"] += 1

    async with trio.open_nursery() as nursery:
        for first in range(AT_ONCE):
            nursery.start_soon(caller, range(first, many, AT_ONCE))
    assert ended.total() == many
    return ended


@asynccontextmanager
async def source(kind: str, era: str, folder: Path) -> AsyncGenerator[tuple[Source, Path]]:
    """A scripted server, and the file in which it writes down what it is sent."""
    record = folder / "record"
    if kind == "stdio":
        yield ToolServer(record=str(record)).source(name="up", era=era, slots=AT_ONCE, connect=START), record
        return
    async with open_http_tool_server(record=str(record)) as server:
        yield server.source(name="up", era=era, slots=AT_ONCE, connect=START), record


def sent(record: Path, kind: str) -> tuple[list[int], list[int]]:
    """Ids of the calls that a server was sent, and of those that it was told to stop."""
    # A line may still be being written.
    lines = [json.loads(line) for line in record.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    messages = lines if kind == "stdio" else [json.loads(line["body"]) for line in lines if line.get("body")]
    calls = [one["id"] for one in messages if one.get("method") == "tools/call"]
    told = [one["params"]["requestId"] for one in messages if one.get("method") == "notifications/cancelled"]
    return calls, told


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_a_storm_of_cancelled_calls_leaves_nothing(kind: str, era: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # noqa: T201  # shown when it fails
    async with source(kind, era, tmp_path) as (up, record), open_fabric([up]) as fabric:
        await plain_calls(fabric, 2 * AT_ONCE, 0.02)  # all connections that there may be
        before = Holdings.now(fabric)
        rng = random.Random(seed)
        ended = await storm(fabric, "up__sleep", rng, LONGEST[kind], lambda _, work: {"seconds": work}, CALLS)
        assert ended["cancelled"] > CALLS / 20
        await until(lambda: Holdings.now(fabric).within(before))
        await plain_calls(fabric, 10)
        await until(lambda: Holdings.now(fabric).within(before))
        assert fabric.links["up"].starts == 1
        assert fabric.counters["session.cancel_unsent"] == 0

        def told_of_its_calls() -> bool:
            calls, told = sent(record, kind)
            return set(told) <= set(calls)

        await until(told_of_its_calls)  # over HTTP a server may read the end of a call before its beginning
        calls, told = sent(record, kind)
        assert len(calls) > CALLS / 20
        assert len(set(calls)) == len(calls)
        assert len(set(told)) == len(told) <= fabric.counters["session.withdrawn"]
        assert bool(told) is ((kind, era) != ("http", "modern"))


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_the_official_server_weathers_a_storm_too(
    era: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine: a call that is read later than this cannot be kept ahead of its cancel.
    monkeypatch.setattr(http_transport, "SETTLE", 30.0)
    monkeypatch.setattr(http_transport, "HELD", 64)
    record = Record(tmp_path / "record")
    async with sdk_over_http(record) as url:
        up = Http(name="up", url=url, era=era, slots=AT_ONCE, connect=START)  # type: ignore[arg-type]  # its words
        async with open_fabric([up]) as fabric:
            await fabric.wait_started()
            rng = random.Random(7)
            ended = await storm(fabric, "up__hang", rng, LONGEST["http"], lambda number, _: {"label": str(number)}, 300)
            assert ended["answered"] == 0
            assert (await fabric.call("up__echo", {"text": "still here"})).text == "still here"
            await until(
                lambda: (
                    sum("started" in word for word in record.words) == sum("cancelled" in word for word in record.words)
                )
            )
    words = Counter(record.words)
    assert set(words.values()) <= {1}
    assert {word.replace("cancelled", "started") for word in words} == {word for word in words if "started" in word}
