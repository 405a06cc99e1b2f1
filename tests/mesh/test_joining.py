"""Fabrics that are nodes of one mesh, over a broker in this process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, InputRequired
from cord_trio.config import Config, MeshConfig
from cord_trio.errors import CallError, ConfigError, ToolNotFound
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.mesh.catalogues import Catalogue, Catalogues, digest_of
from cord_trio.mesh.joining import in_mesh, join_mesh
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh_errors import NoOwner
from cord_trio.nats.kv import open_bucket
from cord_trio.testing import ToolServer
from tests.mesh.members import listed, member, server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trio.testing import MockClock

    from cord_trio.agents import Answer
    from cord_trio.agents.answering import Question
    from cord_trio.protocol.jsonrpc import Json


async def test_each_node_calls_the_tools_of_the_other(autojump_clock: MockClock) -> None:
    web, notes = server("web"), server("notes", era="legacy")
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", web.in_process()) as a,
        member(broker, "b", notes.in_process()) as b,
    ):
        await listed(a.fabric, "notes__echo")
        await listed(b.fabric, "web__echo")
        assert (await a.fabric.call("notes__echo", {"text": "x"})).text == "x"
        assert (await b.fabric.call("web__add", {"a": 1, "b": 2})).text == "3"
        assert a.fabric.registry.snapshot.tools["notes__echo"].tool.description == "Gives its text back"
        assert not a.fabric.registry.snapshot.problems


async def test_the_live_tree_shows_how_it_is_in_the_mesh(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "b", server("notes").in_process()):
        async with member(broker, "a", server("web").in_process()) as a:
            await listed(a.fabric, "notes__echo")
            facts = {"node": "a", "epoch": a.node.epoch, "others": 1, "sources": 1, "runs": 0, "margin": None}
            (shown,) = [node for node in a.fabric.tree().children if node.kind == "mesh"]
            assert (shown.name, shown.state, shown.facts) == ("cord", "joined", facts)
            await trio.sleep(LEASE)
            (shown,) = [node for node in a.fabric.tree().children if node.kind == "mesh"]
            assert shown.facts["margin"] == round(a.node.presence.margin, 1)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 6.0])
async def test_a_broker_that_comes_back_without_its_bucket_keeps_nobody_from_calling(
    seconds: float, autojump_clock: MockClock
) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", server("web").in_process()) as a,
        member(broker, "b", server("notes").in_process()) as b,
    ):
        await listed(a.fabric, "notes__echo")
        await listed(b.fabric, "web__echo")
        broker.kill()
        broker.streams.lose("cord_cord")
        await trio.sleep(seconds)
        broker.start()
        await trio.sleep(60)
        assert (await a.fabric.call("notes__echo", {"text": "x"})).text == "x"
        assert (await b.fabric.call("web__echo", {"text": "y"})).text == "y"


async def test_a_tool_of_a_node_that_was_killed_is_waited_for_once(autojump_clock: MockClock) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", server("web").in_process()) as a,
        member(broker, "b", server("notes").in_process()) as b,
    ):
        await listed(a.fabric, "notes__echo")
        b.way.reset()
        b.way.cut()
        took: list[float] = []
        for _ in range(2):
            began = trio.current_time()
            with pytest.raises(NoOwner) as caught:
                await a.fabric.call("notes__echo", {"text": "x"})
            assert caught.value.executed == "no"
            took.append(trio.current_time() - began)
        assert 3 <= took[0] < 5  # all tries together
        assert took[1] < 2
        b.way.mend()


async def test_progress_and_failures_cross(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a", server("web").in_process()):
        async with member(broker, "b") as b:
            await listed(b.fabric, "web__progress")
            seen: list[str] = []
            await b.fabric.call(
                "web__progress", {"steps": 3, "seconds": 1}, events=lambda method, params: seen.append(method)
            )
            assert seen == ["notifications/progress"] * 3
            assert (await b.fabric.call("web__fail", {"text": "no"})).is_error
            with pytest.raises(CallError) as caught:
                await b.fabric.call("web__error", {"code": -32000})
            assert caught.value.executed == "yes"


async def test_a_cancelled_call_is_cancelled_at_the_server(autojump_clock: MockClock) -> None:
    web = server("web")
    async with open_broker(Random(1)) as broker, member(broker, "a", web.in_process()), member(broker, "b") as b:
        await listed(b.fabric, "web__sleep")
        with trio.move_on_after(1):
            await b.fabric.call("web__sleep", {"seconds": 50})
        await trio.sleep(0.1)
        assert (web.received["call sleep"], web.cancelled) == (1, 1)


async def test_a_question_in_the_middle_of_a_call_reaches_its_caller_on_the_other_node(
    autojump_clock: MockClock,
) -> None:
    async def answer(questions: Mapping[str, Question]) -> Mapping[str, Json]:
        await trio.lowlevel.checkpoint()
        return {key: {"action": "accept", "content": {"n": 7}} for key in questions}

    for era in ("legacy", "modern"):
        web = server("web", era=era)
        async with open_broker(Random(1)) as broker, member(broker, "a", web.in_process()), member(broker, "b") as b:
            await listed(b.fabric, "web__ask")
            given = {
                "method": "elicitation/create",
                "params": {"message": "n?", "requestedSchema": {"type": "object", "properties": {}}},
            }
            result = await _asked(b.fabric, given, answer)
            assert msgspec.json.decode(result)["answer"]["content"] == {"n": 7}


async def _asked(fabric: Fabric, given: Json, answer: Answer) -> str:
    return (await fabric.call("web__ask", given, answer=answer)).text


async def test_who_leaves_takes_its_tools_along(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "b") as b:
        async with member(broker, "a", server("web").in_process()):
            await listed(b.fabric, "web__echo")
        await listed(b.fabric, "web__echo", there=False)
        with pytest.raises(ToolNotFound):
            await b.fabric.call("web__echo")
        await trio.sleep(15)
        assert not b.fabric.retiring


async def test_the_tools_of_a_node_that_is_cut_off_are_gone_after_its_lease_and_come_back(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a", server("web").in_process()) as a:
        async with member(broker, "b") as b, member(broker, "c"):
            await listed(b.fabric, "web__echo")
            await trio.sleep(10)
            a.way.cut()
            began = trio.current_time()
            await listed(b.fabric, "web__echo", there=False)
            assert trio.current_time() - began < LEASE + 1
            assert (await a.fabric.call("web__echo", {"text": "an island works"})).text == "an island works"
            a.way.mend()
            await listed(b.fabric, "web__echo")
            assert (await b.fabric.call("web__echo", {"text": "x"})).text == "x"


async def test_a_name_that_two_export_stays_with_the_first_and_is_told(autojump_clock: MockClock) -> None:
    own, theirs = server("web"), server("web", tools=1)
    async with open_broker(Random(1)) as broker, member(broker, "a", own.in_process()) as a:
        async with member(broker, "b", theirs.in_process()):
            await listed(a.fabric, "web__tool_1")
            assert a.fabric.registry.snapshot.tools["web__echo"].source == "web"
            assert a.fabric.registry.snapshot.tools["web__tool_1"].source == "web@b"
            told = [str(problem) for problem in a.fabric.registry.snapshot.problems]
            assert any("'web__echo'" in text and "web@b" in text for text in told)
            # One that joins later takes no name from one that was here before.
            async with member(broker, "aa", server("web", tools=1).in_process()):
                await trio.sleep(3)
                assert a.fabric.registry.snapshot.tools["web__tool_1"].source == "web@b"


async def test_a_server_that_both_have_is_called_by_each_itself(autojump_clock: MockClock) -> None:
    here, there = server("web"), server("web")
    async with open_broker(Random(1)) as broker, member(broker, "b", there.in_process()) as b:
        async with member(broker, "a", here.in_process(), share="none") as a:
            await trio.sleep(10)
            assert [*a.fabric.links, *b.fabric.links] == ["web", "web"]
            assert not a.fabric.registry.snapshot.problems
            assert (await a.fabric.call("web__echo", {"text": "x"})).text == "x"
            assert (here.received["call echo"], "call echo" in there.received) == (1, False)
            # Without one of its own it has that of the other again.
            await a.fabric.disconnect("web")
            await listed(a.fabric, "web__echo")
            assert (await a.fabric.call("web__echo", {"text": "x"})).text == "x"
            assert there.received["call echo"] == 1
            await a.fabric.connect(here.in_process())
            await trio.sleep(5)
            assert [*a.fabric.links] == ["web"]


async def test_servers_of_one_group_that_list_the_same_share_calls_and_one_that_leaves_hurts_nobody(
    autojump_clock: MockClock,
) -> None:
    first, second = server("web"), server("web")
    groups = {"web": "pool"}
    async with open_broker(Random(1)) as broker, member(broker, "c") as c:
        async with member(broker, "a", first.in_process(), groups=groups):
            async with member(broker, "b", second.in_process(), groups=groups):
                await listed(c.fabric, "web__echo")
                await trio.sleep(3)
                assert len([name for name in c.fabric.links if name.startswith("pool@")]) == 1
                for _ in range(40):
                    await c.fabric.call("web__echo", {"text": "x"})
                assert min(first.received["call echo"], second.received["call echo"]) > 5
            for _ in range(10):
                await c.fabric.call("web__echo", {"text": "x"})
        assert first.received["call echo"] + second.received["call echo"] == 50


async def test_a_group_that_lists_other_things_now_is_listed_all_the_while(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Catalogues.fetch

    async def slow(self: Catalogues, digest: str) -> Catalogue:
        await trio.sleep(2)
        return await fetch(self, digest)

    monkeypatch.setattr(Catalogues, "fetch", slow)
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", server("web").in_process(), groups={"web": "pool"}) as a,
        member(broker, "c") as c,
    ):
        await listed(c.fabric, "web__echo")
        before = [name for name in c.fabric.links if name.startswith("pool@")]
        gaps: list[int] = []

        async def watch() -> None:
            snapshot = c.fabric.registry.snapshot
            while True:
                snapshot = await c.fabric.registry.changed(snapshot.version)
                if "web__echo" not in snapshot.tools:
                    gaps.append(snapshot.version)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await a.fabric.call("web__change_tools")
            while [name for name in c.fabric.links if name.startswith("pool@")] == before:
                assert (await c.fabric.call("web__echo", {"text": "x"})).text == "x"
                await trio.sleep(0.1)
            await trio.sleep(3)
            assert set(c.fabric.registry.snapshot.tools) == set(a.fabric.registry.snapshot.tools)
            nursery.cancel_scope.cancel("enough was seen")
        (after,) = [name for name in c.fabric.links if name.startswith("pool@")]
        assert (gaps, [after] != before) == ([], True)


async def test_calls_stay_in_their_region_while_there_is_somebody(autojump_clock: MockClock) -> None:
    north, south = server("web"), server("web")
    groups = {"web": "pool"}
    async with open_broker(Random(1)) as broker, member(broker, "c", labels={"region": "north"}) as c:
        async with member(broker, "b", south.in_process(), groups=groups, labels={"region": "south"}):
            async with member(broker, "a", north.in_process(), groups=groups, labels={"region": "north"}):
                await listed(c.fabric, "web__echo")
                await trio.sleep(3)
                for _ in range(20):
                    await c.fabric.call("web__echo", {"text": "x"})
                assert (north.received["call echo"], "call echo" in south.received) == (20, False)
            await c.fabric.call("web__echo", {"text": "x"})
            assert south.received["call echo"] == 1


async def test_what_is_not_shared_cannot_be_called_by_others(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        sources = (server("web").in_process(), server("secret").in_process())
        async with member(broker, "a", *sources, share="w*"), member(broker, "b") as b:
            await listed(b.fabric, "web__echo")
            assert "secret__echo" not in b.fabric.registry.snapshot.tools
            for name in ("secret__echo", "nothing"):
                with pytest.raises(ToolNotFound):
                    await b.node.calling.call(Call("tools/call", name), ["a"])


async def test_what_a_node_has_from_another_it_does_not_offer(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a", server("web").in_process()) as a:
        async with member(broker, "b", server("notes").in_process()) as b, member(broker, "c") as c:
            await listed(b.fabric, "web__echo")
            await listed(c.fabric, "web__echo")
            await trio.sleep(5)
            assert list(c.node.roster.nodes["b"].servers) == ["notes"]
            assert list(a.node.roster.nodes["a"].servers) == ["web"]
            with pytest.raises(ToolNotFound):
                await c.node.calling.call(Call("tools/call", "web__echo"), ["b"])


async def test_a_list_that_changes_is_followed_and_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a", server("web").in_process()) as a:
        async with member(broker, "b") as b:
            await listed(b.fabric, "web__echo")
            before = set(b.fabric.registry.snapshot.tools)
            await a.fabric.call("web__change_tools")
            with trio.fail_after(20):
                while set(b.fabric.registry.snapshot.tools) == before:
                    await b.fabric.registry.changed(b.fabric.registry.snapshot.version)
            await wait_all_tasks_blocked()
            assert set(b.fabric.registry.snapshot.tools) == set(a.fabric.registry.snapshot.tools)
            assert b.fabric.counters["mesh.catalogue_changed"] == 1
            assert "node=a server=web" in caplog.text


async def test_another_configuration_leaves_the_sources_of_other_nodes_alone(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a", server("web").in_process()):
        async with member(broker, "b") as b:
            await listed(b.fabric, "web__echo")
            changes = b.fabric.reconfigure(Config(sources=[server("notes").in_process()]))
            assert changes.added == ("notes",)
            assert (await b.fabric.call("web__echo", {"text": "x"})).text == "x"
            assert (await b.fabric.call("notes__echo", {"text": "y"})).text == "y"


async def test_more_than_is_let_in_is_left_out_and_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_broker(Random(1)) as broker:
        async with member(broker, "a", server("web").in_process(), server("notes").in_process()):
            settings = MeshConfig(servers=["x"], node="b", remote=1)
            async with broker.way().open() as nats, open_fabric() as fabric:
                bucket = await open_bucket(nats, "cord_cord")
                async with join_mesh(fabric, settings, nats, bucket, Random(1)):
                    await trio.sleep(5)
                    assert len(fabric.links) == 1
                    assert fabric.counters["mesh.remote_full"] > 0
                    assert caplog.text.count("more is offered than mesh.remote lets in") == 1


async def test_a_drain_finishes_the_calls_of_others_and_they_know(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "b") as b:
        results: list[str] = []

        async def ask() -> None:
            results.append((await b.fabric.call("web__sleep", {"seconds": 3})).text)

        async with trio.open_nursery() as nursery:
            async with member(broker, "a", server("web").in_process()):
                await listed(b.fabric, "web__sleep")
                nursery.start_soon(ask)
                await trio.sleep(1)
            assert len(results) == 1


async def test_a_source_that_drains_here_cuts_its_calls_on_other_nodes_at_its_grace(autojump_clock: MockClock) -> None:
    web = server("web")
    async with open_broker(Random(1)) as broker, member(broker, "a", web.in_process()), member(broker, "b") as b:
        await listed(b.fabric, "web__sleep")
        failures: list[CallError] = []

        async def ask() -> None:
            with pytest.raises(CallError) as caught:
                await b.fabric.call("web__sleep", {"seconds": 50})
            failures.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            link = b.fabric.links["web@a"]
            assert (link.in_flight, b.fabric.tree().children[0].state) == (1, "ready")
            assert await b.fabric.disconnect("web@a", grace=1) is False
        assert [(type(each).__name__, each.executed) for each in failures] == [("DrainTimeout", "unknown")]
        await trio.sleep(1)
        assert web.cancelled == 1
        # It is still offered, so it is had again once something has changed.
        with pytest.raises(CallError) as caught:
            await link.call(Call("tools/call", "web__echo"), "web__echo")
        assert caught.value.executed == "no"


async def test_a_catalogue_that_is_wrong_leaves_its_server_out_until_it_is_right(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats, member(broker, "b") as b:
        bucket = await open_bucket(nats, "cord_cord")
        texts: list[bytes] = []
        async with member(broker, "a", server("web").in_process()) as a:
            await listed(b.fabric, "web__echo")
            texts += [text for _, text in a.node.teller._texts.items()]
        digest = digest_of(texts[0])
        await bucket.put(f"cat.{digest}", b"1\n[]")
        async with member(broker, "c") as c:
            await bucket.put("up.x", b'{"epoch":"0badcafe","servers":{"web":"%b"}}' % digest.encode())
            await bucket.put("hb.x.0badcafe", b"", ttl=60)
            await trio.sleep(3)
            assert "web__echo" not in c.fabric.registry.snapshot.tools
            assert "a server of another node is left out" in caplog.text
            await c.node.catalogues.put(texts[0])
            await listed(c.fabric, "web__echo")


async def test_no_node_takes_the_names_that_are_kept_for_the_fabrics_own(autojump_clock: MockClock) -> None:
    tools = {f"{prefix}__x": (lambda _: "mine") for prefix in ("agent", "Cord", "fine")}
    theirs = ToolServer(tools, name="web").in_process(prefix="")
    async with open_broker(Random(1)) as broker, member(broker, "a", theirs), member(broker, "b") as b:
        await listed(b.fabric, "fine__x")
        snapshot = b.fabric.registry.snapshot
        assert not {"agent__x", "Cord__x"} & set(snapshot.tools)
        assert any("2 names that are kept" in str(problem) for problem in snapshot.problems)


async def test_a_question_that_nobody_answers_is_let_go_of_on_the_other_node(autojump_clock: MockClock) -> None:
    web = server("web", era="legacy")
    async with open_broker(Random(1)) as broker, member(broker, "a", web.in_process()) as a, member(broker, "b") as b:
        await listed(b.fabric, "web__ask")
        given = {"method": "elicitation/create", "params": {"message": "n?", "requestedSchema": {"type": "object"}}}
        arguments = {"arguments": msgspec.Raw(msgspec.json.encode(given))}
        asked = Call("tools/call", "web__ask", arguments, capabilities=b'{"elicitation":{}}')
        outcome = await b.fabric.handle(asked)
        assert isinstance(outcome, InputRequired)
        assert outcome.park.startswith("a.")
        with trio.move_on_after(5) as moot:
            await b.fabric.wait_moot(outcome.park)
        assert moot.cancelled_caught
        b.fabric.abandon(outcome.park, "the person has left")
        await trio.sleep(0.1)
        assert a.fabric.counters["parks.expired"] == 1


@pytest.mark.parametrize(("member_name", "text"), [("credentials", "no seed"), ("ca", "no certificate"), ("ca", None)])
async def test_a_file_of_the_settings_that_cannot_be_used_is_named(
    member_name: str, text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    given: dict[str, Json] = {member_name: str(path)}
    settings = MeshConfig(servers=["nats://127.0.0.1:1"], node="a", **given)
    with pytest.raises(ConfigError, match=rf"mesh\.{member_name}: .*file cannot be used"):
        async with open_fabric(mesh=in_mesh(settings)):
            raise AssertionError
