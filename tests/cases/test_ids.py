"""Reported failures of request ids, over whole conversations."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.errors import CallFailed
from cord_trio.fabric import open_fabric
from cord_trio.gateway import serve_gateway
from cord_trio.testing import ToolServer
from cord_trio.transports.memory import memory_transport_pair
from tests.cases.servers import noise, scripted
from tests.gateway.fakes import (
    FakeFabric,
    PipeClient,
    echo,
    headers_of,
    initialize,
    legacy,
    modern,
    open_http,
    open_pipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Json: TypeAlias = Any


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_i01_ids_that_come_back_as_strings_find_their_calls_and_are_counted(era: str) -> None:
    server = ToolServer(era=era, string_ids=True, name="it")
    async with open_fabric([server.in_process()]) as fabric:
        async with trio.open_nursery() as nursery:
            for number in range(5):

                async def call(text: str = str(number)) -> None:
                    assert (await fabric.call("it__echo", {"text": text})).text == text

                nursery.start_soon(call)
        assert fabric.counters["session.lenient_reply"] >= 5
        assert fabric.links["it"].starts == 1


def answered(client: PipeClient) -> list[Json]:
    """What came, without log notifications, which belong to no id."""
    return [message for message in client.got if "id" in message]


async def test_i05_a_thousand_calls_of_two_clients_with_the_same_ids_never_cross() -> None:
    rounds, width = 10, 50
    async with open_fabric([ToolServer(name="it").source()]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()

        async def use(who: str) -> None:
            ours, theirs = memory_transport_pair()
            with ours, theirs:
                client = PipeClient(theirs)
                nursery.start_soon(partial(serve_gateway, fabric, pipes=[ours]))
                nursery.start_soon(theirs.run, client)
                client.send(initialize("i"))
                for start in range(0, rounds * width, width):
                    for id in range(start, start + width):
                        client.send(legacy(id, "tools/call", {"name": "it__echo", "arguments": {"text": f"{who}{id}"}}))
                    while len(answered(client)) < 1 + start + width:  # noqa: ASYNC110  # nobody but a test asks
                        await trio.sleep(0.001)
            answers = {answer["id"]: answer["result"] for answer in answered(client)}
            assert len(answers) == len(answered(client))
            for id in range(rounds * width):
                assert answers[id]["content"] == [{"type": "text", "text": f"{who}{id}"}]

        async with trio.open_nursery() as clients:
            clients.start_soon(use, "a")
            clients.start_soon(use, "b")
        assert fabric.links["it"].starts == 1
        nursery.cancel_scope.cancel("all is seen")


NAMELESS = """
NAMELESS = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"cannot read that"}}\\n'
held = []
def own_answer(message):
    if message.get("method") != "tools/call": return False
    text = message["params"]["arguments"]["text"]
    if text == "alone":
        put(NAMELESS)
        return True
    if text == "held":
        held.append(message["id"])
        return True
    if text == "both":
        put(NAMELESS)
        put(NAMELESS.replace(b'"id":null,', b''))
        said(held.pop(), result={"content": [{"type": "text", "text": "released"}]})
    return False
"""


async def test_i07_an_error_without_id_is_for_the_only_call_or_else_noted() -> None:
    async with open_fabric([scripted(NAMELESS)]) as fabric:
        with pytest.raises(CallFailed, match="cannot read that"):
            await fabric.call("it__echo", {"text": "alone"})
        got: list[str] = []

        async def call(text: str) -> None:
            got.append((await fabric.call("it__echo", {"text": text})).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "held")
            while fabric.links["it"].in_flight < 1:  # noqa: ASYNC110  # nobody but a test asks
                await trio.sleep(0.001)
            nursery.start_soon(call, "both")
        assert sorted(got) == ["both", "released"]
        assert noise(fabric) == ["cannot read that"] * 2
        assert fabric.counters["session.reply_without_id"] == 2
        assert fabric.links["it"].starts == 1


async def test_i08_a_request_with_a_null_id_is_refused_in_both_eras_and_on_both_ways_in() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        session = await gate.open()
        fresh = modern(None, "tools/list")
        for message, fields in ((legacy(None, "tools/list"), [session]), (fresh, headers_of(fresh))):
            answer = await gate.post(message, *fields)
            assert (answer.status, answer.json["error"]["code"]) == (400, -32600)
    async with open_pipe(FakeFabric(echo=echo)) as client:
        await client.ask(initialize())
        for message in (legacy(None, "tools/list"), modern(None, "tools/list")):
            (refusal,) = await client.ask(message)
            assert (refusal.get("id"), refusal["error"]["code"]) == (None, -32600)


@pytest.mark.parametrize("make", [legacy, modern])
@pytest.mark.parametrize("id", ["1", "init-1", 9007199254740993, "", 0, -1, 1])
async def test_i03_ids_come_back_over_http_too(make: Callable[..., bytes], id: object) -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        session = await gate.open()
        for name in ("echo", "none"):
            message = make(id, "tools/call", {"name": name})
            answer = await gate.post(message, *(headers_of(message) if make is modern else [session]))
            assert json.dumps(answer.json["id"]) == json.dumps(id)


async def test_i11_calls_at_one_moment_have_ids_of_their_own(autojump_clock: trio.testing.MockClock) -> None:
    server = ToolServer(name="it")
    async with open_fabric([server.in_process(slots=50)]) as fabric:
        await fabric.wait_started()
        moment = trio.current_time()
        server.lines.clear()
        got: list[str] = []

        async def call(text: str) -> None:
            got.append((await fabric.call("it__echo", {"text": text})).text)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(call, str(number))
        assert trio.current_time() == moment
        assert sorted(got, key=int) == [str(number) for number in range(50)]
        ids = [json.loads(line)["id"] for line in server.lines]
        assert len(ids) == len(set(ids)) == 50
        await wait_all_tasks_blocked()
