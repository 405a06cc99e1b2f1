from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cord_trio import errors, mesh_errors
from cord_trio.errors import CallError, CordError, Executed, Problem

if TYPE_CHECKING:
    from types import ModuleType


@pytest.mark.parametrize("module", [errors, mesh_errors])
def test_the_docstring_shows_the_whole_tree(module: ModuleType) -> None:
    written: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (module.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ├└─]*)([A-Z]\w+)", line)
        if found:
            indent, name = len(found[1]), found[2]
            above = [(depth, parent) for depth, parent in above if depth < indent]
            written[name] = above[-1][1] if above else "Exception"
            above.append((indent, name))
    real = {
        name: cls.__bases__[0].__name__
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, CordError)
    }
    assert written == real


@pytest.mark.parametrize(
    ("error", "text", "executed"),
    [
        (errors.CallFailed(-32602, "bad cursor", b"{}"), "bad cursor (-32602)", "yes"),
        (errors.CallFailed(-32601, "no such method", executed="no"), "no such method (-32601)", "no"),
        (errors.BadReply("result is no object"), "result is no object", "yes"),
        (
            errors.InputNeeded("notes", ["roots/list", "elicitation/create"]),
            "notes asks for roots/list, elicitation/create, which nobody here can answer",
            "unknown",
        ),
        (errors.InputNeeded("notes", []), "notes asks for another round, which nobody here can answer", "unknown"),
        (errors.ToolNotFound("x"), "no tool named 'x'", "no"),
        (errors.ToolNotFound("x", ["y", "z"]), "no tool named 'x'; did you mean y or z?", "no"),
        (errors.ToolNotGranted("a", "x", ["y*", "z"]), "agent 'a' may not call 'x': it is granted y*, z", "no"),
        (errors.ToolNotGranted("a", "x", []), "agent 'a' may not call 'x': it is granted no tool", "no"),
        (errors.SourceDown("web", "exited"), "source 'web' is down: exited", "no"),
        (errors.ConnectionLost("reset"), "connection lost: reset", "unknown"),
        (errors.DeadlineExceeded("tools/call x"), "deadline exceeded: tools/call x", "unknown"),
        (
            errors.MessageTooLong("bounds.message_out", 10, 11),
            "a message of 11 bytes is longer than bound bounds.message_out = 10; send less, or raise it",
            "no",
        ),
        (errors.Refused("busy", status=503, retry_after=2.0), "HTTP status 503: busy", "no"),
        (errors.HttpFailed(404, "not here"), "HTTP status 404: not here", "no"),
        (errors.HttpFailed(500), "HTTP status 500", "unknown"),
        (errors.HttpFailed(500, executed="no"), "HTTP status 500", "no"),
        (errors.Overloaded("slots", 32), "bound slots = 32 is met; try later, or raise it", "no"),
        (
            errors.Overloaded("message_out", 16 * 1024 * 1024),
            "bound message_out = 16777216 is met; try later, or raise it",
            "no",
        ),
        (errors.Overloaded("rate", 0.5), "bound rate = 0.5 is met; try later, or raise it", "no"),
        (mesh_errors.NoOwner("t", "it is late"), "no node that has 't' can be reached: it is late", "no"),
        (
            mesh_errors.OwnerLost("b", "1", "gone"),
            "node 'b' (epoch 1) was lost: gone; whether the call ran is not known: look before you make it again",
            "unknown",
        ),
        (mesh_errors.OwnerFailed("b", "X", "so", "yes"), "on node 'b': so", "yes"),
        (
            mesh_errors.OwnerRefused("b", "busy"),
            "node 'b' did not take the call: busy; it runs as many as it may: call again later",
            "no",
        ),
        (mesh_errors.OwnerRefused("b", "denied", "x"), "node 'b' did not take the call: denied, x", "no"),
        (mesh_errors.OwnerRefused("b", "busy", "", "unknown"), "node 'b' did not take the call: busy", "unknown"),
        (mesh_errors.NoResponders("a.b"), "nobody listens to 'a.b'", "no"),
        (mesh_errors.NotPermitted("a", "no rights"), "the NATS server does not permit it: no rights", "no"),
        (mesh_errors.StoreFailed(0, "it is full"), "the store refused: it is full", "no"),
        (mesh_errors.Conflict("k", 3, 7), "the store refused: key 'k' is no longer at revision 3 (7)", "no"),
        (mesh_errors.Conflict("k", 0), "the store refused: key 'k' is there already", "no"),
        (errors.Draining(), "the fabric is draining and takes no new work", "no"),
        (CallError("?"), "?", "unknown"),
    ],
)
def test_a_failed_call_says_what_happened_and_whether_it_ran(error: CallError, text: str, executed: Executed) -> None:
    assert (str(error), error.executed) == (text, executed)


def test_other_errors_say_what_happened_and_what_to_do() -> None:
    assert str(errors.ConnectFailed("web", "spawn", "no such file")) == "web: spawn: no such file"
    assert str(errors.ConnectFailed("web", "spawn", "no such file", "install it")).endswith("; install it")
    assert str(errors.AgentNotFound("a")) == "no agent named 'a'"
    assert str(errors.HandoffRefused("a", "16 hops are used up")) == "handoff to 'a' refused: 16 hops are used up"
    assert str(errors.CallCycle(["a", "b", "a"])) == "call cycle: a > b > a"
    assert str(errors.AgentGone("a#3", 4)) == "'a#3' is no more: the agent is in generation 4"
    assert str(errors.AgentNotGranted("a", "b", ["c*"])) == "agent 'a' may not ask 'b': it is granted c*"
    assert str(errors.AgentNotGranted("a", "b", [])) == "agent 'a' may not ask 'b': it is granted nobody"
    assert str(errors.NoMailbox("a")) == "agent 'a' has no mailbox, so it takes no messages; give it one"
    assert str(errors.AgentCrashed("a#1", "KeyError(1)")) == "agent a#1 crashed: KeyError(1)"
    assert str(errors.AgentDown("a", "it was removed")) == "agent 'a' is down: it was removed"
    assert str(errors.RestartIntensity("a#4", 3, 5.0)) == "agent a#4 crashed again after 3 restarts within 5 s"
    assert str(errors.BudgetExceeded("calls", 3, "a")) == "budget of 3 calls does not hold what agent 'a' asks for"
    assert str(errors.JobNotFound("7")) == "no conversation with id '7'"
    assert str(errors.JobCancelled("7", "enough")) == "conversation 7 was cancelled: enough"
    doubt = "conversation 7 is not run again by itself: web__put, web__get may have run already"
    assert str(errors.InDoubt("7", ["web__put", "web__get"])) == doubt
    malformed = errors.Malformed(-32600, "an array", "7")
    assert (str(malformed), malformed.code, malformed.id) == ("an array", -32600, "7")


def test_a_configuration_error_holds_every_problem() -> None:
    problems = [
        Problem("cord.toml", "sources.a.url", "is no URL", "begin it with https://"),
        Problem("", "", "nothing to serve", ""),
        Problem("x.json", "", "not JSON", "", fatal=False, source="b"),
    ]
    error = errors.ConfigError(problems)
    assert error.problems == tuple(problems)
    assert str(error).splitlines() == [
        "cord.toml: sources.a.url: is no URL; begin it with https://",
        "nothing to serve",
        "x.json: not JSON",
    ]
