"""A node that follows no rules, beside one that does: it may be refused, and must harm no more than its own calls."""

from __future__ import annotations

from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import pytest
import trio
from msgspec import Raw

from cord_trio.agents.agent import Agent
from cord_trio.agents.exporting import as_tool
from cord_trio.call import Call, Complete
from cord_trio.errors import BadReply, CallError, DeadlineExceeded
from cord_trio.mesh.catalogues import Catalogues, encode_agents
from cord_trio.mesh.frames import Bundle, Frame, decode_request, encode_frame
from cord_trio.mesh.letters import EMIT, reply_of
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.parts import PART
from cord_trio.mesh.presence import NodeRecord
from cord_trio.nats.kv import open_bucket
from tests.mesh.members import has, listed, member

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from trio.testing import MockClock

    from cord_trio import Context
    from cord_trio.mesh.local import LocalBroker
    from cord_trio.nats.kv import Bucket
    from cord_trio.nats.wire import Message

EPOCH = "11111111"
LISTS = (
    b'{"revision":"2025-11-25","capabilities":{"tools":{}},"server_info":{"name":"x","version":"1"},'
    b'"instructions":null,"lists":{"tools":[{"name":"t","inputSchema":{"type":"object"}}]}}'
)


@asynccontextmanager
async def hostile(broker: LocalBroker, *answers: tuple[dict[str, str], bytes]) -> AsyncGenerator[Bucket]:
    """A node that offers tool `t` and agent `a`, and says `answers` to all that it is asked."""
    async with broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_cord")
        catalogues = Catalogues(bucket, rng=Random(5))
        servers = {"x": await catalogues.put(LISTS)}
        agents = await catalogues.put(encode_agents([as_tool(Agent("a", answer))]))

        def told(message: Message) -> None:
            if message.reply and message.header("C-Op") == "call":
                for headers, body in answers:
                    nats.publish(message.reply, body, headers=headers)

        with nats.subscribe(f"c1.cord.call.bad.{EPOCH}.*", tell=told):
            await bucket.put(f"hb.bad.{EPOCH}", b"", ttl=3600)
            await bucket.put("up.bad", msgspec.json.encode(NodeRecord(EPOCH, servers=servers, agents=agents)))
            yield bucket


async def answer(ctx: Context, payload: object) -> object:
    """Never runs: what is listed of it is all that there is."""
    await trio.lowlevel.checkpoint()
    raise AssertionError


@pytest.mark.parametrize(
    "record",
    [
        b'{"epoch":"22222222","later":%b}' % (b"[" * 1500 + b"]" * 1500),
        b'{"epoch":"22222222","servers":{"\\u0000":"%b"}}',
        b'{"epoch":"22222222","servers":{"x":"%b"},"groups":{"x":"a\\nb"}}',
    ],
)
async def test_a_record_that_no_node_would_write_ends_no_other(record: bytes, autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "good") as good, hostile(broker) as bucket:
        digest = await Catalogues(bucket, rng=Random(5)).put(LISTS)
        await bucket.put("up.worse", record.replace(b"%b", digest.encode()))
        await listed(good.fabric, "t")
        await trio.sleep(10)
        assert "worse" not in good.node.roster.nodes
        assert good.fabric.counters["mesh.bad_record"] > 0


async def test_notifications_that_cannot_be_read_are_left_out(autojump_clock: MockClock) -> None:
    told = {"C-K": "prog", "C-Method": "notifications/progress"}
    answers = ((told, b"}{"), (told, b'{"progress":1}'), ({"C-K": "ok"}, b'{"content":[]}'))
    heard: list[bytes] = []
    async with open_broker(Random(1)) as broker, member(broker, "good") as good, hostile(broker, *answers):
        await listed(good.fabric, "t")
        call = Call("tools/call", "t", {"arguments": Raw(b"{}")}, events=lambda _, params: heard.append(bytes(params)))
        assert isinstance(await good.fabric.handle(call), Complete)
        assert heard == [b'{"progress":1}']
        assert good.fabric.counters["mesh.bad_frames"] == 1


async def test_what_an_agent_emits_and_is_nothing_is_left_out(autojump_clock: MockClock) -> None:
    told = {"C-K": "prog", "C-Method": EMIT}
    answers: Sequence[tuple[dict[str, str], bytes]] = (
        (told, b""), (told, b"1"), ({"C-K": "ok"}, bytes(reply_of("done", "it", {}))),
    )  # fmt: skip
    async with open_broker(Random(1)) as broker, member(broker, "good") as good, hostile(broker, *answers):
        await has(good, "a")
        async with good.fabric.stream("a", None) as emitted:
            assert [each async for each in emitted] == [1]
        assert await good.fabric.ask("a", None) == "done"
        assert good.fabric.counters["mesh.bad_frames"] == 1


BODY = b'{"content":[{"type":"text","text":"%b"}]}' % (b"0123456789" * 40_000)
PARTS = [BODY[at : at + PART] for at in range(0, len(BODY), PART)]
Sent: TypeAlias = "list[tuple[int, bytes]]"


def other(data: bytes) -> bytes:
    """As long, and JSON too."""
    return data.replace(b"0", b"1")


def swapped(asked: Sent) -> Sent:
    """Two parts in each other's place, of the same length: JSON too."""
    return [(seq, PARTS[{3: 4, 4: 3}.get(seq, seq)]) for seq, _ in asked]


def spoilt(asked: Sent) -> Sent:
    """One that is another."""
    return [(seq, other(data) if seq == 3 else data) for seq, data in asked]


def longer(asked: Sent) -> Sent:
    """Longer ones, so that there is more than was announced after half of them."""
    return [(seq, data * 2 if 0 < seq < len(PARTS) - 1 else data) for seq, data in asked]


def shorter(asked: Sent) -> Sent:
    """The last one is too short."""
    return [(seq, data[:-1] if seq == len(PARTS) - 1 else data) for seq, data in asked]


@pytest.mark.parametrize(
    ("send", "error", "unwanted"),
    [
        (lambda asked: asked[::-1], None, False),
        (lambda asked: [*asked, *asked], None, True),
        (lambda asked: [(seq, other(data)) for seq, data in asked] + asked, BadReply, True),  # the first counts
        (lambda asked: [*((seq + 9, data) for seq, data in asked), (10**6, b""), *asked], None, True),
        (swapped, BadReply, False),
        (spoilt, BadReply, False),
        (shorter, BadReply, False),
        (
            longer,
            DeadlineExceeded,
            True,
        ),  # what is too long is no part: the node is asked again, as long as there is time
    ],
    ids=["in-reverse", "twice", "others-first", "not-asked-for", "swapped", "spoilt", "shorter", "longer"],
)
async def test_a_large_answer_is_what_was_announced_or_none(
    send: Callable[[Sent], Sent], error: type[CallError] | None, unwanted: bool, autojump_clock: MockClock
) -> None:
    """Whatever a node sends as the parts of its answer: that is put together whole or refused, and leaves its room."""
    bundle = Bundle(len(PARTS), len(BODY), sha256(BODY).hexdigest())
    async with open_broker(Random(1)) as broker, broker.way().open() as nats, member(broker, "a") as a:
        bucket = await open_bucket(nats, "cord_cord")
        servers = {"x": await Catalogues(bucket, rng=Random(5)).put(LISTS)}

        def told(message: Message) -> None:
            request = decode_request(message.head, message.data) if message.header("C-Id") else None
            if request is not None and request.op == "call":
                nats.publish(message.reply, headers=encode_frame(Frame("end", bundle=bundle)))
            elif request is not None and request.op == "credit":
                asked = [(seq, PARTS[seq]) for seq in range(request.first, request.first + request.window)]
                for seq, data in send(asked):
                    nats.publish(request.to, data, headers=encode_frame(Frame("part", seq=seq)))

        with nats.subscribe(f"c1.cord.call.bad.{EPOCH}.*", tell=told):
            await bucket.put(f"hb.bad.{EPOCH}", b"", ttl=3600)
            await bucket.put("up.bad", msgspec.json.encode(NodeRecord(EPOCH, servers=servers)))
            await listed(a.fabric, "t")
            call = Call("tools/call", "t", {"arguments": Raw(b"{}")}, deadline=trio.current_time() + 20)
            if error is None:
                assert await a.fabric.handle(call) == Complete(Raw(BODY))
            else:
                with pytest.raises(error) as caught:
                    await a.fabric.handle(call)
                assert caught.value.executed == "yes"
            parts = a.node.owning._parts
            assert parts is not None
            assert (parts.fetching, parts._taken, parts._fetches) == (0, 0, 0)
            assert (a.node.counters["mesh.parts_unwanted"] > 0) is unwanted
