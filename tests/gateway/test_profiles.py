"""Profiles: a named part of what is served, at a path of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Outcome
from cord_trio.config import ProfileConfig, parse_config
from cord_trio.errors import CallFailed, ConfigError, ToolNotFound
from cord_trio.gateway.http_endpoint import HttpEndpoint
from cord_trio.gateway.profiles import PartOfFabric
from cord_trio.gateway.service import Service
from tests.gateway.fakes import (
    IDENTITY,
    FakeFabric,
    Greeting,
    HttpGate,
    Item,
    Route,
    Snapshot,
    SourceView,
    headers_of,
    initialize,
    legacy,
    modern,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

TIME = ProfileConfig(name="time", tools=("time__*",), resources=("cord://time/*",))


async def answers(call: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    return Complete(Raw(b'{"content":[],"contents":[],"messages":[],"completion":{"values":[]}}'))


def whole() -> FakeFabric:
    fabric = FakeFabric()
    fabric.handle = answers  # type: ignore[method-assign]  # everything exists
    fabric.registry.snapshot = Snapshot(
        1,
        {name: Route(tool(name), name.split("__")[0]) for name in ("time__now", "notes__add")},
        {
            "time": SourceView(greeting=Greeting(instructions="Ask for the time.")),
            "notes": SourceView(greeting=Greeting(instructions="Write it down.")),
        },
        {"time__p": Item({}, source="time")},
        {"cord://time/a": Item({}, "uri", "time"), "cord://notes/a": Item({}, "uri", "notes")},
        {"cord://time/{x}": Item({}, "uriTemplate", "time"), "cord://notes/{x}": Item({}, "uriTemplate", "notes")},
    )
    return fabric


def test_a_profile_shows_what_it_names_and_the_sources_of_that() -> None:
    part = PartOfFabric(whole(), TIME)
    shown = part.registry.snapshot
    assert part.registry.snapshot is shown
    assert [*shown.tools, *shown.prompts, *shown.resources, *shown.templates] == [
        "time__now",
        "cord://time/a",
        "cord://time/{x}",
    ]
    assert [*shown.sources] == ["time"]


async def test_a_profile_answers_for_what_it_names_alone() -> None:
    part = PartOfFabric(whole(), TIME)
    prompt, template = {"ref": Raw(b'{"type":"ref/prompt"}')}, {"ref": Raw(b'{"type":"ref/resource"}')}
    for call, fine in [
        (Call("tools/call", "time__now"), True),
        (Call("resources/read", "cord://time/b"), True),
        (Call("completion/complete", "cord://time/{x}", template), True),
        (Call("resources/read", "cord://notes/b"), False),
        (Call("prompts/get", "time__p"), False),
        (Call("completion/complete", "time__p", prompt), False),
        (Call("completion/complete", "cord://notes/{x}", template), False),
    ]:
        assert isinstance(await part.handle(call), Complete) is fine, call
    with pytest.raises(ToolNotFound):
        await part.handle(Call("tools/call", "notes__add"))
    with pytest.raises(ToolNotFound):
        await part.handle(Call("tasks/get", "notes__add"))
    with part.subscribe("local", ["cord://time/b"], print):
        pass
    with pytest.raises(CallFailed):
        part.subscribe("local", ["cord://time/b", "cord://notes/b"], print)


@asynccontextmanager
async def open_profiles(fabric: FakeFabric) -> AsyncGenerator[HttpGate, None]:
    async with trio.open_nursery() as nursery:
        gate = HttpGate(Service(fabric, IDENTITY), nursery)
        gate.endpoint = HttpEndpoint(
            gate.service,
            nursery,
            allowed_hosts=("gate",),
            profiles={"time": Service(PartOfFabric(fabric, TIME), IDENTITY)},
        )
        yield gate
        nursery.cancel_scope.cancel("the test is over")


async def test_each_profile_has_its_own_path_list_and_sessions() -> None:
    async with open_profiles(whole()) as gate:
        for path, names in [("/mcp", ["time__now", "notes__add"]), ("/mcp/time", ["time__now"])]:
            for each in (path, f"{path}/"):
                message = modern(1, "tools/list")
                answer = await gate.ask("POST", each, message, *headers_of(message))
                assert [item["name"] for item in answer.json["result"]["tools"]] == names
        assert (await gate.ask("POST", "/mcp/none", message, *headers_of(message))).status == 404
        opened = await gate.ask("POST", "/mcp/time", initialize())
        assert opened.json["result"]["instructions"] == "Ask for the time."
        session = "Mcp-Session-Id", opened.field("mcp-session-id") or ""
        assert (await gate.ask("POST", "/mcp/time", legacy(1, "ping"), session)).status == 200
        assert (await gate.ask("POST", "/mcp", legacy(1, "ping"), session)).status == 404


def test_profiles_are_configured_in_a_table_each() -> None:
    config = parse_config('[profiles.a]\ntools = ["x__*"]\n[profiles.b]\nresources = ["*"]\n', format="toml")
    assert config.profiles == {
        "a": ProfileConfig(name="a", tools=("x__*",)),
        "b": ProfileConfig(name="b", resources=("*",)),
    }


@pytest.mark.parametrize(
    "text", ["[profiles.a]", '[profiles."a/b"]\ntools=["*"]', '[profiles.a]\ntool=["*"]', "profiles=1"]
)
def test_a_profile_that_makes_no_sense_is_a_problem(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, format="toml")
    assert all("profiles" in problem.path for problem in caught.value.problems)
