"""The client against a real nats-server, and beside nats-py on the same one."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import threading
import time
from base64 import urlsafe_b64encode
from random import Random
from typing import TYPE_CHECKING, TypeVar

import nats as peer
import pytest
import trio
import trustme
from nats.errors import NoRespondersError

from cord_trio.counters import Counters
from cord_trio.errors import ConnectFailed, ConnectionLost, Overloaded
from cord_trio.mesh_errors import NoResponders, NotPermitted
from cord_trio.nats import line
from cord_trio.nats.client import Nats, open_nats
from cord_trio.nats.keys import Credentials, Key, make_key
from tests.real.nats_server import FOUND, Broker, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from cord_trio.nats.wire import Message

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

T = TypeVar("T")


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True, websocket=True) as broker:
        yield broker


async def beside(url: str, use: Callable[[Client], Awaitable[T]]) -> T:
    """What `use` does with a client of nats-py, which runs on asyncio in a thread of its own."""

    async def main() -> T:
        client = await peer.connect(url)
        try:
            return await use(client)
        finally:
            await client.close()  # noqa: ASYNC102  # asyncio's, which Trio does not cancel

    return await trio.to_thread.run_sync(lambda: asyncio.run(main()))


def echo(nats: Nats, subject: str) -> None:
    def answer(message: Message) -> None:
        nats.publish(message.reply, message.data, headers=dict(message.headers()))

    nats.subscribe(subject, tell=answer)


async def test_requests_headers_and_nobody_mean_the_same_to_nats_py(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        echo(nats, "ours.*")
        await nats.flush()
        theirs_ready, done = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        async def use(client: Client) -> tuple[bytes, dict[str, str] | None, bool]:
            async def answer(message: Msg) -> None:
                await client.publish(message.reply, message.data, headers=message.headers)

            await client.subscribe("theirs.*", cb=answer)
            reply = await client.request("ours.x", b"\x00\r\nhi", headers={"A": "1", "traceparent": "é b"})
            try:
                await client.request("nobody", b"")
                alone = False
            except NoRespondersError:
                alone = True
            await client.flush()
            token.run_sync_soon(theirs_ready.set)
            await asyncio.to_thread(done.wait)
            return reply.data, reply.headers, alone

        got: list[tuple[bytes, dict[str, str] | None, bool]] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                got.append(await beside(broker.url, use))

            nursery.start_soon(run)
            await theirs_ready.wait()
            reply = await nats.request("theirs.y", b"\x00\r\nhi", headers={"A": "1", "traceparent": "é b"})
            assert (reply.data, reply.headers()) == (b"\x00\r\nhi", [("A", "1"), ("traceparent", "é b")])
            with pytest.raises(NoResponders) as caught:
                await nats.request("nobody")
            assert caught.value.executed == "no"
            done.set()
        assert got == [(b"\x00\r\nhi", {"A": "1", "traceparent": "é b"}, True)]


async def test_what_either_client_publishes_the_other_gets_in_order(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        with nats.subscribe("to.us.>") as ours:
            await nats.flush()

            async def use(client: Client) -> list[tuple[str, bytes]]:
                taken: list[tuple[str, bytes]] = []
                full = asyncio.Event()

                async def take(message: Msg) -> None:
                    await asyncio.sleep(0)
                    taken.append((message.subject, message.data))
                    if len(taken) == 20:
                        full.set()

                await client.subscribe("to.them.*", cb=take)
                await client.flush()
                for number in range(20):
                    await client.publish(f"to.us.{number}", b"x" * number)
                await client.flush()
                await full.wait()
                return taken

            async def back() -> None:
                for number in range(20):
                    message = await ours.receive()
                    assert (message.subject, message.data) == (f"to.us.{number}", b"x" * number)
                for number in range(20):
                    nats.publish(f"to.them.{number}", b"y" * number)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                taken = await beside(broker.url, use)
        assert taken == [(f"to.them.{number}", b"y" * number) for number in range(20)]


async def test_many_replies_to_one_request_are_a_stream(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:

        def answer(message: Message) -> None:
            for part in (b"1", b"2", b"3"):
                nats.publish(message.reply, part)

        nats.subscribe("many", tell=answer)
        with nats.open_stream("many") as stream:
            assert [(await stream.receive()).data for _ in range(3)] == [b"1", b"2", b"3"]
        with nats.open_stream("nobody") as stream:
            with pytest.raises(NoResponders):
                await stream.receive()
        assert not nats._awaited


async def test_one_of_a_queue_gets_each_message(broker: Broker) -> None:
    async with open_nats(broker.url) as one, open_nats(broker.url) as other:
        taken: list[int] = []
        one.subscribe("work", queue="q", tell=lambda _: taken.append(1))
        other.subscribe("work", queue="q", tell=lambda _: taken.append(2))
        await one.flush()
        await other.flush()
        for _ in range(50):
            one.publish("work")
        await one.flush()
        await other.flush()
        assert len(taken) == 50
        assert set(taken) == {1, 2}


async def test_a_drained_subscription_loses_nothing_that_was_under_way(broker: Broker) -> None:
    async with open_nats(broker.url) as nats, open_nats(broker.url) as other:
        subscription = nats.subscribe("drained")
        await nats.flush()
        for number in range(100):
            other.publish("drained", b"%d" % number)
        await other.flush()
        await nats.drain()
        other.publish("drained", b"late")
        await other.flush()
        await nats.flush()
        assert [int(message.data) async for message in subscription] == list(range(100))


async def test_a_subscription_that_is_not_taken_from_tells_where_messages_were_lost(broker: Broker) -> None:
    counters = Counters()
    async with open_nats(broker.url, counters=counters) as nats:
        slow = nats.subscribe("flood", messages=10)
        quick: list[bytes] = []
        nats.subscribe("flood", tell=lambda message: quick.append(message.data))
        for number in range(50):
            nats.publish("flood", b"%d" % number)
        await nats.flush()
        assert (len(quick), slow.dropped, counters["nats.slow_consumer"]) == (50, 40, 40)
        assert [(await slow.receive()).data for _ in range(10)] == quick[:10]
        with pytest.raises(Overloaded, match="nats_inflow_messages = 10"):
            await slow.receive()
        nats.publish("flood", b"after")
        assert (await slow.receive()).data == b"after"


async def test_a_message_longer_than_the_server_takes_is_refused_and_harms_nothing(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        echo(nats, "big")
        with pytest.raises(Overloaded, match="nats_payload = 1048576"):
            await nats.request("big", bytes(nats.max_payload + 1))
        data = bytes(nats.max_payload)
        assert (await nats.request("big", data)).data == data
        assert nats.line.connections == 1


async def test_a_websocket_carries_the_same(broker: Broker) -> None:
    async with open_nats(f"ws://127.0.0.1:{broker.websocket}") as nats, open_nats(broker.url) as other:
        echo(other, "far")
        await other.flush()
        for data in (b"", b"hi", bytes(range(256)) * 4000):
            assert (await nats.request("far", data)).data == data


async def test_a_killed_server_fails_what_was_asked_and_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "BACKOFF", (0.02, 0.1))
    with running() as broker:
        async with open_nats(broker.url, rng=Random(1)) as nats, open_nats(broker.url) as other:
            heard = trio.Event()
            nats.subscribe("deaf", tell=lambda _: heard.set())
            echo(nats, "echo")
            await nats.flush()
            changes: list[bool] = []
            lost = trio.Event()

            def change(connected: bool, _: str) -> None:
                changes.append(connected)
                lost.set()

            nats.line.on_change = change
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(ConnectionLost) as caught:
                        await other.request("deaf", b"1")
                    assert caught.value.executed == "unknown"

                nursery.start_soon(ask)
                await heard.wait()
                broker.kill()
            with pytest.raises(ConnectionLost) as caught:
                await other.request("echo")
            assert caught.value.executed == "no"
            await lost.wait()
            broker.start()
            await nats.wait_connected()
            await other.wait_connected()
            await nats.flush()
            assert (await other.request("echo", b"again")).data == b"again"
            assert (nats.line.connections, nats.counters["nats.reconnects"], changes) == (2, 1, [False, True])


async def test_a_server_that_wants_to_stop_is_left_before_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "BACKOFF", (0.02, 0.1))
    with running("lame_duck_duration: 30s\nlame_duck_grace_period: 10s") as first, running() as second:
        async with open_nats([first.url, second.url]) as nats:
            changes: list[tuple[bool, str]] = []
            lost = trio.Event()

            def change(connected: bool, reason: str) -> None:
                changes.append((connected, reason))
                lost.set()

            nats.line.on_change = change
            first.signal(signal.SIGUSR2)
            await lost.wait()
            await nats.wait_connected()
            assert changes[0] == (False, "the server is about to stop")
            assert nats.line.server.name == second.url


RIGHTS = """
authorization {
  users = [
    { user: caller, password: secret, permissions: {
        publish: ["allowed", "_INBOX_c.>"], subscribe: ["_INBOX_c.>", "mine"] } }
    { user: owner, password: secret, permissions: { subscribe: ["allowed"], allow_responses: true } }
    { nkey: %s }
  ]
}
"""


async def test_what_is_not_permitted_fails_the_request_that_wanted_it() -> None:
    key = make_key()
    with running(RIGHTS % key.public) as broker:
        owner_is = Credentials(user="owner", password="secret")
        caller_is = Credentials(user="caller", password="secret")
        async with open_nats(broker.url, credentials=Credentials(key=key)) as free:
            # Its inbox is not permitted, so no reply would reach it.
            async with open_nats(broker.url, credentials=owner_is) as owner:
                owner.subscribe("allowed", tell=lambda message: owner.publish(message.reply, b"ok"))
                await owner.flush()
                with pytest.raises(NotPermitted, match="_INBOX"):
                    await owner.request("allowed")
                async with open_nats(broker.url, credentials=caller_is, inbox="_INBOX_c") as caller:
                    assert (await caller.request("allowed")).data == b"ok"
                    began = time.perf_counter()
                    with pytest.raises(NotPermitted, match='Publish to "forbidden"') as caught:
                        await caller.request("forbidden")
                    assert (caught.value.executed, caught.value.subject) == ("no", "forbidden")
                    assert time.perf_counter() - began < 2
                    listening = caller.subscribe("others")
                    with pytest.raises(NotPermitted, match='Subscription to "others"'):
                        await listening.receive()
                    assert (await caller.request("allowed")).data == b"ok"
                    assert caller.line.connections == 1
            free.subscribe("anything")
            await free.flush()
        with pytest.raises(
            ConnectFailed, match=r"authorize: the server refuses .*does its configuration name that one"
        ):
            async with open_nats(broker.url, credentials=Credentials(user="caller", password="wrong")):
                raise AssertionError
        with pytest.raises(ConnectFailed, match="authorize"):
            async with open_nats(broker.url, credentials=Credentials(key=make_key())):
                raise AssertionError


async def test_a_token_signs_in() -> None:
    with running('authorization { token: "s3cret" }') as broker:
        async with open_nats(broker.url, credentials=Credentials(token="s3cret")) as nats:
            await nats.flush()
        with pytest.raises(ConnectFailed, match="authorize"):
            async with open_nats(broker.url):
                raise AssertionError


def signed(issuer: Key, subject: str, name: str, claims: dict[str, object]) -> str:
    """A JWT as NATS has them."""

    def part(value: object) -> str:
        return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    head = part({"typ": "JWT", "alg": "ed25519-nkey"})
    body = {"jti": name, "iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject, "nats": claims}
    text = f"{head}.{part(body)}"
    return f"{text}.{issuer.sign(text.encode())}"


async def test_a_credentials_file_signs_in(tmp_path: Path) -> None:
    from cord_trio.nats.keys import load_credentials

    operator, account, user = make_key("O"), make_key("A"), make_key("U")
    limits = {"subs": -1, "data": -1, "payload": -1}
    of_account = {"limits": {**limits, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}}
    of_operator = signed(operator, operator.public, "operator", {"type": "operator", "version": 2})
    of_account_jwt = signed(operator, account.public, "account", {**of_account, "type": "account", "version": 2})
    of_user = signed(account, user.public, "user", {**limits, "type": "user", "version": 2})
    path = tmp_path / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n",
        "utf-8",
    )
    config = f"operator: {of_operator}\nresolver: MEMORY\nresolver_preload {{ {account.public}: {of_account_jwt} }}"
    with running(config) as broker:
        async with open_nats(broker.url, credentials=load_credentials(path)) as nats:
            echo(nats, "echo")
            assert (await nats.request("echo", b"hi")).data == b"hi"
        async with trio.open_nursery():
            with pytest.raises(ConnectFailed, match="authorize"):
                async with open_nats(broker.url, credentials=Credentials(key=user)):
                    raise AssertionError


async def test_tls_is_spoken_where_the_server_wants_it_and_its_certificate_is_checked(tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with running(f'tls {{ cert_file: "{cert}", key_file: "{key}" }}') as broker:
        for url in (broker.url, broker.url.replace("nats://", "tls://")):
            async with open_nats(url, verify=context) as nats:
                echo(nats, "echo")
                data = bytes(200_000)
                assert (await nats.request("echo", data)).data == data
                assert nats.line.info.tls_required
        with pytest.raises(ConnectFailed, match=r"tls: .*certificate"):
            async with open_nats(broker.url):
                raise AssertionError
        async with open_nats(broker.url, verify=False) as nats:
            await nats.flush()


async def test_what_is_no_server_is_named_with_what_to_do(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(ConnectFailed, match=rf"nats://127.0.0.1:{port}: connect: Connection refused; is the server"):
        async with open_nats(f"127.0.0.1:{port}"):
            raise AssertionError
    async with open_nats([f"nats://127.0.0.1:{port}", broker.url]) as nats:
        assert nats.line.server.name == broker.url
    with pytest.raises(ConnectFailed, match=r"http: .*WebSocket"):
        async with open_nats(f"ws://127.0.0.1:{broker.port}"):
            raise AssertionError
    monkeypatch.setattr(line, "CONNECT_LIMIT", 0.2)
    with pytest.raises(ConnectFailed, match=r"no answer within 0\.2 s"):
        async with open_nats(f"nats://127.0.0.1:{broker.websocket}"):
            raise AssertionError


async def test_an_error_of_the_block_leaves_as_raised(broker: Broker) -> None:
    with pytest.raises(KeyError, match="ours"):
        async with open_nats(broker.url):
            raise KeyError("ours")
