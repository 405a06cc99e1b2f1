"""One source that several like servers stand for: child processes of one command, or several endpoints.

Each of them is kept by a link of its own, which is lost and comes back alone. To everybody else they are one source:
one list, that of the first that is ready, and calls that go to whichever has least to do. What only one of them can
know of stays with that one: a task, a round of questions, a subscription, a session that asks its caller.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio
from msgspec import DecodeError, Raw

from cord_trio.awaiting import Awaiting
from cord_trio.balance import EJECT_AFTER, Load, choose, may_eject
from cord_trio.call import Complete, InputRequired, Task
from cord_trio.config import Foreign, several
from cord_trio.errors import (
    BadReply,
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    DrainTimeout,
    HttpFailed,
    Malformed,
    SourceDown,
)
from cord_trio.following import Subscriptions
from cord_trio.layers.times import is_too_slow
from cord_trio.link import Link
from cord_trio.protocol.jsonrpc import members, parse
from cord_trio.protocol.questions import NOBODY
from cord_trio.registry import Update
from cord_trio.routing import TASKS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from cord_trio.call import Call, Outcome
    from cord_trio.client import Client
    from cord_trio.config import Source
    from cord_trio.errors import ConnectFailed
    from cord_trio.handshake import Greeting
    from cord_trio.snapshot import Kind, Listed, State
    from cord_trio.surroundings import Surroundings

log = logging.getLogger("cord_trio.link")

SICK: Final = (BadReply, ConnectionLost, DeadlineExceeded, HttpFailed)
"""Failures that say something of the server that was called, not of the call."""

OF_THE_CALL: Final = (400, 413, 414, 415, 422, 431)
"""HTTP statuses that say something of the call: any server like it would have answered so."""

MAX_PINS: Final = 10_000
"""Tasks and rounds of one source of which is remembered where they are; the oldest are forgotten."""

STATES: Final[Sequence[State]] = (
    "ready", "starting", "manifest", "configured", "down", "draining", "closing", "closed"
)  # fmt: skip
"""Of one of them and so of all, the best first."""

TOLD: Final = 5
"""Tools that a note on different lists names."""


class Replica(Link):
    """One of the servers of a source.

    Attributes:
        load: what it has to do.
        lists: what it lists.
        greeting: what it said of itself.

    """

    def __init__(self, source: Source, around: Surroundings, group: Replicas) -> None:
        super().__init__(source, around)
        self.load = Load()
        self.lists: dict[Kind, Listed] = {}
        self.greeting: Greeting | None = None
        self._group = group

    async def _tell(self, update: Update) -> None:
        self.lists.update(update.lists)
        self.greeting = update.greeting or self.greeting
        await self._group.told(refused=update.state == "down" and self._ready_at is None)

    def _admit(self, client: Client) -> None:
        super()._admit(client)
        if not self._over:
            self._group.admitted(client)

    def _set_tried(self) -> None:
        super()._set_tried()
        self._group.stir()


class Replicas:
    """A source with several servers. It is used as a link is, and what they share in name means the same.

    Attributes:
        links: the servers, in configured order.
        subscriptions: who wants to hear of which resources. The leader alone is asked to tell of them.
        leader: whose lists are those of the source: the first that is ready, for as long as it is.

    """

    def __init__(
        self, source: Source, around: Surroundings, *, epoch: int = 0, subscriptions: Subscriptions | None = None
    ) -> None:
        self.source = source
        self.epoch = epoch
        self.retired = False
        self.links = tuple(Replica(each, around, self) for each in several(source))
        self.leader = self.links[0]
        self.subscriptions = subscriptions or Subscriptions()
        self.leader.subscriptions = self.subscriptions
        self._around = around
        self.waiting = Awaiting()
        self.cut: DrainTimeout | None = None
        self._pins: dict[str, Replica] = {}
        self._stirred = trio.Event()
        self._ended = trio.Event()
        self._over = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def state(self) -> State:
        """That of the one that is best off."""
        states = {link.state for link in self.links}
        return next(state for state in STATES if state in states)

    @property
    def reason(self) -> str:
        down = ("down", "closing", "closed")
        return "; ".join(f"{link.name}: {link.reason}" for link in self.links if link.state in down and link.reason)

    @property
    def failure(self) -> ConnectFailed | None:
        return next((link.failure for link in self.links if link.failure is not None), None)

    @property
    def next_try(self) -> float | None:
        return min((link.next_try for link in self.links if link.next_try is not None), default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.leader.notes, *self._differences())

    @property
    def resting(self) -> bool:
        return all(link.resting for link in self.links)

    @property
    def known(self) -> bool:
        return any(link.known for link in self.links)

    @property
    def drains(self) -> bool:
        return all(link.drains for link in self.links)

    @property
    def starts(self) -> int:
        return sum(link.starts for link in self.links)

    @property
    def pid(self) -> int | None:
        return None

    @property
    def log_lines(self) -> int:
        return sum(link.log_lines for link in self.links)

    @property
    def in_flight(self) -> int:
        return sum(link.in_flight for link in self.links)

    @property
    def asks(self) -> bool:
        return any(link.asks for link in self.links)

    @property
    def sessions(self) -> dict[str, Client]:
        """Those of the first that takes calls."""
        return next((link.sessions for link in self.links if link.takes_calls), {})

    @property
    def tried(self) -> bool:
        return any(link.starts for link in self.links) or all(link.tried for link in self.links)

    def open(self) -> list[tuple[str, Client]]:
        return [(f"{link.name} {key}", client) for link in self.links for key, client in link.open()]

    def trust(self, kind: Kind) -> float:
        """As `Link.trust`, of the one whose lists count."""
        return self.leader.trust(kind)

    async def wait_tried(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.tried:
            await self._stirred.wait()

    async def wait_attempted(self) -> None:
        await trio.lowlevel.checkpoint()
        while not (any(link.starts for link in self.links) or all(link._attempted.is_set() for link in self.links)):
            await self._stirred.wait()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def wake(self) -> None:
        """Start those that rest, unless one of them takes calls."""
        if not any(link.takes_calls for link in self.links):
            for link in self.links:
                link.wake()

    def retire(self) -> None:
        self.retired = True
        for link in self.links:
            link.retire()

    def drain(self) -> None:
        for link in self.links:
            link.drain()

    def end(self, reason: str, cut: DrainTimeout | None = None) -> None:
        if not self._over:
            self._over, self.cut = True, cut
            for link in self.links:
                link.end(reason, cut)
            self.waiting.refuse(self._down)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all of them until cancelled, ended or the registry ends."""
        try:
            async with trio.open_nursery() as nursery:
                for link in self.links:
                    nursery.start_soon(link.keep, name=f"link {link.name}")
                task_status.started()
        finally:
            self._over = True
            self.waiting.refuse(self._down)
            self.stir()
            self._ended.set()

    # Calls

    def may_hedge(self, call: Call) -> bool:
        """Whether another one could answer `call` as well: two take calls, and it belongs to none of them.

        A call whose caller can be asked goes to a session of that caller, and a person is not asked twice.
        """
        if call.capabilities != NOBODY or call.method in TASKS or "requestState" in call.params:
            return False
        now = trio.current_time()
        return sum(link.takes_calls and link.load.until <= now for link in self.links) > 1

    def call(self, call: Call, name: str | None) -> Awaitable[Outcome]:
        """How the source ended `call`, which it knows as `name`. For the rest see `Link.call`.

        Waits, where none takes calls, until one of them does.
        """
        replica = self._pinned(call, name)
        if replica is None:
            ready = [link for link in self.links if link.takes_calls]
            if call.apart:
                ready = [link for link in ready if link not in call.apart]
            if not ready:
                return self._call_later(call, name)
            replica = ready[choose([link.load for link in ready], trio.current_time(), self._around.rng)]
            if replica.load.in_flight and len(ready) < len(self.links):
                self._wake_one()
        if call.apart is not None:
            call.apart.append(replica)
        return self._call(replica, call, name)

    async def _call(self, replica: Replica, call: Call, name: str | None) -> Outcome:
        load, began = replica.load, trio.current_time()
        load.in_flight += 1
        try:
            outcome = await replica.call(call, name)
        except CallError as exc:
            now = trio.current_time()
            if isinstance(exc, CallFailed) or (isinstance(exc, HttpFailed) and exc.status in OF_THE_CALL):
                load.answered(now - began, now)
            elif isinstance(exc, DeadlineExceeded) and not is_too_slow(exc, call, began, now):
                load.unanswered(now - began, now)
            elif isinstance(exc, SICK):
                self._failed(replica)
            raise
        except trio.Cancelled:
            if call.apart is not None:  # another was quicker
                now = trio.current_time()
                load.unanswered(now - began, now)
            raise
        finally:
            load.in_flight -= 1
        now = trio.current_time()
        load.answered(now - began, now)
        if type(outcome) is not Complete:
            self._pin(outcome, replica)
        return outcome

    async def _call_later(self, call: Call, name: str | None) -> Outcome:
        if call.apart:
            raise SourceDown(self.name, "no other replica takes calls", None)
        if self._over or (self.state == "down" and (self.next_try or 0.0) > call.deadline):
            raise self._down()
        self.wake()
        await self.waiting.wait(call.deadline, self._around.timer, lambda: f"{self.name} was still {self.state}")
        return await self.call(call, name)

    def _down(self) -> CallError:
        """Why there is no session with any of them."""
        return SourceDown(self.name, self.reason, self.next_try) if self.cut is None else self.cut.fresh("no")

    def _wake_one(self) -> None:
        """All that take calls are busy: start one more."""
        resting = next((link for link in self.links if link.resting), None)
        if resting is not None:
            resting.wake()

    def _failed(self, replica: Replica) -> None:
        now, load = trio.current_time(), replica.load
        load.failed(now)
        if load.failures >= EJECT_AFTER and load.until <= now:
            if may_eject([link.load for link in self.links], now):
                load.eject(now, self._around.rng)
                self._around.counters.add("replicas.ejected")
                log.warning("replica left out source=%s failures=%d", replica.name, load.failures)
            else:
                self._around.counters.add("replicas.not_ejected")

    # What stays where it is

    def _pinned(self, call: Call, name: str | None) -> Replica | None:
        """The one that must, or had better, take `call`; None if all are alike to it."""
        if call.method in TASKS:
            return self._pins.get(f"task {name}")
        if "requestState" in call.params:
            return self._pins.get(f"round {_text(call.params['requestState'])}")
        if call.capabilities != NOBODY:  # a session that may ask its caller is costly to open
            for link in self.links:
                if link.takes_calls and link.load.until <= trio.current_time():
                    for each in link.pool.sessions:
                        if each.key[0] == call.principal and not (each.users or each.over or each.haunted):
                            return link
        return None

    def _pin(self, outcome: Outcome, replica: Replica) -> None:
        key = ""
        match outcome:
            case Task():
                key = f"task {_text(_member(outcome.result, 'taskId'))}"
            case InputRequired(park=""):
                key = f"round {_text(_member(outcome.result, 'requestState'))}"
        if key:
            self._pins[key] = replica
            if len(self._pins) > MAX_PINS:
                del self._pins[next(iter(self._pins))]

    # What they tell

    def stir(self) -> None:
        """Something has changed in one of them."""
        self._stirred.set()
        self._stirred = trio.Event()

    def admitted(self, client: Client) -> None:
        """One of them takes calls from here on; `client` is its."""
        self.waiting.admit(client)
        self.stir()

    async def told(self, *, refused: bool) -> None:
        """One of them has changed: tell the registry of all as one. `refused`: an attempt to connect has failed."""
        self._follow()
        lists = dict(self.leader.lists)
        if "tools" in lists:
            differences = self._differences()
            if differences:
                self._around.counters.add("replicas.differ")
                lists["tools"] = attrs.evolve(lists["tools"], notes=(*lists["tools"].notes, *differences))
        state = self.state
        self.epoch += 1
        down = state == "down"
        await self._around.registry.update(
            Update(
                self.name, self.epoch, state, reason=self.reason if down else "",
                next_try=self.next_try if down else None, greeting=self.leader.greeting, lists=lists,
            )
        )  # fmt: skip
        if refused and self.state == "down":
            self.waiting.refuse(self._down)
        self.stir()

    def _follow(self) -> None:
        """Have a leader that is ready, if one is: its lists are those of the source, and it tells of resources."""
        old = self.leader
        if old.state == "ready":
            return
        new = next((link for link in self.links if link.state == "ready"), None)
        if new is None:
            # Until then, one whose lists are known from before.
            new = next((link for link in self.links if link.known), old) if not old.known else old
        if new is not old:
            self.leader = new
            old.follow(Subscriptions())
            new.follow(self.subscriptions)

    def _differences(self) -> list[str]:
        """How the tools of the others that are ready differ from the leader's."""
        if "tools" not in self.leader.lists:
            return []
        own = [item.key for item in self.leader.lists["tools"].items]
        notes = []
        for link in self.links:
            if link is self.leader or link.state != "ready" or "tools" not in link.lists:
                continue
            others = [item.key for item in link.lists["tools"].items]
            if others == own:
                continue
            lacks = sorted(set(own).difference(others))
            more = sorted(set(others).difference(own))
            parts = [f"lacks {', '.join(lacks[:TOLD])}"] if lacks else []
            parts += [f"has {', '.join(more[:TOLD])} besides"] if more else []
            if parts:
                notes.append(f"{link.name} lists other tools than {self.leader.name}: it {' and '.join(parts)}")
        return notes


Kept: TypeAlias = Link | Replicas
"""What keeps one source."""


def link_of(source: Source, around: Surroundings, *, epoch: int = 0, before: Kept | None = None) -> Kept:
    """What keeps `source`; `epoch` is that of the registry's view, and `before` what it takes the place of."""
    subscriptions = None if before is None else before.subscriptions
    if isinstance(source, Foreign):
        kept = source.keeper(source, around, epoch=epoch, subscriptions=subscriptions)
        assert isinstance(kept, Link)
        return kept
    kind = Replicas if several(source) else Link
    return kind(source, around, epoch=epoch, subscriptions=subscriptions)


def _member(result: Raw, name: str) -> Raw | None:
    try:
        return members(result).get(name)
    except Malformed:
        return None


def _text(value: Raw | None) -> str:
    try:
        return "" if value is None else str(parse(value))
    except (Malformed, DecodeError):
        return ""
