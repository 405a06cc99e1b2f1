"""An MCP server with the desk's tickets, made with the official Python SDK: `python ticket_store.py [FILE]`.

A refund is asked for by an agent and granted by a person: the tool asks its caller by elicitation before it pays.
What was paid stands in FILE, so it is paid once, whoever crashes in between.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context  # noqa: TC002  # the SDK reads the annotation
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else "refunds.json")
TICKETS = {
    "1": {"text": "Since release 2.1 the export is empty", "amount": None},
    "2": {"text": "Please refund my order, it never came", "amount": "40"},
    "3": {"text": "When do you open?", "amount": None},
    "4": {"text": "Refund me", "amount": "lots"},
    "5": {"text": "A refund for the whole year, please", "amount": "900"},
    "6": {"text": "refund: charged twice", "amount": "15"},
}


class Approval(BaseModel):
    approve: bool


server = MCPServer("tickets", version="1", log_level="WARNING")


def paid() -> dict[str, str]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def pay(ticket: str, amount: str) -> str:
    """Pay once: while one person was asked, another may have approved."""
    before = paid()
    if ticket in before:
        return f"ticket {ticket}: {before[ticket]} was paid already"
    FILE.write_text(json.dumps({**before, ticket: amount}))
    return f"ticket {ticket}: paid {amount}"


@server.tool(structured_output=False)
def read(ticket: str) -> str:
    """A ticket as JSON: its text, and the amount that it is about if there is one."""
    if ticket not in TICKETS:
        raise ToolError(f"there is no ticket {ticket}")
    return json.dumps(TICKETS[ticket])


@server.tool(structured_output=False)
def refunds() -> str:
    """What was paid so far: a JSON object of tickets to amounts."""
    return json.dumps(paid())


@server.tool(structured_output=False)
async def refund(ticket: str, amount: str, context: Context) -> str | InputRequiredResult:
    """Pays, once for each ticket, if a person approves."""
    if ticket in paid():
        return pay(ticket, amount)  # nobody need be asked
    question = f"Pay {amount} for ticket {ticket}?"
    if (context.protocol_version or "") < "2026":
        answer = await context.elicit(question, Approval)
        approved = answer.action == "accept" and answer.data.approve
    else:
        given = (context.input_responses or {}).get("approval")
        if not isinstance(given, ElicitResult):
            schema = {"type": "object", "properties": {"approve": {"type": "boolean"}}, "required": ["approve"]}
            form = ElicitRequestFormParams(message=question, requestedSchema=schema)
            return InputRequiredResult(input_requests={"approval": ElicitRequest(params=form)})
        approved = given.action == "accept" and bool((given.content or {}).get("approve"))
    if not approved:
        return f"ticket {ticket}: not approved"
    return pay(ticket, amount)


if __name__ == "__main__":
    server.run("stdio")
