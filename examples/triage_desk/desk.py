"""A triage desk: agents that read tickets, look things up on real MCP servers, and pay refunds that a person approves.

Run it from anywhere: `python desk.py [TICKET ...]`, in an environment with `mcp`, `mcp-server-time` and
`mcp-server-git`. Who reads a ticket here is a few rules; a language model would stand in `classify`, nowhere else.
"""

from __future__ import annotations

import json
import os
import sys
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

import cord_trio as cord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cord_trio.agents.answering import Question

    Approve = Callable[[str], Awaitable[bool]]

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]
approving: ContextVar[Approve | None] = ContextVar("approving", default=None)
"""Who approves refunds. A handler runs in its asker's context, so whoever asks the desk sets it."""
PER_TICKET = cord.Budget(calls=6, hops=4, money=100)
"""What the desk may use for one ticket: more money than that takes more than an agent."""
PATIENCE = 60.0
"""Seconds for one ticket, a person's thinking included."""


def classify(text: str) -> str:
    """Whose a ticket is."""
    words = text.lower()
    if "refund" in words:
        return "refunds"
    return "engineering" if "release" in words else "answers"


async def triage(ctx: cord.Context, ticket: str) -> object:
    """Read a ticket, and hand it to whom it belongs. The next agent's answer is the answer."""
    found = await ctx.call("tickets__read", {"ticket": ticket})
    if found.is_error:
        return found.text
    return ctx.handoff(classify(found.text), {"ticket": ticket, **json.loads(found.text)})


async def answers(ctx: cord.Context, job: Mapping[str, str]) -> str:
    """Say when we open."""
    with trio.move_on_after(5):  # an answer without the time is better than none
        now = json.loads((await ctx.call("time__get_current_time", {"timezone": "UTC"})).text)
        return f"ticket {job['ticket']}: we open at 9; now it is {now['datetime'][11:16]} in UTC"
    return f"ticket {job['ticket']}: we open at 9"


async def engineering(ctx: cord.Context, job: Mapping[str, str]) -> str:
    """Look for what changed last."""
    log = await ctx.call("git__git_log", {"repo_path": str(REPOSITORY), "max_count": 1})
    change = next((line.strip() for line in log.text.splitlines() if "Message:" in line), "no history here")
    return f"ticket {job['ticket']}: for the engineers; last change: {change}"


async def refunds(ctx: cord.Context, job: Mapping[str, str]) -> str:
    """Pay, if the ledger says that it is right, the budget holds it, and a person approves."""
    amount = await ctx.ask("ledger", job)
    assert isinstance(amount, Decimal)
    approve = approving.get()
    answer = None if approve is None else partial(decide, approve)
    with ctx.budget.reserve(money=amount) as held:
        result = await ctx.call("tickets__refund", {"ticket": job["ticket"], "amount": str(amount)}, answer=answer)
        paid = result.text.endswith(f"paid {amount}")
        held.settle(money=amount if paid else 0)
    if paid:
        await ctx.ask("ledger", (job["ticket"], amount))
    return result.text


class Ledger:
    """What was paid today. It lives with its state: after a crash it is made anew, and reads what was paid."""

    def __init__(self) -> None:
        self.paid: dict[str, Decimal] | None = None

    async def __call__(self, ctx: cord.Context, entry: Mapping[str, str] | tuple[str, Decimal]) -> Decimal:
        if self.paid is None:
            paid = json.loads((await ctx.call("tickets__refunds")).text)
            self.paid = {ticket: Decimal(amount) for ticket, amount in paid.items()}
        if isinstance(entry, tuple):
            ticket, amount = entry
            self.paid[ticket] = amount
            return amount
        return Decimal(entry["amount"])  # no number: a crash, of this run alone


async def decide(approve: Approve, questions: Mapping[str, Question]) -> Mapping[str, object]:
    """Answer what a server asks in the middle of a call, one question after the other."""
    given = {}
    for key, question in questions.items():
        yes = await approve(str(question.params["message"]))
        given[key] = {"action": "accept", "content": {"approve": yes}}
    return given


@attrs.frozen
class Outcome:
    """How one ticket ended: done, refused for want of budget, or failed."""

    ticket: str
    state: str
    text: str


async def handle(asker: cord.Fabric | cord.Context, ticket: str) -> Outcome:
    """One ticket, from its number to its end."""
    try:
        with trio.fail_after(PATIENCE):
            return Outcome(ticket, "done", str(await asker.ask("triage", ticket, budget=PER_TICKET)))
    except cord.BudgetExceeded as exc:
        return Outcome(ticket, "parked", f"ticket {ticket} waits for a manager: {exc}")
    except (cord.AgentError, cord.CallError, trio.TooSlowError, ArithmeticError) as exc:  # the last: a bare ledger's
        return Outcome(ticket, "failed", f"ticket {ticket} failed: {exc}")


async def reception(ctx: cord.Context, ticket: str | int) -> str:
    """Handle a ticket, given its number, within its budget; for the command line and for MCP clients."""
    outcome = await handle(ctx, str(ticket))
    return f"{outcome.state}: {outcome.text}"


def staff(fabric: cord.Fabric) -> None:
    """Have the agents, each with what it may use and whom it may ask, and no more."""
    fabric.agent("triage", triage, turn=8, tools=["tickets__read"], agents=["refunds", "engineering", "answers"])
    fabric.agent("answers", answers, turn=8, tools=["time__get_current_time"], agents=[])
    fabric.agent("engineering", engineering, turn=2, tools=["git__git_log"], agents=[])
    fabric.agent("refunds", refunds, turn=4, tools=["tickets__refund"], agents=["ledger"])
    patient = cord.Supervisor(max_restarts=100, within=60)  # a run of bad tickets must not close the desk
    mailbox = cord.Mailbox(64)  # what is queued outlives a crash
    fabric.agent("ledger", Ledger, tools=["tickets__refunds"], agents=[], mailbox=mailbox, supervisor=patient)


async def main(tickets: Iterable[str]) -> None:
    async def at_the_terminal(question: str) -> bool:
        said = await trio.to_thread.run_sync(input, f"{question} [y/N] ", abandon_on_cancel=True)
        return said.strip().lower() == "y"

    approving.set(at_the_terminal)
    async with cord.open_fabric(cord.load_config(FOLDER / "cord.toml")) as fabric, trio.open_nursery() as nursery:
        staff(fabric)

        async def tell(ticket: str) -> None:
            outcome = await handle(fabric, ticket)
            print(f"{outcome.state:7} {outcome.text}", flush=True)

        for ticket in tickets:
            nursery.start_soon(tell, ticket)


if __name__ == "__main__":
    os.chdir(FOLDER)  # where cord.toml finds the ticket store
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # this Python's own servers
    trio.run(main, sys.argv[1:] or ["1", "2", "3", "4", "5", "6"])
