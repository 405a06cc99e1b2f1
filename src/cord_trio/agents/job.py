"""Started conversations: work that outlives whoever asked for it, on purpose, and has an id."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio
from msgspec.structs import replace

from cord_trio.agents.agent import Step
from cord_trio.agents.budget import COUNTERS, Account, Budget
from cord_trio.agents.crew import Promise
from cord_trio.agents.failing import cancelled_alone
from cord_trio.agents.journal import Saved
from cord_trio.call import LOCAL
from cord_trio.errors import (
    AgentError,
    AgentNotFound,
    DeadlineExceeded,
    Draining,
    InDoubt,
    JobCancelled,
    JobNotFound,
    Overloaded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.agents.directory import Agents
    from cord_trio.agents.journal import Journal
    from cord_trio.trace import TraceContext

MAX_JOBS: Final = 1024
"""Started conversations that run at once."""

MAX_ENDED: Final = 256
"""Conversations that have ended whose results are kept; the oldest go first."""

LAST_WRITE: Final = 5.0
"""Seconds for the journal to learn that a conversation was cancelled."""

Owner: TypeAlias = "Literal['fabric'] | trio.Nursery"


class Job:
    """One started conversation.

    Invariants: it ends once; a call that may have run is in the journal before it is made.

    Attributes:
        id: under which others attach to it.
        agent: whom it was started with, or was last handed to.
        state: running, done, failed, cancelled, or in_doubt: a person must say that it may go on.
        restored: the last checkpoint since the last handoff; None for none.

    """

    def __init__(self, jobs: Jobs, saved: Saved, account: Account, deadline: float) -> None:
        self.id = saved.id
        self.state: Literal["running", "done", "failed", "cancelled", "in_doubt"] = "running"
        self.account = account
        self.deadline = deadline
        self.scope = trio.CancelScope(deadline=deadline)
        self._saved = saved
        self._jobs = jobs
        self._answer = Promise()
        self._calls: Counter[str] = Counter(saved.calls)
        self._flying: Counter[str] = Counter()
        self._asked = 0
        self._written = 0
        self._reason = ""
        self._cut = False

    @property
    def agent(self) -> str:
        """Who has it now."""
        return self._saved.agent

    @property
    def saved(self) -> Saved:
        """What the journal knows of it."""
        return self._saved

    @property
    def restored(self) -> object:
        """The last checkpoint since the last handoff; None for none."""
        return None if self._saved.checkpoint is None else self._saved.checkpoint[0]

    async def result(self) -> object:
        """The answer, once it is there.

        Raises:
            JobCancelled: it was cancelled.
            InDoubt: it was cut off, and waits for a person's decision.
            Exception: what its handler raised.

        """
        return await self._answer.result()

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._answer.done.wait()

    def cancel(self, reason: str) -> None:
        """End it, with whatever it asked for. `result` then raises `JobCancelled`."""
        self._reason = self._reason or reason
        self.scope.cancel(reason)

    def cut(self, reason: str) -> None:
        """As `cancel`, but the journal keeps it: it may be resumed."""
        self._cut = True
        self.cancel(reason)

    # What it tells the journal

    async def calling(self, tool: str) -> None:
        """A tool is about to be called: once this returns, the journal knows that it may have run."""
        self._calls[tool] += 1
        self._flying[tool] += 1
        # What another task of the conversation has not finished writing does not count as written.
        if tool not in self._saved.calls or self._written < self._asked:
            try:
                await self._keep(replace(self._saved, calls=self._saved.calls | {tool}))
            except BaseException:
                self._flying[tool] -= 1
                raise

    def called(self, tool: str) -> None:
        """That call is over, however it ended."""
        self._flying[tool] -= 1

    async def not_called(self, tool: str) -> None:
        """That call, which is over, provably did not run."""
        self._calls[tool] -= 1
        if not self._calls[tool] and tool in self._saved.calls:
            await self._keep(replace(self._saved, calls=self._saved.calls - {tool}))

    async def checkpoint(self, value: object) -> None:
        """Keep `value`: what was called before it is behind us, but for calls that are not over."""
        await self._keep(replace(self._saved, checkpoint=(value,), calls=self._still_flying()))

    async def handed(self, agent: str, payload: object, transcript: Sequence[Step]) -> None:
        """Another agent goes on: what was called before is behind us."""
        calls = self._still_flying()
        steps = tuple((step.agent, step.payload) for step in transcript)
        saved = replace(self._saved, agent=agent, payload=payload, transcript=steps, checkpoint=None, calls=calls)
        await self._keep(saved)

    async def _keep(self, saved: Saved) -> None:
        left = {counter: str(self.account.left(counter)) for counter in COUNTERS}
        # Before the write, since a write that was cut off may have happened.
        self._saved = replace(saved, left={counter: text for counter, text in left.items() if text != "inf"})
        self._asked += 1
        asked = self._asked
        await self._jobs.journal.put(self._saved)
        self._written = max(self._written, asked)

    def _still_flying(self) -> frozenset[str]:
        self._calls = +self._flying
        return frozenset(self._calls)

    # Its life

    async def run(self) -> None:
        """Go through with it. Raises nothing."""
        jobs = self._jobs
        try:
            try:
                with self.scope:
                    self._end("done", await self._converse())
            except Exception as exc:
                self._end("failed", error=exc)
            if self.scope.cancelled_caught:
                if self._reason:
                    self._end("cancelled", error=JobCancelled(self.id, self._reason))
                else:
                    self._end("failed", error=DeadlineExceeded(f"conversation {self.id}"))
            if not self._cut:
                with trio.move_on_after(LAST_WRITE, shield=True):
                    await jobs.forget(self.id)
        finally:
            # Cut off with the fabric: the journal keeps it.
            self._end("cancelled", error=JobCancelled(self.id, "the fabric ends"))
            jobs.over(self)

    async def _converse(self) -> object:
        jobs, saved = self._jobs, self._saved
        try:
            return await jobs.agents.converse(
                saved.agent, saved.payload, principal=saved.principal, account=self.account, job=self,
                transcript=tuple(Step(agent, payload) for agent, payload in saved.transcript),
                trace=saved.trace,
            )  # fmt: skip
        except BaseExceptionGroup as exc:
            raise cancelled_alone(exc, saved.agent, jobs.agents.counters) from None

    def doubt(self) -> None:
        """It called what may have run, and waits for a person."""
        self.state = "in_doubt"
        self._answer.settle(error=InDoubt(self.id, sorted(self._saved.calls)))

    def _end(
        self, state: Literal["done", "failed", "cancelled"], value: object = None, error: Exception | None = None
    ) -> None:
        if not self._answer.done.is_set():
            self.state = state
            self._answer.settle(value, error)


class Jobs:
    """The started conversations of one fabric.

    Attributes:
        agents: whom they ask.
        journal: where they are kept.
        nursery: where those live that the fabric owns.
        running: by id.
        ended: those whose results are kept, by id.

    """

    def __init__(self, agents: Agents, journal: Journal, nursery: trio.Nursery) -> None:
        self.agents = agents
        self.journal = journal
        self.nursery = nursery
        self.running: dict[str, Job] = {}
        self.ended: OrderedDict[str, Job] = OrderedDict()
        self.quiet = trio.Event()
        self._resuming: list[set[str]] = []

    async def start(
        self, agent: str, payload: object = None, *, owner: Owner = "fabric", deadline: float | None = None,
        principal: str = LOCAL, account: Account | None = None, budget: Budget | None = None,
        trace: TraceContext | None = None,
    ) -> Job:  # fmt: skip
        """Start a conversation with `agent`, and return once the journal has it.

        Args:
            agent: whom to ask.
            payload: given to it.
            owner: "fabric", or a nursery that it may not outlive.
            deadline: seconds until it is cancelled; None for none.
            principal: on whose behalf.
            account: what it may use.
            budget: what it may use of that.
            trace: that it is part of.

        Raises:
            AgentNotFound: there is no such agent.
            Draining: nothing new is begun.
            Overloaded: too many run.
            TypeError: the journal cannot write such a payload.

        """
        if self.agents.draining.is_set():
            raise Draining
        if len(self.running) >= MAX_JOBS:
            self.agents.counters.add("agents.jobs_refused")
            raise Overloaded("agents.jobs", MAX_JOBS)
        self.agents.find(agent)
        id = f"{self.agents.rng.getrandbits(64):016x}"
        while id in self.running or id in self.ended:
            id = f"{self.agents.rng.getrandbits(64):016x}"
        expires = None if deadline is None else time.time() + deadline
        saved = Saved(id, agent, payload, principal=principal, expires=expires, trace=trace)
        account = account or self.agents.account
        if budget is not None:
            account = Account(budget, agent, account)
        until = min(account.deadline, math.inf if deadline is None else trio.current_time() + deadline)
        job = self.running[id] = Job(self, saved, account, until)
        try:
            await job._keep(saved)
            self._begin(job, owner)
        except BaseException:
            del self.running[id]
            with trio.move_on_after(LAST_WRITE, shield=True):
                await self.forget(id)  # it may have been written
            raise
        return job

    def attach(self, id: str) -> Job:
        """The conversation with this id, running or ended.

        Raises:
            JobNotFound: there is none, or its result was let go of.

        """
        job = self.running.get(id) or self.ended.get(id)
        if job is None:
            raise JobNotFound(id)
        return job

    async def resume(self, id: str | None = None, *, force: bool = False) -> list[Job]:
        """Go on with what the journal has that does not run: all of it, or the one with `id`.

        A conversation that called what may have run since its last checkpoint is `in_doubt` instead.

        Args:
            id: which one; None for all.
            force: even what is in doubt, which may run calls again.

        Raises:
            JobNotFound: the journal has no such conversation.
            AgentNotFound: its agent does not exist here; without an `id`, it is only left where it is.
            Draining: nothing new is begun.
            Overloaded: too many run.
            AgentError: `force` without an `id`.

        """
        if force and id is None:
            raise AgentError("to run again what may have run is decided one by one: give an id")
        resumed = []
        ended: set[str] = set()
        self._resuming.append(ended)
        try:
            unfinished = await self.journal.unfinished()
        finally:
            self._resuming.remove(ended)
        for saved in unfinished:
            # What has ended since the journal was read must not be run again.
            if saved.id in self.running or saved.id in ended or id not in (None, saved.id):
                continue
            if saved.agent.partition("#")[0] not in self.agents:
                if id is not None:
                    raise AgentNotFound(saved.agent)
                self.agents.counters.add("agents.not_resumed")
                continue
            if self.agents.draining.is_set():
                raise Draining
            if len(self.running) >= MAX_JOBS:
                raise Overloaded("agents.jobs", MAX_JOBS)
            resumed.append(self._resume(saved, force=force))
        if id is not None and not resumed and id not in self.running:
            raise JobNotFound(id)
        return resumed

    def _resume(self, saved: Saved, *, force: bool) -> Job:
        left = {counter: Decimal(text) for counter, text in saved.left.items()}
        account = self.agents.account
        if left:
            whole = {counter: int(value) for counter, value in left.items() if counter != "money"}
            account = Account(Budget(**whole, money=left.get("money")), saved.agent, account)
        deadline = math.inf
        if saved.expires is not None:
            deadline = trio.current_time() + saved.expires - time.time()
        self.ended.pop(saved.id, None)
        job = Job(self, saved, account, deadline)
        if saved.calls and not force:
            job.doubt()
            self._keep_ended(job)
            self.agents.counters.add("agents.in_doubt")
        else:
            self.running[saved.id] = job
            self.agents.counters.add("agents.resumed")
            self._begin(job, "fabric")
        return job

    async def forget(self, id: str) -> None:
        """Let the journal forget, and count if it cannot: the conversation has ended all the same."""
        try:
            await self.journal.forget(id)
        except Exception:
            self.agents.counters.add("agents.journal_failed")

    async def wait_quiet(self) -> None:
        """Return once none runs."""
        while self.running:
            await self.quiet.wait()
        await trio.lowlevel.checkpoint()

    def all(self) -> list[Job]:
        """Those that run, and those whose results are kept."""
        return [*self.running.values(), *self.ended.values()]

    def over(self, job: Job) -> None:
        """It has ended."""
        del self.running[job.id]
        for ended in self._resuming:
            ended.add(job.id)
        self._keep_ended(job)
        if not self.running:
            self.quiet.set()
            self.quiet = trio.Event()

    def _begin(self, job: Job, owner: Owner) -> None:
        nursery = self.nursery if isinstance(owner, str) else owner
        nursery.start_soon(job.run, name=f"conversation {job.id}")

    def _keep_ended(self, job: Job) -> None:
        self.ended[job.id] = job
        if len(self.ended) > MAX_ENDED:
            self.ended.popitem(last=False)
            self.agents.counters.add("agents.results_let_go")
