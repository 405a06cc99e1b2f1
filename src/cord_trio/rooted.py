"""Modern servers' conversations where there are roots for everybody: who has none of its own is not asked for any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import InputRequired
from cord_trio.client import Client
from cord_trio.errors import BadReply, Malformed
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse
from cord_trio.protocol.questions import ROOTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.call import Call, Outcome
    from cord_trio.protocol.jsonrpc import Json

ROUNDS: Final = 8
"""Rounds in a row of one call in which nothing but roots is asked for."""

MARK: Final = "cord-roots:"
"""Begins the state that a call brings back which was asked for roots and for more."""

ASKED: Final = "inputRequests"
ANSWERS: Final = "inputResponses"
STATE: Final = "requestState"


class RootedClient(Client):
    """A `Client` that answers for roots, as legacy servers are answered on their own connection."""

    roots = b"{}"
    """The answer to `roots/list`, as JSON."""

    async def call(self, call: Call, name: str | None = None, *, relisted: bool = False) -> Outcome:  # see Client
        declared = parse(call.capabilities)
        if "roots" in declared:
            return await super().call(call, name, relisted=relisted)
        call = self._resumed(replace(call, capabilities=encode({**declared, "roots": {}})))
        for _ in range(ROUNDS):
            outcome = await super().call(call, name, relisted=relisted)
            if type(outcome) is not InputRequired:
                return outcome
            try:
                parts: dict[str, Raw | bytes] = {**members(outcome.result)}
                asked = {key: parse(each) for key, each in members(Raw(bytes(parts.get(ASKED, b"{}")))).items()}
                state = parse(parts.get(STATE, b"null"))
                ours = [key for key, each in asked.items() if each["method"] == ROOTS]
            except (Malformed, msgspec.DecodeError, KeyError, TypeError):
                return outcome  # whoever reads it says what is wrong
            if not ours:
                return outcome
            others = {key: each for key, each in asked.items() if key not in ours}
            if others:
                kept = encode(MARK + encode([ours, state]).decode())
                return InputRequired(Raw(object_of({**parts, ASKED: encode(others), STATE: kept})))
            call = self._answered(call, ours, state, {})
        raise BadReply(f"{self.session.name}: {name} asks for roots more than {ROUNDS} times")

    def _resumed(self, call: Call) -> Call:
        """A call that brings other answers, with those that we kept back."""
        state = parse(call.params.get(STATE, Raw(b"null")))
        if not (isinstance(state, str) and state.startswith(MARK)):
            return call
        try:
            ours, before = parse(state.removeprefix(MARK).encode())
            return self._answered(call, ours, before, members(call.params.get(ANSWERS, Raw(b"{}"))))
        except (msgspec.DecodeError, TypeError, ValueError):
            return call  # a server's own that looks like ours

    def _answered(self, call: Call, keys: list[str], state: Json, given: Mapping[str, Raw]) -> Call:
        """The same with the answer to the questions `keys` beside those `given`, and the server's own `state`."""
        answers = object_of({**given, **dict.fromkeys(keys, self.roots)})
        params = {**call.params, ANSWERS: Raw(answers)}
        params.pop(STATE, None)
        return replace(call, params=params if state is None else {**params, STATE: Raw(encode(state))})
