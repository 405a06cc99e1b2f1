"""A legacy client whose connection broke asks for the rest of its stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.gateway.trail import KEPT_FOR
from tests.gateway.fakes import LATEST, FakeFabric, legacy, modern, open_http, text, tool

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome
    from tests.gateway.fakes import Exchange, HttpGate

ACCEPT = ("Accept", "text/event-stream")
OLD = "2025-06-18"


class Steps:
    """A tool that tells of progress when it is told to, and then answers."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.finish = trio.Event()

    async def __call__(self, call: Call) -> Outcome:
        self.call = call
        await self.finish.wait()
        return text("done")

    def step(self, number: int) -> None:
        assert self.call is not None
        assert self.call.events is not None
        self.call.events("notifications/progress", Raw(b'{"progressToken":1,"progress":%d}' % number))


def call(id: int = 1) -> bytes:
    return legacy(id, "tools/call", {"name": "work", "_meta": {"progressToken": "t"}})


def said(exchange: Exchange) -> list[object]:
    """The progress of each event, or the word `answer`."""
    return [event["params"]["progress"] if "params" in event else "answer" for event in exchange.events]


async def begin(gate: HttpGate, steps: Steps, version: str = LATEST) -> tuple[Exchange, tuple[str, str]]:
    """A call that has told of two steps."""
    session = await gate.open(version)
    post = gate.start("POST", "/mcp", call(), session)
    await wait_all_tasks_blocked()
    steps.step(1)
    steps.step(2)
    return post, session


def again(gate: HttpGate, session: tuple[str, str], event_id: str) -> Exchange:
    return gate.start("GET", "/mcp", b"", session, ACCEPT, ("Last-Event-ID", event_id))


async def test_the_rest_of_a_broken_stream_is_given_and_the_answer_once() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        assert post.ids == ["1-1", "1-2", "1-3"]
        assert post.body.startswith(b"event: message\nid: 1-1\ndata: \n\n")
        post.leave()
        steps.step(3)
        get = again(gate, session, "1-2")
        await wait_all_tasks_blocked()
        assert (get.status, said(get)) == (200, [2, 3])
        steps.step(4)
        steps.finish.set()
        await get.finished.wait()
        assert (said(get), get.ids, get.ended) == ([2, 3, 4, "answer"], ["1-3", "1-4", "1-5", "1-6"], True)
        assert gate.service.counters["gateway.resumed"] == 1
        assert gate.service.counters["gateway.answers_dropped"] == 0


async def test_only_the_newest_clients_have_a_priming_event() -> None:
    for version, ids in (("2024-11-05", []), ("2025-03-26", ["1-1", "1-2"]), (OLD, ["1-1", "1-2"])):
        steps = Steps()
        async with open_http(FakeFabric(work=steps)) as gate:
            post, _ = await begin(gate, steps, version)
            assert post.ids == ids
            assert b"data: \n" not in post.body
            steps.finish.set()
            await post.finished.wait()


async def test_modern_streams_have_no_ids() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post = gate.modern_start(modern(1, "tools/call", {"name": "work"}, {"progressToken": "t"}))
        await wait_all_tasks_blocked()
        steps.step(1)
        steps.finish.set()
        await post.finished.wait()
        assert (said(post), post.ids) == ([1, "answer"], [])


async def test_an_answer_that_was_given_while_nobody_was_there_is_kept_for_a_while(autojump_clock: object) -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        post.leave()
        steps.finish.set()
        await trio.sleep(KEPT_FOR - 1)
        get = again(gate, session, "1-3")
        await get.finished.wait()
        assert (said(get), get.ended) == (["answer"], True)
        await trio.sleep(2)
        late = again(gate, session, "1-3")
        await late.finished.wait()
        assert late.status == 400


async def test_an_answer_that_was_lost_on_the_way_is_given_again() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        steps.finish.set()
        await post.finished.wait()
        get = again(gate, session, "1-3")
        await get.finished.wait()
        assert said(get) == ["answer"]
        whole = again(gate, session, post.ids[-1])
        await whole.finished.wait()
        assert (whole.status, whole.body, whole.ended) == (200, b"", True)


async def test_a_client_that_comes_back_before_its_loss_is_noticed_takes_over() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        first = again(gate, session, "1-3")
        await wait_all_tasks_blocked()
        second = again(gate, session, "1-3")
        await wait_all_tasks_blocked()
        assert post.ended
        assert first.ended
        assert first.finished.is_set()
        steps.step(3)
        steps.finish.set()
        await second.finished.wait()
        assert (said(first), said(second)) == ([], [3, "answer"])


async def test_a_stream_is_not_replayed_to_another_session_nor_into_another_stream() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        other = await gate.open()
        stranger = again(gate, other, "1-1")
        await stranger.finished.wait()
        assert stranger.status == 400
        another = gate.start("POST", "/mcp", call(2), session)
        await wait_all_tasks_blocked()
        steps.step(9)
        post.leave()
        get = again(gate, session, "1-1")
        await wait_all_tasks_blocked()
        assert (said(get), said(another)) == ([1, 2], [9])
        steps.finish.set()
        await get.finished.wait()
        await another.finished.wait()
        assert [event["id"] for event in get.events[-1:]] == [1]
        assert [event["id"] for event in another.events[-1:]] == [2]


@pytest.mark.parametrize("event_id", ["7-1", "1-99", "rubbish", "1-", "-1-1", "0-5"])
async def test_ids_of_which_nothing_is_kept_are_refused_and_the_session_lives(event_id: str) -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        _, session = await begin(gate, steps)
        get = again(gate, session, event_id)
        await get.finished.wait()
        assert get.status == 400
        assert (await gate.post(legacy(5, "ping"), session)).status == 200
        steps.finish.set()


async def test_a_call_that_nobody_can_ask_for_is_dropped_as_before() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        session = await gate.open()
        post = gate.start("POST", "/mcp", call(), session)
        await wait_all_tasks_blocked()
        post.leave()  # before any id was given
        steps.finish.set()
        await wait_all_tasks_blocked()
        assert gate.service.counters["gateway.answers_dropped"] == 1


async def test_what_the_standing_stream_lost_on_the_way_is_given_again(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        session = await gate.open()
        first = gate.start("GET", "/mcp", b"", session, ACCEPT)
        await trio.sleep(1)
        fabric.registry.publish([tool("a")])
        await trio.sleep(1)
        assert first.ids == ["0-1", "0-2"]
        first.leave()
        second = again(gate, session, "0-1")
        await trio.sleep(1)
        assert (second.ids, second.events) == (["0-2"], first.events)
        fabric.registry.publish([tool("b")])
        await trio.sleep(1)
        assert second.ids == ["0-2", "0-3"]


async def test_the_end_of_a_session_frees_what_was_kept() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        _, session = await begin(gate, steps)
        store = gate.service.sessions._store
        assert store.used > 0
        await gate.ask("DELETE", "/mcp", b"", session)
        await wait_all_tasks_blocked()
        assert store.used == 0


async def test_cancelling_ends_the_resumed_stream_with_its_answer() -> None:
    steps = Steps()
    async with open_http(FakeFabric(work=steps)) as gate:
        post, session = await begin(gate, steps)
        post.leave()
        get = again(gate, session, "1-3")
        await wait_all_tasks_blocked()
        await gate.post(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}', session)
        await get.finished.wait()
        assert get.events[-1]["error"]["code"] == -32800
