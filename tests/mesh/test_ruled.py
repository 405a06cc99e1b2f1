"""Rules about prompts and resources: whom they deny one is neither shown it nor given it, on any node."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call
from cord_trio.config import Rule
from cord_trio.errors import CallFailed, Denied
from cord_trio.fabric import open_fabric
from cord_trio.mesh.catalogues import MAX_SHOWN, decode_catalogue, encode_catalogue
from cord_trio.mesh.frames import CHANGES
from cord_trio.mesh.local import open_broker
from cord_trio.mesh_errors import BadCatalogue
from cord_trio.protocol.jsonrpc import encode
from cord_trio.snapshot import KINDS
from tests.gateway.test_pairings import Gate, far, pairings
from tests.mesh.members import member
from tests.mesh.test_bridge import has

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

    from tests.full_server import FullServer
    from tests.gateway.test_pairings import Person

Json: TypeAlias = Any

PRIVATE = "cord://x/file:///private/a"


def denied_to(*principals: str) -> list[Rule]:
    return [
        Rule(tools="none", then="deny"),
        Rule(
            prompts="plan", resources=["file:///private/*", "file:///private/{n}"], principals=principals, then="deny"
        ),
        Rule(prompts="*", resources="*", then="allow"),
    ]


def files(era: str) -> FullServer:
    """A server that has some for all, and some that are private."""
    made = far(era)
    made.prompts = [{"name": "greet"}, {"name": "plan"}]
    made.resources = [{"uri": uri, "name": uri[-1]} for uri in ("file:///a", "file:///private/a")]
    made.templates = [{"uriTemplate": f"file:///{way}{{n}}", "name": way} for way in ("", "private/")]
    return made


async def listed(person: Person) -> list[str]:
    """Names and URIs of all prompts, resources and templates."""
    found: list[str] = []
    for method, within, key in (
        ("prompts/list", "prompts", "name"),
        ("resources/list", "resources", "uri"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate"),
    ):
        answer = await person.ask(method, {})
        found += [each[key] for each in answer["result"][within]]
    return found


ALL = [
    "x__greet", "x__plan", "cord://x/file:///a", PRIVATE, "cord://x/file:///{n}", "cord://x/file:///private/{n}",
]  # fmt: skip
FOR_ALL = ALL[::2]
ASKED: list[tuple[str, Json]] = [
    ("prompts/get", {"name": "x__plan"}),
    ("resources/read", {"uri": PRIVATE}),
    ("resources/read", {"uri": "cord://x/file:///private/unlisted"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "x__plan"}, "argument": {"name": "a", "value": ""}}),
    (
        "completion/complete",
        {
            "ref": {"type": "ref/resource", "uri": "cord://x/file:///private/{n}"},
            "argument": {"name": "n", "value": ""},
        },
    ),
]


async def is_refused_all(person: Person, behind: FullServer) -> None:
    """What is private is not listed to `person`, nothing of it reaches the server, and the errors name the rule."""
    assert await listed(person) == FOR_ALL
    before = len(behind.got)
    for method, params in ASKED:
        answer = await person.ask(method, params)
        assert "a rule of source 'x' says so: rules[1]" in answer["error"]["message"], (method, answer)
    assert [each for each in behind.got[before:] if each.get("method") in dict(ASKED)] == []
    if not person.modern:
        answer = await person.ask("resources/subscribe", {"uri": PRIVATE})
        assert "says so: rules[1]" in answer["error"]["message"]
        assert behind.sent("resources/subscribe") == []
    for method, params in (
        ("prompts/get", {"name": "x__greet"}),
        ("resources/read", {"uri": "cord://x/file:///a"}),
    ):
        assert "result" in await person.ask(method, params)


async def has_all(person: Person) -> None:
    assert await listed(person) == ALL
    for method, params in ASKED[:2]:
        assert "result" in await person.ask(method, params)


@pairings
async def test_what_a_rule_denies_is_neither_listed_nor_had(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = files(server)
    for principal, refused in (("local", True), ("ann", False)):
        async with open_fabric([behind.source(rules=denied_to(principal))]) as fabric, trio.open_nursery() as nursery:
            await fabric.wait_started()
            person = await Gate(fabric, nursery).come(client)
            if refused:
                await is_refused_all(person, behind)
            else:
                await has_all(person)
            nursery.cancel_scope.cancel("the test is over")


@pairings
async def test_the_node_that_has_it_decides_who_of_which_node_sees_what(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = files(server)
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "owner", behind.source(rules=denied_to("*@front"))) as owner,
        member(broker, "front") as front,
        member(broker, "friend") as friend,
        trio.open_nursery() as nursery,
    ):
        for each in (front, friend):
            await has(each, "x@owner")
            for kind in KINDS:
                each.fabric.trust(kind)
        await trio.sleep(1)
        await is_refused_all(await Gate(front.fabric, nursery).come(client), behind)
        for fabric in (owner.fabric, friend.fabric):
            person = await Gate(fabric, nursery).come(client)
            await has_all(person)
        # A node that asks all the same, as one that knows nothing of such rules would, is told of nothing.
        told: list[str] = []
        uris = {"uris": Raw(encode([PRIVATE]))}
        with trio.fail_after(60), pytest.raises(CallFailed, match="none of these resources is told of here"):
            await front.node.calling.call(Call(CHANGES, None, uris, events=lambda *_: None), ["owner"])
        with pytest.raises(Denied, match=r"'x@owner' says so: rules\[1\]"):
            with front.fabric.subscribe("local", [PRIVATE], told.append):
                raise AssertionError
        with friend.fabric.subscribe("local", [PRIVATE], told.append):
            await trio.sleep(2)
            behind.connections[-1].tell("notifications/resources/updated", {"uri": "file:///private/a"})
            await trio.sleep(2)
        assert told == [PRIVATE]
        nursery.cancel_scope.cancel("the test is over")


async def test_rules_that_change_are_seen_everywhere(autojump_clock: MockClock) -> None:
    behind = files("modern")

    def source(rules: Sequence[Rule]) -> Json:
        return behind.source(rules=rules)

    async with open_broker(Random(1)) as broker, member(broker, "owner", source(())) as owner:
        async with member(broker, "front") as front:
            await has(front, "x@owner")
            await trio.sleep(1)
            for rules, hidden in ((denied_to("*@front"), 1), ((), 0), (denied_to("*@*"), 1), (denied_to("ann"), 0)):
                config = owner.fabric.config
                owner.fabric.reconfigure(attrs.evolve(config, sources={**config.sources, "x": source(rules)}))
                await trio.sleep(20)
                assert [len(front.fabric.hidden(kind, "ann")) for kind in KINDS] == [0, hidden, hidden, hidden]
                if hidden:
                    with pytest.raises(Denied):
                        await front.fabric.handle(Call("prompts/get", "x__plan", principal="ann"))
                else:
                    await front.fabric.handle(Call("prompts/get", "x__plan", principal="ann"))


async def test_a_catalogue_tells_of_rules_by_exported_names_and_is_as_before_without(
    autojump_clock: MockClock,
) -> None:
    async with open_fabric([files("modern").source()]) as fabric:
        await fabric.wait_started()
        snapshot = fabric.registry.snapshot
        plain = encode_catalogue(snapshot, "x")
        assert plain is not None
        assert b"shown" not in plain
        assert encode_catalogue(snapshot, "x", [Rule(then="deny"), Rule(prompts="none*", then="deny")]) == plain
        ruled = encode_catalogue(snapshot, "x", denied_to("*@front"))
        assert ruled is not None
        first, second = decode_catalogue(ruled).shown
        assert (first.principals, first.then, first.number) == (("*@front",), "deny", 1)
        assert first.names == {"prompts": {"x__plan"}, "resources": {PRIVATE}, "templates": {ALL[-1]}}
        assert second.then == "allow"
        many = [Rule(prompts="*", then="allow")] * (MAX_SHOWN + 1)
        with pytest.raises(BadCatalogue, match="it has 1001 rules about what it lists, where 1000 may be"):
            encode_catalogue(snapshot, "x", many)
        assert decode_catalogue(encode_catalogue(snapshot, "x", many[1:]) or b"").shown[0].is_on("prompts", "x__plan")
        begin = ruled.index(b'{"names"')
        rule = ruled[begin : ruled.index(b"}", ruled.index(b'"then"', begin)) + 1]
        with pytest.raises(BadCatalogue, match="1002 rules"):
            decode_catalogue(ruled.replace(rule, b",".join([rule] * (MAX_SHOWN + 1))))
