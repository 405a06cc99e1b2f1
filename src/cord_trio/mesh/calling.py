"""The caller's side of calls between nodes: one call, wherever it runs, ends once, in time, and says whether it ran.

A call is one id, offered to one incarnation of a node until it answers. A lost connection, silence, or nobody
listening is no answer: as long as that incarnation stands, the same id is offered again, and finds what runs there or
what came of it. Only what provably did not run is offered elsewhere, under another id.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.call import Complete
from cord_trio.config.settings import DEEPEST
from cord_trio.counters import Counters
from cord_trio.errors import (
    CallError,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    Malformed,
    Overloaded,
    SourceDown,
)
from cord_trio.mesh.flight import GRACE, PATIENCE, QUIET, RETURN, SILENCE, Flight
from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh.heads import read_frame, write_request
from cord_trio.mesh.outcomes import outcome_of, params_of, ttl_of
from cord_trio.mesh.owning import HOPS
from cord_trio.mesh.parts import ABOVE
from cord_trio.mesh.peers import Peers
from cord_trio.mesh.pinning import STATE, marked, pin_of
from cord_trio.mesh.recent import Recent
from cord_trio.mesh.withdrawals import PAUSE, Withdrawals
from cord_trio.mesh_errors import BadFrame, NoOwner, NoResponders, OwnerFailed, OwnerLost, OwnerRefused
from cord_trio.protocol.jsonrpc import NOTHING, payload_of
from cord_trio.routing import TASKS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from cord_trio.call import Call, EventSink, Outcome
    from cord_trio.mesh.contracts import Link
    from cord_trio.mesh.frames import Bundle
    from cord_trio.mesh.owning import Roster
    from cord_trio.mesh.parts import Parts
    from cord_trio.mesh.signing import Signer
    from cord_trio.nats.client import Stream

log = logging.getLogger("cord_trio.mesh")

TICK: Final = 0.25
"""Seconds between two looks at which calls are silent."""

MAX_FLIGHTS: Final = 16384
"""Calls to other nodes that are under way at once."""

RENEWALS: Final = 3
"""Times that one call is signed anew."""

_ELSEWHERE: Final = (NoOwner, OwnerRefused, OwnerLost, SourceDown, Overloaded, Draining, ConnectionLost)
"""What another node that has the same may not say."""


class Calling:
    """Calls to other nodes. Made by `open_calling`.

    Args:
        link: the node's way to the others.
        roster: tells who is there.
        mesh: its name.
        node: ours.
        epoch: our incarnation now; "" while there is none.
        parts: sends and fetches what is large; None to refuse it.
        signer: signs them; None where the mesh has no key.
        rng: draws ids, owners and pauses.
        counters: where to count.

    """

    def __init__(
        self,
        link: Link,
        roster: Roster,
        *,
        mesh: str,
        node: str,
        epoch: Callable[[], str],
        parts: Parts | None = None,
        signer: Signer | None = None,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self.peers = Peers(rng)
        self.recent = Recent()  # the calls of traces
        self._link = link
        self._roster = roster
        self._root = f"c1.{mesh}.call"
        self._node = node
        self._epoch = epoch
        self._parts = parts
        self._signer = signer
        self._rng = rng
        self._counters = counters
        self._flights: dict[str, Flight] = {}
        self._withdrawals = Withdrawals(link, roster, rng=rng, counters=counters)
        self._next = math.inf
        self._sleeping = trio.CancelScope()

    async def call(self, call: Call, owners: Sequence[str], *, source: str = "", join: float = 0.0) -> Outcome:
        """How `call` ended on one of `owners`, which all can do it alike.

        Cancelled, it tells the owner so, and returns at once, unless it is to `join`.

        Args:
            call: of any method; one that answers a question goes to who asked it.
            owners: names of nodes.
            source: whose object it is about, where they call it alike.
            join: seconds for which it waits, cancelled or late, until the owner has ended it.

        Raises:
            CallError: it did not end; `executed` says what is known.

        """
        name = call.name or call.method
        self.peers.budget.earn()
        left = list(owners)
        if call.park or call.method != "tools/call" or STATE in call.params:
            call, left = self._pinned(call, left)
        if len(self._flights) >= MAX_FLIGHTS:
            self._counters.add("mesh.flights_full")
            raise Overloaded("mesh_flights", MAX_FLIGHTS)
        while True:  # noqa: ASYNC913  # goes on only after an answer
            node, epoch = self._choose(name, left)
            left.remove(node)
            try:
                return await self._carry(call, name, source, node, epoch, may_go_on=bool(left), join=join)
            except _ELSEWHERE as exc:
                if exc.executed != "no" or not left or (type(exc) is OwnerRefused and exc.reason == "denied"):
                    raise
                if not self.peers.budget.spend():
                    raise
                self._counters.add("mesh.elsewhere")

    def choose(self, name: str, owners: Sequence[str]) -> str:
        """Which of `owners` would take a call now. Raises `NoOwner` if none is there."""
        return self._choose(name, owners)[0]

    def drop(self, park: str, reason: str) -> None:
        """Tell who asked the question `park` that it will not be answered."""
        node, epoch, token = (*park.split(".", 2), "", "")[:3]
        if token and self._roster.epoch(node) == epoch:
            self._publish(self._subject(node, epoch), Request("drop", self._new_id(), park=token, reason=reason))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after what is under way, until cancelled."""
        with self._roster.hearing(self._ended):
            async with trio.open_nursery() as nursery:
                self._withdrawals.nursery = nursery
                try:
                    task_status.started()
                    while True:
                        with trio.CancelScope(deadline=self._next) as self._sleeping:
                            await trio.sleep_forever()
                        self._look(trio.current_time())
                finally:
                    self._withdrawals.nursery = None
                    for flight in self._flights.values():
                        flight.end("this node leaves the mesh")

    # One call on one node

    def _pinned(self, call: Call, owners: list[str]) -> tuple[Call, list[str]]:
        """`call` as those who can do it know it, and who can.

        Raises:
            OwnerLost: the only one that could is no more. Another must not begin anew what has begun there.

        """
        pin = pin_of(call)
        if pin is None:
            return call, owners
        node, epoch, call = pin
        if self._roster.epoch(node) == epoch:
            return call, [node]
        if not call.park and call.method not in TASKS:
            return call, owners  # a modern server's own state: another may make sense of it, or says that it cannot
        self._counters.add("mesh.pins_lost")
        raise OwnerLost(node, epoch, f"the {'question that this answers' if call.park else 'task'} went with it")

    def _choose(self, name: str, owners: Sequence[str]) -> tuple[str, str]:
        if len(owners) == 1 and (epoch := self._roster.epoch(owners[0])) is not None:
            return owners[0], epoch
        there = [(node, epoch) for node in owners if (epoch := self._roster.epoch(node)) is not None]
        if not there:
            raise NoOwner(name, f"{', '.join(owners)} is not in the mesh now" if owners else "none is in the mesh now")
        return self.peers.choose(there, trio.current_time())

    async def _carry(
        self, call: Call, name: str, source: str, node: str, epoch: str, *, may_go_on: bool, join: float
    ) -> Outcome:
        await trio.lowlevel.checkpoint_if_cancelled()
        params = params_of(call)
        bundle: Bundle | None = None
        if len(params) > ABOVE and self._parts is not None:
            bundle = await self._parts.bundle(params)
        now = trio.current_time()
        ours, ttl = self._epoch(), ttl_of(call, now)
        if not ours:
            raise NoOwner(name, "this node is not in the mesh now")
        if ttl == 0:
            raise DeadlineExceeded(f"{name}, before node {node} was asked", "no")
        peer = self.peers.get(node, epoch)
        request = Request(
            "call", self._new_id(), params if bundle is None else b"", source=source, tool=call.name,
            method=call.method, ttl=ttl, epoch=ours, hop=HOPS.get(), principal=call.principal, trace=call.trace,
            park=call.park, settled=peer.take_settled(), events=call.events is not None, bundle=bundle,
        )  # fmt: skip
        if self._signer is not None:
            request = self._signer.signed(request, ours, node, epoch, peer.ahead)
        subject = self._subject(node, epoch)
        flight = Flight(name, peer, node, subject, request, call, now, may_go_on=may_go_on)
        if bundle is not None:
            flight.large = params
        self._flights[request.id] = flight
        peer.in_flight += 1
        if now + TICK < self._next or call.deadline < self._next:
            self._next = self._sleeping.deadline = min(now + TICK, call.deadline)
        frame: Frame | None = None
        lost = False
        try:
            frame = await self._converse(flight)
        except CallError as exc:
            lost = not isinstance(exc, DeadlineExceeded)  # else it is there, and has to end
            flight.settled = exc.executed == "no"
            if not flight.settled and lost:
                peer.doubted(trio.current_time())
            raise
        finally:
            peer.in_flight -= 1
            del self._flights[request.id]
            if request.trace:
                self.recent.made(flight, frame, sys.exception())
            if frame is not None:
                flight.settled = True
                peer.answered(request.id if flight.offers == 1 and flight.node == node else "")
            if not flight.settled and flight.executed != "no":
                self._withdrawals.withdraw(flight)
                if join and not lost:
                    await self._withdrawals.join(flight, join)  # noqa: ASYNC102  # shielded in there, for so long
        outcome = outcome_of(frame, flight.node, name, flight.result)
        return outcome if type(outcome) is Complete else marked(outcome, flight.node, flight.epoch)

    async def _converse(self, flight: Flight) -> Frame:
        """Offer it until it is answered."""
        while True:
            flight.check()
            now = trio.current_time() if flight.offers else flight.began
            request = flight.again(now)
            try:
                with self._link.open_stream(flight.subject, request.body, head=write_request(request)) as stream:
                    flight.offered(stream, now)
                    return await self._listen(flight, stream)
            except NoResponders:
                flight.nobody(trio.current_time())
            except ConnectionLost as exc:
                flight.lost(exc.executed)
            except Overloaded:
                if flight.stream is None and not flight.maybe:
                    raise  # it could not be sent
                # Else more came than was taken, or too much waits to be sent: what is missing is told again.
                flight.lost("no" if flight.stream is None else "unknown")
            except ValueError as exc:
                raise NoOwner(flight.name, f"it cannot be said: {exc}") from exc
            finally:
                flight.stream = None
            await self._pause(flight)

    async def _listen(self, flight: Flight, stream: Stream) -> Frame:
        """The frame that ends it."""
        while True:
            message = await stream.receive()
            try:
                frame = read_frame(message.head, message.data)
            except BadFrame as exc:
                self._counters.add("mesh.bad_frames")
                log.info("an answer that is none of ours node=%s why=%s", flight.node, exc)
                if message.header("C-K") in ("ok", "err", "end"):
                    raise OwnerFailed(flight.node, "BadFrame", f"its answer cannot be read: {exc}", "yes") from exc
                continue
            if frame.slots:
                flight.peer.told(frame.busy, frame.slots)
            if frame.kind in ("ok", "err") and not flight.peer.absent:
                return frame
            flight.heard_at(trio.current_time())
            match frame.kind:
                case "ok" | "err":
                    return frame
                case "end":
                    return await self._fetch(flight, frame, stream.inbox)
                case "credit" if self._parts is not None and flight.large:
                    self._parts.send(flight.large, frame.seq, frame.window, frame.to)
                case "prog":
                    if flight.events is not None:
                        self._tell(flight.events, frame)
                case "rej" if frame.reason == "expired" and self._renews(flight, frame, stream.inbox):
                    pass  # it is signed anew
                case "rej":
                    raise OwnerRefused(flight.node, frame.reason, frame.text, flight.before_this)
                case "pong":
                    if frame.state != "running" and flight.handed:
                        raise OwnerLost(flight.node, flight.epoch, "it was handed on, and is not known there")
                    if frame.state != "running":
                        self._counters.add("mesh.offered_again")
                        flight.repeated()
                        self._publish(flight.subject, flight.again(trio.current_time()), reply=stream.inbox)
                case "moved":
                    flight.moved(frame.node, frame.epoch)
                    flight.subject = self._subject(flight.node, flight.epoch)
                    if self._roster.epoch(frame.node) not in (frame.epoch, None):
                        flight.end(f"it ended, or lost its lease (epoch {frame.epoch} is over)")
                case _:
                    pass  # it runs

    def _tell(self, events: EventSink, frame: Frame) -> None:
        """Pass a notification on."""
        try:
            events(frame.method, payload_of(frame.body, DEEPEST) if frame.body else NOTHING)
        except Malformed as exc:
            self._counters.add("mesh.bad_frames")
            log.info("a notification that cannot be read method=%s why=%s", frame.method[:40], exc)

    def _renews(self, flight: Flight, frame: Frame, inbox: str) -> bool:
        """Sign a call by the clock of who would not have it, and offer it once more; False if that does not help."""
        if self._signer is None or flight.handed or flight.renewed >= RENEWALS:
            return False
        flight.renewed += 1
        now = trio.current_time()
        flight.peer.ahead = ahead = frame.seq / 1000 - now
        flight.request = self._signer.signed(flight.request, self._epoch(), flight.node, flight.epoch, ahead)
        self._publish(flight.subject, flight.again(now), reply=inbox)
        return True

    async def _fetch(self, flight: Flight, frame: Frame, inbox: str) -> Frame:
        """The frame that holds a large result."""
        if self._parts is None or frame.bundle is None:
            raise OwnerFailed(flight.node, "TooLong", "its answer comes in parts, which are not taken here", "yes")

        def want(first: int, count: int, to: str) -> None:
            flight.check()
            flight.heard_at(trio.current_time())  # what is silent now are the parts, and those have their own patience
            request = Request("credit", flight.request.id, first=first, window=count, to=to)
            self._publish(flight.subject, request, reply=inbox)

        flight.result = None
        try:
            with trio.CancelScope(deadline=flight.deadline):
                flight.result = await self._parts.payload(frame.bundle, want)
            if flight.result is None:
                raise DeadlineExceeded(f"{flight.name} on node {flight.node}, while its result came")
        except CallError as exc:
            exc.executed = "yes"
            raise
        except BadFrame as exc:
            raise OwnerFailed(flight.node, "BadFrame", str(exc), "yes") from exc
        self._publish(flight.subject, Request("done", flight.request.id))
        return Frame("ok", type=frame.type, park=frame.park)

    async def _pause(self, flight: Flight) -> None:
        """Wait until it makes sense to offer it again.

        Raises:
            CallError: it does not.

        """
        flight.check()
        now = trio.current_time()
        if now - flight.heard > PATIENCE:
            raise OwnerLost(flight.node, flight.epoch, f"no word of it for {PATIENCE:g} s", flight.executed)
        if not self._link.connected:
            most = flight.heard + (PATIENCE if flight.maybe else GRACE)
            with trio.CancelScope(deadline=most) as flight.pausing:
                await self._link.wait_connected()
                flight.nobody_since = math.inf
            if flight.pausing.cancelled_caught:
                flight.check()
                raise OwnerLost(flight.node, flight.epoch, "this node is cut off", flight.executed)
            return
        if flight.nobody_since < math.inf:
            long = now > max(flight.nobody_since + GRACE, self._link.returned + RETURN)
            # Where all that have it are away for a moment, as when a broker restarts, the budget is soon spent.
            elsewhere = flight.may_go_on and self.peers.budget.some
            if not flight.maybe and (long or elsewhere or flight.peer.absent):
                flight.peer.missed(now, long=long)
                raise NoOwner(flight.name, f"nobody listens at node {flight.node}")
            if long:
                raise OwnerLost(
                    flight.node, flight.epoch, f"nobody listens there for {now - flight.nobody_since:.0f} s"
                )
        with trio.CancelScope() as flight.pausing:
            await trio.sleep(self._rng.uniform(*PAUSE))

    # Looking after

    def _look(self, now: float) -> None:
        """End those whose deadline is here, and ask for those of which nothing is heard."""
        self._next = now + TICK if self._flights else math.inf
        for flight in self._flights.values():
            if flight.deadline <= now:
                flight.late()
                continue
            self._next = min(self._next, flight.deadline)
            stream = flight.stream
            if stream is None or stream.settled:
                continue
            silent = now - max(flight.heard, flight.asked)
            if now - flight.heard > PATIENCE:
                stream.fail(OwnerLost(flight.node, flight.epoch, f"no word of it for {PATIENCE:g} s"))
            elif silent >= (QUIET if flight.spoken else SILENCE):
                self._counters.add("mesh.pings")
                self._publish(flight.subject, flight.ping(now), reply=stream.inbox)

    def _ended(self, node: str, epoch: str) -> None:
        """An incarnation is no more, and with it what it ran."""
        self.peers.forget(node, epoch)
        for flight in self._flights.values():
            if (flight.node, flight.epoch) == (node, epoch):
                flight.end(f"it ended, or lost its lease (epoch {epoch} is over)")

    def _publish(self, subject: str, request: Request, *, reply: str = "") -> None:
        try:
            self._link.publish(subject, request.body, reply=reply, head=write_request(request))
        except (CallError, ValueError) as exc:
            log.debug("a message was not sent op=%s why=%s", request.op, exc)

    def _subject(self, node: str, epoch: str) -> str:
        return f"{self._root}.{node}.{epoch}.{self._node}"

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"


@asynccontextmanager
async def open_calling(
    link: Link,
    roster: Roster,
    *,
    mesh: str,
    node: str,
    epoch: Callable[[], str],
    parts: Parts | None = None,
    signer: Signer | None = None,
    rng: random.Random | None = None,
    counters: Counters | None = None,
) -> AsyncGenerator[Calling]:
    """Calls to other nodes, for as long as the block runs; see `Calling`. The block's own errors leave as raised."""
    calling = Calling(
        link, roster, mesh=mesh, node=node, epoch=epoch, parts=parts, signer=signer,
        rng=rng or random.Random(), counters=counters or Counters(),
    )  # fmt: skip
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(calling.run)
            yield calling
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("no calls are made any more")
    if failure is not None:
        raise failure
