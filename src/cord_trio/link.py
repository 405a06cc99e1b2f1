"""One supervised source: connect, list, publish, wait, back off, and again.

A link is a task. It alone opens and closes the source's sessions, and contains whatever goes wrong with
them: a failure becomes a state with a reason, never an exception for its neighbours.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.awaiting import Awaiting
from cord_trio.cell import Flag
from cord_trio.connecting import Connecting
from cord_trio.errors import CallError, ConnectFailed, ConnectionLost, DrainTimeout, SourceDown
from cord_trio.following import STEADY, Following, Subscriptions
from cord_trio.handshake import unreached
from cord_trio.idling import wait_idle
from cord_trio.manifests import Stored, state_folder
from cord_trio.pages import COMPLETED
from cord_trio.pool import Pool
from cord_trio.protocol.eras import LEGACY
from cord_trio.protocol.questions import NOBODY
from cord_trio.registry import NO_LISTS, Update
from cord_trio.surroundings import Surroundings
from cord_trio.transports.opening import alone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from msgspec import Raw

    from cord_trio.call import Call, Outcome
    from cord_trio.client import Client
    from cord_trio.config import Source
    from cord_trio.handshake import Greeting
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.protocol.mcp import Tool
    from cord_trio.snapshot import Kind, Listed, State

__all__ = ["Link", "Surroundings"]

log = logging.getLogger("cord_trio.link")

SHARED: Final = "shared"
"""Key of the session that everybody may use: it declares nothing that could be asked of one person."""


class Link:
    """One source and the sessions with it.

    Invariant: `sessions` is empty unless the state is ready.

    Attributes:
        source: as configured.
        state: configured, manifest, starting, ready or down; at its end draining, closing, closed.
        resting: whether it is not connected because nobody needs it. A call, or `wake`, starts it.
        reason: why it is down; "" otherwise.
        failure: the last failure to connect, with its step and remedy; None once it is ready.
        next_try: Trio time of the next attempt while it is down.
        epoch: counts what it told the registry.
        sessions: what is open to everybody, by key: the shared one.
        notes: what was left out of the last list.
        known: whether its lists are, from itself or from what is stored.
        starts: how often it became ready.
        waiting: the calls that wait for it to be connected.
        pid: of its process, if it is a child of ours and running.
        subscriptions: who wants to hear of which of its resources.
        pool: the sessions of single principals beside the shared one.
        following: keeps up with its lists; None before it was connected.
        cut: what its last calls were told when they were cut off; None if they were not.
        drains: whether it ends once it is lost.
        retired: whether another link, or none, keeps the source from here on: it takes no new calls, tells the
            registry nothing, and does not come back.

    """

    cut: DrainTimeout | None = None  # here, as thirty attributes of its own would cost it five times the memory

    def __init__(
        self, source: Source, around: Surroundings, *, epoch: int = 0, subscriptions: Subscriptions | None = None
    ) -> None:
        """Make a link; `epoch` is that of the registry's view, `subscriptions` those of the link before it."""
        self.source = source
        self.retired = self.drains = self._over = False
        self.resting = source.start == "lazy"
        self.state: State = "configured"
        self.reason = ""
        self.failure: ConnectFailed | None = None
        self.next_try: float | None = None
        self.epoch = epoch
        self.sessions: dict[str, Client] = {}
        self.notes: tuple[str, ...] = ()
        self.starts = self._past_log_lines = 0
        self.known = False
        self.subscriptions = subscriptions or Subscriptions()
        self._connecting = Connecting(source, around, self._told)
        self.pool = Pool(
            source.name, self._connecting.alone, parks=around.parks, timer=around.timer, counters=around.counters,
            size=around.bounds.interactive, idle=around.bounds.interactive_idle, roots=around.roots,
        )  # fmt: skip
        self.pool.shown = self._shown
        self._around = around
        self.waiting = Awaiting()
        self.following: Following | None = None
        self._tried, self._woken, self._attempted, self._ended = Flag(), Flag(), Flag(), Flag()
        self._stored: Stored | None = None
        if self.resting:
            self._tried.set()
        if source.start == "manifest":
            self._stored = Stored(source, state_folder(around.state_dir), around.counters)
        self._ready_at: float | None = None
        self._scope = trio.CancelScope()
        self._pausing = trio.CancelScope()

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def pid(self) -> int | None:
        return self._connecting.pid

    @property
    def log_lines(self) -> int:
        """Log notifications that the source has sent, over all its sessions."""
        return self._past_log_lines + sum(client.session.log_lines for client in self.sessions.values())

    @property
    def in_flight(self) -> int:
        """Requests that await the source's reply."""
        return sum(len(client.session.peer.open) for _, client in self.open())

    @property
    def asks(self) -> bool:
        """Whether a call has a session of its caller's own, be it that it waits for an answer."""
        return any(each.users for each in self.pool.sessions)

    def open(self) -> list[tuple[str, Client]]:
        """All sessions that are open, each with its name."""
        own = [(f"of {each.key[0]}", each.client) for each in self.pool.sessions]
        return [*self.sessions.items(), *((name, client) for name, client in own if client is not None)]

    @property
    def tried(self) -> bool:
        """Whether the first attempt to connect has ended, in whichever way, or nobody has needed one."""
        return self._tried.is_set()

    async def wait_tried(self) -> None:
        """Return once it is `tried`."""
        await self._tried.wait()

    @property
    def takes_calls(self) -> bool:
        """Whether a call would be sent at once."""
        client = self.sessions.get(SHARED)
        return client is not None and client.session.loss is None

    def trust(self, kind: Kind) -> float:
        """As `Following.trust`; infinite before it was connected."""
        return math.inf if self.following is None else self.following.trust(kind)

    def follow(self, subscriptions: Subscriptions) -> None:
        """Have the server tell of these from here on, in place of those before. Of each is told once."""
        before, self.subscriptions = self.subscriptions, subscriptions
        if self.following is not None:
            self.following.take_over()
        before.stir()
        subscriptions.stir()

    async def wait_attempted(self) -> None:
        """Return once the first attempt to connect has ended, in whichever way."""
        await self._attempted.wait()

    def wake(self) -> None:
        """Start it, if it rests."""
        self._woken.set()
        if self.resting:
            self.resting = False
            if not self.known:
                self._tried = Flag()

    def call(self, call: Call, name: str | None) -> Awaitable[Outcome]:
        """How the source ended `call`, which it knows as `name`. Waits for one attempt to connect if it must.

        Raises:
            SourceDown: it is not connected, and the next attempt failed or is later than the deadline.
            CallError: what else can end a call.

        """
        client = self.sessions.get(SHARED)
        if client is None or client.session.over:  # closing a lost one may take seconds
            return self._call_later(call, name)
        if call.capabilities != NOBODY and self._may_ask(client, call):
            return self.pool.call(client, call, name)
        return client.call(call, name)

    def _may_ask(self, client: Client, call: Call) -> bool:
        """Whether `call` needs a session of its own: the server is legacy, or is best met so by a legacy caller."""
        if not client.greeting.modern:
            return True
        return call.revision in LEGACY and self.source.era == "auto" and not self.pool.modern_alone

    async def _call_later(self, call: Call, name: str | None) -> Outcome:
        client = await self._ready(call.deadline)
        if call.capabilities != NOBODY and self._may_ask(client, call):
            return await self.pool.call(client, call, name)
        return await client.call(call, name)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the source connected until cancelled, ended or the registry ends. Never raises for what it did."""
        try:
            async with trio.open_nursery() as interactive:
                if self._over:
                    interactive.cancel_scope.cancel(self.reason)
                self._scope = interactive.cancel_scope
                self.pool.open(interactive)
                task_status.started()
                await self._keep()
                interactive.cancel_scope.cancel("the link has ended")
        finally:
            self._ended.set()

    async def wait_ended(self) -> None:
        """Return once `keep` has ended."""
        await self._ended.wait()

    def retire(self) -> None:
        """Drain, and leave the source to another link, or to none: take no new calls, tell the registry nothing."""
        self.retired = True
        self.drain()

    def drain(self) -> None:
        """Go on with what it runs, but once it is lost do not connect it again."""
        if not (self.drains or self._over):
            self.drains = True
            self.state = "draining"
            self._pausing.cancel("the source drains")

    def end(self, reason: str, cut: DrainTimeout | None = None) -> None:
        """End it, with all that it still runs; those calls fail at once, with `cut` if given. Again does nothing."""
        if self._over:
            return
        self.drains = self._over = True
        self.state, self.reason, self.cut = "closing", reason, cut
        if cut is not None:
            for _, client in self.open():
                client.session.lost(cut)
        self.waiting.refuse(self._down)
        self._scope.cancel(reason)

    async def _keep(self) -> None:
        failures = 0
        try:
            if self._stored is not None:
                await self._recall(self._stored)
            while True:
                if self.resting:
                    await self._woken.wait()
                self._ready_at = None
                await self._publish("starting")
                reason = await self._attempt()
                if reason is None:
                    if self.drains:
                        return
                    failures = 0
                    if self.resting:  # nobody has called it while it was stopped
                        await self._publish("manifest")
                    continue
                ready_at = self._ready_at
                if ready_at is not None and trio.current_time() - ready_at >= STEADY:
                    failures = 0
                pause = self._pause(failures)
                failures += 1
                self._around.counters.add("link.down")
                log.info("source down source=%s reason=%s pause=%.3f", self.name, reason, pause)
                self.reason, self.next_try = reason, trio.current_time() + pause
                await self._publish("down")
                if ready_at is None:
                    self.waiting.refuse(self._down)  # calls wait for one attempt; after a loss none has been made yet
                    self._woken = Flag()
                self._set_tried()
                with self._pausing:
                    await trio.sleep_until(self.next_try)
                if self.drains:
                    return
                self._pausing, self.next_try = trio.CancelScope(), None
                # One that is started for whoever needs it is not tried again and again for nobody.
                on_demand = self.source.start != "eager" or (self.source.idle is not None and self.starts > 0)
                self.resting = on_demand and ready_at is None and not self._woken.is_set()
        except trio.BrokenResourceError:
            log.debug("the registry has ended source=%s", self.name)
        finally:
            self._end()

    async def _recall(self, stored: Stored) -> None:
        """List what is stored, and rest. Where nothing is, it starts at once, for there to be something."""
        manifest, note = stored.read()
        if note:
            self.notes = (note,)
        if manifest is None:
            return
        self.resting, self.known = not self._woken.is_set(), True
        await self._publish("manifest", manifest.lists, manifest.greeting)
        self._tried.set()

    async def _attempt(self) -> str | None:
        """Connect, and serve until the connection is lost; returns why there is none any more, None if it rests."""
        try:
            async with await self._connecting.connect() as client:
                return await self._serve(client)
        except ConnectFailed as exc:
            self.failure = exc
            return f"{exc.step}: {exc.reason}" + (f"; {exc.remedy}" if exc.remedy else "")
        except CallError as exc:
            self.failure = ConnectFailed(self.name, "list", str(exc))
            return str(exc)
        except Exception as exc:
            log.exception("link failed source=%s", self.name)
            self.failure = ConnectFailed(self.name, "internal", repr(alone(exc)))
            return f"internal error: {alone(exc)!r}"
        finally:
            self._dismiss()

    def _pause(self, failures: int) -> float:
        """Seconds to wait after so many failures: random, so that sources which fail together do not return so."""
        bounds = self._around.bounds
        longest = min(bounds.backoff_longest, bounds.backoff_first * 2.0 ** min(failures, 64))
        return self._around.rng.uniform(0.0, longest)

    def _end(self) -> None:
        """Nobody keeps the source any more; whoever waits for it is told."""
        self._dismiss()
        self.state, self.next_try = "closed" if self.drains else "down", None
        if not self._over:
            self.reason = f"{self.reason}, and it drains" if self.drains and self.reason else "the fabric has ended"
        self._over = True
        self.waiting.refuse(self._down)
        self._set_tried()

    # Serving

    def _admit(self, client: Client) -> None:
        """From here on calls go to `client`."""
        if self._over:
            return
        self.state, self.reason, self.failure = "draining" if self.drains else "ready", "", None
        self.sessions[SHARED] = client
        self.pool.forget()
        self.starts += 1
        self.known = True
        self._ready_at = trio.current_time()
        self._set_tried()
        self.waiting.admit(client)
        log.info("source ready source=%s revision=%s", self.name, client.greeting.revision)

    def _set_tried(self) -> None:
        self._tried.set()
        self._attempted.set()

    def _dismiss(self) -> None:
        self._past_log_lines = self.log_lines
        self.sessions.clear()
        self._connecting.pid = None

    def _down(self) -> CallError:
        """Why there is no session."""
        return SourceDown(self.name, self.reason, self.next_try) if self.cut is None else self.cut.fresh("no")

    async def _ready(self, deadline: float) -> Client:
        if self._over or (self.state == "down" and (self.next_try or 0.0) > deadline):
            raise self._down()
        self.wake()
        return await self.waiting.wait(deadline, self._around.timer, lambda: f"{self.name} was still {self.state}")

    async def _serve(self, client: Client) -> str | None:
        """List, take calls, keep the lists fresh until the connection is lost; returns why, None if nobody used it."""
        following = self.following = Following(
            client, self.source, subscriptions=lambda: self.subscriptions, counters=self._around.counters,
            pause=self._pause, publish=partial(self._publish_lists, client),
        )  # fmt: skip
        failure: Exception | None = None
        reason: str | None = None
        async with trio.open_nursery() as nursery:
            try:
                if self._stored is not None:
                    nursery.start_soon(self._stored.run)
                await following.first(nursery)
                self._admit(client)
                following.keep(nursery)
                if self.source.asks and not client.greeting.modern:
                    nursery.start_soon(self.pool.look_around)
                if self.source.idle is not None:
                    nursery.start_soon(self._watch, self.source.idle, nursery.cancel_scope)
                reason = await client.session.wait_lost()
            except ConnectionLost as exc:
                failure = await unreached(client.session, exc, "list")
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                failure = exc
            finally:
                following.end()
            self._dismiss()  # at once: a child that is slow to end must not attract calls
            nursery.cancel_scope.cancel("the connection is lost")
        if failure is not None:
            raise failure
        return reason

    def _shown(self, declares: bytes, tools: Sequence[Tool]) -> None:
        client = self.sessions.get(SHARED)
        if self.following is not None and client is not None and not client.greeting.modern:
            self.following.shown(declares, tools)

    async def _watch(self, idle: float, serving: trio.CancelScope) -> None:
        await wait_idle(idle, self._uses)
        self.rest()
        serving.cancel("nobody uses it")

    def _uses(self) -> int | None:
        """Calls so far; None while somebody waits for something of it: a call, an answer, a change."""
        clients = [client for _, client in self.open()]
        if self.waiting or self.asks or self.subscriptions.uris or any(client.calls for client in clients):
            return None
        return sum(client.made for client in clients)

    def rest(self) -> None:
        """Take no calls on what is open: it is about to be closed, until somebody needs it."""
        self.resting, self._woken = True, Flag()
        self.state = "draining" if self.drains else "manifest"
        self._around.counters.add("link.rests")
        log.info("source rests source=%s", self.name)
        self._dismiss()
        for each in tuple(self.pool.sessions):
            each.retire("the source is stopped, since nobody uses it")

    def _told(self, method: str, params: Raw, _within: Id | None) -> None:
        """Take what belongs to no call. A server may tell of changes on the one session on which they were made."""
        if method == COMPLETED:
            self._around.pages.told(params)
        elif self.following is not None:
            self.following.told(method, params)

    async def _publish_lists(self, client: Client, lists: Mapping[Kind, Listed]) -> None:
        tools = lists.get("tools")
        if tools is not None:
            self.notes = tools.notes
        if self._stored is not None:
            self._stored.told(client.greeting, lists)
        await self._publish("ready", lists, client.greeting)

    async def _publish(
        self, state: State, lists: Mapping[Kind, Listed] = NO_LISTS, greeting: Greeting | None = None
    ) -> None:
        if self.retired:
            await trio.lowlevel.checkpoint()
            return
        if not self.drains:
            self.state = state
        self.epoch += 1
        down = state == "down"
        try:
            await self._tell(
                Update(
                    self.name, self.epoch, state, reason=self.reason if down else "",
                    next_try=self.next_try if down else None, greeting=greeting, lists=lists,
                )
            )  # fmt: skip
        except ValueError:
            if not self.retired:  # else it was retired while the update waited
                raise

    async def _tell(self, update: Update) -> None:
        await self._around.registry.update(update)
