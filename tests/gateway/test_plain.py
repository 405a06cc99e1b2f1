"""What reads plain calls in one piece reads them as the front does, member by member."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cord_trio.gateway.front import Front
from cord_trio.gateway.plain import LONGEST, read_plain
from cord_trio.gateway.steps import Caller, Client, Run
from cord_trio.protocol.eras import ERAS
from cord_trio.protocol.jsonrpc import MAX_DEPTH, Json
from cord_trio.snapshot import Snapshot

CLIENT = Client(ERAS["2025-11-25"], b'{"elicitation":{}}')
FRONT = Front(b"{}", Snapshot)

values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["name", "arguments", "_meta", "task", "requestState", "other"])
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "1.0", 2]),
        "id": st.integers(-3, 3) | st.text(max_size=3) | st.none() | st.floats(0, 1),
        "method": st.sampled_from(["tools/call", "tools/call", "tools/list", "ping", ""]),
        "params": st.dictionaries(names, values, max_size=3) | values,
        "result": values,
        "more": values,
    },
)


def plainly(step: object) -> object:
    """All of a call, to be compared."""
    if not isinstance(step, Run):
        return None
    params = {name: bytes(value) for name, value in step.params.items()}
    return params, msgspec.structs.replace(step, params={})


def read(text: bytes, caller: Caller) -> Run | None:
    """What is read so of a message by `caller`, who has a client."""
    assert caller.client is not None
    return read_plain(text, caller.client, askable=caller.askable, level=caller.level, principal=caller.principal)


@given(messages, st.booleans(), st.booleans())
def test_a_plain_call_is_read_as_the_front_reads_it(message: dict[str, Json], askable: bool, ascii_only: bool) -> None:
    text = json.dumps(message, ensure_ascii=ascii_only).encode("utf-8", "replace")
    caller = Caller(None, CLIENT, principal="ann", askable=askable, level="error")
    step = read(text, caller)
    if step is not None:
        assert plainly(step) == plainly(FRONT.read(text, caller))


CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__b","arguments":%b}}'


def test_a_plain_call_is_one() -> None:
    caller = Caller(None, CLIENT)
    for arguments in (b"{}", b'{"a":[1,{"b":2}]}', b'{"a":"\\\\"}'):
        step = read(CALL % arguments, caller)
        assert step is not None
        assert plainly(step) == plainly(FRONT.read(CALL % arguments, caller))
    assert read(b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"a"}}', caller) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        b"null",
        b"[1]",
        b'{"a":\n1}',
        b'{"a":\r1}',
        '{"a":"ř"}'.encode(),
        b'{"a":%b}' % (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH),
        b'{"a":"%b"}' % (b"x" * LONGEST),
        b'{"a":1},"_meta":{"progressToken":1}',
        b'{"a":',
        b"{},",
        b"[" * 100_000,
    ],
    ids=["null", "list", "LF", "CR", "UTF-8", "deep", "long", "meta", "cut", "comma", "brackets"],
)
def test_what_is_not_quite_plain_is_the_fronts(arguments: bytes) -> None:
    assert read(CALL % arguments, Caller(None, CLIENT)) is None
