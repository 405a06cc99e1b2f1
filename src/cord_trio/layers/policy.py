"""Which tool calls may be made at all: by what the tool says of itself, by its arguments, or when a person says yes.

It is outermost, so that nothing is spent on a call that is denied, and so that the time in which a person thinks is
not the call's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import Call, InputRequired
from cord_trio.config.rules import denying, words_of
from cord_trio.errors import Denied, Malformed
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse

if TYPE_CHECKING:
    from cord_trio.auth.sealing import Sealer
    from cord_trio.call import Handler, Layer, Outcome
    from cord_trio.config.rules import Rule, Then
    from cord_trio.counters import Counters
    from cord_trio.layers.record import Own
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Annotations

Approve: TypeAlias = Callable[[Call], Awaitable[bool]]
"""Asks a person whether a call may be made."""

APPROVAL: Final = 300.0
"""Seconds that a person has to say yes or no."""

KEY: Final = "cord_trio/approve"
"""The question's key in `inputRequests`."""

KNOWN: Final = 10_000
"""Tools of which it is remembered which rules are about them: a server may rotate their names for ever."""

SHOWN: Final = 500
"""Characters of the arguments that a person is shown."""

_KINDS: Final = {"prompts/get": "prompts", "resources/read": "resources", "completion/complete": ""}
_PURPOSE: Final = "approval"
_ASKED: Final = b"?"
_APPROVED: Final = b"!"
_DIGEST: Final = 32
_SCHEMA: Final = (
    b'{"type":"object","properties":{"approve":{"type":"boolean","title":"Allow it"}},"required":["approve"]}'
)


class Policy:
    """What is allowed on one source. What no rule is about is.

    Args:
        rules: the first that matches decides.
        read_only: whether only tools may be called that say they only read, and are believed.
        name: of the source, for errors.
        own_name: what the server calls the tool with an exported name.
        own: what the server calls whatever else a call is about, and the call's params in its words.
        annotations: of the tool with an exported name.
        trusted: whether annotations are believed.

    """

    def __init__(
        self,
        rules: tuple[Rule, ...] = (),
        *,
        read_only: bool = False,
        name: str,
        own_name: Callable[[str], str | None],
        own: Own | None = None,
        annotations: Callable[[str], Annotations | None],
        trusted: bool,
    ) -> None:
        self._rules = rules
        self._read_only = read_only
        self._name = name
        self._own_name = own_name
        self._own = own
        self._others = tuple(rule for rule in rules if rule.prompts or rule.resources)
        self._annotations = annotations
        self._trusted = trusted
        self._known: dict[str, tuple[Rule, ...]] = {}

    def _judge_other(self, call: Call) -> tuple[Then, str]:
        """What becomes of a call about a prompt or a resource."""
        rules = [rule for rule in self._others if rule.is_for(call.principal)]
        if not rules or self._own is None or call.method not in _KINDS:
            return "allow", ""
        kind, (own, params) = _KINDS[call.method], self._own(call)
        if not kind:  # of what is completed, `ref` says what it is
            ref = parse(params.get("ref", Raw(b"{}")))
            kind, own = ("prompts", ref.get("name")) if ref.get("type") == "ref/prompt" else ("resources", ref["uri"])
        found = denying(rules, kind, own or "")
        return ("allow", "") if found is None else ("deny", words_of(found, self._name, self._rules))

    def judge(self, call: Call) -> tuple[Then, str]:
        """What becomes of `call`, and why."""
        public = call.name or ""
        if call.method != "tools/call":
            return self._judge_other(call) if self._others else ("allow", "")
        if self._read_only:
            hints = self._annotations(public) if self._trusted else None
            if hints is None or not hints.read_only_hint:
                return "deny", f"source {self._name!r} is read-only, and the tool is not known to only read"
        rules = self._known.get(public)
        if rules is None:
            own = self._own_name(public)
            if own is None:
                return "deny", "it is not listed any more, so nobody knows which rules are about it"
            rules = tuple(rule for rule in self._rules if rule.is_about(own))
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[public] = rules
        if not rules:
            return "allow", ""
        arguments: Json = {}
        if any(rule.arguments for rule in rules):
            try:
                arguments = parse(call.params.get("arguments", Raw(b"{}")))
            except (Malformed, msgspec.DecodeError):
                return "deny", "its arguments cannot be read"
        for rule in rules:
            if rule.is_for(call.principal) and rule.matches(arguments):
                return rule.then, words_of(rule, self._name, self._rules)
        return "allow", ""


def policy(
    rules: Policy,
    *,
    approve: Approve | None,
    sealer: Sealer,
    seconds: float = APPROVAL,
    counters: Counters,
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """Calls that are not allowed are denied, and others wait for a person's yes.

    The person is asked by `approve` if there is one, else whoever called, in the middle of the call (MCP
    2026-07-28, input required): then the yes comes with the retry, and counts for exactly that call.

    Args:
        rules: decides.
        approve: asks somebody; returns whether the call may be made.
        sealer: of what the caller brings back.
        seconds: for an answer; without one in time the call is denied.
        counters: counts denials and questions.
        clock: Trio's time.

    """

    def denied(call: Call, why: str) -> Denied:
        counters.add("policy.denied")
        return Denied(call.name or call.method, why)

    def question(call: Call) -> InputRequired:
        if not _may_be_asked(call):
            raise denied(call, "it needs a person's approval, and nobody can be asked")
        counters.add("policy.asked")
        arguments = bytes(call.params.get("arguments", b"{}")).decode("utf-8", "replace")
        shown = arguments if len(arguments) <= SHOWN else f"{arguments[:SHOWN]}…"
        params = b'{"mode":"form","message":%b,"requestedSchema":%b}' % (
            encode(f"Allow {call.name} with {shown}?"), _SCHEMA,
        )  # fmt: skip
        asked = b'{%b:{"method":"elicitation/create","params":%b}}' % (encode(KEY), params)
        state = sealer.seal(_PURPOSE, call.principal, _ASKED + _digest(call), clock() + seconds)
        return InputRequired(
            Raw(b'{"resultType":"input_required","inputRequests":%b,"requestState":%b}' % (asked, encode(state)))
        )

    def opened(call: Call) -> tuple[bytes, bytes]:
        """What state of ours the call brings back, and the server's own state within it; both empty if none."""
        state = call.params.get("requestState")
        try:
            text = parse(state) if state is not None else None
            payload = sealer.open(_PURPOSE, call.principal, text, clock()) if isinstance(text, str) else b""
        except (ValueError, msgspec.DecodeError):
            return b"", b""
        kind, digest, inner = payload[:1], payload[1 : 1 + _DIGEST], payload[1 + _DIGEST :]
        return (kind, inner) if digest == _digest(call) else (b"", b"")

    def layer(handler: Handler) -> Handler:
        async def onward(call: Call, inner: bytes, answers: Raw | None) -> Outcome:
            """Make a call that was approved, and remember that, should the server ask something too."""
            params = {name: value for name, value in call.params.items() if name not in _ROUND}
            if inner:
                params["requestState"] = Raw(inner)
            if answers is not None:
                params["inputResponses"] = answers
            outcome = await handler(replace(call, params=params))
            if type(outcome) is not InputRequired or outcome.park:
                return outcome
            parts: dict[str, Raw | bytes] = {**members(outcome.result)}
            own = bytes(parts.get("requestState", b""))
            state = sealer.seal(_PURPOSE, call.principal, _APPROVED + _digest(call) + own, clock() + seconds)
            parts["requestState"] = encode(state)
            return InputRequired(Raw(object_of(parts)))

        async def asked(call: Call) -> Outcome:
            kind, inner = opened(call)
            if approve is not None and kind != _APPROVED:  # nobody else's yes counts then
                counters.add("policy.asked")
                yes = False
                with trio.move_on_at(min(call.deadline, clock() + seconds)):
                    yes = await approve(call)
                if not yes:
                    raise denied(call, "nobody approved it in time, or somebody said no")
                return await onward(call, b"", None)
            if kind == _APPROVED:
                return await onward(call, inner, call.params.get("inputResponses"))
            answer = _answer(call) if kind == _ASKED else None
            if answer is None:
                return question(call)
            if not answer:
                raise denied(call, "it was not approved")
            return await onward(call, b"", None)

        def judged(call: Call) -> Awaitable[Outcome]:
            then, why = rules.judge(call)
            if then == "allow":
                return handler(call)
            if then == "deny":
                raise denied(call, why)
            return asked(call)

        return judged

    return layer


_ROUND: Final = frozenset({"requestState", "inputResponses"})


def _digest(call: Call) -> bytes:
    """What a yes is about: this call, and none that is like it."""
    digest = hashlib.sha256()
    own = sorted((name, bytes(value)) for name, value in call.params.items() if name not in _ROUND)
    for part in (call.method.encode(), (call.name or "").encode(), *(b"%b=%b" % (n.encode(), v) for n, v in own)):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _answer(call: Call) -> bool | None:
    """Whether the caller says yes; None if it says nothing of that."""
    try:
        answer = parse(call.params.get("inputResponses", Raw(b"{}"))).get(KEY)
    except (AttributeError, msgspec.DecodeError):
        return None
    if not isinstance(answer, Mapping):
        return None
    content = answer.get("content")
    return answer.get("action") == "accept" and isinstance(content, Mapping) and content.get("approve") is True


def _may_be_asked(call: Call) -> bool:
    try:
        asks = parse(call.capabilities).get("elicitation")
    except (AttributeError, msgspec.DecodeError):
        return False
    return isinstance(asks, Mapping) and ("form" in asks or not asks)  # `{}` alone means forms
