"""Each row of the matrix with the gateway on one node and the server on another, over a broker in this process."""

from __future__ import annotations

import inspect
import itertools
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Error, InputRequired, Task
from cord_trio.errors import CallFailed
from cord_trio.gateway import performing
from cord_trio.mesh import standing, tenure
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.pinning import marked, pin_of
from cord_trio.snapshot import KINDS
from tests.full_server import FullServer, text
from tests.gateway import test_pairings
from tests.gateway.fakes import CAPABILITIES
from tests.gateway.test_pairings import FORM, PAGE, Gate, asking, far, pairings
from tests.mesh.members import listed, member
from tests.test_background import EXTENSION, ModernTaskServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from cord_trio.mesh.local import LocalBroker
    from tests.full_server import Request
    from tests.mesh.members import Member

Json: TypeAlias = Any

ERAS = ("legacy", "modern")
HERE = {
    "test_a_source_that_has_gone_between_two_rounds_may_have_run_the_call": "disconnects the source",
    "test_what_a_legacy_client_is_asked_is_answered_while_the_fabric_drains": "asks an agent of the gateway's node",
    "test_an_exported_agent_asks_the_person_behind_its_client": "asks an agent of the gateway's node",
    "test_a_client_that_cancels_an_exported_agent_while_it_is_asked_ends_it": "asks an agent of the gateway's node",
}
"""Tests of one node alone, and why."""


def rows() -> list[Any]:
    """All tests of the matrix that run on two nodes as well, with their clients and servers."""
    found = []
    for name, test in vars(test_pairings).items():
        if name.startswith("test_") and name not in HERE:
            eras = [each for each in inspect.signature(test).parameters if each != "autojump_clock"]
            for pick in itertools.product(ERAS, repeat=len(eras)):
                id = "-".join((name.removeprefix("test_"), *(each[0].upper() for each in pick)))
                found.append(pytest.param(name, dict(zip(eras, pick, strict=True)), id=id))
    return found


@asynccontextmanager
async def open_across(far: FullServer, **more: Json) -> AsyncGenerator[Gate]:
    """A gateway on a node that has all its sources from another."""
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "owner", far.source(**more)) as owner,
        member(broker, "front") as front,
        trio.open_nursery() as nursery,
    ):
        await has(front, "x@owner")
        for kind in KINDS:  # somebody has listed before: it is known how long lists can be trusted
            front.fabric.trust(kind)
        await trio.sleep(1)
        yield Gate(front.fabric, nursery)
        nursery.cancel_scope.cancel("the test is over")
        assert len(owner.fabric._parks) == 0
        assert len(front.fabric._parks) == 0


async def has(front: Member, source: str, *, there: bool = True) -> None:
    """Return once a node has listed a source of another, or has it no more."""
    with trio.fail_after(60):
        while (
            (view := front.fabric.registry.snapshot.sources.get(source)) is not None and view.state == "ready"
        ) != there:
            await front.fabric.registry.changed(front.fabric.registry.snapshot.version)


@pytest.mark.parametrize(("row", "eras"), rows())
async def test_each_row_crosses(
    row: str, eras: Json, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_pairings, "open_gate", open_across)
    await getattr(test_pairings, row)(**eras, autojump_clock=autojump_clock)


# The same as on the owner's node

ASKED: list[tuple[str, Json]] = [
    *((method, {}) for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list")),
    ("tools/call", {"name": "x__rich", "arguments": {"n": 1.0}}),
    ("tools/call", {"name": "x__fails", "arguments": {}}),
    ("tools/call", {"name": "x__breaks", "arguments": {}}),
    ("tools/call", {"name": "x__nothing", "arguments": {}}),
    ("tools/call", {"name": "nothing", "arguments": {}}),
    ("tools/call", {"name": "x__echo", "arguments": {"t": "€" * 300_000}}),
    ("prompts/get", {"name": "x__greet", "arguments": {"a": "b"}}),
    ("prompts/get", {"name": "x__nothing"}),
    ("resources/read", {"uri": "cord://x/file:///a"}),
    ("resources/read", {"uri": "cord://y/file:///a"}),
    ("completion/complete", {"ref": {"type": "ref/x"}, "argument": {"name": "a", "value": "b"}}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "none"}, "argument": {"name": "a", "value": "b"}}),
    (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "x__greet"}, "argument": {"name": "a", "value": ""}},
    ),
]
ICON = {"src": "https://x/i.png", "mimeType": "image/png", "sizes": ["48x48"]}
TOOL = {
    "title": "Rich",
    "description": "of all",
    "icons": [ICON],
    "inputSchema": {
        "type": "object",
        "$defs": {"n": {"type": "number", "default": 1.0}},
        "properties": {"n": {"$ref": "#/$defs/n"}},
    },
    "outputSchema": {"type": "object", "properties": {"n": {"type": "number"}}},
    "annotations": {"readOnlyHint": True, "x": 1},
    "_meta": {"com.example/a": {"b": [None, 2.50]}},
    "unknown": {"kept": True},
}


def rich(server: str) -> FullServer:
    """A server whose lists and answers have whatever the protocol has."""
    made = far(
        server,
        rich=lambda request: text(
            "words", structuredContent={"n": request.arguments["n"]}, _meta={"com.example/took": 0.10},
        ),
        fails=lambda _: {**text("no"), "isError": True},
        breaks=lambda request: request.fail(-32000, "broken", {"why": [1.0, None]}),
    )  # fmt: skip
    names = ("echo", "rich", "fails", "breaks")
    made.answers["tools/list"] = lambda _: {"tools": [{"name": name, **TOOL} for name in names]}
    made.prompts = [
        {
            "name": "greet",
            "title": "Greet",
            "icons": [ICON],
            "arguments": [{"name": "a", "title": "A"}],
            "_meta": {"a": 1},
        }
    ]
    made.resources = [
        {"uri": "file:///a", "name": "a", "title": "A", "size": 3, "icons": [ICON], "annotations": {"priority": 0.5}}
    ]
    made.templates = [{"uriTemplate": "file:///{path}", "name": "files", "title": "Files", "icons": [ICON]}]
    return made


@pairings
async def test_rows_5_7_23_24_27_another_node_answers_as_the_owner_itself(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    """Titles, icons, metadata, schemas, numbers, errors with their codes and data, and what is large."""
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "owner", rich(server).source()) as owner,
        member(broker, "front") as front,
        trio.open_nursery() as nursery,
    ):
        await has(front, "x@owner")
        there, here = Gate(owner.fabric, nursery), Gate(front.fabric, nursery)
        at_owner, at_front = await there.come(client), await here.come(client)
        for method, params in ASKED:
            wanted, given = await at_owner.ask(method, params), await at_front.ask(method, params)
            assert given == wanted, (method, params)
        nursery.cancel_scope.cancel("the test is over")


async def test_row_10_pages_that_a_server_of_another_node_is_done_with_are_known_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "FIRST_PAUSE", 60.0)  # after which it would be called again all the same
    signed: list[bool] = []

    def guarded(request: Request) -> Json:
        if signed:
            return text("in")
        request.fail(-32042, "sign in", {"elicitations": [{**PAGE, "elicitationId": "e1"}]})
        return None

    behind = far("legacy", guarded=guarded)
    async with open_across(behind) as gate, trio.open_nursery() as nursery:
        person = await gate.come("modern")

        async def sign_in() -> None:
            while not person.asked:  # noqa: ASYNC110  # as a person looks
                await trio.sleep(0.1)
            await trio.sleep(2)
            signed.append(True)
            behind.connections[-1].tell("notifications/elicitation/complete", {"elicitationId": "e1"})

        nursery.start_soon(sign_in)
        began = trio.current_time()
        answer = await person.ask("tools/call", {"name": "x__guarded", "arguments": {}})
        assert answer["result"]["content"] == text("in")["content"]
        assert 2 < trio.current_time() - began < 4
        assert len(behind.sent("tools/call")) == 3  # before she was asked, after she agreed, and once it was done
        # Of what no server has told, nothing is known, and the wait ends when it was to.
        call, began = Call("tools/call", "x__guarded"), trio.current_time()
        assert await gate.fabric.wait_pages(["e1"], 30, call)
        assert not await gate.fabric.wait_pages(["e1", "e2"], 30, call)
        assert trio.current_time() == began + 30
        for ids in ([], ["e1"] * (standing.MAX_PAGES + 1)):
            assert not await gate.fabric.wait_pages(ids, 30, call)


# Resources

URI = "cord://x/file:///a"


def listing(*uris: str, template: str = "") -> FullServer:
    made = far("modern")
    made.resources = [{"uri": uri, "name": "r"} for uri in uris]
    made.templates = [{"uriTemplate": template, "name": "t"}] if template else []
    return made


async def test_a_resource_is_read_by_its_own_uri_from_every_node(autojump_clock: MockClock) -> None:
    """As at its own node; one of ours goes before one of another node, and what two have is neither's."""
    x, y, z = listing("lab://x", "lab://both", "lab://all"), listing("lab://y", "lab://both"), listing("lab://all")
    x.templates = [{"uriTemplate": "lab://each/{n}", "name": "t"}]
    read: dict[str, list[Json]] = {}
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", x.source("x")) as a,
        member(broker, "b", y.source("y")) as b,
        member(broker, "c", z.source("z")) as c,
        trio.open_nursery() as nursery,
    ):
        for one in (b, c):
            await has(one, "x@a")
        for one in (a, c):
            await has(one, "y@b")
        people = {one.node.name: await Gate(one.fabric, nursery).come("modern") for one in (a, b, c)}
        for name, person in people.items():
            read[name] = [
                await person.ask("resources/read", {"uri": uri})
                for uri in ("lab://x", "lab://y", "lab://each/1", "lab://nobody", "lab://both")
            ]
        told: list[str] = []
        with c.fabric.subscribe("p", ["lab://x"], told.append):
            await trio.sleep(2)
            x.connections[-1].tell("notifications/resources/updated", {"uri": "lab://x"})
            await trio.sleep(2)
        await people["c"].ask("resources/read", {"uri": "lab://all"})
        nursery.cancel_scope.cancel("the test is over")
    for name in ("a", "b", "c"):
        assert [list(answer) for answer in read[name]][:3] == [["jsonrpc", "id", "result"]] * 3, name
        assert read[name][:3] == read["a"][:3]
        assert "no resource" in read[name][3]["error"]["message"]
    assert "error" in read["c"][4]
    assert [params["uri"] for params in y.sent("resources/read")].count("lab://both") == 1  # for b
    assert [params["uri"] for params in x.sent("resources/read")].count("lab://both") == 1  # for a
    assert [params["uri"] for params in z.sent("resources/read")] == ["lab://all"]
    assert told == ["lab://x"]


async def test_rows_20_21_a_subscription_outlives_the_node_that_has_the_resource(autojump_clock: MockClock) -> None:
    told: list[str] = []
    behind = far("legacy")
    async with open_broker(Random(1)) as broker, member(broker, "front") as front:
        with front.fabric.subscribe("p", [URI], told.append):
            for times in (1, 2):
                async with member(broker, "owner", behind.source()) as owner:
                    await has(front, "x@owner")
                    await trio.sleep(2)
                    await changes(behind, told)
                    owner.way.cut()
                    await has(front, "x@owner", there=False)
                    owner.way.mend()
                    await has(front, "x@owner")
                    await trio.sleep(2)
                    await changes(behind, told)
                await has(front, "x@owner", there=False)
                assert told == [URI] * 4 * times  # each time that it came it may have changed


async def changes(behind: FullServer, told: list[str]) -> None:
    before = len(told)
    behind.connections[-1].tell("notifications/resources/updated", {"uri": "file:///a"})
    await trio.sleep(1)
    assert told[before:] == [URI]


async def test_row_20_a_change_that_is_lost_on_the_way_is_told_all_the_same(autojump_clock: MockClock) -> None:
    told: list[str] = []
    behind = far("modern")
    async with open_broker(Random(1)) as broker, member(broker, "owner", behind.source()):
        async with member(broker, "front") as front:
            await has(front, "x@owner")
            with front.fabric.subscribe("p", ["cord://x/file:///a", "cord://x/file:///b"], told.append):
                await trio.sleep(1)
                front.way.cut()
                behind.connections[0].tell("notifications/resources/updated", {"uri": "file:///a"})
                await trio.sleep(1)
                front.way.reset()  # what was under way is lost
                front.way.mend()
                await trio.sleep(2 * standing.BEAT)
                assert set(told) == {"cord://x/file:///a", "cord://x/file:///b"}
                assert len(told) == 2
            await trio.sleep(2)
            assert front.node.calling._flights == {}


async def test_what_is_subscribed_to_is_asked_for_anew_before_the_broker_lets_nobody_answer_any_more(
    autojump_clock: MockClock,
) -> None:
    told: list[str] = []
    behind = far("modern")
    async with open_broker(Random(1)) as broker, member(broker, "owner", behind.source()) as owner:
        async with member(broker, "front") as front:
            await has(front, "x@owner")
            with front.fabric.subscribe("p", [URI], told.append):
                await trio.sleep(10)
                tenure = owner.node.owning._tenure
                assert tenure is not None
                before = {id for _, id in tenure.known}
                await trio.sleep(standing.RENEW + 10)
                assert tenure.standing == 1
                assert not before & {id for (_, id), one in tenure.known.items() if one.state != "done"}
                assert told == []
                behind.connections[0].tell("notifications/resources/updated", {"uri": "file:///a"})
                await trio.sleep(1)
                assert told == [URI]


async def test_more_changes_than_are_told_at_once_are_seen_to_be_missing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "MAX_NEWS", 2)
    told: list[str] = []
    behind = far("modern")
    async with open_broker(Random(1)) as broker, member(broker, "owner", behind.source()):
        async with member(broker, "front") as front:
            await has(front, "x@owner")
            with front.fabric.subscribe("p", ["cord://x/file:///d"], told.append):
                await trio.sleep(1)
                for name in "abcd":
                    behind.connections[0].tell("notifications/resources/updated", {"uri": f"file:///d/{name}"})
                await trio.sleep(2 * standing.BEAT)
    assert told == ["cord://x/file:///d/a", "cord://x/file:///d/b", "cord://x/file:///d"]


async def test_who_cannot_say_what_changes_is_asked_ever_more_rarely(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner has no room, or is of an older version."""
    monkeypatch.setattr(tenure, "MAX_STANDING", 0)
    behind = far("modern")
    async with open_broker(Random(1)) as broker, member(broker, "owner", behind.source()) as owner:
        async with member(broker, "front") as front:
            await has(front, "x@owner")
            with front.fabric.subscribe("p", [URI], lambda _: None):
                await trio.sleep(300)
                assert 10 < owner.fabric.counters["mesh.standing_full"] < 30
                assert (await front.fabric.call("x__echo", {"t": "x"})).text == "x"
    for asked in (Call("cord/changes"), Call("cord/changes", None, {"uris": Raw(b"5")}), Call("cord/other")):
        with pytest.raises(CallFailed):
            await standing.answer_standing(owner.fabric, owner.fabric.config.mesh, asked)  # type: ignore[arg-type]  # it has one


# What stays where it is


class Tasks(ModernTaskServer):
    """Makes tasks whose ids are the same on every node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.states = [{"status": "completed", "result": text(name), "taskId": "t1"}]
        self.tools["ask"] = asking({"q": ("elicitation/create", FORM)})
        self.tools["own"] = self.own
        self.name = name

    def own(self, request: Request) -> Json:
        """A round whose state is good here alone."""
        state = request.params.get("requestState")
        if state is None:
            asked = {"q": {"method": "elicitation/create", "params": FORM}}
            return {"resultType": "input_required", "inputRequests": asked, "requestState": f"of {self.name}"}
        return text(f"{state} at {self.name}")


@asynccontextmanager
async def pooled(broker: LocalBroker, name: str, seed: str = "") -> AsyncGenerator[Tasks]:
    server = Tasks(name)
    async with member(broker, name, server.source(), groups={"x": "pool"}, seed=seed):
        yield server


async def test_row_22_a_task_stays_with_the_node_that_runs_it(autojump_clock: MockClock) -> None:
    can: Json = {CAPABILITIES: {"extensions": {EXTENSION: {}}}}
    async with open_broker(Random(1)) as broker, member(broker, "front") as front, trio.open_nursery() as nursery:
        person = await Gate(front.fabric, nursery).come("modern")

        async def ask(method: str, params: Json) -> Json:
            return (await person.ask(method, params, can)).get("result")

        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(pooled(broker, name)) for name in ("a", "b")]
            await listed(front.fabric, "x__slow")
            await trio.sleep(3)
            ids = [(await ask("tools/call", {"name": "x__slow"}))["taskId"] for _ in range(12)]
            assert min(len(server.sent("tools/call")) for server in servers) > 2
            for server in servers:
                del server.got[:]
            by = [(await ask("tasks/get", {"taskId": id}))["result"]["content"][0]["text"] for id in ids for _ in "12"]
            assert by[::2] == by[1::2]
            assert {*by} == {"a", "b"}
            assert sum(len(server.sent("tasks/get")) for server in servers) == 24
            for id in ids:
                assert await ask("tasks/update", {"taskId": id, "inputResponses": {}}) is not None
                assert await ask("tasks/cancel", {"taskId": id}) is not None
            for server, name in zip(servers, "ab", strict=True):
                assert len(server.sent("tasks/update")) == len(server.sent("tasks/cancel")) == by[::2].count(name)
                assert {each["taskId"] for each in server.sent("tasks/cancel")} == {"t1"}
        # Both are gone; one comes back, and has other tasks of those names.
        async with pooled(broker, "a", "another") as server:
            await listed(front.fabric, "x__slow")
            for id in ids:
                told = (await person.ask("tasks/get", {"taskId": id}, can))["error"]
                assert "the task went with it" in told["message"]
            assert server.sent("tasks/get") == []
            assert front.fabric.counters["mesh.pins_lost"] >= 12
        nursery.cancel_scope.cancel("the test is over")


@pytest.mark.parametrize("client", ERAS)
async def test_row_8_a_round_goes_on_on_the_node_that_asked(client: str, autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "front") as front, trio.open_nursery() as nursery:
        async with pooled(broker, "a"), pooled(broker, "b"):
            await listed(front.fabric, "x__own")
            await trio.sleep(3)
            person = await Gate(front.fabric, nursery).come(client)
            told = [
                (await person.ask("tools/call", {"name": "x__own"}))["result"]["content"][0]["text"] for _ in range(12)
            ]
            assert {*told} == {"of a at a", "of b at b"}
        nursery.cancel_scope.cancel("the test is over")


def test_what_is_no_pin_goes_to_any_node() -> None:
    for call in (
        Call("tools/call", "t", {"requestState": Raw(b'"x"')}),
        Call("tools/call", "t", {"requestState": Raw(b"{")}),
        Call("tasks/get", "t", {"taskId": Raw(b"5")}),
        Call("tasks/get", "t"),
    ):
        assert pin_of(call) is None
    for outcome in (Task(Raw(b"[]")), Task(Raw(b'{"taskId":5}')), InputRequired(Raw(b"{}")), Error(1, "e")):
        assert marked(outcome, "a", "0badcafe") == outcome
