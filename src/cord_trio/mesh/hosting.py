"""Our agents for those that ask from other nodes: each ask is one here too, under whoever waits for it here already.

What they may use is theirs, here: whoever asks from elsewhere widens nothing. A handoff to an agent of another node
ends the ask here, and that node answers whoever asked.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from msgspec import Raw

from cord_trio.agents.agent import Agent, base_of
from cord_trio.agents.answering import asker_of
from cord_trio.agents.budget import Account
from cord_trio.agents.exporting import as_tool
from cord_trio.agents.failing import cancelled_alone
from cord_trio.agents.turn import Branch
from cord_trio.call import Complete
from cord_trio.errors import AgentNotFound, CallError, DeadlineExceeded, InputNeeded
from cord_trio.mesh.asking import Tail
from cord_trio.mesh.catalogues import encode_agents
from cord_trio.mesh.letters import INQUIRE, TELL, letter_in, questions_in, refusal_of, reply_of, unpacked
from cord_trio.mesh.owning import HOPS, HandOn
from cord_trio.mesh.singletons import locate
from cord_trio.mesh_errors import BadFrame, NoOwner
from cord_trio.protocol.jsonrpc import UNREADABLE
from cord_trio.trace import trace_of

STANDBY: Final = "cord_trio/standby"
"""What says in the `_meta` of an agent that is listed that its node only stands by for it."""

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Mapping

    from cord_trio.agents.agent import AgentMade
    from cord_trio.agents.answering import Question
    from cord_trio.call import Call
    from cord_trio.config import MeshConfig
    from cord_trio.fabric import Fabric
    from cord_trio.mesh.asking import Asking
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.keeping import Keeping
    from cord_trio.mesh.letters import Letter
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Tool


class Hosting:
    """Our agents, as other nodes ask them.

    Args:
        fabric: whose they are.
        settings: say which of them others may ask.
        store: says whose those are of which there is one.
        keeping: has those.

    Attributes:
        asked: the asks of ours that are under way at other nodes, by their tokens.
        asking: our way to ask others, once there is one.

    """

    def __init__(self, fabric: Fabric, settings: MeshConfig, store: Store, keeping: Keeping) -> None:
        self._keeping = keeping
        self._store = store
        self.asked: dict[str, Branch] = {}
        self.asking: Asking | None = None
        self._fabric = fabric
        self._settings = settings

    def offered(self) -> bytes | None:
        """The catalogue of those that others may ask; None if those are none. Raises `BadCatalogue`."""
        agents = self._fabric.agents
        tools = [as_tool(agent) for name, agent in agents.items() if self._settings.lends(name)]
        tools += [
            _standby(name, one.function)
            for name, one in agents.singletons.items()
            if name not in agents and self._settings.lends(name)
        ]
        return encode_agents(tools) if tools else None

    async def answer(self, call: Call) -> Complete:
        """What an agent of ours says to what another node asks of it, or tells it.

        Raises:
            HandOn: an agent of another node goes on with it.
            BadFrame: it is no question.
            CallError: it could not be begun.

        """
        if call.method == INQUIRE:
            return await self._inquire(call)
        letter = letter_in(call.params)
        name = call.name or ""
        agents = self._fabric.agents
        limits = letter.budget
        account = agents.account if limits is None else Account(limits, name, agents.account)
        tail = Tail(letter, account, call, self._ask_back, self._ask_room)
        above = self._above(letter)
        onward = Branch(above, letter.path[:-1], letter.hops, call.principal, account)
        siblings = agents.roots if above is None else above.children
        siblings[onward] = None
        try:
            await self._require(name, call)
            with self._fabric.accepting(nested=above is not None):
                said = agents.serve(name, self._said(call, letter, onward, tail))
                return Complete(await within_its_own(call.deadline, said))
        except (AgentNotFound, NoOwner) as exc:
            return Complete(refusal_of(exc, name, self._settings.node, {}))
        finally:
            del siblings[onward]

    async def _require(self, name: str, call: Call) -> None:
        """Return if the agent is here. Raises `HandOn` if another node is known to have the one that there is."""
        base, agents = base_of(name), self._fabric.agents
        if not self._settings.lends(base) or (base not in agents and base not in agents.singletons):
            raise AgentNotFound(name)
        if base not in agents:
            node = await self.locate(base)
            if node != self._settings.node:
                raise HandOn(node, call)
            if await self._keeping.wait_here(base):
                return
            raise NoOwner(base, "its node is about to have it, or has just had it")

    async def locate(self, name: str) -> str:
        """The node that has the agent of which there is one. Raises `NoOwner` if none has."""
        try:
            held = await locate(self._store, name)
        except CallError as exc:
            raise NoOwner(name, f"whose it is was not found out: {exc}") from exc
        if held is None or not held.node:
            raise NoOwner(name, "none has it now, of those that stand by for it")
        return held.node

    async def _said(self, call: Call, letter: Letter, onward: Branch, tail: Tail) -> Raw:
        """What the agent answers, or why it does not, as it goes back."""
        agents, name = self._fabric.agents, call.name or ""
        try:
            payload, trace = unpacked(letter.payload), trace_of(call.trace, call.meta)
            answer: object
            if call.method == TELL:
                with alone():  # it begins something of its own
                    answer = await agents.tell(
                        name, payload, principal=call.principal, parent=onward, account=onward.account, trace=trace
                    )
            else:
                answer = await agents.converse(
                    name, payload, principal=call.principal, parent=onward, account=onward.account, sink=tail,
                    transcript=letter.transcript, trace=trace,
                )  # fmt: skip
            return reply_of(answer, f"what agent '{name}@{self._settings.node}' answers", tail.spent)
        except HandOn:
            raise
        except Exception as exc:
            return refusal_of(exc, name, self._settings.node, tail.spent)
        except BaseExceptionGroup as exc:
            raise cancelled_alone(exc, name, self._fabric.counters) from None

    async def _inquire(self, call: Call) -> Complete:
        """What the person answers who is behind an ask of ours at another node."""
        name = call.name or ""
        questions, token = questions_in(call.params)
        try:
            asker = asker_of(self.asked.get(token))
            if asker is None:
                raise InputNeeded(name, sorted({each.method for each in questions.values()}))
            return Complete(reply_of(await asker.inquire(questions), "what was answered", {}))
        except Exception as exc:
            return Complete(refusal_of(exc, name, self._settings.node, {}))

    async def _ask_back(
        self, node: str, token: str, agent: str, questions: Mapping[str, Question]
    ) -> Mapping[str, Json]:
        assert self.asking is not None
        return await self.asking.inquire(node, token, agent, questions)

    async def _ask_room(self, node: str, token: str, agent: str) -> None:
        assert self.asking is not None
        await self.asking.ask_room(node, token, agent)

    async def has_room(self, call: Call) -> Complete:
        """That there is room here for what an agent of another node emits, once there is."""
        try:
            token = msgspec.json.decode(call.params.get("token", b'""'), type=str)
        except UNREADABLE as exc:
            raise BadFrame(f"what an agent asks before it emits cannot be read: {exc}") from exc
        assert self.asking is not None
        await self.asking.wait_room(token)
        return Complete(Raw(b"{}"))

    def _above(self, letter: Letter) -> Branch | None:
        """The ask of ours that waits for this one by way of other nodes, if there is one."""
        for way in reversed(letter.ways):
            branch = self.asked.get(way.rpartition(".")[2])
            if branch is not None:
                return branch
        return None


def _standby(name: str, function: AgentMade) -> Tool:
    """What is listed of an agent that is not here, and might be."""
    tool = as_tool(Agent(name, function))
    return tool.with_meta(Raw(b'{"%b":true}' % STANDBY.encode()))


async def within_its_own(deadline: float, work: Awaitable[Raw]) -> Raw:
    """What `work` gives, under `deadline` alone, and ended with us.

    The scope of a lease has a deadline as well, which is moved on as long as it is renewed: it says nothing to whoever
    asks how long there is, and must not go along to other nodes.
    """
    given: Raw | None = None
    failure: Exception | None = None

    async def end_with_us() -> None:
        try:
            await trio.sleep_forever()
        finally:
            own.cancel("the call ended")

    own = trio.CancelScope(deadline=deadline, shield=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with_us)
        with own:
            try:
                given = await work
            except Exception as exc:
                failure = exc
        nursery.cancel_scope.cancel("it has ended")
    if failure is not None:
        raise failure
    if given is None:
        await trio.lowlevel.checkpoint()  # it is the deadline of those around us too
        raise DeadlineExceeded("its deadline passed where it ran", "unknown")
    return given


@contextmanager
def alone() -> Generator[None]:
    """A block in which what is asked of other nodes has come through none before."""
    token = HOPS.set(0)
    try:
        yield
    finally:
        HOPS.reset(token)
