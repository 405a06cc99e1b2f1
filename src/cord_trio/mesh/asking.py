"""Agents of other nodes for those that ask here: who has which, and an ask that goes there and comes back once.

An ask is a call to one node, so it ends once, by its asker's deadline, and what is known of whether it ran is told.
Whoever asks and is cancelled cancels it there, and waits until it has ended there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.agents.agent import GRACE, PLACE, base_of
from cord_trio.agents.answering import Asker
from cord_trio.agents.elsewhere import Distant
from cord_trio.call import Call, Complete
from cord_trio.errors import AgentNotFound, BadReply, CallError, DeadlineExceeded, HandoffRefused, InputNeeded
from cord_trio.mesh.emitting import Pace, Unseen
from cord_trio.mesh.frames import MAX_HOPS, READ
from cord_trio.mesh.letters import (
    ASK,
    EMIT,
    INQUIRE,
    MAX_PATH,
    TELL,
    Letter,
    amounts_of,
    limits_of,
    packed,
    params_with,
    questions_with,
    read_reply,
    spent_of,
    steps_of,
)
from cord_trio.mesh.owning import HOPS, HandOn
from cord_trio.mesh.presence import is_name
from cord_trio.mesh_errors import NoOwner

Back: TypeAlias = "Callable[[str, str, str, Mapping[str, Question]], Awaitable[Mapping[str, Json]]]"

Read: TypeAlias = "Callable[[str, str, str], Awaitable[object]]"

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from decimal import Decimal

    from cord_trio.agents.agent import Step
    from cord_trio.agents.answering import Question
    from cord_trio.agents.budget import Account, Reservation
    from cord_trio.agents.context import Context
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.turn import Branch
    from cord_trio.mesh.node import Node
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.trace import TraceContext

KNOWN: Final = 1024
"""Addresses of agents of other nodes that are remembered."""

ON_ITS_WAY: Final = 5.0
"""Seconds for which an agent of which there is one is asked again, where nobody had it and nothing ran."""

AGAIN: Final = (0.05, 0.5)
"""Seconds before it is, at least and at most."""


class Tail(Asker):
    """Who asked an agent from another node, as its handlers meet it; also where a handoff may leave this node.

    Args:
        letter: what was asked.
        account: of what it spends here.
        call: that brought it; what it emits goes to its `events`.
        back: puts questions to who waits for it: node, token, the agent's name, and what it wants to know.
        read: returns once who waits has room for what is emitted: node, token, and the agent's name.

    """

    def __init__(self, letter: Letter, account: Account, call: Call, back: Back, read: Read) -> None:
        super().__init__(call.deadline)
        self.letter = letter
        self.account = account
        self._name = call.name or ""
        self._events = call.events
        self._back = back
        self._pace = Pace(partial(read, *self._waits, self._name))

    @property
    def _waits(self) -> tuple[str, str]:
        """Who waits for it: the node, empty if nobody does, and the token of its ask."""
        node, _, token = "".join(self.letter.ways[-1:]).rpartition(".")
        return node, token

    @property
    def spent(self) -> dict[str, Decimal]:
        """What of its asker's budget was spent so far."""
        return spent_of(self.account.spent, self.letter.spent) if self.letter.limits else {}

    async def __call__(self, value: object) -> None:
        if self._events is not None:
            given = packed(value, "what an agent emits")
            await self._pace.keep(len(given.json))
            self._events(EMIT, given.json)
        await trio.lowlevel.checkpoint()

    async def inquire(self, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        node, token = self._waits
        if not node:  # it was told, and nobody waits
            raise InputNeeded(self._name, sorted({each.method for each in questions.values()}))
        return await self._back(node, token, self._name, questions)


class Asking:
    """The agents of other nodes. Satisfies `agents.Elsewhere`.

    Args:
        agents: ours.
        node: ours.
        asked: where asks are kept while they are under way, by their tokens.
        locate: tells the node that has an agent of which there is one, or raises `NoOwner`.
        move: lets one of those go to another node.
        rng: draws tokens.
        stir: called when ours were added or removed.

    Attributes:
        here: the name of our node.
        offered: the nodes that have each agent, by its name.
        standing: likewise, that stand by for it.

    """

    def __init__(
        self, agents: Agents, node: Node, asked: dict[str, Branch], locate: Callable[[str], Awaitable[str]],
        move: Callable[[str, str], Awaitable[str]], rng: random.Random, stir: Callable[[], None],
    ) -> None:  # fmt: skip
        self.here = node.name
        self.offered: Mapping[str, Sequence[str]] = {}
        self.standing: Mapping[str, Sequence[str]] = {}
        self._locate = locate
        self._move = move
        self._agents = agents
        self._node = node
        self._asked_now = asked
        self._unseen: dict[str, Unseen] = {}  # by the tokens of asks that are streamed
        self._rng = rng
        self._stir = stir
        self._known: OrderedDict[str, Distant] = OrderedDict()

    def changed(self) -> None:
        self._stir()

    async def move(self, name: str, node: str) -> str:
        return await self._move(name, node)

    def find(self, address: str) -> Distant | None:
        known = self._known.get(address)
        name, _, place = address.partition(PLACE)
        if not (self._may_be(place, base_of(name)) if place else self._is_known(base_of(name))):
            return None
        if known is not None:
            self._known.move_to_end(address)
            return known
        try:
            distant = Distant(address, partial(self._ask, address), partial(self._tell, address))
        except ValueError:  # no agent has such a name
            return None
        self._known[address] = distant
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return distant

    def covers(self, place: str) -> bool:
        if "=" not in place:
            return place == self.here
        record = self._node.roster.nodes.get(self.here)
        return record is not None and _has(record.labels, place)

    def _may_be(self, place: str, name: str) -> bool:
        """Whether an agent may be at that place, which may be labels."""
        return bool(self.owners(f"{name}{PLACE}{place}")) if "=" in place else is_name(place)

    def _is_known(self, name: str) -> bool:
        return name in self.offered or name in self.standing or name in self._agents.singletons

    def stands_by(self, name: str, labels: str) -> Sequence[str]:
        """The other nodes that are known to stand by for an agent, and do not drain; with `labels`, that have those."""
        nodes = self._node.roster.nodes
        there = [each for each in self.standing.get(name, ()) if each in nodes and each != self.here]
        return [each for each in there if not nodes[each].draining and (not labels or _has(nodes[each].labels, labels))]

    def is_of_many(self, name: str) -> bool:
        """Whether each node that has it has one of its own."""
        if name in self.standing or name in self._agents.singletons:
            return False
        return name in self._agents or name in self.offered

    def owners(self, address: str) -> Sequence[str]:
        """The nodes that an ask of this address may go to."""
        name, _, place = address.partition(PLACE)
        if place and "=" not in place:
            return (place,)
        nodes = self._node.roster.nodes
        owners = self.offered.get(base_of(name), ())
        if place:
            owners = [each for each in owners if each in nodes and _has(nodes[each].labels, place)]
        return [each for each in owners if each in nodes and not nodes[each].draining] or owners

    # Verbs

    async def _ask(self, address: str, context: Context, payload: object) -> object:
        """What the agent at `address` answers. Raises what it raised, or a `CallError` if it could not be asked."""
        branch = context.branch
        if isinstance(branch.sink, Tail):  # whoever was asked has finished, and so have we
            await self._hand_on(address, branch.sink, context, payload)
        token = f"{self._rng.getrandbits(128):032x}"
        account = branch.account
        limits = limits_of(account)
        letter = self._letter(
            address, branch, payload, context.transcript, (*ways_of(branch), f"{self.here}.{token}"), limits
        )
        call = self._call(ASK, address, branch, letter, context.trace)
        self._asked_now[token] = branch
        try:
            if account is None or not limits:
                return await self._asked(address, call, branch, token, None)
            # All that is left is set aside: nobody can tell how much of it is used there.
            with account.reserve(by=context.agent.name, **amounts_of(limits)) as reserved:
                return await self._asked(address, call, branch, token, (reserved, limits))
        finally:
            del self._asked_now[token]

    async def _asked(
        self, address: str, call: Call, branch: Branch, token: str,
        reserved: tuple[Reservation, Mapping[str, Decimal]] | None,
    ) -> object:  # fmt: skip
        spent: Mapping[str, Decimal] = {} if reserved is None else reserved[1]  # all, unless we learn better
        try:
            answer, error, spent = await self._said(address, partial(self._carried, address, call, branch, token))
        except CallError as exc:
            if exc.executed == "no":
                spent = {}
                if _was_handed(branch) and not isinstance(exc, DeadlineExceeded):
                    raise HandoffRefused(address, str(exc)) from exc
            raise
        finally:
            if reserved is not None:
                reserved[0].settle(**amounts_of(spent))
        if error is not None:
            raise error
        return answer

    async def _said(
        self, address: str, ask: Callable[[Sequence[str]], Awaitable[Raw]]
    ) -> tuple[object, Exception | None, Mapping[str, Decimal]]:
        """What `ask` of some nodes gives, as `read_reply` tells it.

        Where there is one of the agent, and nobody had it, it is on its way: whoever has it then is asked, for a while.
        """
        until = math.inf
        owners: Sequence[str] = ()
        while True:
            try:
                said = read_reply(await ask(owners), address)
                if not self._may_come(address, said[1]) or trio.current_time() > until:
                    return said
            except NoOwner as exc:
                if not self._may_come(address, exc) or trio.current_time() > until:
                    raise
            until = min(until, trio.current_time() + ON_ITS_WAY)
            await trio.sleep(self._rng.uniform(*AGAIN))
            try:
                owners = [await self._locate(base_of(address))]
            except NoOwner:
                owners = ()  # it says so again

    def _may_come(self, address: str, error: Exception | None) -> bool:
        """Whether an agent that was not asked may be there in a moment."""
        name = base_of(address)
        if name not in self.standing and name not in self._agents.singletons:
            return False
        if isinstance(error, AgentNotFound):  # who had it does not stand by any more
            return base_of(error.name) == name
        return isinstance(error, NoOwner) and error.executed == "no"

    async def _carried(self, address: str, call: Call, branch: Branch, token: str, owners: Sequence[str] = ()) -> Raw:
        """The result of a call that asks."""
        if branch.sink is None:
            return await self._called(address, call, owners)
        unseen = self._unseen[token] = Unseen(branch.sink, self._node.counters)
        result: Raw | None = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unseen.show)
            try:
                with unseen.send:
                    result = await self._called(address, replace(call, events=unseen.take), owners)
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                failure = exc
            finally:
                del self._unseen[token]
        if failure is not None:
            raise failure
        assert result is not None
        return result

    async def _called(self, address: str, call: Call, owners: Sequence[str] = ()) -> Raw:
        late: DeadlineExceeded | None = None
        try:
            owners = owners or self.owners(address) or [await self._locate(base_of(address))]
            outcome = await self._node.calling.call(call, owners, join=GRACE)
        except DeadlineExceeded as exc:
            late = exc
        if late is not None:
            # The time that went along was its asker's: whoever set it ends the ask.
            await trio.sleep_until(min(call.deadline, trio.current_time() + 1.0))
            await trio.lowlevel.checkpoint()
            raise late
        if type(outcome) is not Complete:
            raise BadReply(f"agent {address} answered as no agent does")
        return outcome.result

    async def inquire(self, node: str, token: str, agent: str, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        """What the person behind an ask of another node answers. Raises as `Asker.inquire` does."""
        deadline = trio.current_effective_deadline()
        call = Call(INQUIRE, agent, questions_with(questions, token), deadline=deadline)
        answer, error, _ = read_reply(await self._called(f"{agent}{PLACE}{node}", call), agent)
        if error is not None:
            raise error
        if not isinstance(answer, dict):
            raise BadReply(f"node {node} answered as nobody does who was asked")
        return answer

    async def ask_room(self, node: str, token: str, agent: str) -> None:
        """Return once whoever streams an agent of ours at another node has room. Raises `CallError`."""
        await self._node.calling.call(Call(READ, agent, {"token": Raw(msgspec.json.encode(token))}), [node])

    async def wait_room(self, token: str) -> None:
        """Return once whoever streams under `token` has room for more, or does not stream any more."""
        unseen = self._unseen.get(token)
        if unseen is not None:
            await unseen.wait_room()
        await trio.lowlevel.checkpoint()

    async def _tell(self, address: str, branch: Branch, payload: object) -> bool:
        """Put `payload` into a mailbox of another node; returns whether it was taken."""
        letter = self._letter(address, branch, payload, (), ways_of(branch), limits_of(branch.account))
        call = self._call(TELL, address, branch, letter, branch.trace and branch.trace.at(branch.span))
        answer, error, _ = await self._said(address, partial(self._called, address, call))
        if error is not None:
            raise error
        return answer is True

    async def _hand_on(self, address: str, tail: Tail, context: Context, payload: object) -> None:
        """Let another node answer whoever asked.

        Raises:
            HandOn: it does.
            HandoffRefused: it cannot go on with what was handed to it.
            CallError: likewise, where nothing ran: the agent that was asked has moved there.

        """
        branch = context.branch
        limits = limits_of(branch.account)
        letter = self._letter(
            address, branch, payload, context.transcript, tail.letter.ways, limits, spent=tail.spent
        )  # fmt: skip
        try:
            if HOPS.get() >= MAX_HOPS:
                raise NoOwner(address, f"{MAX_HOPS} nodes are the most that a call goes through")
            owners = self.owners(address) or [await self._locate(base_of(address))]
            node = self._node.calling.choose(address, owners)
        except CallError as exc:
            if not _was_handed(branch):
                raise
            raise HandoffRefused(address, str(exc)) from exc
        raise HandOn(node, self._call(ASK, address, branch, letter, context.trace))

    def _letter(
        self, address: str, branch: Branch, payload: object, transcript: Sequence[Step], ways: tuple[str, ...],
        limits: dict[str, Decimal], spent: dict[str, Decimal] | None = None,
    ) -> Letter:  # fmt: skip
        given = packed(payload, f"what is given to agent {address!r}")
        path = branch.path[-MAX_PATH:]
        steps = steps_of(transcript)
        return Letter(given, path, branch.hops, ways, steps, limits, spent or {})

    def _call(self, method: str, address: str, branch: Branch, letter: Letter, trace: TraceContext | None) -> Call:
        deadline = math.inf if method == TELL else trio.current_effective_deadline()
        call = Call(method, address.partition(PLACE)[0], params_with(letter), {}, branch.principal, deadline)
        return call if trace is None else replace(call, trace=str(trace), meta=trace.meta)


def ways_of(branch: Branch) -> tuple[str, ...]:
    """The tokens of the asks between nodes that wait for this one."""
    above: Branch | None = branch
    while above is not None:
        if isinstance(above.sink, Tail):
            return above.sink.letter.ways
        above = above.parent
    return ()


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether `labels` are as `wanted` says: `key=value`, several with commas between."""
    pairs = (each.partition("=") for each in wanted.split(","))
    return all(labels.get(key) == value for key, _, value in pairs)


def _was_handed(branch: Branch) -> bool:
    """Whether the agent that a branch is at was handed to, and not asked."""
    return branch.hops > (0 if branch.parent is None else branch.parent.hops)
