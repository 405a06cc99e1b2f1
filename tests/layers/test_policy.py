from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Call, Complete, InputRequired, Outcome
from cord_trio.config import Rule
from cord_trio.counters import Counters
from cord_trio.errors import Denied
from cord_trio.layers import Policy, policy
from cord_trio.protocol.mcp import Annotations

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.call import Handler
    from cord_trio.layers import Approve

Json: TypeAlias = Any
DONE = Complete(Raw(b"{}"))
ASK = (Rule(then="ask"),)
FORMS = b'{"elicitation":{"form":{}}}'


class Source:
    """Answers with `ends`, one a call, then DONE."""

    def __init__(self, *ends: Outcome) -> None:
        self.ends = list(ends)
        self.got: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.got.append(call)
        return self.ends.pop(0) if self.ends else DONE


def around(
    handler: Handler,
    *rules: Rule,
    read_only: bool = False,
    trusted: bool = True,
    hints: Annotations | None = None,
    approve: Approve | None = None,
    counters: Counters | None = None,
    seconds: float = 300.0,
) -> Handler:
    judge = Policy(
        rules, read_only=read_only, name="x", own_name=lambda public: public.removeprefix("x__"),
        own=lambda call: (None if "ref" in call.params else call.name, call.params),
        annotations=lambda _: hints, trusted=trusted,
    )  # fmt: skip
    sealer = Sealer(bytes(32))
    return policy(judge, approve=approve, sealer=sealer, counters=counters or Counters(), seconds=seconds)(handler)


def tool(name: str = "x__send", arguments: Json = None, **more: Json) -> Call:
    return Call("tools/call", name, {"arguments": Raw(json.dumps(arguments or {}).encode())}, **more)


@pytest.mark.parametrize(
    ("rule", "arguments", "denied"),
    [
        (Rule(then="deny"), {}, True),
        (Rule(tools="send", then="deny"), {}, True),
        (Rule(tools="se?", then="deny"), {}, False),
        (Rule(arguments={"to": ["*@evil"]}, then="deny"), {"to": "me@evil"}, True),
        (Rule(arguments={"to": ["*@evil"]}, then="deny"), {"to": "me@home"}, False),
        (Rule(arguments={"to": ["*@evil"]}, then="deny"), {}, False),
        (Rule(arguments={"to": ["*@evil"]}, then="deny"), {"to": ["me@home", "me@evil"]}, True),
        (Rule(arguments={"to": ["*"], "cc.name": ["a", "b"]}, then="deny"), {"to": "", "cc": {"name": "b"}}, True),
        (Rule(arguments={"to": ["*"], "cc.name": ["a", "b"]}, then="deny"), {"to": "", "cc": "b"}, False),
        (Rule(arguments={"all": ["true"], "n": ["3"]}, then="deny"), {"all": True, "n": 3}, True),
    ],
)
async def test_a_rule_is_about_tools_and_arguments(rule: Rule, arguments: Json, denied: bool) -> None:
    source, counters = Source(), Counters()
    handler = around(source, rule, counters=counters)
    if denied:
        with pytest.raises(Denied, match="x__send is denied") as caught:
            await handler(tool(arguments=arguments))
        assert caught.value.executed == "no"
    else:
        assert await handler(tool(arguments=arguments)) is DONE
    assert (len(source.got), counters["policy.denied"]) == ((0, 1) if denied else (1, 0))


async def test_the_first_rule_that_matches_decides() -> None:
    handler = around(Source(), Rule(arguments={"path": ["/data/*"]}, then="allow"), Rule(then="deny"))
    assert await handler(tool(arguments={"path": ["/data/a", "/data/b"]})) is DONE
    for other in ("/etc/a", ["/data/a", "/etc/b"], []):
        with pytest.raises(Denied):
            await handler(tool(arguments={"path": other}))


async def test_a_rule_is_about_who_calls() -> None:
    handler = around(Source(), Rule(principals=["ann", "*@n"], then="allow"), Rule(then="deny"))
    for principal in ("ann", "eve@n"):
        assert await handler(tool(principal=principal)) is DONE
    for principal in ("eve", "ann@m"):
        with pytest.raises(Denied):
            await handler(tool(principal=principal))


async def test_what_is_no_call_of_a_tool_has_no_rules() -> None:
    assert await around(Source(), Rule(then="deny"))(Call("resources/read", "x:y")) is DONE


PROMPT = Call("prompts/get", "secret-plan")
FILE = Call("resources/read", "file:///private/a")
OF_PROMPT = Call("completion/complete", "x", {"ref": Raw(b'{"type":"ref/prompt","name":"secret-plan"}')})
OF_FILE = Call("completion/complete", "x", {"ref": Raw(b'{"type":"ref/resource","uri":"file:///private/{a}"}')})


@pytest.mark.parametrize("call", [PROMPT, FILE, OF_PROMPT, OF_FILE])
@pytest.mark.parametrize(
    ("rules", "denied"),
    [
        ([Rule(prompts="secret*", resources="file:///private/*", then="deny")], 0),
        ([Rule(then="deny"), Rule(prompts="*", resources="*", principals="eve@*", then="deny")], 1),
        ([Rule(prompts="*", resources="*", principals="ann@*", then="deny")], None),
        ([Rule(prompts="s*", resources="f*", then="allow"), Rule(prompts="*", resources="*", then="deny")], None),
        ([Rule(prompts="file*", resources="secret*", then="deny")], None),
        ([Rule(tools="*", then="deny")], None),
    ],
)
async def test_rules_about_prompts_and_resources_are_about_all_that_is_asked_of_them(
    call: Call, rules: list[Rule], denied: int | None
) -> None:
    call, counters = replace(call, principal="eve@b"), Counters()
    handler = around(Source(), *rules, counters=counters)
    if denied is None:
        assert await handler(call) is DONE
        return
    with pytest.raises(Denied, match=rf"a rule of source 'x' says so: rules\[{denied}\]") as caught:
        await handler(call)
    assert (caught.value.executed, counters["policy.denied"]) == ("no", 1)


async def test_a_rule_that_names_prompts_is_about_no_tool() -> None:
    assert await around(Source(), Rule(prompts="*", then="deny"))(tool()) is DONE
    with pytest.raises(Denied):
        await around(Source(), Rule(prompts="*", tools="*", then="deny"))(tool())


async def test_arguments_that_cannot_be_read_are_denied() -> None:
    handler = around(Source(), Rule(arguments={"a": ["b"]}, then="deny"))
    with pytest.raises(Denied, match="cannot be read"):
        await handler(Call("tools/call", "x__send", {"arguments": Raw(b"{")}))


@pytest.mark.parametrize(
    ("trusted", "hints", "allowed"),
    [
        (True, Annotations(read_only_hint=True), True),
        (False, Annotations(read_only_hint=True), False),
        (True, Annotations(idempotent_hint=True), False),
        (True, None, False),
    ],
)
async def test_a_read_only_source_runs_what_a_trusted_server_says_only_reads(
    trusted: bool, hints: Annotations | None, allowed: bool
) -> None:
    handler = around(Source(), read_only=True, trusted=trusted, hints=hints)
    if allowed:
        assert await handler(tool()) is DONE
    else:
        with pytest.raises(Denied, match="read-only"):
            await handler(tool())


@pytest.mark.parametrize("yes", [True, False])
async def test_a_person_is_asked_by_a_function(yes: bool) -> None:
    asked: list[Call] = []

    async def approve(call: Call) -> bool:
        await trio.lowlevel.checkpoint()
        asked.append(call)
        return yes

    source = Source()
    handler = around(source, *ASK, approve=approve)
    if yes:
        assert await handler(tool()) is DONE
    else:
        with pytest.raises(Denied):
            await handler(tool())
    assert asked == [tool()]
    assert len(source.got) == yes


async def test_who_does_not_answer_in_time_has_not_approved(autojump_clock: MockClock) -> None:
    async def approve(call: Call) -> bool:
        await trio.sleep(1000)
        return True

    begun = trio.current_time()
    with pytest.raises(Denied):
        await around(Source(), *ASK, approve=approve, seconds=40)(tool())
    assert trio.current_time() == begun + 40


async def test_nobody_to_ask_is_denied() -> None:
    for capabilities in (b"{}", b'{"elicitation":{"url":{}}}', b'{"sampling":{}}', b"[]", b"?"):
        with pytest.raises(Denied, match="nobody can be asked"):
            await around(Source(), *ASK)(tool(capabilities=capabilities))


async def asked(handler: Handler, call: Call) -> tuple[Json, Raw]:
    """The question that `call` is answered with, and the state to bring back."""
    outcome = await handler(call)
    assert isinstance(outcome, InputRequired)
    result = json.loads(bytes(outcome.result))
    assert result["resultType"] == "input_required"
    return result["inputRequests"], Raw(json.dumps(result["requestState"]).encode())


def retry(call: Call, state: Raw, action: str = "accept", content: Json = None, key: str = "cord_trio/approve") -> Call:
    answers = {key: {"action": action, "content": content}}
    params = {**call.params, "requestState": state, "inputResponses": Raw(json.dumps(answers).encode())}
    return Call(call.method, call.name, params, capabilities=call.capabilities, principal=call.principal)


async def test_whoever_calls_is_asked_in_the_middle_of_the_call() -> None:
    source = Source()
    handler, call = around(source, *ASK), tool(arguments={"to": "me"}, capabilities=FORMS)
    questions, state = await asked(handler, call)
    [(key, question)] = questions.items()
    assert (key, question["method"]) == ("cord_trio/approve", "elicitation/create")
    assert question["params"]["message"] == 'Allow x__send with {"to": "me"}?'
    assert source.got == []
    assert await handler(retry(call, state, content={"approve": True})) is DONE
    assert source.got == [call]  # nothing of the question reaches the server


@pytest.mark.parametrize(
    ("action", "content"), [("decline", None), ("cancel", None), ("accept", {"approve": False}), ("accept", {})]
)
async def test_everything_but_a_yes_is_a_no(action: str, content: Json) -> None:
    source = Source()
    handler, call = around(source, *ASK), tool(capabilities=FORMS)
    _, state = await asked(handler, call)
    with pytest.raises(Denied, match="not approved"):
        await handler(retry(call, state, action, content))
    assert source.got == []


async def test_a_yes_counts_for_its_call_its_caller_and_its_time_alone(autojump_clock: MockClock) -> None:
    source = Source()
    handler, call = around(source, *ASK), tool(arguments={"to": "me"}, capabilities=FORMS)
    _, state = await asked(handler, call)
    yes = {"approve": True}
    for other in (
        tool(arguments={"to": "all"}, capabilities=FORMS),
        tool("x__drop", {"to": "me"}, capabilities=FORMS),
        tool(arguments={"to": "me"}, capabilities=FORMS, principal="eve"),
    ):
        await asked(handler, retry(other, state, content=yes))
    await asked(handler, retry(call, Raw(b'"made up"'), content=yes))
    await asked(handler, retry(call, Raw(b"3"), content=yes))
    await asked(handler, retry(call, state, content=yes, key="other"))
    await trio.sleep(301)
    await asked(handler, retry(call, state, content=yes))
    assert source.got == []


async def test_what_was_approved_is_not_asked_again_when_the_server_asks_something() -> None:
    theirs = InputRequired(Raw(b'{"resultType":"input_required","inputRequests":{"q":{}},"requestState":"theirs"}'))
    source = Source(theirs)
    handler, call = around(source, *ASK), tool(capabilities=FORMS)
    _, state = await asked(handler, call)
    questions, state = await asked(handler, retry(call, state, content={"approve": True}))
    assert questions == {"q": {}}
    assert await handler(retry(call, state, key="q")) is DONE
    assert bytes(source.got[1].params["requestState"]) == b'"theirs"'
    assert json.loads(bytes(source.got[1].params["inputResponses"])).keys() == {"q"}
    with pytest.raises(Denied):  # nor can it be had by inventing the server's state
        await handler(retry(tool(), Raw(b'"theirs"'), key="q"))


async def test_where_a_function_approves_the_callers_own_yes_is_none() -> None:
    """Not even with a state that says that it was asked, or with one that says nothing."""
    source, seen = Source(), []

    async def approve(call: Call) -> bool:
        await trio.lowlevel.checkpoint()
        seen.append(call)
        return False

    call = tool(capabilities=b'{"elicitation":{}}')
    _, state = await asked(around(source, Rule(then="ask")), call)
    for given in (state, Raw(b'"x"')):
        with pytest.raises(Denied):
            await around(source, Rule(then="ask"), approve=approve)(retry(call, given))
    assert (len(seen), source.got) == (2, [])


async def test_a_tool_that_is_not_listed_any_more_is_denied_where_there_are_rules() -> None:
    rules = Policy((Rule(then="allow"),), name="x", own_name=lambda _: None, annotations=lambda _: None, trusted=True)
    source = Source()
    handler = policy(rules, approve=None, sealer=Sealer(bytes(32)), counters=Counters())(source)
    with pytest.raises(Denied, match="not listed any more"):
        await handler(tool())
    assert source.got == []
