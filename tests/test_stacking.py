"""Which layers lie around a call, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

import cord_trio as cord
from cord_trio import stacking
from cord_trio.call import Complete
from cord_trio.config import ToolSettings
from cord_trio.errors import DeadlineExceeded, Denied, Overloaded
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from trio.testing import MockClock

    from cord_trio.agents.answering import Question


async def ending(ask: Callable[[], Awaitable[object]], into: list[object]) -> None:
    try:
        into.append(await ask())
    except cord.CallError as exc:
        into.append(exc)


def noting(mark: str, seen: list[str]) -> cord.Layer:
    """A layer of the user's own: three lines, and the call passes."""

    def layer(handler: cord.Handler) -> cord.Handler:
        async def noted(call: cord.Call) -> cord.Outcome:
            seen.append(f"{mark} {call.name}")
            return await handler(call)

        return noted

    return layer


async def test_the_users_own_layers_lie_around_all_sources_one_or_one_tool(autojump_clock: MockClock) -> None:
    seen: list[str] = []
    x = ToolServer().in_process(
        name="x", layers=[noting("source", seen)], tool={"ad*": ToolSettings(layers=[noting("tool", seen)])}
    )
    async with open_fabric([x, ToolServer().in_process(name="y")], layers=[noting("all", seen)]) as fabric:
        await fabric.call("x__echo", {"text": ""})
        await fabric.call("x__add", {"a": 1, "b": 2})
        await fabric.call("x__add", {"a": 1, "b": 2})
        await fabric.call("y__echo", {"text": ""})
    assert seen == [
        *("all x__echo", "source x__echo"),
        *("all x__add", "source x__add", "tool x__add") * 2,
        "all y__echo",
    ]


async def test_the_documented_layer_is_one(autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text("utf-8")
    code = page[page.index("def noting(") : page.index("cord.open_fabric(config, layers=[noting])")]
    namespace: dict[str, cord.Layer] = {"cord": cord}  # type: ignore[dict-item]  # a module for its annotations
    exec(code, namespace)
    async with open_fabric([ToolServer().in_process(name="x")], layers=[namespace["noting"]]) as fabric:
        await fabric.call("x__echo", {"text": ""})
    assert capsys.readouterr().out == "tools/call x__echo\n"


async def test_a_tool_has_a_deadline_and_slots_of_its_own(autojump_clock: MockClock) -> None:
    own = {"sleep": ToolSettings(deadline=2, slots=1), "*": ToolSettings(deadline=7)}
    async with open_fabric([ToolServer().in_process(name="x", tool=own)]) as fabric:
        await fabric.wait_started()
        begun = trio.current_time()
        ends: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, lambda: fabric.call("x__sleep", {"seconds": 1.5}), ends)
            nursery.start_soon(ending, lambda: fabric.call("x__sleep", {"seconds": 1.5}), ends)
            await fabric.call("x__progress", {"steps": 0, "seconds": 1})  # it waits for nobody
            assert trio.current_time() == pytest.approx(begun + 1)
        assert trio.current_time() == pytest.approx(begun + 2)
        assert isinstance(ends[1], DeadlineExceeded)


async def test_a_server_that_rotates_its_tools_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the slots of a tool count as before, however many there were."""
    monkeypatch.setattr(stacking, "MOST_TOOLS", 5)
    listed: list[str] = []
    source = cord.Stdio(name="x", command="-", tool={"*": ToolSettings(slots=1, rate=100.0)})
    held: list[str | None] = []

    async def send(call: cord.Call) -> cord.Outcome:
        held.append(call.name)
        await trio.sleep(1)
        held.remove(call.name)
        return Complete(Raw(b"{}"))

    async def probe() -> None: ...

    ends = stacking.Ends(
        send, send, probe, annotations=lambda _: None, own_name=lambda name: name if name in listed else None,
        version=lambda: 0, may_hedge=None, own=lambda call: (call.name, {}),
    )  # fmt: skip
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        behind = stacking.stacked(source, ends, fabric._around)
        for number in range(40):
            listed[:] = [f"t{number}"]
            await behind.call(cord.Call("tools/call", f"t{number}"))
            assert len(behind.waits.own) <= 7
            assert len(behind.waits.meters) <= 6
        for _ in range(2):
            nursery.start_soon(behind.call, cord.Call("tools/call", "t39"))
        await trio.sleep(0.5)
        assert held == ["t39"]


async def test_an_attempt_begins_when_it_has_a_slot(autojump_clock: MockClock) -> None:
    async with open_fabric([ToolServer().in_process(name="x", slots=1, attempt=3.0)]) as fabric:
        await fabric.wait_started()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fabric.call, "x__sleep", {"seconds": 2})
        with pytest.raises(DeadlineExceeded):
            await fabric.call("x__sleep", {"seconds": 4})


async def test_a_source_sheds_and_adapts_if_it_is_told_to(autojump_clock: MockClock) -> None:
    source = ToolServer().in_process(name="x", slots=4, adaptive=True, shed=True, attempt=1.0, queue=2, retries=0)
    async with open_fabric([source]) as fabric:
        with pytest.raises(DeadlineExceeded):
            await fabric.call("x__sleep", {"seconds": 5})
        assert fabric.slots["x"].size == 2
        ends: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ending, lambda: fabric.call("x__sleep", {"seconds": 0.5}), ends)
                await wait_all_tasks_blocked()
            with pytest.raises(Overloaded) as caught:
                await fabric.call("x__echo", {"text": ""})
            assert (caught.value.bound, caught.value.limit) == ("x.queue", 2)
        assert not any(isinstance(end, Exception) for end in ends)


async def test_a_queue_that_is_full_refuses_without_shedding_too(autojump_clock: MockClock) -> None:
    async with open_fabric([ToolServer().in_process(name="x", slots=1, queue=0, retries=0)]) as fabric:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.call, "x__sleep", {"seconds": 1})
            await wait_all_tasks_blocked()
            with pytest.raises(Overloaded, match=r"x\.waiting"):
                await fabric.call("x__echo", {"text": ""})


async def test_rules_are_about_the_servers_names_and_a_person_is_asked(autojump_clock: MockClock) -> None:
    asked: list[str | None] = []

    async def approve(call: cord.Call) -> bool:
        await trio.sleep(100)  # which is not the call's time
        asked.append(call.name)
        return True

    rules = [cord.Rule(tools="add", then="deny"), cord.Rule(tools="count", then="ask")]
    source = ToolServer().in_process(name="x", rules=rules, deadline=5)
    async with open_fabric([source], approve=approve) as fabric:
        with pytest.raises(Denied, match="x__add is denied"):
            await fabric.call("x__add", {"a": 1, "b": 2})
        assert (await fabric.call("x__count")).text == "1"
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
    assert asked == ["x__count"]


async def test_whoever_calls_approves_in_the_middle_of_the_call(autojump_clock: MockClock) -> None:
    questions: list[str] = []

    async def answer(asked: Mapping[str, Question]) -> Mapping[str, object]:
        await trio.lowlevel.checkpoint()
        [(key, question)] = asked.items()
        questions.append(str(question.params["message"]))
        return {key: {"action": "accept", "content": {"approve": len(questions) == 1}}}

    async with open_fabric([ToolServer().in_process(name="x", rules=[cord.Rule(then="ask")])]) as fabric:
        assert (await fabric.call("x__count", answer=answer)).text == "1"
        with pytest.raises(Denied):
            await fabric.call("x__count", answer=answer)
        with pytest.raises(Denied, match="nobody can be asked"):
            await fabric.call("x__count")
    assert questions == ["Allow x__count with {}?"] * 2


async def test_a_budget_is_of_a_source_and_of_each_tool(autojump_clock: MockClock) -> None:
    own = {"echo": cord.ToolSettings(budget=cord.Quota(calls=1))}
    source = ToolServer().in_process(name="x", budget=cord.Quota(calls=3), tool=own, retries=0)
    async with open_fabric([source]) as fabric:
        await fabric.call("x__echo", {"text": ""})
        with pytest.raises(Overloaded, match=r"x__echo\.budget\.calls"):
            await fabric.call("x__echo", {"text": ""})
        for _ in range(2):
            await fabric.call("x__count")
        with pytest.raises(Overloaded, match=r"bound x\.budget\.calls = 3"):
            await fabric.call("x__count")


async def test_only_trusted_reading_tools_are_cached_and_until_the_source_changes(autojump_clock: MockClock) -> None:
    server = ToolServer()
    own = {"*": cord.ToolSettings(cache=1000)}
    async with open_fabric([server.in_process(name="x", trust=True, tool=own)]) as fabric:
        for _ in range(3):
            await fabric.call("x__echo", {"text": "hi"})
            await fabric.call("x__count")
        assert (await fabric.call("x__count")).text == "4"
        hits = fabric.counters["cache.hit"]
        assert hits == 2
        await fabric.call("x__change_tools")
        await trio.sleep(5)
        await fabric.call("x__echo", {"text": "hi"})
        assert fabric.counters["cache.hit"] == hits


async def test_a_source_that_nobody_calls_has_no_stack(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with open_fabric([server.in_process(name="x"), server.in_process(name="y")]) as fabric:
        await fabric.wait_started()
        unbuilt = dict(fabric._handlers)
        begun = fabric.slots["x"]
        for _ in range(2):
            assert (await fabric.call("x__echo", {"text": "a"})).text == "a"
        assert fabric._handlers["x"] != unbuilt["x"]
        assert fabric._handlers["y"] == unbuilt["y"]
        assert fabric.slots["x"] is begun
        assert fabric.slots["x"].taken == 0


@pytest.mark.parametrize("first", ["call", "resume"])
async def test_a_stack_is_built_once_and_takes_the_place_of_no_other(autojump_clock: MockClock, first: str) -> None:
    sent: list[str] = []

    async def send(call: cord.Call) -> cord.Outcome:
        sent.append(f"send {call.name}")
        await trio.sleep(1)
        return Complete(Raw(b"{}"))

    async def resume(call: cord.Call) -> cord.Outcome:
        sent.append(f"resume {call.name}")
        await trio.sleep(1)
        return Complete(Raw(b"{}"))

    async def probe() -> None: ...

    built = 0

    def ends() -> stacking.Ends:
        nonlocal built
        built += 1
        return stacking.Ends(
            send, resume, probe, annotations=lambda _: None, own_name=lambda name: name, version=lambda: 0,
            may_hedge=None, own=lambda call: (call.name, {}),
        )  # fmt: skip

    calls: dict[str, cord.Handler] = {}
    answers: dict[str, cord.Handler] = {}
    source = cord.Stdio(name="x", command="-", slots=1)
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        one = stacking.stacked_when_called(source, ends, fabric._around, calls, answers)
        other = stacking.stacked_when_called(source, ends, fabric._around, calls, answers)
        calls["x"], answers["x"] = one.call, one.resume
        assert built == 0
        nursery.start_soon(getattr(other, first), cord.Call("tools/call", "a"))  # of one that was replaced
        await wait_all_tasks_blocked()
        assert (calls["x"], answers["x"]) == (one.call, one.resume)
        nursery.start_soon(getattr(one, first), cord.Call("tools/call", "b"))
        await wait_all_tasks_blocked()
        assert one.waits.busy
        assert one.slots.taken == 1
        begun = calls["x"]
        assert begun != one.call
        for call in (one.call, begun):
            with pytest.raises(DeadlineExceeded):
                await call(cord.Call("tools/call", "c", deadline=trio.current_time() + 0.2))
        assert calls["x"] is begun
        assert built == 2
    word = "send" if first == "call" else "resume"
    assert sent == [f"{word} a", f"{word} b"]


async def test_what_tells_of_itself_is_built_at_once(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    def layer(handler: cord.Handler) -> cord.Handler:
        seen.append("built")
        return handler

    async with open_fabric([ToolServer().in_process(name="x", layers=[layer])]):
        assert seen
