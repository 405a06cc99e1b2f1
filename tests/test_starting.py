"""When a source is started, and when it is stopped because nobody uses it."""

from __future__ import annotations

import json
import os
import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.config import Bounds, Config, InProcess
from cord_trio.counters import Counters
from cord_trio.errors import SourceDown, ToolNotFound
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.link import Link
from cord_trio.manifests import SCHEMA, Stored, _replace, digest, state_folder
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any


class Opened:
    """A server that counts how often it was connected to."""

    def __init__(self, **options: Json) -> None:
        self.server = ToolServer(**options)
        self.times = 0

    async def serve(self, transport: MemoryTransport) -> None:
        self.times += 1
        await self.server.serve(transport)

    def source(self, **common: Json) -> InProcess:
        return InProcess(name="x", serve=self.serve, **common)


@asynccontextmanager
async def fabric_of(
    source: InProcess, folder: Path | None = None, bounds: Bounds | None = None
) -> AsyncGenerator[tuple[Fabric, Link]]:
    state_dir = "/nowhere" if folder is None else str(folder)
    config = Config(sources=[source], bounds=bounds or Bounds(), state_dir=state_dir)
    async with open_fabric(config, rng=Random(0)) as fabric:
        link = fabric.links["x"]
        assert isinstance(link, Link)
        yield fabric, link


def state(fabric: Fabric) -> str:
    return fabric.registry.snapshot.sources["x"].state


# Lazy


async def test_a_lazy_source_is_started_by_the_first_call(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(start="lazy")) as (fabric, link):
        await fabric.wait_started()
        await trio.sleep(1000)
        assert (opened.times, link.state, state(fabric), fabric.ready) == (0, "configured", "configured", True)
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
        assert (opened.times, state(fabric)) == (1, "ready")
        assert "x__echo" in fabric.registry.snapshot.tools


async def test_a_lazy_source_is_started_by_the_first_list(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(start="lazy")) as (fabric, link):
        assert fabric.start_unlisted()
        await fabric.wait_started()
        assert (opened.times, link.state) == (1, "ready")
        assert not fabric.start_unlisted()


async def test_many_calls_at_once_start_a_source_once(autojump_clock: MockClock) -> None:
    opened = Opened(slow=0.5)
    async with fabric_of(opened.source(start="lazy")) as (fabric, link):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(fabric.call, "x__echo", {"text": "hi"})
        assert (opened.times, link.starts, opened.server.received["call echo"]) == (1, 1, 30)


async def test_a_lazy_start_that_fails_is_told_and_not_tried_for_nobody(autojump_clock: MockClock) -> None:
    opened = Opened(exit_at_start=True)
    async with fabric_of(opened.source(start="lazy", era="legacy")) as (fabric, link):
        with pytest.raises(SourceDown, match="exited with status 3") as caught:
            await fabric.call("x__echo", {"text": "hi"})
        assert caught.value.next_try == link.next_try
        assert link.next_try is not None
        await trio.sleep(3600)
        assert (opened.times, link.state, link.resting) == (1, "down", True)
        opened.server.options.exit_at_start = False
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
        assert (opened.times, link.state) == (2, "ready")


async def test_l03_a_storm_of_calls_to_a_lazy_source_that_fails_keeps_to_its_pauses(autojump_clock: MockClock) -> None:
    opened = Opened(exit_at_start=True)
    source = opened.source(start="lazy", era="legacy", retries=0, deadline=5.0)
    async with fabric_of(source, bounds=Bounds(backoff_first=20.0, backoff_longest=20.0)) as (fabric, _link):
        for _ in range(1000):
            with pytest.raises(SourceDown):
                await fabric.call("x__echo", {"text": "hi"})
            await trio.sleep(1)
        assert opened.times <= 1000 / 5  # with full jitter the mean pause is 10 s, and a call waits up to 5 for one
        assert opened.times > 10


async def test_a_lazy_source_that_is_lost_comes_back_by_itself(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(start="lazy")) as (fabric, link):
        await fabric.call("x__echo", {"text": "hi"})
        opened.server.break_connections()
        await trio.sleep(5)
        assert (link.state, link.starts) == ("ready", 2)


async def test_a_lazy_source_that_nobody_needed_can_be_removed(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(start="lazy")) as (fabric, _):
        start = trio.current_time()
        await fabric.disconnect("x")
        assert (fabric.links, opened.times) == ({}, 0)
        assert trio.current_time() - start < 1
        await fabric.connect(opened.source(start="lazy"))
        assert fabric.links["x"].resting


# Idle


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_source_that_nobody_uses_is_stopped_and_its_tools_stay(era: str, autojump_clock: MockClock) -> None:
    opened = Opened(era=era, tools=1)
    async with fabric_of(opened.source(idle=60.0)) as (fabric, link):
        await fabric.wait_started()
        await fabric.call("x__echo", {"text": "hi"})
        await trio.sleep(59)
        assert state(fabric) == "ready"
        await trio.sleep(10)
        assert (state(fabric), link.state, link.open(), link.resting) == ("manifest", "manifest", [], True)
        assert "x__tool_1" in fabric.registry.snapshot.tools
        with pytest.raises(ToolNotFound):
            await fabric.call("x__no_such_tool", {})
        assert opened.times == 1
        assert (await fabric.call("x__echo", {"text": "again"})).text == "again"
        assert (opened.times, link.starts, fabric.counters["link.rests"]) == (2, 2, 1)
        assert fabric.counters["link.down"] == 0


async def test_a_source_is_not_stopped_while_it_is_used(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(idle=60.0, deadline=1000.0)) as (fabric, _):
        await fabric.call("x__sleep", {"seconds": 500})
        for _ in range(20):
            await trio.sleep(50)
            await fabric.call("x__echo", {"text": "hi"})
        assert opened.times == 1


async def test_a_source_is_not_stopped_while_somebody_is_subscribed(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with fabric_of(opened.source(idle=60.0)) as (fabric, link):
        await fabric.wait_started()
        link.subscriptions.add("file:///a", "me", lambda uri: None)
        await trio.sleep(500)
        assert state(fabric) == "ready"
        link.subscriptions.remove("file:///a", "me")
        await trio.sleep(100)
        assert state(fabric) == "manifest"


async def test_a_source_is_not_stopped_while_a_question_waits(autojump_clock: MockClock) -> None:
    opened = Opened(era="legacy")

    async def answer(questions: Json) -> Json:
        await trio.sleep(500)
        return {key: {"action": "decline"} for key in questions}

    async with fabric_of(opened.source(idle=60.0, deadline=1000.0)) as (fabric, link):
        await fabric.call(
            "x__ask", {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}},
            answer=answer,
        )  # fmt: skip
        assert (link.starts, link.state) == (1, "ready")
        await trio.sleep(100)
        assert (link.state, len(link.pool.sessions)) == ("manifest", 0)


async def test_a_source_is_not_stopped_while_a_connection_of_a_callers_own_is_opened(
    autojump_clock: MockClock,
) -> None:
    class Slow(Opened):
        async def serve(self, transport: MemoryTransport) -> None:
            if self.times:
                await trio.sleep(100)
            await super().serve(transport)

    async def answer(questions: Json) -> Json:
        await trio.lowlevel.checkpoint()
        return {key: {"action": "decline"} for key in questions}

    opened = Slow(era="legacy")
    async with fabric_of(opened.source(idle=60.0, deadline=1000.0, connect=200.0)) as (fabric, link):
        await fabric.wait_started()
        await fabric.call(
            "x__ask", {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}},
            answer=answer,
        )  # fmt: skip
        assert trio.current_time() >= 100
        assert (link.starts, link.state) == (1, "ready")


async def test_a_call_that_comes_while_a_source_is_being_stopped_starts_it_again(autojump_clock: MockClock) -> None:
    server = ToolServer()
    closing = trio.Event()

    async def serve(transport: MemoryTransport) -> None:
        try:
            await server.serve(transport)
        finally:
            closing.set()
            with trio.move_on_after(4, shield=True):
                await trio.sleep_forever()

    async with fabric_of(InProcess(name="x", serve=serve, idle=60.0)) as (fabric, link):
        await closing.wait()
        assert (link.state, link.sessions) == ("manifest", {})
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
        assert link.starts == 2


async def test_a_stopped_source_that_cannot_start_again_keeps_its_tools(autojump_clock: MockClock) -> None:
    opened = Opened(tools=1, era="legacy")
    async with fabric_of(opened.source(idle=60.0)) as (fabric, link):
        await trio.sleep(100)
        opened.server.options.exit_at_start = True
        with pytest.raises(SourceDown, match="exited with status 3"):
            await fabric.call("x__echo", {"text": "hi"})
        await trio.sleep(1000)
        assert (opened.times, link.resting, state(fabric)) == (2, True, "down")
        assert "x__tool_1" in fabric.registry.snapshot.tools


# Manifests


async def stored(fabric: Fabric) -> None:
    for _ in range(1000):
        if fabric.counters["manifests.written"] or fabric.counters["manifests.not_written"]:
            return
        await trio.sleep(0.01)
        time.sleep(0.001)  # noqa: ASYNC251  # it is written in a thread, for which the clock does not wait
    raise AssertionError("no manifest was written")


async def make_manifest(source: InProcess, folder: Path) -> Path:
    async with fabric_of(source, folder) as (fabric, _):
        await fabric.wait_started()
        await stored(fabric)
    [path] = (folder / "manifests").iterdir()
    return path


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_tools_are_listed_from_the_last_time_before_the_server_runs(
    era: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    first, second = Opened(era=era, tools=2), Opened(era=era, tools=2)
    path = await make_manifest(first.source(start="manifest"), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    async with fabric_of(second.source(start="manifest"), tmp_path) as (fabric, link):
        await fabric.wait_started()
        await trio.sleep(1000)
        assert (second.times, state(fabric), link.state) == (0, "manifest", "manifest")
        before = fabric.registry.snapshot
        greeting = before.sources["x"].greeting
        assert greeting is not None
        assert greeting.modern is (era == "modern")
        with pytest.raises(ToolNotFound):
            await fabric.call("x__no_such_tool", {})
        assert second.times == 0
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
        after = fabric.registry.snapshot
        assert (second.times, state(fabric)) == (1, "ready")
        assert (after.listed_tools, after.encoded_tools) == (before.listed_tools, before.encoded_tools)
        await trio.sleep(1)
        assert fabric.counters["manifests.written"] == 0  # it is what is stored already


async def test_a_new_list_replaces_the_stored_one(autojump_clock: MockClock, tmp_path: Path) -> None:
    await make_manifest(Opened(tools=1).source(start="manifest"), tmp_path)
    async with fabric_of(Opened(tools=2).source(start="manifest"), tmp_path) as (fabric, _):
        assert "x__tool_2" not in fabric.registry.snapshot.tools
        await fabric.call("x__echo", {"text": "hi"})
        assert "x__tool_2" in fabric.registry.snapshot.tools
        await stored(fabric)
    async with fabric_of(Opened(tools=2).source(start="manifest"), tmp_path) as (fabric, _):
        await fabric.wait_started()
        assert "x__tool_2" in fabric.registry.snapshot.tools


async def test_without_a_stored_manifest_it_starts_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    opened = Opened()
    async with fabric_of(opened.source(start="manifest"), tmp_path) as (fabric, link):
        await fabric.wait_started()
        assert (opened.times, link.state, link.notes) == (1, "ready", ())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": SCHEMA + 1}, f"is of schema {SCHEMA + 1}, not {SCHEMA}"),
        ({"source": "y"}, "is that of another source"),
        ({"digest": "0" * 32}, "is that of another source"),
        ({"lists": {"tools": 7}}, "is damaged"),
        ({"lists": {"tools": [1]}}, "is damaged"),
        ({"revision": "zzz"}, "is damaged"),
        ({"lists": None}, "is damaged"),
        (None, "is damaged"),
    ],
)
async def test_a_damaged_or_foreign_manifest_is_told_and_replaced(
    change: dict[str, Json] | None, why: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = await make_manifest(Opened().source(start="manifest"), tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if change is None else json.dumps({**json.loads(good), **change}).encode())
    opened = Opened(era="legacy", slow=1.0)
    async with fabric_of(opened.source(start="manifest"), tmp_path) as (fabric, link):
        await wait_all_tasks_blocked()
        assert link.notes == (f"the stored manifest {path} {why}: it is not used",)
        assert fabric.counters["manifests.ignored"] == 1
        assert (opened.times, fabric.registry.snapshot.tools) == (1, {})
        await fabric.wait_started()
        await stored(fabric)
    assert json.loads(path.read_bytes())["source"] == "x"


async def test_a_pipe_in_the_place_of_a_manifest_holds_up_nobody(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = await make_manifest(Opened().source(start="manifest"), tmp_path)
    path.unlink()
    os.mkfifo(path)
    async with fabric_of(Opened(slow=1.0).source(start="manifest"), tmp_path) as (fabric, link):
        await wait_all_tasks_blocked()
        assert link.notes == (f"the stored manifest {path} is no file: it is not used",)
        await fabric.wait_started()
        await stored(fabric)
    assert json.loads(path.read_bytes())["source"] == "x"


async def test_a_manifest_that_cannot_be_read_or_written_is_done_without(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source = Opened().source(start="manifest")
    path = await make_manifest(source, tmp_path)
    path.unlink()
    path.mkdir()
    async with fabric_of(source, tmp_path) as (fabric, _):
        await wait_all_tasks_blocked()
        assert fabric.counters["manifests.ignored"] == 1
        await fabric.wait_started()
        await stored(fabric)
        assert fabric.counters["manifests.not_written"] == 1
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
    assert list((tmp_path / "manifests").iterdir()) == [path]


async def test_what_a_killed_fabric_left_half_written_is_removed_when_it_is_old(tmp_path: Path) -> None:
    source = Opened().source(start="manifest")
    path = await make_manifest(source, tmp_path)
    old, new = (path.parent / f".{path.name}.{name}" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"{")
    os.utime(old, (1, 1))
    _replace(path, b"{}")
    assert set(path.parent.iterdir()) == {path, new}  # the new one may be being written


def test_another_command_has_another_manifest(tmp_path: Path) -> None:
    server = ToolServer()
    one, other = server.source(name="x"), server.source(name="x", env={"MODE": "b"})
    assert digest(one) == digest(server.source(name="x", prefix="p", deadline=3.0))
    assert digest(one) != digest(other)
    assert Stored(one, tmp_path, Counters()).path != Stored(other, tmp_path, Counters()).path


def test_the_folder_is_configured_or_the_users() -> None:
    assert str(state_folder("/var/x", {})) == "/var/x"
    assert str(state_folder("", {"XDG_STATE_HOME": "/s"})) == "/s/cord_trio"
    assert str(state_folder("", {"XDG_STATE_HOME": "relative"})).endswith("/.local/state/cord_trio")
