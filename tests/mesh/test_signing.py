"""Who calls, and who may: signatures of calls between nodes, and the rules of whoever does them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Call, Complete
from cord_trio.config.rules import Rule
from cord_trio.errors import Denied
from cord_trio.mesh import signing
from cord_trio.mesh.frames import CHANGES, Bundle, Request, decode_request, encode_request
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.owning import HandOn
from cord_trio.mesh.signing import LIFE, WINDOW, Door, Signer
from cord_trio.mesh_errors import OwnerFailed, OwnerRefused
from cord_trio.nats.wire import encode_headers
from cord_trio.testing import ToolServer
from tests.mesh.members import listed, member
from tests.mesh.ring import Names, node, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

    from cord_trio.call import Outcome

KEY = "k" * 32
OTHER = "o" * 32
OURS, THEIRS = "0badcafe", "1badcafe"
REQUEST = Request("call", "0" * 32, b'{"a":1}', source="s", tool="t", epoch=OURS, principal="ann", park="p")


def signed(
    request: Request = REQUEST, *, keys: Sequence[str] = (KEY,), mesh: str = "m", until: float = 1010.0
) -> Request:
    signer = Signer(keys, mesh, "a")
    return replace(request, signature=signer.sign(request, OURS, "b", THEIRS, until))


def judged(request: Request, *, by: str = "a", keys: Sequence[str] = (KEY,), us: str = "b", epoch: str = THEIRS) -> str:
    """What becomes of it on its way, at 1000 by the owner's clock."""
    head = encode_headers(encode_request(request))
    return Signer(keys, "m", us).judge(by, decode_request(head, request.body), epoch, 1000.0)[0]


def test_a_signature_is_good_for_its_call_on_its_node_alone() -> None:
    assert judged(signed()) == ""
    assert judged(signed(until=1000 + 2 * LIFE)) == ""
    assert judged(signed(), by="c") == "denied"
    assert judged(signed(), us="c") == "denied"
    assert judged(signed(), epoch=OURS) == "denied"
    assert judged(REQUEST) == "denied"
    assert judged(replace(REQUEST, signature="nothing")) == "denied"


def test_that_of_another_mesh_or_key_is_refused_and_a_key_can_be_replaced_by_another() -> None:
    assert judged(signed(mesh="n")) == "denied"
    assert judged(signed(keys=[OTHER])) == "denied"
    assert judged(signed(keys=[OTHER]), keys=[KEY, OTHER]) == ""
    assert judged(signed(keys=[OTHER, KEY])) == "denied"


@pytest.mark.parametrize("until", [0.0, 1.0, 999.9, 1000 + 2 * LIFE + 1, 1e9])
def test_one_that_is_over_or_not_of_now_is_refused(until: float) -> None:
    assert judged(signed(until=until)) == "expired"


CHANGED: dict[str, object] = {
    "op": "cancel", "id": "1" * 32, "body": b'{"a":2}', "source": "", "tool": None, "method": "prompts/get",
    "epoch": THEIRS, "hop": 1, "principal": "bob", "park": "q", "behalf": "c", "bundle": Bundle(1, 2, "0" * 64),
}  # fmt: skip
FREE = {"ttl", "settled", "events", "trace", "window", "first", "to", "reason", "signature"}
"""What may differ from offer to offer, or says nothing of what is done, or for whom."""


@pytest.mark.parametrize("name", CHANGED)
def test_nothing_of_a_call_can_be_changed_on_the_way(name: str) -> None:
    changed = replace(signed(), **{name: CHANGED[name]})
    assert Signer([KEY], "m", "b").judge("a", changed, THEIRS, 1000.0)[0] == "denied"
    assert {*CHANGED, *FREE} == {field.name for field in msgspec.structs.fields(Request)}


FREE_TEXTS = ("source", "method", "principal", "park", "tool")


@given(*(st.tuples(*[st.text("a 1", max_size=3)] * len(FREE_TEXTS)) for _ in "12"))
def test_no_two_calls_have_one_signature(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    first, second = (replace(REQUEST, **dict(zip(FREE_TEXTS, texts, strict=True))) for texts in (one, other))
    moved = replace(second, signature=signed(first).signature)
    assert Signer([KEY], "m", "b").judge("a", moved, THEIRS, 1000.0)[0] == ("" if one == other else "denied")


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * WINDOW))))
def test_none_is_good_twice(comes: list[tuple[bool, int]]) -> None:
    """Whatever comes in whatever order: a number is taken once, and those of the latest window always once."""
    window, taken = signing._Window(), set[int]()
    for near, number in comes:
        at = max(1, window.highest - number % WINDOW) if near else number
        if at <= window.highest - WINDOW:
            continue
        assert window.take(at) == (at not in taken)
        taken.add(at)


def test_one_that_comes_again_is_refused_and_one_that_is_much_older_than_others_has_to_be_made_anew() -> None:
    ours, owner = Signer([KEY], "m", "a"), Signer([KEY], "m", "b")
    offers = [replace(REQUEST, signature=ours.sign(REQUEST, OURS, "b", THEIRS, 1010)) for _ in range(WINDOW + 1)]
    assert [owner.judge("a", offers[at], THEIRS, 1000)[0] for at in (5, 3, 5, 3)] == ["", "", "denied", "denied"]
    assert [owner.judge("a", offers[at], THEIRS, 1000)[0] for at in (WINDOW, 0, 1, 1)] == ["", "expired", "", "denied"]


def test_whose_signatures_came_is_known_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MAX_SIGNERS", 2)
    owner = Signer([KEY], "m", "b")
    for name in "acd":
        offer = replace(REQUEST, signature=Signer([KEY], "m", name).sign(REQUEST, OURS, "b", THEIRS, 1010))
        assert owner.judge(name, offer, THEIRS, 1000)[0] == ""
    assert [name for name, _ in owner._windows] == ["c", "d"]


def test_a_principal_is_named_once_where_it_is_believed_and_by_each_node_where_not() -> None:
    first, _ = Door().judge("a", REQUEST, THEIRS, 1000)
    assert first.principal == "ann@a"
    second, _ = Door().judge("b", first, THEIRS, 1000)
    assert second.principal == "ann@a@b"
    signer = Signer([KEY], "m", "b")
    for named, principal in ((True, "ann@a"), (False, "ann@a@b")):  # a text that only looks so is no more than that
        offer = replace(first, signature=signer.sign(first, OURS, "c", THEIRS, 1010, named=named))
        assert Door(Signer([KEY], "m", "c")).judge("b", offer, THEIRS, 1000)[0].principal == principal


# Between nodes


async def who(call: Call) -> Outcome:
    """Who calls."""
    await trio.lowlevel.checkpoint()
    return Complete(Raw(b'"%b"' % call.principal.encode()))


async def test_calls_are_signed_by_the_clock_of_whoever_does_them(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a", keys=[KEY]) as here, node(broker, names, "b", who, keys=[KEY]) as there:
            for _ in range(3):
                assert await here.calling.call(replace(tool_call(), principal="ann"), ["b"]) == Complete(
                    Raw(b'"ann@a"')
                )
            assert there.counters["mesh.refused_expired"] == 1  # the first had to ask for the time
            peer = here.calling.peers.get("b", names.epochs["b"])
            assert peer.ahead is not None
            await trio.sleep(100)
            peer.ahead -= 60  # a machine that slept
            assert await here.calling.call(replace(tool_call(), principal="ann"), ["b"]) == Complete(Raw(b'"ann@a"'))
            assert there.counters["mesh.refused_expired"] == 2


@pytest.mark.parametrize("keys", [[], [OTHER]])
async def test_a_node_without_the_key_calls_nothing_of_one_that_has_it(
    keys: list[str], autojump_clock: MockClock
) -> None:
    names, ran = Names(), []

    async def handler(call: Call) -> Outcome:
        ran.append(call)
        return await who(call)

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a", keys=keys) as here, node(broker, names, "b", handler, keys=[KEY]) as there:
            with pytest.raises(OwnerRefused, match=r"denied, its? .*") as refused:
                await here.calling.call(tool_call(), ["b"])
            assert (refused.value.executed, refused.value.reason) == ("no", "denied")
            assert there.counters["mesh.refused_denied"] == 1
    assert ran == []


async def test_a_message_that_comes_again_after_all_is_forgotten_does_not_run(autojump_clock: MockClock) -> None:
    names, ran = Names(), []

    async def handler(call: Call) -> Outcome:
        ran.append(call)
        return await who(call)

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a", keys=[KEY]) as here, node(broker, names, "b", handler, keys=[KEY]) as there:
            sent: list[tuple[str, bytes, dict[str, str]]] = []
            publish = there.owning.take

            def take(message: object) -> None:
                sent.append(message)  # type: ignore[arg-type]  # kept to come again
                publish(message)  # type: ignore[arg-type]  # as it came

            there.owning.take = take  # type: ignore[method-assign]  # to see what comes
            there.presence._take = take
            await here.calling.call(tool_call(), ["b"])
            await here.calling.call(tool_call(), ["b"])
            await trio.sleep(1)
            for message in sent:
                publish(message)  # type: ignore[arg-type]  # as it came
            await trio.sleep(100)
            for message in sent:
                publish(message)  # type: ignore[arg-type]  # as it came
            await trio.sleep(1)
    assert len(ran) == 2


async def test_what_is_handed_on_is_signed_as_well_and_still_for_whom_it_was_asked(autojump_clock: MockClock) -> None:
    names = Names()

    async def hands_on(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        raise HandOn("c", call)

    async with open_broker(Random(1)) as broker:
        async with (
            node(broker, names, "a", keys=[KEY]) as here,
            node(broker, names, "b", hands_on, keys=[KEY]),
            node(broker, names, "c", who, keys=[KEY]),
        ):
            assert await here.calling.call(replace(tool_call(), principal="ann"), ["b"]) == Complete(Raw(b'"ann@a"'))


async def test_of_what_is_handed_on_and_refused_a_part_may_have_run(autojump_clock: MockClock) -> None:
    names = Names()

    async def hands_on(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        raise HandOn("c", call)

    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "b", hands_on):
            async with node(broker, names, "c", who, keys=[KEY]):
                with pytest.raises(OwnerFailed, match="it is not signed") as refused:
                    await here.calling.call(tool_call(), ["b"])
                assert (refused.value.kind, refused.value.executed) == ("OwnerRefused", "unknown")


async def test_a_node_that_may_call_nothing_is_told_so(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as here, node(broker, names, "c") as other:
            async with node(broker, names, "b", who, callers=["*@c", "ann@*"]) as there:
                assert await other.calling.call(tool_call(), ["b"]) == Complete(Raw(b'"local@c"'))
                assert await here.calling.call(replace(tool_call(), principal="ann"), ["b"]) == Complete(
                    Raw(b'"ann@a"')
                )
                with pytest.raises(OwnerRefused, match="'local@a' may call nothing here") as refused:
                    await here.calling.call(tool_call(), ["b"])
                assert refused.value.executed == "no"
                assert there.counters["mesh.refused_denied"] == 1


@pytest.mark.parametrize(("callers", "let_in"), [(["ann@*"], True), (["ann@a"], True), (["ann@c"], False), ([], False)])
def test_a_node_may_subscribe_if_anybody_of_it_may_call(callers: list[str], let_in: bool) -> None:
    _, refusal = Door(callers=callers).judge("a", replace(REQUEST, method=CHANGES, principal="local"), THEIRS, 1000)
    assert (refusal is None) == let_in


async def test_the_rules_of_the_node_that_has_the_tool_say_who_of_which_node_may_call_it(
    autojump_clock: MockClock,
) -> None:
    web = ToolServer(name="web")
    rules = [
        Rule(tools=["echo"], principals=["*@b", "ann@*"], then="allow"),
        Rule(tools=["echo"], principals=["*@*"], then="deny"),
    ]
    async with open_broker(Random(1)) as broker, member(broker, "a", web.in_process(rules=rules)) as a:
        async with member(broker, "b") as b, member(broker, "c") as c:
            await listed(b.fabric, "web__echo")
            await listed(c.fabric, "web__echo")
            for fabric in (a.fabric, b.fabric):
                assert (await fabric.call("web__echo", {"text": "x"})).text == "x"
            arguments = {"arguments": Raw(b'{"text":"x"}')}
            assert isinstance(
                await c.fabric.handle(Call("tools/call", "web__echo", arguments, principal="ann")), Complete
            )
            with pytest.raises(Denied) as denied:
                await c.fabric.call("web__echo", {"text": "x"})
            assert denied.value.executed == "no"
            assert a.fabric.counters["policy.denied"] == 1
            assert web.received["call echo"] == 3
