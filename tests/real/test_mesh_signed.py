"""Signed calls that somebody has listened to, said once more over a real NATS server: they run no second time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.call import Call, Complete
from cord_trio.mesh.frames import Frame, decode_frame
from cord_trio.mesh.node import Node, open_node
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import open_bucket
from cord_trio.nats.wire import Message
from tests.mesh.ring import tool_call
from tests.real.helpers import until
from tests.real.nats_server import FOUND, Broker, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cord_trio.call import Handler, Outcome
    from cord_trio.nats.client import Nats

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True) as broker:
        yield broker


class Counting:
    """Answers with its arguments, and knows which they were."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.ran.append(bytes(call.params["arguments"]))
        return Complete(call.params["arguments"])


@asynccontextmanager
async def node(
    broker: Broker, name: str, handler: Handler | None = None, seed: int | None = None
) -> AsyncGenerator[Node]:
    async with open_nats(broker.url, name=name, rng=Random()) as nats:
        store, rng = await open_bucket(nats, "cord_signed"), Random(seed)
        async with open_node(nats, store, mesh="signed", node=name, handler=handler, keys=[KEY], rng=rng) as node:
            yield node


class Eve:
    """Hears all that is said on a server that lets her, and can say anything."""

    def __init__(self, nats: Nats) -> None:
        self.nats = nats
        self.heard: list[Message] = []

    def calls(self) -> list[Message]:
        return [each for each in self.heard if b"C-Op: call" in each.head and b"C-Sig" in each.head]

    async def says(self, message: Message, subject: str = "") -> Frame:
        """What is answered to `message`, said again as it came, or to another."""
        with self.nats.open_stream(subject or message.subject, message.data, head=message.head) as stream:
            with trio.fail_after(5):
                while (frame := read(await stream.receive())).kind in ("acc", "hb"):
                    pass
        return frame


def read(message: Message) -> Frame:
    return decode_frame(message.head, message.data)


@asynccontextmanager
async def eve(broker: Broker) -> AsyncGenerator[Eve]:
    async with open_nats(broker.url, name="eve") as nats:
        listening = Eve(nats)
        with nats.subscribe("c1.signed.call.>", tell=listening.heard.append):
            await nats.flush()
            yield listening


async def call_each(a: Node, *arguments: bytes) -> None:
    await until(lambda: a.roster.epoch("b") is not None)
    for each in arguments:
        assert isinstance(await a.calling.call(tool_call(each), ["b"]), Complete)


async def test_what_was_heard_is_good_no_second_time(broker: Broker) -> None:
    work = Counting()
    async with eve(broker) as listening, node(broker, "a") as a, node(broker, "b", work) as b:
        await call_each(a, b"1", b"2", b"3")
        await until(lambda: len(listening.calls()) >= 3)
        calls = listening.calls()  # the first of them was signed for no time that is known there, and does not count
        # The owner still knows the last: whoever says it again hears what came of it.
        again = await listening.says(calls[-1])
        assert (again.kind, again.body) == ("ok", b"3")
        # Those before are over, and forgotten.
        for each in calls[1:-1]:
            frame = await listening.says(each)
            assert (frame.kind, frame.reason, frame.text) == ("rej", "denied", "its signature has come before")
        assert work.ran == [b"1", b"2", b"3"]
        assert b.counters["mesh.refused_denied"] == len(calls) - 2 > 0


async def test_what_was_heard_is_good_from_no_other_node_and_with_no_other_arguments(broker: Broker) -> None:
    work = Counting()
    async with (
        eve(broker) as listening,
        node(broker, "a") as a,
        node(broker, "b", work, seed=7) as b,
        node(broker, "c", work, seed=7) as c,
    ):
        assert b.epoch == c.epoch  # so that their names alone tell them apart
        await call_each(a, b"1", b"2")
        last = listening.calls()[-1]
        refused = "its signature is not of this mesh's key, this call and this node"
        frame = await listening.says(last, f"c1.signed.call.b.{b.epoch}.c")
        assert (frame.kind, frame.reason, frame.text) == ("rej", "denied", refused)
        frame = await listening.says(last, f"c1.signed.call.c.{c.epoch}.a")  # to another that has the key
        assert (frame.kind, frame.reason, frame.text) == ("rej", "denied", refused)
        id = last.header("C-Id") or ""
        new = last.head.replace(id.encode(), b"f" * 32)
        over = next(each for each in listening.calls()[:-1] if b"1" in each.data).head  # its owner knows it no more
        for head, body in (
            (new, last.data),
            (new.replace(b"C-Tool: t", b"C-Tool: u"), last.data),
            (over, b'{"arguments":9}'),
            (over.replace(b"C-Tool: t", b"C-Tool: u"), b'{"arguments":1}'),
        ):
            frame = await listening.says(Message(last.subject, 0, "", head, body))
            assert (frame.kind, frame.reason, frame.text) == ("rej", "denied", refused)
        assert work.ran == [b"1", b"2"]


async def test_what_was_heard_is_good_for_no_later_incarnation(broker: Broker) -> None:
    work = Counting()
    async with eve(broker) as listening, node(broker, "a") as a:
        async with node(broker, "b", work) as b:
            await call_each(a, b"1", b"2")
            before = b.epoch
        heard = listening.calls()
        async with node(broker, "b", work) as b:
            assert b.epoch != before
            for each in heard:
                frame = await listening.says(each, f"c1.signed.call.b.{b.epoch}.a")
                assert (frame.kind, frame.reason) == ("rej", "denied")
                assert "not of this mesh's key" in frame.text
            await until(lambda: a.roster.epoch("b") == b.epoch)
            await call_each(a, b"3")
        assert work.ran == [b"1", b"2", b"3"]
