"""`FaultyTransport`: any transport, whose messages meet faults."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Self

import trio

from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.testing.faults import CHANCE, LONGEST, WIRE_FAULTS, Faults
from cord_trio.transports import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random
    from types import TracebackType

    from cord_trio.errors import CallError
    from cord_trio.testing.faults import WireFault, WireFaultKind
    from cord_trio.transports import Receiver

HELD: Final = 4096
"""Messages that a `FaultyTransport` holds back each way; then `send` raises `Overloaded`, and what came goes on."""

RUBBISH: Final = b"\xff\xfe{ no json"
LOG_LINE: Final = (
    b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"a flood on purpose"}}'
)


class _Lane:
    """What goes one way, and is late: in order, but for a message that the next one overtakes.

    Attributes:
        waiting: (when due, its id, what lets it go), in order.
        overtaken: waits for the next message, or its time.

    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.waiting: deque[tuple[float, int | str | None, Callable[[], None]]] = deque()
        self.overtaken: tuple[float, int | str | None, Callable[[], None]] | None = None
        self.pace = 0.0
        self._last = -math.inf
        self._changed = changed

    def __len__(self) -> int:
        return len(self.waiting) + (self.overtaken is not None)

    @property
    def due(self) -> float:
        """When it wants `release`."""
        first = self.waiting[0][0] if self.waiting else math.inf
        return min(first, self.overtaken[0] if self.overtaken else math.inf)

    def put(self, id: int | str | None, go: Callable[[], None], late: float) -> None:
        """Let a message go `late` seconds from now, and behind all others; at once if nothing is in the way."""
        now = trio.current_time()
        self._last = due = max(now + late, (self._last if self.waiting else now) + self.pace)
        if self.waiting or due > now:
            self.waiting.append((due, id, go))
            self._changed()
        else:
            self._go(go)

    def hold(self, id: int | str | None, go: Callable[[], None], seconds: float) -> None:
        """Let the next message go first, or `seconds` pass."""
        if self.overtaken is not None:
            self._go(go)
            return
        self.overtaken = (trio.current_time() + seconds, id, go)
        self._changed()

    def release(self, now: float) -> None:
        """Let go whatever is due."""
        while self.waiting and self.waiting[0][0] <= now:
            self._go(self.waiting.popleft()[2])
        if self.overtaken is not None and self.overtaken[0] <= now:
            self._go_overtaken()

    def withdraw(self, id: int | str) -> bool:
        """Forget message `id`; returns whether it was here."""
        if self.overtaken is not None and self.overtaken[1] == id:
            self.overtaken = None
            return True
        found = next((entry for entry in self.waiting if entry[1] == id), None)
        if found is not None:
            self.waiting.remove(found)
        return found is not None

    def holds(self, id: int | str) -> bool:
        return id in self.ids()

    def ids(self) -> set[int | str]:
        """Of the requests that are held back."""
        entries = [*self.waiting, *([self.overtaken] if self.overtaken else [])]
        return {id for _, id, _ in entries if id is not None}

    def clear(self) -> None:
        self.waiting.clear()
        self.overtaken = None

    def _go(self, go: Callable[[], None]) -> None:
        go()
        self._go_overtaken()

    def _go_overtaken(self) -> None:
        overtaken, self.overtaken = self.overtaken, None
        if overtaken is not None:
            overtaken[2]()


class FaultyTransport(Transport):
    """Any transport, whose messages meet faults on both ways; either end of a conversation may have one.

    `delay`: this message, and all behind it, are late by `seconds`. `lose`: it never arrives. `duplicate`: it
    arrives twice. `reorder`: the next one overtakes it, or `seconds` pass. `garbage`: bytes that are no message
    come before it. `flood`: `count` log notifications come before it. `slow`: from here on, one message in
    `seconds`. `cut`: the connection ends before it.

    What is held back here counts as not written, and can be withdrawn. `with` closes the inner transport, where
    that can be done so.

    Attributes:
        faults: those that come, and those that came.

    """

    def __init__(
        self, inner: Transport, source: Random | Iterable[WireFault | None] = (), *,
        among: Sequence[WireFaultKind] = WIRE_FAULTS, chance: float = CHANCE, longest: float = LONGEST,
        told: Callable[[str, WireFault], object] | None = None,
    ) -> None:  # fmt: skip
        """A transport around `inner`.

        Args:
            inner: moves what is let through.
            source: a plan, a fault or None for each message in turn, both ways; or a seeded random source.
            among: the kinds that are drawn.
            chance: how often one is drawn.
            longest: seconds that a drawn fault takes at most.
            told: called with "out" or "in", and the fault, when one comes.

        """
        self.faults = Faults(source, among, chance=chance, longest=longest)
        self._inner = inner
        self._told = told
        self._over: str | None = None
        self._receiver: Receiver | None = None
        self._reading = trio.CancelScope()
        self._sleep = trio.CancelScope()
        self._unsent: set[int | str] = set()
        self._twice: set[int | str] = set()  # the second copy cannot be withdrawn
        self._out = _Lane(self._wake)
        self._in = _Lane(self._wake)

    def __enter__(self) -> Self:
        enter = getattr(self._inner, "__enter__", None)
        if enter is not None:
            enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave = getattr(self._inner, "__exit__", None)
        if leave is not None:
            leave(kind, error, trace)

    def send(
        self, message: bytes, *, id: int | str | None = None, method: str = "", name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        def send(data: bytes = message) -> None:
            self._inner.send(data, id=id, method=method, name=name, headers=headers)

        def send_late() -> None:
            try:
                send()
            except ConnectionLost as exc:  # the reader learns it too, and nobody waits here any more
                self.lose(exc.reason)
            except Overloaded as exc:
                self.lose(f"message beyond {exc.bound}")

        def send_beside(data: bytes) -> None:
            try:
                self._inner.send(data)
            except (ConnectionLost, Overloaded) as exc:
                self.lose(str(exc))

        self._check()
        if len(self._out) >= HELD:
            raise Overloaded("faulty_transport.held", HELD)
        late = bool(len(self._out)) or self._out.pace > 0
        fault = self._next("out")
        go = send_late if late or (fault is not None and fault.kind in ("delay", "slow", "reorder")) else send
        if id is not None and fault is not None and fault.kind == "duplicate":
            self._twice.add(id)
        self._meet(fault, self._out, message, id, go, send_beside)
        if fault is not None and fault.kind == "cut":
            self._check()

    def withdraw(self, id: int | str) -> bool:
        if id in self._unsent or self._out.withdraw(id):
            return id not in self._twice
        return self._inner.withdraw(id) and id not in self._twice

    def written(self, id: int | str) -> bool:
        if id in self._twice:
            return True  # the second copy may go where the first was withdrawn
        return id not in self._unsent and not self._out.holds(id) and self._inner.written(id)

    def speak(self, revision: str, *, modern: bool) -> None:
        self._inner.speak(revision, modern=modern)

    def lose(self, reason: str) -> None:
        """Break the connection: this end loses what is under way, and so does the other, where there is a way."""
        if self._over is None:
            self._over = reason
            self._unsent |= self._out.ids()
            self._out.clear()
            self._in.clear()
            lose = getattr(self._inner, "lose", None)
            if lose is not None:
                lose(reason)
            else:
                self._reading.cancel(reason)

    @property
    def congested(self) -> bool:
        return self._inner.congested

    async def wait_uncongested(self) -> None:
        await self._inner.wait_uncongested()

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._receiver = receiver
        ended = False
        if self._over is not None:
            task_status.started()
            await trio.lowlevel.checkpoint()
            receiver.lost(ConnectionLost(self._over))
            return

        async def read(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # the inner transport calls it
            nonlocal ended
            with self._reading:
                await self._inner.run(_Ear(self, receiver), task_status=task_status)
                ended = True
            nursery.cancel_scope.cancel("the connection is over")

        async with trio.open_nursery() as nursery:
            await nursery.start(read)
            task_status.started()
            await self._keep_time()
        if self._over is not None and not ended:
            receiver.lost(ConnectionLost(self._over))

    async def _keep_time(self) -> None:
        while True:
            self._sleep = trio.CancelScope(deadline=min(self._out.due, self._in.due))
            with self._sleep:
                await trio.sleep_forever()
            for lane in (self._out, self._in):
                lane.release(trio.current_time())

    def _wake(self) -> None:
        self._sleep.deadline = min(self._out.due, self._in.due)

    def _check(self) -> None:
        if self._over is not None:
            raise ConnectionLost(self._over, "no")

    def _next(self, way: str) -> WireFault | None:
        fault = self.faults.next()
        if fault is not None and self._told is not None:
            self._told(way, fault)
        return fault

    def _take(self, message: bytes, within: int | str | None) -> None:
        """What the inner transport read."""
        receiver = self._receiver
        assert receiver is not None

        def beside(data: bytes) -> None:
            receiver.feed([data], within)

        if self._over is None:
            if len(self._in) >= HELD:
                self._in.release(math.inf)
            self._meet(self._next("in"), self._in, message, None, lambda: beside(message), beside)

    def _meet(
        self, fault: WireFault | None, lane: _Lane, message: bytes, id: int | str | None,
        go: Callable[[], None], beside: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        if fault is None:
            lane.put(id, go, 0.0)
            return
        match fault.kind:
            case "delay":
                lane.put(id, go, fault.seconds)
            case "lose":
                pass
            case "duplicate":
                lane.put(id, go, 0.0)
                lane.put(None, lambda: beside(message), 0.0)
            case "reorder":
                lane.hold(id, go, fault.seconds)
            case "garbage":
                lane.put(None, lambda: beside(RUBBISH), 0.0)
                lane.put(id, go, 0.0)
            case "flood":
                for _ in range(fault.count):
                    beside(LOG_LINE)
                lane.put(id, go, 0.0)
            case "slow":
                lane.pace = fault.seconds
                lane.put(id, go, 0.0)
            case "cut":
                self.lose("cut (a fault on purpose)")


class _Ear:
    """Stands between the inner transport and whom it tells."""

    def __init__(self, transport: FaultyTransport, receiver: Receiver) -> None:
        self._transport = transport
        self._receiver = receiver

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in messages:
            self._transport._take(message, within)

    def fail(self, id: int | str, error: CallError, /) -> None:
        self._receiver.fail(id, error)

    def waits(self, id: int | str, /) -> bool:
        return self._receiver.waits(id)

    def lost(self, error: ConnectionLost, /) -> None:
        # What was read before, and is late, comes before the end.
        self._transport._in.release(math.inf)
        self._receiver.lost(error)
