"""Lists, pages and cursors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cord_trio.auth.sealing import Sealer
from cord_trio.errors import Malformed
from cord_trio.gateway.catalogue import MAX_VIEWS, VIEW_LIFE, Catalogue
from cord_trio.gateway.steps import List
from cord_trio.protocol.eras import ERAS
from tests.gateway.fakes import LATEST, MODERN, FakeFabric, Route, Snapshot, initialize, legacy, modern, open_pipe, tool

if TYPE_CHECKING:
    from cord_trio.gateway.steps import Kind
    from cord_trio.protocol.jsonrpc import Json


def step(cursor: str | None, revision: str = MODERN, kind: Kind = "tools", principal: str = "local") -> List:
    return List(1, ERAS[revision], cursor, kind, principal)


def snapshot(version: int, *names: str) -> Snapshot:
    return Snapshot(version, {name: Route(tool(name)) for name in names})


def listed(page: bytes) -> list[str]:
    return [item["name"] for item in json.loads(page)]


def members(catalogue: Catalogue, revision: str, **more: object) -> Json:
    page, _ = catalogue.list(Snapshot(1, {"t": Route(tool("t", **more))}), step(None, revision), 0)
    return json.loads(page)[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_r07_walking_the_pages_sees_each_tool_once_in_order(size: int) -> None:
    catalogue, now = Catalogue(Sealer(b"k" * 32), size), snapshot(1, *"abcdefg")
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        page, cursor = catalogue.list(now, step(cursor), 0)
        seen += listed(page)
        pages += 1
        if cursor is None:
            break
    assert seen == list("abcdefg")
    assert pages == -(-7 // size)


@pytest.mark.parametrize("hidden", ["", "a", "ag", "bcde", "efg", "abcdefg"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_pages_of_who_may_not_see_all_are_full_and_end_with_the_last_that_is_seen(size: int, hidden: str) -> None:
    catalogue, now = Catalogue(Sealer(b"k" * 32), size), snapshot(1, *"abcdefg")
    pages: list[list[str]] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        page, cursor = catalogue.list(now, step(cursor), 0, frozenset(hidden))
        pages.append(listed(page))
    seen = [name for name in "abcdefg" if name not in hidden]
    assert pages == ([seen[at : at + size] for at in range(0, len(seen), size)] or [[]])


def test_a_list_of_which_not_all_is_seen_stays_itself_too() -> None:
    catalogue = Catalogue(Sealer(b"k" * 32), 2)
    _, cursor = catalogue.list(snapshot(1, *"abcd"), step(None), 0, frozenset("a"))
    page, _ = catalogue.list(snapshot(2, *"vwxyz"), step(cursor), VIEW_LIFE - 1, frozenset("a"))
    assert listed(page) == ["d"]


def test_a_list_stays_itself_for_who_is_in_the_middle_of_it() -> None:
    catalogue = Catalogue(Sealer(b"k" * 32), 2)
    _, cursor = catalogue.list(snapshot(1, *"abcd"), step(None), 0)
    page, _ = catalogue.list(snapshot(2, *"vwxyz"), step(cursor), VIEW_LIFE - 1)
    assert listed(page) == ["c", "d"]
    with pytest.raises(Malformed) as caught:
        catalogue.list(snapshot(2, *"vwxyz"), step(cursor), 2 * VIEW_LIFE)
    assert caught.value.code == -32602


def test_only_so_many_older_lists_are_kept() -> None:
    catalogue = Catalogue(Sealer(b"k" * 32), 1)
    cursors = [catalogue.list(snapshot(n, "a", f"b{n}"), step(None), n)[1] for n in range(MAX_VIEWS + 2)]
    newest = snapshot(MAX_VIEWS + 1, "a", f"b{MAX_VIEWS + 1}")
    with pytest.raises(Malformed):
        catalogue.list(newest, step(cursors[0]), 0)
    for n in range(1, MAX_VIEWS + 2):
        assert listed(catalogue.list(newest, step(cursors[n]), 0)[0]) == [f"b{n}"]


def test_a_version_with_the_same_tools_is_the_same_list() -> None:
    catalogue = Catalogue(Sealer(b"k" * 32), 1)
    _, cursor = catalogue.list(snapshot(1, "a", "b"), step(None), 0)
    serial = catalogue.serials(snapshot(2, "a", "b"), 0)["tools"]
    assert serial == catalogue.serials(snapshot(1, "a", "b"), 0)["tools"]
    assert catalogue.list(snapshot(3, "a", "b"), step(cursor), 10 * VIEW_LIFE)[1] is None


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "0", "=" * 44, "A" * 44, "\ud7ff", "a b"])
async def test_a_cursor_that_is_none_of_ours_is_invalid(cursor: str) -> None:
    async with open_pipe(FakeFabric()) as client:
        (answer,) = await client.ask(modern(1, "tools/list", {"cursor": cursor}))
        assert answer["error"]["code"] == -32602


def test_a_cursor_cannot_be_altered_or_used_elsewhere() -> None:
    catalogue, now = Catalogue(Sealer(b"k" * 32), 1), snapshot(1, "a", "b", "c")
    _, cursor = catalogue.list(now, step(None), 0)
    assert cursor is not None
    for other in (cursor[:-2], cursor[:5] + ("B" if cursor[5] != "B" else "C") + cursor[6:], cursor + "AAAA"):
        with pytest.raises(Malformed):
            catalogue.list(now, step(other), 0)
    with pytest.raises(Malformed):
        Catalogue(Sealer(b"q" * 32), 1).list(now, step(cursor), 0)


async def test_m18_every_modern_page_has_valid_hints_and_no_legacy_page_has() -> None:
    fabric = FakeFabric(page_size=1)
    fabric.registry.publish([tool("a"), tool("b")])
    async with open_pipe(fabric) as client:
        (first,) = await client.ask(modern(1, "tools/list"))
        (second,) = await client.ask(modern(2, "tools/list", {"cursor": first["result"]["nextCursor"]}))
        for page in (first, second):
            assert (page["result"]["ttlMs"], page["result"]["cacheScope"]) == (60_000, "private")
        assert "nextCursor" not in second["result"]
        await client.ask(initialize())
        (old,) = await client.ask(legacy(3, "tools/list"))
        assert old["result"].keys() == {"tools", "nextCursor"}


def test_schemas_are_listed_byte_for_byte() -> None:
    schema = {"type": "object", "$defs": {"a": {"const": 1.0}}, "properties": {"x": True}, "$schema": "s"}
    assert members(Catalogue(Sealer(b"k" * 32)), MODERN, inputSchema=schema, vendor={"k": 1}) == {
        "name": "t",
        "inputSchema": schema,
        "vendor": {"k": 1},
    }


def test_schemas_that_harm_old_clients_are_changed_for_them() -> None:
    schema = {
        "type": "object",
        "properties": {"x": True, "y": False, "z": {"type": "array", "items": True, "default": True}},
        "additionalProperties": False,
    }
    output = {"type": "array"}
    assert members(Catalogue(Sealer(b"k" * 32)), LATEST, inputSchema=schema, outputSchema=output) == {
        "name": "t",
        "inputSchema": {
            "type": "object",
            "properties": {"x": {}, "y": {"not": {}}, "z": {"type": "array", "items": {}, "default": True}},
            "additionalProperties": False,
        },
    }
    assert members(Catalogue(Sealer(b"k" * 32)), MODERN, inputSchema=schema, outputSchema=output) == {
        "name": "t",
        "inputSchema": schema,
        "outputSchema": output,
    }


def test_m11_a_bad_header_annotation_does_not_reach_clients() -> None:
    bad = {"type": "object", "properties": {"n": {"type": "number", "x-mcp-header": "N"}}}
    good = {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}}
    assert members(Catalogue(Sealer(b"k" * 32)), MODERN, inputSchema=bad)["inputSchema"] == {
        "type": "object",
        "properties": {"n": {"type": "number"}},
    }
    assert members(Catalogue(Sealer(b"k" * 32)), MODERN, inputSchema=good)["inputSchema"] == good
