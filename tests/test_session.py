from __future__ import annotations

import json
import logging
import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.answering import MAX_ASKED, Asked
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, CallFailed, ConnectionLost, DeadlineExceeded, Overloaded
from cord_trio.pending import Pending
from cord_trio.protocol.jsonrpc import encode_request
from cord_trio.session import NOISE_LENGTH, NOISE_LINES, Session, open_session
from cord_trio.transports import LIMITS, Transport
from cord_trio.transports.memory import CONGESTED_MESSAGES, MemoryTransport, memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from cord_trio.errors import Executed
    from cord_trio.transports import Receiver

Json: TypeAlias = Any
OK = b'{"ok":true}'


class Far:
    """The other side, played by the test: keeps what it gets, says what it is told to."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.got: list[Json] = []
        self.loss: str | None = None

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.got += [json.loads(message) for message in messages]

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        self.loss = error.reason

    def waits(self, id: int | str, /) -> bool:
        return False

    def say(self, *lines: bytes) -> None:
        for line in lines:
            self.transport.send(line)

    def reply(self, id: object = 1, result: bytes = OK) -> None:
        self.say(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (json.dumps(id).encode(), result))

    @property
    def methods(self) -> list[str]:
        return [message["method"] for message in self.got]


class Stage:
    """A session, its far side, and the calls that a test makes on it."""

    def __init__(self, session: Session, far: Far, timer: Timer, counters: Counters, nursery: trio.Nursery) -> None:
        self.session = session
        self.far = far
        self.timer = timer
        self.counters = counters
        self.nursery = nursery
        self.ended: dict[str, object] = {}

    def start(self, name: str = "a", *, scope: trio.CancelScope | None = None, **options: Json) -> None:
        """Make a call in a task of its own; how it ends is kept in `ended` under `name`."""

        async def task() -> None:
            with scope or trio.CancelScope() as cancelled:
                try:
                    id = self.session.peer.mint()
                    message = encode_request(id, "tools/call", options.pop("params", b"{}"))
                    self.ended[name] = bytes(await self.session.exchange(id, message, method="tools/call", **options))
                except CallError as exc:
                    self.ended[name] = exc
            if cancelled.cancelled_caught:
                self.ended[name] = "cancelled"

        self.nursery.start_soon(task)

    async def ending(self, name: str = "a") -> object:
        await wait_all_tasks_blocked()
        return self.ended[name]

    async def error(self, name: str = "a") -> CallError:
        ending = await self.ending(name)
        assert isinstance(ending, CallError)
        return ending


@asynccontextmanager
async def staged(far_reads: bool = True, **options: Json) -> AsyncGenerator[Stage, None]:
    ours, theirs = memory_transport_pair()
    timer, counters, far = Timer(), Counters(), Far(theirs)
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        if far_reads:
            await nursery.start(theirs.run, far)
        async with open_session(ours, name="far", timer=timer, counters=counters, **options) as session:
            stage = Stage(session, far, timer, counters, nursery)
            yield stage
            assert len(timer) == 0
            assert not session.peer.open or session.loss is None
        nursery.cancel_scope.cancel("the test is over")


def cancels(far: Far) -> list[Json]:
    return [message["params"]["requestId"] for message in far.got if message.get("method") == "notifications/cancelled"]


# Replies


async def test_a_result_arrives_as_it_was_sent(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start(params=b'{"x":1}')
        await wait_all_tasks_blocked()
        assert stage.far.got == [{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"x": 1}}]
        stage.far.reply(result=b'{"deep": [1.0, 2e3],  "b":null}')
        assert await stage.ending() == b'{"deep": [1.0, 2e3],  "b":null}'
        assert stage.session.peer.open == {}


async def test_an_error_keeps_code_message_and_data(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no","data":{"a": 1}}}')
        error = await stage.error()
        assert isinstance(error, CallFailed)
        assert (error.code, error.message, error.data, error.executed) == (-32602, "no", b'{"a": 1}', "yes")


async def test_a_null_error_beside_a_result_is_no_error(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b'{"jsonrpc":"2.0","id":1,"result":{},"error":null}')
        assert await stage.ending() == b"{}"


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"error":null}',
        b'{"jsonrpc":2.0,"id":1,"result":{"method":"x"}}',
    ],
)
async def test_a_reply_that_is_none_fails_its_call_alone(line: bytes, autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start("a")
        await wait_all_tasks_blocked()
        stage.start("b")
        await wait_all_tasks_blocked()
        stage.far.say(line)
        error = await stage.error("a")
        assert isinstance(error, BadReply)
        assert error.executed == "yes"
        stage.far.reply(2)
        assert await stage.ending("b") == OK


async def test_i01_an_id_that_comes_back_as_text_is_matched(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.reply("1")
        assert await stage.ending() == OK
        assert stage.counters["session.lenient_reply"] == 1


@pytest.mark.parametrize("id", [1, 99, "x", "01", 2**70])
async def test_late_and_unknown_replies_change_nothing(id: object, autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start("a")
        await wait_all_tasks_blocked()
        stage.far.reply(1)
        stage.start("b")
        await wait_all_tasks_blocked()
        stage.far.reply(id)
        await wait_all_tasks_blocked()
        assert "b" not in stage.ended
        stage.far.reply(2)
        assert await stage.ending("b") == OK


async def test_i07_an_error_without_id_fails_the_only_call(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}')
        error = await stage.error()
        assert isinstance(error, CallFailed)
        assert error.message == "x"


async def test_i07_an_error_without_id_is_noted_when_it_could_be_anyones(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start("a")
        stage.start("b")
        await wait_all_tasks_blocked()
        stage.far.say(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}', b'{"result":{}}')
        await wait_all_tasks_blocked()
        assert stage.ended == {}
        assert list(stage.session.noise) == ["x", "a reply without an id"]
        assert stage.counters["session.reply_without_id"] == 2
        stage.far.reply(1)
        stage.far.reply(2)
        assert await stage.ending("b") == OK


async def test_i07_an_error_without_id_goes_to_the_exchange_that_carried_it(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start("a")
        await wait_all_tasks_blocked()
        stage.start("b")
        await wait_all_tasks_blocked()
        stage.session.feed([b'{"error":{"code":1,"message":"x"}}'], 2)
        assert isinstance(await stage.error("b"), CallFailed)
        assert "a" not in stage.ended
        stage.far.reply(1)
        await wait_all_tasks_blocked()


async def test_i11_calls_of_one_moment_have_their_own_ids(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        for number in range(50):
            stage.start(str(number))
        await wait_all_tasks_blocked()
        ids = [message["id"] for message in stage.far.got]
        assert len(set(ids)) == 50
        for id in reversed(ids):
            stage.far.reply(id, b'{"id":%d}' % id)
        await wait_all_tasks_blocked()
        assert len(stage.ended) == 50


# What is no message


async def test_f01_a_banner_is_kept_as_noise(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b"Server v1 ready", b"[INFO] loaded")
        stage.far.reply()
        assert await stage.ending() == OK
        assert list(stage.session.noise) == ["Server v1 ready", "[INFO] loaded"]
        assert stage.counters["session.noise"] == 2


async def test_f06_bytes_that_are_no_text_are_noise(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b"\xff\xfe", b'{"jsonrpc":"2.0","id":9,"result":"\xff"}', b"{" * 100_000, b"[" * 100_000)
        stage.far.reply()
        assert await stage.ending() == OK
        assert len(stage.session.noise) == 4


async def test_noise_is_bounded(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.say(*[b"n" * 10_000] * 50)
        await wait_all_tasks_blocked()
        assert [len(line) for line in stage.session.noise] == [NOISE_LENGTH] * NOISE_LINES


async def test_a_request_with_a_null_id_is_noise(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":null,"method":"ping"}', b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}')
        await wait_all_tasks_blocked()
        assert stage.far.got == []
        assert stage.counters["session.noise"] == 2


async def test_a_spoilt_request_does_not_end_a_call_of_its_id(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(b'{"jsonrpc":2,"id":1,"method":"x"}', b'{"jsonrpc":2,"id":7}')
        await wait_all_tasks_blocked()
        assert stage.ended == {}
        stage.far.reply()
        assert await stage.ending() == OK


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"mean":NaN}}}',
        b'{"id": 1, "result": {"content": "\xff"}}',
        b'{"jsonrpc":"2.0","result":{"content":"\\ud800"},"id":1}',
        b'{"jsonrpc":"2.0","id":1.0,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":%b}' % (b"[" * 500 + b"]" * 500),
        b'{"jsonrpc":"2.0","id":1,"result":%b}' % (b"[" * 100_000 + b"]" * 100_000),
    ],
)
async def test_a_spoilt_reply_ends_its_call_at_once(line: bytes, autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(line)
        ended = await stage.ending()
        assert isinstance(ended, BadReply)
        assert ended.executed == "yes"


async def test_a_batch_counts_only_where_the_revision_has_it(autojump_clock: MockClock) -> None:
    batch = b'[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":"p","method":"ping"}]'
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(batch)
        await wait_all_tasks_blocked()
        assert stage.ended == {}
        stage.session.batches = True
        stage.far.say(batch)
        assert await stage.ending() == b"{}"
        assert stage.far.got[1:] == [{"jsonrpc": "2.0", "id": "p", "result": {}}]


@pytest.mark.parametrize(
    "line", [b"[]", b"[1", b"[" * 100_000, b"[[[]]]", b'[[{"id":1,"result":{}}]]', b"[" + b"[]," * 9 + b"[]]"]
)
async def test_a_batch_that_is_none_is_noise(line: bytes, autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.session.batches = True
        stage.start()
        await wait_all_tasks_blocked()
        stage.far.say(line)
        stage.far.reply()
        assert await stage.ending() == OK
        assert stage.counters["session.noise"] == 1


# Cancelling


async def test_a_cancelled_call_tells_the_peer_once(autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()
    async with staged() as stage:
        stage.start(scope=scope)
        await wait_all_tasks_blocked()
        scope.cancel("enough")
        assert await stage.ending() == "cancelled"
        assert cancels(stage.far) == [1]
        assert stage.session.peer.open == {}
        stage.far.reply()
        await wait_all_tasks_blocked()
        assert stage.counters["session.late_reply"] == 1


async def test_a_call_cancelled_before_the_peer_took_it_is_taken_back(autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()
    async with staged(far_reads=False) as stage:
        stage.start(scope=scope)
        await wait_all_tasks_blocked()
        scope.cancel("enough")
        assert await stage.ending() == "cancelled"
        await stage.nursery.start(stage.far.transport.run, stage.far)
        await wait_all_tasks_blocked()
        assert stage.far.got == []


async def test_a_reply_that_came_first_wins(autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()
    async with staged() as stage:
        stage.start(scope=scope)
        await wait_all_tasks_blocked()
        stage.session.feed([b'{"jsonrpc":"2.0","id":1,"result":{}}'])
        scope.cancel("too late")
        assert await stage.ending() == b"{}"
        assert cancels(stage.far) == []


async def test_a_request_that_must_not_be_cancelled_is_only_abandoned(autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()
    async with staged() as stage:
        stage.start(scope=scope, cancellable=False)
        await wait_all_tasks_blocked()
        scope.cancel("enough")
        assert await stage.ending() == "cancelled"
        assert cancels(stage.far) == []


async def test_a_cancel_that_cannot_be_sent_is_counted(autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()
    async with staged() as stage:
        stage.start(scope=scope)
        await wait_all_tasks_blocked()
        stage.far.transport.close()
        scope.cancel("enough")
        assert await stage.ending() == "cancelled"
        assert stage.counters["session.cancel_unsent"] == 1


# Deadlines


async def test_a_deadline_ends_a_call_and_tells_the_peer(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start(deadline=trio.current_time() + 5)
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        error = await stage.error()
        assert isinstance(error, DeadlineExceeded)
        assert error.executed == "unknown"
        assert cancels(stage.far) == [1]


async def test_a_deadline_before_the_peer_took_it_says_that_it_did_not_run(autojump_clock: MockClock) -> None:
    async with staged(far_reads=False) as stage:
        stage.start(deadline=trio.current_time() + 5)
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        assert (await stage.error()).executed == "no"


async def test_a_reply_at_the_deadline_wins(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start(deadline=trio.current_time() + 5)
        await wait_all_tasks_blocked()
        pending = stage.session.peer.open[1]
        stage.session.feed([b'{"jsonrpc":"2.0","id":1,"result":{}}'])
        pending.expired()
        assert await stage.ending() == b"{}"
        assert cancels(stage.far) == []


PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":%d}}'


async def test_progress_moves_the_deadline_on_but_not_past_the_latest(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        start = trio.current_time()
        stage.start(deadline=start + 5, patience=5, latest=start + 12)
        await wait_all_tasks_blocked()
        deadlines = []
        for number in range(3):
            await trio.sleep(4)
            if number < 2:
                stage.far.say(PROGRESS % number)
                await wait_all_tasks_blocked()
                deadlines.append(stage.session.peer.open[1].deadline - start)
        assert deadlines == [9, 12]
        assert isinstance(await stage.error(), DeadlineExceeded)
        assert trio.current_time() - start == 12


async def test_progress_moves_no_deadline_that_was_inherited(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        start = trio.current_time()
        stage.start(deadline=start + 5)
        await wait_all_tasks_blocked()
        await trio.sleep(4)
        stage.far.say(PROGRESS % 1)
        await wait_all_tasks_blocked()
        assert stage.session.peer.open[1].deadline == start + 5
        await trio.sleep(1)
        assert isinstance(await stage.error(), DeadlineExceeded)


async def test_progress_never_brings_the_deadline_nearer(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        start = trio.current_time()
        stage.start(deadline=start + 9, patience=1, latest=start + 20)
        await wait_all_tasks_blocked()
        stage.far.say(PROGRESS % 1)
        await wait_all_tasks_blocked()
        assert stage.session.peer.open[1].deadline == start + 9
        stage.far.reply()
        await wait_all_tasks_blocked()


# Losing the connection


@pytest.mark.parametrize(("taken", "executed"), [(True, "unknown"), (False, "no")])
async def test_a_loss_fails_every_call_and_says_what_may_have_run(
    taken: bool, executed: str, autojump_clock: MockClock
) -> None:
    async with staged(far_reads=taken) as stage:
        stage.start("a")
        stage.start("b")
        await wait_all_tasks_blocked()
        stage.far.transport.lose("server exited (signal 9)")
        errors = [await stage.error("a"), await stage.error("b")]
        assert errors[0] is not errors[1]
        assert {(str(error), error.executed) for error in errors} == {
            ("connection lost: server exited (signal 9)", executed)
        }
        assert stage.session.loss == await stage.session.wait_lost() == "server exited (signal 9)"
        with pytest.raises(ConnectionLost, match="signal 9") as later:
            await stage.session.request("x")
        assert later.value.executed == "no"


async def test_the_first_reason_of_a_loss_stays(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.session.lost(ConnectionLost("first"))
        stage.session.lost(ConnectionLost("second"))
        assert stage.session.loss == "first"


async def test_leaving_the_block_fails_the_calls_of_others(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
    assert str(stage.ended["a"]) == "connection lost: the session was closed"


async def test_a_refused_message_leaves_nothing(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.transport.close()
        with pytest.raises(ConnectionLost) as error:
            await stage.session.request("x")
        assert error.value.executed == "no"
        assert stage.session.peer.open == {}
        assert (stage.session.ending, stage.session.loss) == (True, None)


async def test_a_full_outbox_refuses_a_notification(autojump_clock: MockClock) -> None:
    async with staged(far_reads=False) as stage:
        for _ in range(LIMITS.outbox_messages):
            stage.session.notify("n")
        with pytest.raises(Overloaded, match="outbox_messages"):
            stage.session.notify("n")


async def test_a_request_waits_while_the_connection_is_congested(autojump_clock: MockClock) -> None:
    async with staged(far_reads=False) as stage:
        for _ in range(CONGESTED_MESSAGES):
            stage.session.notify("n")
        stage.start()
        await wait_all_tasks_blocked()
        assert stage.session.peer.open == {}
        await stage.nursery.start(stage.far.transport.run, stage.far)
        await wait_all_tasks_blocked()
        stage.far.reply()
        assert await stage.ending() == OK


async def test_a_deadline_ends_the_wait_for_a_congested_connection(autojump_clock: MockClock) -> None:
    async with staged(far_reads=False) as stage:
        for _ in range(CONGESTED_MESSAGES):
            stage.session.notify("n")
        stage.start(deadline=trio.current_time() + 3)
        await trio.sleep(4)
        error = await stage.error()
        assert str(error) == "deadline exceeded: far: tools/call: its connection takes no more bytes"
        assert error.executed == "no"
        assert stage.session.peer.open == {}


class Narrow(Transport):
    """Has room for one message at a time, of which all who wait are told at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.room = trio.Event()

    def send(self, message: bytes, **_: Json) -> None:
        self.sent.append(message)
        self.room = trio.Event()

    @property
    def congested(self) -> bool:
        return not self.room.is_set()

    async def wait_uncongested(self) -> None:
        await self.room.wait()

    def withdraw(self, id: int | str) -> bool:
        return True

    def written(self, id: int | str) -> bool:
        return True

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()


async def test_of_many_who_wait_for_room_none_sends_into_a_connection_that_is_full_again(
    autojump_clock: MockClock,
) -> None:
    narrow = Narrow()
    async with trio.open_nursery() as nursery, open_session(narrow, timer=Timer()) as session:
        for _ in range(4):
            nursery.start_soon(session.request, "tools/call")  # noqa: ASYNC111  # all are answered before
        for sent in range(1, 5):
            await wait_all_tasks_blocked()
            narrow.room.set()
            await wait_all_tasks_blocked()
            assert len(narrow.sent) == sent
        nursery.cancel_scope.cancel("seen")


class Faulty(Transport):
    """Fails as a transport must not."""

    def send(self, message: bytes, **_: Json) -> None:
        raise AssertionError

    def withdraw(self, id: int | str) -> bool:
        return True

    def written(self, id: int | str) -> bool:
        return False

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        raise ValueError("a bug")


async def test_a_fault_of_the_transport_is_a_loss(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "cord_trio.session"):
        async with open_session(Faulty(), timer=Timer()) as session:
            assert await session.wait_lost() == "internal error: ValueError('a bug')"


async def test_an_error_of_the_block_leaves_as_it_was_raised(autojump_clock: MockClock) -> None:
    error = KeyError("mine")
    ours, _theirs = memory_transport_pair()
    with pytest.raises(KeyError) as caught:
        async with open_session(ours, timer=Timer()):
            raise error
    assert caught.value is error


async def test_waits_and_fail_concern_one_request(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start()
        await wait_all_tasks_blocked()
        assert [stage.session.waits(id) for id in (1, 2, "1")] == [True, False, False]
        stage.session.fail(2, CallError("nobody's"))
        stage.session.fail(1, CallError("mine"))
        assert str(await stage.error()) == "mine"


# Notifications


async def test_events_of_a_call_reach_its_sink_alone(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, bytes]] = []
    told: list[tuple[str, bytes]] = []
    async with staged(told=lambda method, params, within: told.append((method, bytes(params)))) as stage:
        stage.start(events=lambda method, params: seen.append((method, bytes(params))))
        await wait_all_tasks_blocked()
        stage.far.say(
            PROGRESS % 7,
            b'{"method":"notifications/progress","params":{"progressToken":99,"progress":1}}',
            b'{"method":"notifications/progress","params":{"progressToken":{}}}',
            b'{"method":"notifications/tools/list_changed"}',
        )
        await wait_all_tasks_blocked()
        stage.session.feed([b'{"method":"notifications/message","params":{"data":1}}'], 1)
        stage.far.reply()
        await wait_all_tasks_blocked()
        assert seen == [
            ("notifications/progress", b'{"progressToken":1,"progress":7}'),
            ("notifications/message", b'{"data":1}'),
        ]
        assert told == [("notifications/tools/list_changed", b"")]
        assert stage.counters["session.bad_notification"] == 1


async def test_a_sink_that_fails_harms_nobody(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    def sink(method: str, params: Raw) -> None:
        raise ValueError("a bug")

    async with staged() as stage:
        with caplog.at_level(logging.CRITICAL, "cord_trio.session"):
            stage.start(events=sink)
            await wait_all_tasks_blocked()
            stage.far.say(PROGRESS % 1)
            stage.far.reply()
            assert await stage.ending() == OK
        assert stage.counters["session.sink_failed"] == 1


async def test_logs_are_counted_unread_unless_somebody_takes_them(autojump_clock: MockClock) -> None:
    line = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}'
    logs: list[bytes] = []
    async with staged() as stage:
        stage.far.say(line, b'{"method":"notifications/message","params":')
        await wait_all_tasks_blocked()
        assert (stage.session.log_lines, stage.counters["session.noise"]) == (2, 0)
        stage.session.log_sink = lambda params: logs.append(bytes(params))
        stage.far.say(line)
        await wait_all_tasks_blocked()
        assert logs == [b'{"data":"x"}']


async def test_an_unheard_notification_is_dropped(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.say(b'{"method":"notifications/whatever"}', b'{"method": "notifications/message"}')
        await wait_all_tasks_blocked()
        assert stage.counters.snapshot() == {}


async def test_a_subscription_that_the_server_cancels_has_ended(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.start("a")
        await wait_all_tasks_blocked()
        ended: list[str] = []

        async def listen() -> None:
            with pytest.raises(CallError, match="ended the subscription"):
                await stage.session.request("subscriptions/listen")
            ended.append("yes")

        stage.nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        for id in (b"1", b"2", b"9", b'"x"', b"null"):
            stage.far.say(b'{"method":"notifications/cancelled","params":{"requestId":%b}}' % id)
        await wait_all_tasks_blocked()
        assert ended == ["yes"]
        assert stage.ended == {}
        stage.far.reply(1)
        await wait_all_tasks_blocked()


# What the peer asks


async def answer_slowly(gate: trio.Event, asked: Asked) -> bytes:
    await gate.wait()
    return b'{"asked":%b}' % json.dumps(asked.method).encode()


@pytest.mark.parametrize("id", ["1", "init-1", 2**53 + 1, "", 0])
async def test_i03_a_request_is_answered_under_its_own_id(id: object, autojump_clock: MockClock) -> None:
    gate = trio.Event()
    async with staged(answer=partial(answer_slowly, gate)) as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":%b,"method":"roots/list"}' % json.dumps(id).encode())
        await wait_all_tasks_blocked()
        assert stage.far.got == []
        gate.set()
        await wait_all_tasks_blocked()
        assert stage.far.got == [{"jsonrpc": "2.0", "id": id, "result": {"asked": "roots/list"}}]
        assert stage.session.peer.asked == {}


async def test_l09_a_ping_is_answered_at_once(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    async with staged(answer=partial(answer_slowly, gate)) as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":"s","method":"slow"}', b'{"jsonrpc":"2.0","id":"u-1","method":"ping"}')
        await wait_all_tasks_blocked()
        assert stage.far.got == [{"jsonrpc": "2.0", "id": "u-1", "result": {}}]


async def test_without_an_answer_requests_are_refused(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":5,"method":"roots/list"}')
        await wait_all_tasks_blocked()
        assert stage.far.got[0]["error"]["code"] == -32601


async def test_requests_beyond_the_bound_and_ids_in_use_are_refused(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    async with staged(answer=partial(answer_slowly, gate)) as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":0,"method":"x"}', b'{"jsonrpc":"2.0","id":0,"method":"x"}')
        await wait_all_tasks_blocked()
        assert [message["error"]["code"] for message in stage.far.got] == [-32600]
        for id in range(1, MAX_ASKED + 1):
            stage.far.say(b'{"jsonrpc":"2.0","id":%d,"method":"x"}' % id)
        await wait_all_tasks_blocked()
        assert [message["id"] for message in stage.far.got[1:]] == [MAX_ASKED]
        assert stage.counters["session.asked_refused"] == 1
        gate.set()
        await wait_all_tasks_blocked()
        assert len(stage.far.got) == 2 + MAX_ASKED


@pytest.mark.parametrize(
    "failure", [CallFailed(-1, "refused", b"[1]"), CallError("mine"), ValueError("bug"), ValueError()]
)
async def test_an_answer_that_fails_becomes_an_error(
    failure: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(asked: Asked) -> bytes:
        await trio.lowlevel.checkpoint()
        raise failure

    with caplog.at_level(logging.CRITICAL, "cord_trio.session"):
        async with staged(answer=answer) as stage:
            stage.far.say(b'{"jsonrpc":"2.0","id":5,"method":"x"}')
            await wait_all_tasks_blocked()
            error = stage.far.got[0]["error"]
    if isinstance(failure, CallFailed):
        assert error == {"code": -1, "message": "refused", "data": [1]}
    else:
        assert error == {"code": -32603, "message": str(failure) or "ValueError"}


@pytest.mark.parametrize("how", ["withdrawn", "lost", "closed"])
async def test_an_answer_ends_when_nobody_wants_it(how: str, autojump_clock: MockClock) -> None:
    gate = trio.Event()
    async with staged(answer=partial(answer_slowly, gate)) as stage:
        stage.far.say(b'{"jsonrpc":"2.0","id":"q","method":"x"}')
        await wait_all_tasks_blocked()
        if how == "withdrawn":
            stage.far.say(b'{"method":"notifications/cancelled","params":{"requestId":"q"}}')
        elif how == "lost":
            stage.far.transport.lose("gone")
        if how != "closed":
            await wait_all_tasks_blocked()
            assert stage.session.peer.asked == {}
    assert stage.session.peer.asked == {}
    assert stage.far.got == []


async def test_a_reply_that_cannot_be_sent_is_counted(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        stage.far.transport.close()
        stage.session.feed([b'{"jsonrpc":"2.0","id":5,"method":"ping"}'])
        assert stage.counters["session.reply_unsent"] == 1


async def test_u01_a_session_may_be_used_by_any_task_and_ends_with_its_own_block(autojump_clock: MockClock) -> None:
    async with staged() as stage:
        endings: list[object] = []

        async def elsewhere(ask: Callable[[], Awaitable[object]]) -> None:
            endings.append(await ask())

        stage.nursery.start_soon(elsewhere, partial(stage.session.request, "x", deadline=math.inf))
        await wait_all_tasks_blocked()
        stage.far.reply()
        await wait_all_tasks_blocked()
        assert [bytes(ending) for ending in endings if isinstance(ending, Raw)] == [OK]


async def test_ctrl_c_never_lands_between_an_entry_and_its_wait() -> None:
    """It would leave an entry whose task has gone, which a reply could then no longer wake."""
    protected: list[bool] = []

    class Noting(Timer):
        def by(self, deadline: float) -> None:
            protected.append(trio.lowlevel.currently_ki_protected())

    class Alone:
        name = "x"

        def executed(self, id: object) -> Executed:
            return "no"

        def withdraw(self, pending: Pending, reason: str) -> None:
            pass

        def answered(self, pending: Pending, message: bytes, alone: bool, /) -> None:
            pass

    with trio.move_on_after(0):
        await Pending(Alone(), 1, "ping", 1e9, None, True, 0.0, 1e9).reply(Noting())
    assert protected == [True]
