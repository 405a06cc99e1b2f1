from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.config import Stdio, ToolFilter
from cord_trio.counters import Counters
from cord_trio.protocol.mcp import Tool, decode_tools_page
from cord_trio.registry import Registry, Snapshot, Update


def tools(*names: str) -> tuple[Tool, ...]:
    listed = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
    return decode_tools_page(msgspec.Raw(msgspec.json.encode({"tools": listed}))).tools


def registry(*sources: Stdio, bound: int = 64, max_tools: int = 100, counters: Counters | None = None) -> Registry:
    return Registry({source.name: source for source in sources}, bound=bound, max_tools=max_tools, counters=counters)


def source(name: str, *, prefix: str | None = None, tools: ToolFilter | None = None) -> Stdio:
    return Stdio(name=name, command="server", prefix=prefix, tools=tools or ToolFilter())


async def publish(registry: Registry, *updates: Update) -> Snapshot:
    """What is current after each of `updates`, one after the other."""
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        for update in updates:
            await registry.update(update)
        nursery.cancel_scope.cancel("published")
    return registry.snapshot


def names(snapshot: Snapshot) -> list[str]:
    return [tool["name"] for tool in msgspec.json.decode(snapshot.encoded_tools)]


def test_every_configured_source_is_there_from_the_start() -> None:
    snapshot = registry(source("web"), source("notes")).snapshot
    assert [(view.name, view.state, view.epoch) for view in snapshot.sources.values()] == [
        ("web", "configured", 0),
        ("notes", "configured", 0),
    ]
    assert (snapshot.version, snapshot.encoded_tools) == (0, b"[]")


async def test_tools_come_in_configured_order_then_in_the_servers() -> None:
    snapshot = await publish(
        registry(source("web"), source("notes")),
        Update("notes", 1, "ready", tools("z", "a")),
        Update("web", 1, "ready", tools("get")),
    )
    assert list(snapshot.tools) == names(snapshot) == ["web__get", "notes__z", "notes__a"]
    assert snapshot.tools["notes__a"].tool.name == "a"
    assert snapshot.version == 2


async def test_names_that_look_alike_when_they_are_joined_are_told_apart() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", tools("a\0b", "c")),
        Update("web", 2, "ready", tools("a", "b\0c")),
        Update("web", 3, "ready", tools("a", "b", "c")),
        Update("web", 4, "ready", tools("a", "b\0c")),
    )
    assert [route.tool.name for route in snapshot.tools.values()] == ["a", "b\0c"]
    assert len(set(snapshot.tools)) == 2
    assert "web__a" in snapshot.tools
    assert all("b_c" in public for public in snapshot.tools if public != "web__a")


async def test_a_source_that_is_down_keeps_its_tools_listed() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", tools("get")),
        Update("web", 2, "down", reason="server exited (signal 9)", next_try=7.5),
    )
    view = snapshot.sources["web"]
    assert (view.state, view.reason, view.next_try) == ("down", "server exited (signal 9)", 7.5)
    assert list(snapshot.tools) == ["web__get"]
    assert (snapshot.version, snapshot.listed_tools) == (2, 1)


async def test_the_same_list_again_is_not_a_new_list() -> None:
    snapshot = await publish(
        registry(source("web")), *(Update("web", epoch, "ready", tools("get", "put")) for epoch in (1, 2))
    )
    assert (snapshot.version, snapshot.listed_tools) == (2, 1)


async def test_a_note_alone_makes_no_new_list() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", tools("get")),
        Update("web", 2, "ready", tools("get"), notes=("tool 'put' has no schema",)),
    )
    assert (snapshot.version, snapshot.listed_tools, len(snapshot.problems)) == (2, 1, 1)


async def test_an_update_that_is_late_or_repeated_changes_nothing() -> None:
    counters = Counters()
    updated = registry(source("web"), counters=counters)
    newest = Update("web", 5, "ready", tools("get"))
    snapshot = await publish(updated, newest, Update("web", 4, "down"), newest)
    assert (snapshot.version, snapshot.sources["web"].state) == (1, "ready")
    assert counters["registry.stale_update"] == 2


async def test_the_first_source_keeps_a_name_that_two_export() -> None:
    snapshot = await publish(
        registry(source("web", prefix="x"), source("notes", prefix="x")),
        Update("notes", 1, "ready", tools("get", "put")),
        Update("web", 1, "ready", tools("get")),
    )
    assert snapshot.tools["x__get"].source == "web"
    assert names(snapshot) == ["x__get", "x__put"]
    (problem,) = snapshot.problems
    assert problem.source == "notes"
    assert not problem.fatal
    assert "'web'" in problem.what
    assert "prefix" in problem.remedy


async def test_a_name_is_exported_again_once_the_other_source_gives_it_up() -> None:
    snapshot = await publish(
        registry(source("web", prefix="x"), source("notes", prefix="x")),
        Update("notes", 1, "ready", tools("get")),
        Update("web", 1, "ready", tools("get")),
        Update("web", 2, "ready", tools("post")),
    )
    assert [(route.public, route.source) for route in snapshot.tools.values()] == [
        ("x__post", "web"),
        ("x__get", "notes"),
    ]
    assert snapshot.problems == ()


async def test_a_tool_that_a_server_lists_twice_is_exported_once() -> None:
    snapshot = await publish(registry(source("web")), Update("web", 1, "ready", tools("get", "get")))
    assert names(snapshot) == ["web__get"]
    assert len(snapshot.problems) == 1


async def test_a_tool_that_was_there_and_is_listed_twice_is_told_of_too() -> None:
    snapshot = await publish(
        registry(source("web")), Update("web", 1, "ready", tools("get")), Update("web", 2, "ready", tools("get", "get"))
    )
    assert names(snapshot) == ["web__get"]
    assert len(snapshot.problems) == 1


async def test_filters_and_renames_decide_what_is_exported() -> None:
    shown = ToolFilter(allow=("search*",), rename={"search_docs": "find"})
    snapshot = await publish(
        registry(source("docs", tools=shown)), Update("docs", 1, "ready", tools("search_docs", "search_code", "drop"))
    )
    assert list(snapshot.tools) == ["docs__find", "docs__search_code"]
    assert len(snapshot.sources["docs"].tools) == 3


async def test_tools_beyond_the_bound_are_left_out_and_reported() -> None:
    counters = Counters()
    few = registry(source("web"), max_tools=2, counters=counters)
    snapshot = await publish(few, Update("web", 1, "ready", tools("a", "b", "c")))
    assert list(snapshot.tools) == ["web__a", "web__b"]
    assert "bound 2" in snapshot.problems[0].what
    assert counters["registry.tools_dropped"] == 1


async def test_what_was_wrong_with_a_list_is_reported_even_if_no_tool_is_left() -> None:
    snapshot = await publish(registry(source("web")), Update("web", 1, "ready", (), notes=("tool 0 has no name",)))
    assert [str(problem) for problem in snapshot.problems] == ["sources.web: tool 0 has no name"]


async def test_a_list_is_encoded_once_and_unchanged_parts_are_shared() -> None:
    both = registry(source("web"), source("notes"))
    async with trio.open_nursery() as nursery:
        await nursery.start(both.run)
        await both.update(Update("web", 1, "ready", tools("get")))
        first = both.snapshot
        assert first.encoded_tools is first.encoded_tools
        second = await both.update(Update("notes", 1, "ready", tools("put")))
        assert names(second) == ["web__get", "notes__put"]
        third = await both.update(Update("web", 2, "ready", tools("get")))
        assert third.sources["web"].exports is second.sources["web"].exports is first.sources["web"].exports
        nursery.cancel_scope.cancel("seen")


async def test_changes_that_come_together_share_a_version() -> None:
    both = registry(source("web"), source("notes"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.update, Update("web", 1, "starting"))
        nursery.start_soon(both.update, Update("notes", 1, "starting"))
        await wait_all_tasks_blocked()
        await nursery.start(both.run)
        assert (await both.changed(0)).version == 1
        assert [view.state for view in both.snapshot.sources.values()] == ["starting", "starting"]
        nursery.cancel_scope.cancel("seen")


async def test_an_unknown_source_is_told_and_disturbs_nobody() -> None:
    one = registry(source("web"))
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        with pytest.raises(ValueError, match="nobody"):
            await one.update(Update("nobody", 1, "ready"))
        assert (await one.update(Update("web", 1, "ready"))).version == 1
        nursery.cancel_scope.cancel("seen")


async def test_a_watcher_gets_the_newest_and_skips_what_it_missed() -> None:
    one = registry(source("web"))
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        for epoch in (1, 2, 3):
            await one.update(Update("web", epoch, "starting"))
        assert (await one.changed(1)).version == 3
        with trio.move_on_after(0) as scope:
            await one.changed(3)
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel("seen")


async def test_whoever_waits_when_the_registry_ends_is_told() -> None:
    one = registry(source("web"))
    told = []

    async def waits(async_fn: object, argument: object) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await async_fn(argument)  # type: ignore[operator]  # either of two methods
        told.append(async_fn)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, one.changed, 0)
        nursery.start_soon(waits, one.update, Update("web", 1, "ready"))
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel("over before it began")
            await one.run()
    await waits(one.changed, 0)
    await waits(one.update, Update("web", 1, "ready"))
    assert len(told) == 4


async def test_the_right_tool_of_another_source_is_near() -> None:
    snapshot = await publish(
        registry(source("web"), source("notes")),
        Update("web", 1, "ready", tools("search", "fetch")),
        Update("notes", 1, "ready", tools("append")),
    )
    assert snapshot.near("search") == ("web__search",)
    assert snapshot.near("notes__search")[0] == "web__search"
    assert snapshot.near("notes__apend") == ("notes__append",)
    assert snapshot.near("q" * 100_000) == ()


async def test_a_published_snapshot_cannot_be_changed() -> None:
    snapshot = await publish(registry(source("web")), Update("web", 1, "ready", tools("get")))
    with pytest.raises(TypeError):
        snapshot.tools["other"] = snapshot.tools["web__get"]  # type: ignore[index]  # that is the claim
    with pytest.raises(AttributeError):
        snapshot.version = 7  # type: ignore[misc]  # that is the claim


async def test_what_the_link_before_still_says_of_a_source_with_other_settings_is_stale() -> None:
    counters = Counters()
    found = registry(source("web"), counters=counters)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        await found.update(Update("web", 7, "ready", tools("get")))
        found.configure({"web": source("web", prefix="w")}, {"web": 1 << 32})
        assert names(found.snapshot) == ["w__get"]
        await found.update(Update("web", 8, "ready", tools("old")))
        assert names(found.snapshot) == ["w__get"]
        assert counters["registry.stale_update"] == 1
        await found.update(Update("web", (1 << 32) + 1, "ready", tools("new")))
        assert names(found.snapshot) == ["w__new"]
        nursery.cancel_scope.cancel("the test is over")


def described(text: str, uri: str) -> tuple[Tool, ...]:
    meta = {"ui": {"resourceUri": uri}}
    listed = [
        {"name": "get", "description": text, "inputSchema": {"type": "object"}},
        {"name": "show", "description": text, "inputSchema": {"type": "object"}, "_meta": meta},
    ]
    return decode_tools_page(msgspec.Raw(msgspec.json.encode({"tools": listed}))).tools


async def test_a_list_with_the_names_it_had_is_exported_as_it_is_now() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", described("old", "ui://a/old")[:1]),
        Update("web", 2, "ready", described("new", "ui://a/new")[:1]),
    )
    assert [(public, route.tool.description) for public, route in snapshot.tools.items()] == [("web__get", "new")]
    assert snapshot.listed_tools == 2


async def test_the_page_of_a_tool_that_changes_is_exported_under_its_new_uri() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", described("old", "ui://a/old")),
        Update("web", 2, "ready", described("new", "ui://a/new")),
    )
    shown = msgspec.json.decode(snapshot.encoded_tools)
    assert [tool["description"] for tool in shown] == ["new", "new"]
    assert shown[1]["_meta"]["ui"]["resourceUri"] == "ui://web/a/new"


async def test_tools_that_change_places_are_exported_in_their_new_order() -> None:
    snapshot = await publish(
        registry(source("web")),
        Update("web", 1, "ready", tools("a", "b")),
        Update("web", 2, "ready", tools("b", "a")),
    )
    assert names(snapshot) == list(snapshot.tools) == ["web__b", "web__a"]
