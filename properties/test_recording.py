"""What a program of calls got from a source, it gets from the recording of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cord_trio.call import LOCAL, Call, Complete, Error
from cord_trio.errors import CallError
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.protocol import jsonrpc
from cord_trio.recorder import Recorder
from cord_trio.redacting import Redactor
from cord_trio.testing import ToolServer, recorded

Json: TypeAlias = Any

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(["token=x", "[removed]"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "password", "b"]), inner),
    max_leaves=4,
)
STEPS = st.lists(
    st.tuples(st.just("answer"), st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2))
    | st.tuples(st.sampled_from(["count", "missing"]), st.just({}))
    | st.tuples(st.just("error"), st.fixed_dictionaries({"code": st.integers(-9, -1)})),
    max_size=8,
)


async def play(fabric: Fabric, steps: list[tuple[str, Json]]) -> list[object]:
    got: list[object] = []
    for name, arguments in steps:
        call = Call("tools/call", f"x__{name}", {"arguments": Raw(jsonrpc.encode(arguments))}, principal=LOCAL)
        try:
            outcome = await fabric.handle(call)
        except CallError as exc:
            got.append(type(exc))
            continue
        if isinstance(outcome, Complete):
            got.append(Redactor().json(jsonrpc.parse(outcome.result)))
        else:
            assert isinstance(outcome, Error)
            got.append((outcome.code, Redactor().text(outcome.message)))
    return got


@given(steps=STEPS, answers=st.lists(VALUES, min_size=1, max_size=4))
def test_a_replay_gives_what_the_source_gave(steps: list[tuple[str, Json]], answers: list[Json]) -> None:
    def answer(arguments: Json) -> Json:
        told.append(arguments)
        return {"value": answers[len(told) % len(answers)], "asked": arguments}

    told: list[Json] = []

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "calls"
            server = ToolServer({"answer": answer})
            async with open_fabric([server.in_process(name="x")], recorder=Recorder(path)) as fabric:
                got = await play(fabric, steps)
                await fabric.wait_started()
            async with open_fabric(recorded(path, strict=True)) as fabric:
                assert await play(fabric, steps) == got

    trio.run(main)
