"""The OpenAI Agents SDK with a model that is scripted: a handoff is what the first agent's model asks for.

It counts from the first model's answer to the second one's question. An ask is an agent that another one uses
as a tool; it counts from the asking model's answer to its next question.
"""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from time import perf_counter as clock

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, set_tracing_disabled
from agents_common import measure, run, spread
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

handoffs, asks = [], []


def said(text):
    content = [ResponseOutputText(annotations=[], text=text, type="output_text")]
    return ResponseOutputMessage(id="m", content=content, role="assistant", status="completed", type="message")


def called(name, arguments):
    return ResponseFunctionToolCall(
        id="f", call_id="c", name=name, arguments=json.dumps(arguments), type="function_call", status="completed"
    )


class Scripted(Model):
    """Answers with what `script(input)` gives."""

    def __init__(self, script):
        self.script = script

    async def get_response(self, system_instructions, input, *args, **kwargs):
        return ModelResponse(output=[self.script(input)], usage=Usage(), response_id=None)

    def stream_response(self, *args, **kwargs):
        raise NotImplementedError


async def main(seconds):
    set_tracing_disabled(True)
    since = 0.0

    def give(_):
        nonlocal since
        since = clock()
        return called("transfer_to_taker", {})

    def take(input):
        handoffs.append(clock() - since)
        return said(str(number_in(input) + 1))

    def number_in(input):
        if isinstance(input, str):
            return int(input)
        return next(int(item["content"]) for item in input if item.get("role") == "user")

    def ask_other(input):
        nonlocal since
        answers = (
            [] if isinstance(input, str) else [item for item in input if item.get("type") == "function_call_output"]
        )
        if answers:
            asks.append(clock() - since)
            return said(answers[-1]["output"])
        since = clock()
        return called("echo", {"input": str(number_in(input))})

    taker = Agent(name="taker", model=Scripted(take))
    giver = Agent(name="giver", model=Scripted(give), handoffs=[taker])
    echo = Agent(name="echo", model=Scripted(lambda given: said(str(number_in(given) + 1))))
    asker = Agent(name="asker", model=Scripted(ask_other), tools=[echo.as_tool("echo", "adds one")])
    quiet = RunConfig(tracing_disabled=True)

    async def hand(number):
        return int((await Runner.run(giver, str(number), run_config=quiet)).final_output)

    async def ask(number):
        return int((await Runner.run(asker, str(number), run_config=quiet)).final_output)

    wrong = await measure(hand, seconds) + await measure(ask, seconds)
    found = {"openai-agents": version("openai-agents")}
    return {**spread("handoff", handoffs), **spread("ask", asks), "wrong": wrong, "versions": found}


if __name__ == "__main__":
    run(lambda seconds: asyncio.run(main(seconds)))
