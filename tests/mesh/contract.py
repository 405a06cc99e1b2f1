"""What every way to a mesh, and every store, has to keep: the same functions for the local one and for NATS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest
import trio

from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.mesh_errors import Conflict, NoResponders
from cord_trio.nats.kv import Entry
from cord_trio.nats.watch import Change, Reset, Synced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from cord_trio.mesh.contracts import Link, Store, Watching
    from cord_trio.nats.wire import Message


class World(Protocol):
    """One mesh."""

    def link(self) -> AbstractAsyncContextManager[Link]:
        """A node's way to the others."""

    async def store(self, link: Link, bucket: str) -> Store:
        """A store, as that node sees it."""

    async def lose(self, link: Link) -> None:
        """Break the connection off; returns once the node has noticed."""

    async def lose_bucket(self, store: Store) -> None:
        """Lose a store with all it holds."""


def echo(link: Link, subject: str, queue: str = "") -> None:
    def answer(message: Message) -> None:
        link.publish(message.reply, message.data, headers=dict(message.headers()))

    link.subscribe(subject, tell=answer, queue=queue)


async def requests_are_answered_with_headers(world: World) -> None:
    async with world.link() as here, world.link() as there:
        echo(there, "c1.m.call.b.1.*")
        await there.flush()
        reply = await here.request("c1.m.call.b.1.a", b"\x00\r\n", headers={"C-Op": "call", "C-Ttl": "5"})
        assert (reply.data, reply.headers()) == (b"\x00\r\n", [("C-Op", "call"), ("C-Ttl", "5")])


async def nobody_is_known_at_once(world: World) -> None:
    async with world.link() as here, world.link() as there:
        with pytest.raises(NoResponders) as caught:
            await here.request("nobody", b"x")
        assert caught.value.executed == "no"
        with here.open_stream("nobody") as stream:
            with pytest.raises(NoResponders):
                await stream.receive()
        with there.subscribe("nobody"):
            await there.flush()
            with trio.move_on_after(0.05) as silence:
                await here.request("nobody")
            assert silence.cancelled_caught
        await there.flush()
        with pytest.raises(NoResponders):
            await here.request("nobody")


async def messages_of_one_node_on_one_subject_stay_in_order(world: World) -> None:
    async with world.link() as here, world.link() as there:
        with there.subscribe("ordered.>") as taken:
            await there.flush()
            for number in range(200):
                here.publish("ordered.x", b"%d" % number)
            assert [int((await taken.receive()).data) for _ in range(200)] == list(range(200))


async def patterns_match_whole_tokens(world: World) -> None:
    async with world.link() as here:
        got: list[tuple[str, str]] = []
        for pattern in ("a.*", "a.>", "a.b", "*.b", ">", "a.*.c"):
            here.subscribe(f"p.{pattern}", tell=lambda message, of=pattern: got.append((of, message.subject)))  # type: ignore[misc]  # mypy does not see the default
        for subject in ("p.a", "p.a.b", "p.a.bb", "p.a.b.c", "p.b.b"):
            here.publish(subject)
        await here.flush()
        assert {subject: {of for of, to in got if to == subject} for _, subject in got} == {
            "p.a": {">"},
            "p.a.b": {">", "a.*", "a.>", "a.b", "*.b"},
            "p.a.bb": {">", "a.*", "a.>"},
            "p.a.b.c": {">", "a.>", "a.*.c"},
            "p.b.b": {">", "*.b"},
        }
        assert len(got) == 14


async def of_a_queue_one_gets_each_message(world: World) -> None:
    async with world.link() as here, world.link() as there:
        got: list[int] = []
        for number, link in enumerate((here, there, there)):
            link.subscribe("work", queue="q", tell=lambda _, of=number: got.append(of))  # type: ignore[misc]  # as above
        await here.flush()
        await there.flush()
        for _ in range(60):
            here.publish("work")
        await here.flush()
        await there.flush()
        assert len(got) == 60
        assert set(got) == {0, 1, 2}


async def a_request_may_have_many_replies(world: World) -> None:
    async with world.link() as here, world.link() as there:

        def answer(message: Message) -> None:
            for number in range(3):
                there.publish(message.reply, b"%d" % number)

        there.subscribe("many", tell=answer)
        await there.flush()
        with here.open_stream("many") as stream:
            assert [(await stream.receive()).data for _ in range(3)] == [b"0", b"1", b"2"]


async def a_message_that_is_too_long_is_refused(world: World) -> None:
    async with world.link() as here:
        echo(here, "big")
        data = bytes(here.max_payload)
        assert (await here.request("big", data)).data == data
        with pytest.raises(Overloaded, match="nats_payload"):
            here.publish("big", data + b"x")
        with pytest.raises(Overloaded, match="nats_payload"):
            here.publish("big", data, headers={"A": "1"})


async def a_lost_connection_fails_what_was_asked_and_comes_back(world: World) -> None:
    async with world.link() as here, world.link() as there:
        heard = trio.Event()
        there.subscribe("deaf", tell=lambda _: heard.set())
        echo(here, "back")
        await there.flush()
        await here.flush()
        lasting = here.subscribe("kept")

        async def ask() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await here.request("deaf")
            assert caught.value.executed == "unknown"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await heard.wait()
            await world.lose(here)
        if not here.connected:
            with pytest.raises(ConnectionLost) as caught:
                await here.request("deaf")
            assert caught.value.executed == "no"
        await here.wait_connected()
        await here.flush()
        assert (await there.request("back", b"1")).data == b"1"
        there.publish("kept", b"2")
        assert (await lasting.receive()).data == b"2"


async def a_key_is_put_only_at_the_revision_that_is_expected(world: World) -> None:
    async with world.link() as here, world.link() as there:
        ours, theirs = await world.store(here, "cas"), await world.store(there, "cas")
        assert await ours.get("a.b") is None
        first = await ours.create("a.b", b"1")
        assert await theirs.get("a.b") == Entry("a.b", b"1", first)
        with pytest.raises(Conflict) as caught:
            await theirs.create("a.b", b"2")
        assert (caught.value.key, caught.value.expected, caught.value.executed) == ("a.b", 0, "no")
        second = await theirs.put("a.b", b"2", revision=first)
        assert second > first
        with pytest.raises(Conflict):
            await ours.put("a.b", b"3", revision=first)
        with pytest.raises(Conflict):
            await ours.delete("a.b", revision=first)
        other = await ours.put("c", b"x")
        assert other > second
        await ours.delete("a.b", revision=second)
        assert await theirs.get("a.b") is None
        with pytest.raises(Conflict):
            await ours.put("a.b", b"4", revision=second)
        last = await theirs.create("a.b", b"4")
        assert await ours.get("a.b") == Entry("a.b", b"4", last)
        assert await ours.put("a.b", b"5") > last


async def of_two_who_create_one_wins(world: World) -> None:
    async with world.link() as here, world.link() as there:
        stores = [await world.store(link, "race") for link in (here, there)]
        won: list[int] = []

        async def create(number: int) -> None:
            try:
                await stores[number % 2].create("key", b"%d" % number)
                won.append(number)
            except Conflict:
                pass

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(create, number)
        assert len(won) == 1
        entry = await stores[0].get("key")
        assert entry is not None
        assert entry.value == b"%d" % won[0]


async def a_key_that_is_not_put_again_ends(world: World) -> None:
    async with world.link() as here:
        store = await world.store(here, "leases")
        with store.watch("hb.>") as watching:
            assert await watching.receive() == Synced()
            began = trio.current_time()
            first = await store.create("hb.a", b"1", ttl=1)
            assert await watching.receive() == Change("hb.a", b"1", first)
            await trio.sleep(0.6)
            renewed = await store.put("hb.a", b"1", revision=first, ttl=1)
            assert await watching.receive() == Change("hb.a", b"1", renewed)
            ended = await watching.receive()
            assert isinstance(ended, Change)
            assert (ended.key, ended.value, ended.expired) == ("hb.a", None, True)
            assert trio.current_time() - began >= 1.5
        assert await store.get("hb.a") is None
        with pytest.raises(ValueError, match="whole seconds"):
            await store.put("hb.a", b"1", ttl=0)
        await store.create("hb.a", b"2", ttl=60)


async def a_watch_tells_what_is_there_and_what_happens(world: World) -> None:
    async with world.link() as here, world.link() as there:
        store, theirs = await world.store(here, "watched"), await world.store(there, "watched")
        await store.put("up.gone", b"x")
        await store.delete("up.gone")
        first = await store.put("up.a", b"1")
        await store.put("other.a", b"x")
        with theirs.watch("up.*") as watching:
            assert [await watching.receive(), await watching.receive()] == [Change("up.a", b"1", first), Synced()]
            second = await store.put("up.b", b"2")
            await store.put("other.b", b"x")
            await store.delete("up.a", revision=first)
            assert await watching.receive() == Change("up.b", b"2", second)
            gone = await watching.receive()
            assert isinstance(gone, Change)
            assert (gone.key, gone.value, gone.expired) == ("up.a", None, False)


async def view(watching: Watching, until: dict[str, bytes], seen: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """What a reader knows once it knows `until`."""
    known = {} if seen is None else seen
    fresh: dict[str, bytes] | None = None
    while known != until or fresh is not None:
        match await watching.receive():
            case Change(key, None):
                known.pop(key, None)
                if fresh is not None:
                    fresh.pop(key, None)
            case Change(key, bytes() as value):
                known[key] = value
                if fresh is not None:
                    fresh[key] = value
            case Reset():
                fresh = {}
            case Synced() if fresh is not None:
                known.clear()
                known.update(fresh)
                fresh = None
            case _:
                pass
    return known


async def a_watch_survives_a_lost_connection_and_a_lost_bucket(world: World) -> None:
    async with world.link() as here, world.link() as there:
        store, theirs = await world.store(here, "lost"), await world.store(there, "lost")
        await store.put("a", b"1")
        with theirs.watch() as watching:
            known = await view(watching, {"a": b"1"})
            await world.lose(there)
            await store.put("b", b"2")
            await store.delete("a")
            known = await view(watching, {"b": b"2"}, known)
            await world.lose_bucket(store)
            await store.put("c", b"3")
            await view(watching, {"c": b"3"}, known)


CONTRACT: list[Callable[[World], Awaitable[None]]] = [
    requests_are_answered_with_headers,
    nobody_is_known_at_once,
    messages_of_one_node_on_one_subject_stay_in_order,
    patterns_match_whole_tokens,
    of_a_queue_one_gets_each_message,
    a_request_may_have_many_replies,
    a_message_that_is_too_long_is_refused,
    a_lost_connection_fails_what_was_asked_and_comes_back,
    a_key_is_put_only_at_the_revision_that_is_expected,
    of_two_who_create_one_wins,
    a_key_that_is_not_put_again_ends,
    a_watch_tells_what_is_there_and_what_happens,
    a_watch_survives_a_lost_connection_and_a_lost_bucket,
]
