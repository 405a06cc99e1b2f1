"""The owner's side of calls between nodes: what others ask of this incarnation of the node runs here, once.

Every call is known by its caller and its id for as long as its caller may ask again, so a message that comes twice
finds what runs, or what came of it. Whether it comes in order, late, or after its own cancel, it never runs a second
time; what was refused stays refused. All of it lives in the nursery of the lease, and ends when that has to let go.
"""

from __future__ import annotations

import logging
import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Error
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CordError, DeadlineExceeded
from cord_trio.mesh.frames import MAX_HOPS, READ, STANDING, Frame, Request
from cord_trio.mesh.heads import read_request, write_frame, write_request
from cord_trio.mesh.outcomes import HOP_COST, call_of, failure_of, frame_of, params_of
from cord_trio.mesh.parts import ABOVE
from cord_trio.mesh.signing import WHO, Door
from cord_trio.mesh.tenure import MAX_REMEMBERED, Owned, Tenure
from cord_trio.mesh_errors import BadFrame, NoOwner, OwnerFailed, OwnerRefused

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cord_trio.call import Call, Complete, EventSink, Handler, InputRequired, Task
    from cord_trio.errors import Executed
    from cord_trio.mesh.contracts import Link
    from cord_trio.mesh.parts import Parts, Want
    from cord_trio.mesh.presence import Lease
    from cord_trio.nats.wire import Message

log = logging.getLogger("cord_trio.mesh")

PARTS_OF_OURS: Final = frozenset(("agents/ask", "agents/tell", "agents/inquire", READ))
"""Methods of calls that may be part of what was taken here before: who answers them sees to it, while we drain too."""

SLOTS: Final = 256
"""Calls of other nodes that run at once."""

LINE: Final = 256
"""Calls of other nodes that wait for that."""

HOPS: ContextVar[int] = ContextVar("cord_trio_mesh_hops", default=0)
"""Nodes that the call went through in which the running task is."""


class Roster(Protocol):
    """Who is in the mesh, as far as calls need it."""

    def epoch(self, node: str) -> str | None:
        """The incarnation of `node` that is there now; None if it is not."""

    def hearing(self, ended: Callable[[str, str], None]) -> AbstractContextManager[None]:
        """While the block runs, `ended` is told node and epoch of each incarnation that is no more."""


class Admit(Protocol):
    """Says whether a call may run here: "" or one of `frames.REASONS`. Must not block."""

    def __call__(self, node: str, request: Request, /) -> str:
        """Judge what `node` asks for."""


class HandOn(CordError):
    """Raised by who runs a call of another node, to hand it on: `node` answers `call` to the same caller.

    The caller is told, and asks and cancels there from then on. Its deadline goes along.
    """

    def __init__(self, node: str, call: Call) -> None:
        super().__init__(f"the call goes on on node {node!r}")
        self.node = node
        self.call = call


class Owning:
    """What other nodes ask of this one.

    Args:
        link: the node's way to the others.
        handler: runs what they call.
        roster: tells whose incarnation is over.
        parts: sends and fetches what is large; None to refuse it.
        door: knows who calls, and who may; None to take whoever a node says it is.
        admit: judges each call before it runs; None to let all run.
        slots: that run at once.
        line: that wait for it.
        counters: where to count.

    Attributes:
        draining: whether no new calls are taken; those whose callers know them go on.
        drop: told that a caller will not answer the question under this token.

    """

    def __init__(
        self,
        link: Link,
        handler: Handler,
        roster: Roster,
        *,
        parts: Parts | None = None,
        door: Door | None = None,
        admit: Admit | None = None,
        drop: Callable[[str, str], None] | None = None,
        slots: int = SLOTS,
        line: int = LINE,
        counters: Counters | None = None,
    ) -> None:
        self.draining = False
        self._drop = drop
        self._parts = parts
        self._link = link
        self._handler = handler
        self._roster = roster
        self._admit = admit
        self._door = door or Door()
        self._slots = slots
        self._line = line
        self._counters = counters or Counters()
        self._tenure: Tenure | None = None
        self._asked_as = ""  # the subject of the latest message

    @property
    def busy(self) -> int:
        """Calls that run here, and that wait for that."""
        return 0 if self._tenure is None else self._tenure.admission.busy

    def begun(self, lease: Lease) -> None:
        """Take what is asked of this incarnation, until it has to let go. For `presence.join`."""
        tenure = self._tenure = Tenure(lease, self._slots, self._line, self._run, self._counters)
        lease.nursery.start_soon(self._keep, tenure)

    def take(self, message: Message) -> None:
        """Do what a message asks for. For `presence.join`; never blocks or raises."""
        try:
            request = read_request(message.head, message.data)
        except BadFrame as exc:
            self._counters.add("mesh.bad_frames")
            log.info("a message that is none of ours subject=%s why=%s", message.subject, exc)
            if message.reply:
                self._say(message.reply, Frame("rej", exc.id, reason="unsupported", text=str(exc)))
            return
        tenure = self._tenure
        self._asked_as = message.subject
        node = message.subject.rpartition(".")[2]
        if tenure is None:
            if message.reply:
                self._say(message.reply, Frame("rej", request.id, reason="fenced"))
            return
        now = trio.current_time()
        if request.op == "call":
            self._call(tenure, node, request, message.reply, now)
            return
        owned = tenure.known.get((request.behalf or node, request.id))
        match request.op:
            case "cancel":
                self._cancel(tenure, node, request, owned, now)
                if message.reply:
                    self._say(message.reply, Frame("pong", request.id, state="done"))
            case "ping":
                self._ping(tenure, request, owned, message.reply)
            case "credit":
                self._credit(tenure, request, owned, message.reply)
            case "done":
                if owned is not None and owned.state == "done":
                    tenure.let_go(owned)
            case _:
                self._let_park_go(tenure, request.park, request.reason or "its caller let go of it")

    # What is asked

    def _call(self, tenure: Tenure, node: str, request: Request, reply: str, now: float) -> None:
        caller = request.behalf or node
        known = tenure.known.get((caller, request.id))
        if known is not None and _comes_back(request, known):
            tenure.settle(caller, request.id)
        elif known is not None:
            self._counters.add("mesh.asked_again")
            self._ping(tenure, request, known, reply)
            return
        if len(tenure.known) >= MAX_REMEMBERED:
            tenure.make_room(caller, request.settled, now)
            if len(tenure.known) >= MAX_REMEMBERED:
                self._counters.add("mesh.remembered_full")
                self._say(reply, Frame("rej", request.id, reason="busy", text="too many calls are remembered"))
                return
        request, refusal = self._door.judge(node, request, tenure.lease.epoch, now)
        if refusal is not None:
            self._say(reply, refusal)
            return
        until = math.inf if request.ttl is None else now + request.ttl / 1000
        owned = Owned(caller, request, reply, until)
        tenure.known[caller, request.id] = owned
        reason = self._judge(tenure, node, owned)
        if reason:
            self._refuse(tenure, owned, reason)
            return
        if until <= now:
            self._end(tenure, owned, failure_of(DeadlineExceeded("nothing of it was left", "no")), now)
            return
        if request.method in STANDING:
            if tenure.stand(owned, now):
                self._start(tenure, owned, now)
            else:
                self._refuse(tenure, owned, "busy")
            return
        verdict, pushed = tenure.admission.ask(caller, owned, until - now)
        if pushed is not None:
            self._refuse(tenure, pushed, "busy")
        if verdict == "busy":
            self._refuse(tenure, owned, "busy")
            return
        tenure.runs(owned, now)
        if verdict == "run":
            self._start(tenure, owned, now)

    def _judge(self, tenure: Tenure, node: str, owned: Owned) -> str:
        """Why it may not run; "" if it may."""
        request = owned.request
        # One that is there again never left: the store was lost, and it has said again what it is.
        if tenure.is_over(owned.caller, request.epoch) and self._roster.epoch(owned.caller) != request.epoch:
            return "fenced"
        if self.draining and not request.park and request.method not in PARTS_OF_OURS:
            return "draining"
        if request.bundle is not None and self._parts is None:
            return "unsupported"
        if request.hop >= MAX_HOPS:
            return "denied"
        return "" if self._admit is None else self._admit(node, request)

    def _cancel(self, tenure: Tenure, node: str, request: Request, owned: Owned | None, now: float) -> None:
        if owned is not None and owned.end is not None and owned.end.kind == "moved":
            # Its caller did not know yet that another has it.
            to = self._subject(owned.end.node, owned.end.epoch)
            self._send(to, replace(request, behalf=owned.caller))
        elif owned is not None and owned.state == "done":
            tenure.let_go(owned)
        elif owned is not None:
            self._stop(tenure, owned, request.reason or "its caller cancelled it")
        elif len(tenure.known) < MAX_REMEMBERED:
            # It came before its call: that must not run any more.
            caller = request.behalf or node
            owned = Owned(caller, request, "", now)
            tenure.known[caller, request.id] = owned
            self._end(tenure, owned, _ended("its caller cancelled it", "no"), now)

    def _stop(self, tenure: Tenure, owned: Owned, why: str) -> None:
        """End a call from outside, unless it has ended."""
        if owned.state == "done" or owned.why:
            return
        self._counters.add("mesh.cancelled")
        owned.why = why
        if owned.scope is not None:
            owned.scope.cancel(why)
        elif tenure.admission.withdraw(owned.caller, owned):
            self._end(tenure, owned, _ended(why, "no"), trio.current_time())

    def _ping(self, tenure: Tenure, request: Request, owned: Owned | None, reply: str) -> None:
        """Tell who asks what is known, there from now on."""
        if owned is None:
            if reply:
                self._say(reply, Frame("pong", request.id, state="unknown"))
            return
        if reply:
            owned.reply = reply
        if owned.state != "done":
            owned.joined = bool(owned.why)
            self._say(owned.reply, Frame("pong", request.id, state="running"))
            return
        if owned.reply:
            self._say(owned.reply, owned.end or _ended("it ended, and its result was let go of", "yes"))

    def _credit(self, tenure: Tenure, request: Request, owned: Owned | None, reply: str) -> None:
        """Send parts of a result."""
        if owned is not None and owned.large and self._parts is not None and request.to:
            self._parts.send(owned.large, request.first, request.window, request.to)
        else:
            self._ping(tenure, request, owned, reply)

    def _let_park_go(self, tenure: Tenure, park: str, why: str) -> None:
        if tenure.unpark(park) and self._drop is not None:
            self._drop(park, why)

    # Running

    def _start(self, tenure: Tenure, owned: Owned, now: float) -> None:
        owned.state = "running"
        owned.began = now
        tenure.workers.begin(owned)

    async def _run(self, tenure: Tenure, owned: Owned) -> None:
        HOPS.set(owned.request.hop + 1)
        WHO.set(owned.request.principal)
        frame: Frame | None = None
        executed: Executed = "no"
        try:
            # It may have been cancelled, or the lease may have ended, since it came.
            await trio.lowlevel.checkpoint_if_cancelled()
            body: bytes | dict[str, Raw] = owned.request.body
            if owned.request.bundle is not None and self._parts is not None:
                body = await self._parts.members(owned.request.bundle, self._wanting(owned))
            call = call_of(owned.request, body, owned.deadline, self._events(owned))
            del body
            executed = "unknown"
            outcome = await self._handler(call)
            executed = "yes"
            if self._parts is None or isinstance(outcome, Error) or len(outcome.result) <= ABOVE:
                frame = frame_of(outcome)
            else:
                frame = await self._bundled(owned, outcome, self._parts)
        except HandOn as exc:
            frame = self._hand_on(tenure, owned, exc)
        except CallError as exc:
            if executed != "unknown":  # it is about what came before the handler, or after it
                exc.executed = executed
            frame = failure_of(exc)
        except BadFrame as exc:
            frame = failure_of(OwnerFailed("", "BadFrame", str(exc), "no"))
        except Exception as exc:
            frame = self._failed(owned, exc)
        except BaseExceptionGroup as exc:
            cancelled, failed = exc.split(trio.Cancelled)
            if not isinstance(failed, Exception):
                raise
            frame = self._failed(owned, failed)
            if cancelled is not None:
                raise cancelled from None
        finally:
            if frame is None:
                if owned.why:
                    frame = _ended(owned.why, executed)
                elif owned.scope is not None and owned.scope.cancel_called:
                    frame = failure_of(DeadlineExceeded("its deadline passed where it ran", executed))
                elif executed == "no" and not owned.request.behalf:
                    frame = Frame("rej", reason="fenced")
                else:
                    frame = _ended("the node had to let go of it", executed)
            now = trio.current_time()
            self._end(tenure, owned, frame, now)
            if owned.standing:
                tenure.standing -= 1
            elif (after := tenure.admission.leave(now - owned.began)) is not None:
                self._start(tenure, after, now)

    def _failed(self, owned: Owned, error: Exception) -> Frame:
        """Tell of what a handler must not raise."""
        self._counters.add("mesh.handler_failed")
        caller, tool = owned.caller, owned.request.tool
        log.error("a call of another node failed caller=%s tool=%s", caller, tool, exc_info=error)
        return failure_of(OwnerFailed("", type(error).__name__, "it failed here; its log says why", "unknown"))

    def _hand_on(self, tenure: Tenure, owned: Owned, to: HandOn) -> Frame:
        """Let another node answer the caller; returns what tells it so."""
        now = trio.current_time()
        epoch, params = self._roster.epoch(to.node), params_of(to.call)
        ttl = None if owned.deadline == math.inf else max(0, int((owned.deadline - now) * 1000) - HOP_COST)
        if epoch is None:
            return failure_of(NoOwner(to.call.name or "", f"{to.node} is not in the mesh now", "unknown"))
        request = Request(
            "call", owned.request.id, params, tool=to.call.name, method=to.call.method, ttl=ttl,
            epoch=owned.request.epoch, hop=owned.request.hop + 1, principal=to.call.principal, trace=to.call.trace,
            behalf=owned.caller, events=owned.request.events,
        )  # fmt: skip
        request = self._door.signed(request, tenure.lease.epoch, to.node, epoch)
        # First its caller is told, so that it knows that something ran whatever the other says.
        self._say(owned.reply, Frame("moved", node=to.node, epoch=epoch))
        try:
            self._link.publish(
                self._subject(to.node, epoch), request.body, reply=owned.reply, head=write_request(request)
            )
        except (CallError, ValueError) as exc:
            return failure_of(OwnerFailed("", "HandOn", f"it could not be handed on: {exc}", "unknown"))
        self._counters.add("mesh.handed_on")
        return Frame("moved", node=to.node, epoch=epoch)

    def _subject(self, node: str, epoch: str) -> str:
        _, mesh, _, ours, _ = self._asked_as.split(".", 4)
        return f"c1.{mesh}.call.{node}.{epoch}.{ours}"

    async def _bundled(self, owned: Owned, outcome: Complete | InputRequired | Task, parts: Parts) -> Frame:
        """What tells of a large result, which stays here until it is fetched; as it is, since to copy it takes long."""
        large = memoryview(outcome.result)
        bundle = await parts.bundle(large)
        owned.large = large
        told = frame_of(replace(outcome, result=Raw(b"")))
        return Frame("end", type=told.type, park=told.park, bundle=bundle)

    def _wanting(self, owned: Owned) -> Want:
        def want(first: int, count: int, to: str) -> None:
            self._say(owned.reply, Frame("credit", seq=first, window=count, to=to))

        return want

    def _events(self, owned: Owned) -> EventSink | None:
        if not owned.request.events:
            return None

        def tell(method: str, params: Raw) -> None:
            if owned.state == "running":
                self._say(owned.reply, Frame("prog", method=method, body=bytes(params)))

        return tell

    # Ending

    def _refuse(self, tenure: Tenure, owned: Owned, reason: str) -> None:
        self._counters.add(f"mesh.refused_{reason}")
        frame = Frame("rej", reason=reason)
        if owned.request.behalf:  # a part of it ran where it was before
            frame = failure_of(OwnerRefused("", reason, executed="unknown"))
        self._end(tenure, owned, frame, trio.current_time())

    def _end(self, tenure: Tenure, owned: Owned, frame: Frame, now: float) -> None:
        """Tell the caller, who waits for it, and remember."""
        if owned.reply and (not owned.why or owned.joined) and frame.kind != "moved":
            self._say(owned.reply, frame)
        tenure.end(owned, frame, now)

    def _send(self, subject: str, request: Request) -> None:
        try:
            self._link.publish(subject, request.body, head=write_request(request))
        except (CallError, ValueError) as exc:
            log.info("a message was not sent op=%s why=%s", request.op, exc)

    def _say(self, reply: str, frame: Frame) -> None:
        tenure = self._tenure
        busy = 0 if tenure is None else tenure.admission.busy
        try:
            self._link.publish(reply, frame.body, head=write_frame(frame, busy, self._slots))
        except (CallError, ValueError) as exc:
            # Its caller asks again, and gets it then.
            self._counters.add("mesh.unsaid")
            log.info("a caller was not told kind=%s why=%s", frame.kind, exc)

    # The incarnation

    async def _keep(self, tenure: Tenure) -> None:
        """Tell callers that their calls run, and end those of callers that are no more."""

        def ended(node: str, epoch: str) -> None:
            why = f"its caller {node} (epoch {epoch}) is no more"
            running, parks = tenure.over(node, epoch)
            for park in parks:
                self._let_park_go(tenure, park, why)
            for owned in running:
                self._counters.add("mesh.orphans")
                self._stop(tenure, owned, why)

        try:
            with self._roster.hearing(ended):
                while True:
                    with trio.CancelScope(deadline=tenure.next) as tenure.sleeping:
                        await trio.sleep_forever()
                    if not tenure.sleeping.cancelled_caught:
                        return  # pragma: no cover  # sleep_forever only leaves by a cancellation
                    for owned, kind in tenure.due(trio.current_time()):
                        self._say(owned.reply, Frame(kind))
        finally:
            if self._tenure is tenure:
                self._tenure = None


def _comes_back(request: Request, known: Owned) -> bool:
    """Whether a call that was handed on from here was handed back: another run, and no message that came twice."""
    return known.end is not None and known.end.kind == "moved" and request.hop > known.request.hop


def _ended(why: str, executed: Executed) -> Frame:
    return failure_of(OwnerFailed("", "Ended", why, executed))
