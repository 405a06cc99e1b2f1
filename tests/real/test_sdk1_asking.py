"""A server of the official SDK 1.x that asks in the middle of calls, over stdio and Streamable HTTP."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, InputRequired
from cord_trio.config import Http, Stdio
from cord_trio.errors import CallFailed
from cord_trio.fabric import Fabric, open_fabric
from tests.real.environments import sdk1
from tests.real.helpers import START, read_line, running, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.call import Outcome

PROGRAM = str(Path(__file__).with_name("sdk1_asking.py"))
ASKABLE = b'{"elicitation":{},"sampling":{},"roots":{}}'

pytestmark = pytest.mark.parametrize("kind", ["stdio", "http"])

Json: TypeAlias = Any


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Make its environment outside of any test's time limit."""
    sdk1()


@asynccontextmanager
async def fabric_of(kind: str) -> AsyncGenerator[Fabric]:
    if kind == "stdio":
        async with open_fabric([Stdio(name="far", command=sdk1(), args=(PROGRAM, "stdio"), connect=START)]) as fabric:
            await ready(fabric)
            yield fabric
        return
    async with running([sdk1(), PROGRAM, "http"]) as process:
        url = await read_line(process.stdout)
        with trio.fail_after(90):
            while True:  # its URL is told before it listens
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", int(url.split(":")[2].split("/")[0]))).aclose()
                    break
                except OSError:
                    await trio.sleep(0.05)
        async with open_fabric([Http(name="far", url=url, connect=START)]) as fabric:
            await ready(fabric)
            yield fabric


async def ready(fabric: Fabric) -> None:
    with trio.fail_after(90):
        await fabric.wait_started()
    assert fabric.links["far"].state == "ready", fabric.links["far"].reason


async def answer(asked: Json) -> Json:
    """As a person, a model and a host would."""
    await trio.lowlevel.checkpoint()
    given: Json = {}
    for key, question in asked.items():
        if question.method == "elicitation/create":
            given[key] = {"action": "accept", "content": {"name": question.params["message"].rstrip("?")}}
        elif question.method == "roots/list":
            given[key] = {"roots": [{"uri": "file:///home"}]}
        else:
            text = question.params["messages"][0]["content"]["text"] + " there"
            given[key] = {"role": "assistant", "content": {"type": "text", "text": text}, "model": "m"}
    return given


def said(outcome: Outcome) -> str:
    assert isinstance(outcome, Complete)
    text: str = json.loads(bytes(outcome.result))["content"][0]["text"]
    return text


async def test_each_kind_of_question_is_answered(kind: str) -> None:
    async with fabric_of(kind) as fabric:
        with trio.fail_after(90):
            assert (await fabric.call("far__elicit", answer=answer)).text == "accept Name"
            assert (await fabric.call("far__twice", answer=answer)).text == "First Second"
            assert (await fabric.call("far__roots", answer=answer)).text.rstrip("/") == "file:///home"
            assert (await fabric.call("far__sample", answer=answer)).text == "hi there"
            assert (await fabric.call("far__elicit")).is_error  # who can be asked nothing is asked nothing
        assert len(fabric._parks) == 0


async def test_two_principals_at_once_get_their_own_questions(kind: str) -> None:
    async with fabric_of(kind) as fabric:
        results: dict[str, str] = {}

        async def person(name: str) -> None:
            call = Call("tools/call", "far__elicit", {"arguments": Raw(b"{}")}, principal=name, capabilities=ASKABLE)
            asked = await fabric.handle(call)
            assert isinstance(asked, InputRequired)
            await trio.sleep(0.2)
            (key,) = json.loads(bytes(asked.result))["inputRequests"]
            given = {key: {"action": "accept", "content": {"name": name}}}
            params = {"inputResponses": Raw(json.dumps(given).encode())}
            for thief in {"ann", "bob", "eve"} - {name}:
                with pytest.raises(CallFailed):
                    await fabric.handle(Call("tools/call", "far__elicit", params, principal=thief, park=asked.park))
            again = Call("tools/call", "far__elicit", params, principal=name, capabilities=ASKABLE, park=asked.park)
            results[name] = said(await fabric.handle(again))

        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for name in ("ann", "bob", "eve"):
                    nursery.start_soon(person, name)
        assert results == {name: f"accept {name}" for name in ("ann", "bob", "eve")}


async def test_invariant_32_a_call_travels_only_on_a_connection_of_its_own_principal(kind: str) -> None:
    """Calls of three people at once, one of which nobody answers: which process and session had which people."""
    async with fabric_of(kind) as fabric:
        had: dict[str, set[str]] = {}

        async def ask(name: str, *, gives_up: bool) -> None:
            call = Call("tools/call", "far__whose", {"arguments": Raw(b"{}")}, principal=name, capabilities=ASKABLE)
            asked = await fabric.handle(call)
            assert isinstance(asked, InputRequired), asked
            if gives_up:
                fabric.abandon(asked.park, "she has gone")
                return
            (key,) = json.loads(bytes(asked.result))["inputRequests"]
            params = {
                "inputResponses": Raw(json.dumps({key: {"action": "accept", "content": {"name": name}}}).encode())
            }
            again = Call("tools/call", "far__whose", params, principal=name, capabilities=ASKABLE, park=asked.park)
            where, who = said(await fabric.handle(again)).split()
            assert who == name
            had.setdefault(where, set()).add(who)

        with trio.fail_after(30):
            for turn in range(4):
                async with trio.open_nursery() as nursery:
                    for name in ("ann", "bob", "eve"):
                        nursery.start_soon(partial(ask, name, gives_up=turn == 2 and name == "bob"))
        assert all(len(people) == 1 for people in had.values()), had
        assert set.union(*had.values()) == {"ann", "bob", "eve"}
        assert (len({where.partition(".")[0] for where in had}) > 1) == (kind == "stdio")  # else sessions alone differ
        assert len(fabric._parks) == 0


async def test_prompts_resources_and_completions_come_through(kind: str) -> None:
    async with fabric_of(kind) as fabric:
        snapshot = fabric.registry.snapshot
        assert list(snapshot.prompts) == ["far__greet"]
        assert list(snapshot.resources) == ["cord://far/note://one"]
        assert list(snapshot.templates) == ["cord://far/note://{number}/page"]
        with trio.fail_after(90):
            got = await fabric.handle(Call("prompts/get", "far__greet", {"arguments": Raw(b'{"name":"Ada"}')}))
            assert isinstance(got, Complete)
            assert b"Greet Ada" in bytes(got.result)
            for uri, text in [("cord://far/note://one", "first note"), ("cord://far/note://7/page", "page of 7")]:
                read = await fabric.handle(Call("resources/read", uri))
                assert isinstance(read, Complete)
                (contents,) = json.loads(bytes(read.result))["contents"]
                assert (contents["uri"], contents["text"]) == (uri, text)
            params = {"ref": Raw(b'{"type":"ref/prompt"}'), "argument": Raw(b'{"name":"name","value":"A"}')}
            completed = await fabric.handle(Call("completion/complete", "far__greet", params))
            assert isinstance(completed, Complete)
            assert json.loads(bytes(completed.result))["completion"]["values"] == ["name=A!", "PromptReference"]


async def test_a_caller_that_leaves_cancels_it(kind: str) -> None:
    async with fabric_of(kind) as fabric:
        link = fabric.links["far"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.handle, Call("tools/call", "far__slow", principal="ann", capabilities=ASKABLE))
            # Her session is another interpreter, which may take its time to start.
            await until(lambda: any(each.client and each.client.session.peer.open for each in link.pool.sessions))  # type: ignore[union-attr]  # it is one server
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel("she leaves")
        await until(lambda: not link.pool.sessions)  # type: ignore[union-attr]  # it is one server
        assert link.in_flight == 0
