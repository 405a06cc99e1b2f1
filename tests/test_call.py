from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import LOCAL, NO_MEMBERS, Call, Complete, stack

if TYPE_CHECKING:
    from cord_trio.call import Handler, Layer, Outcome


def test_a_call_is_of_the_local_user_and_unhurried_unless_it_says_otherwise() -> None:
    assert Call("ping") == Call(
        method="ping",
        name=None,
        params=NO_MEMBERS,
        meta=NO_MEMBERS,
        principal=LOCAL,
        deadline=math.inf,
        events=None,
        capabilities=b"{}",
        attempt=1,
    )


def test_a_call_never_changes() -> None:
    with pytest.raises(AttributeError):
        Call("ping").attempt = 2  # type: ignore[misc]  # what the test is about


async def test_the_first_layer_is_outermost() -> None:
    seen: list[str] = []

    def layer(name: str) -> Layer:
        def around(handler: Handler) -> Handler:
            async def handle(call: Call) -> Outcome:
                seen.append(name)
                return await handler(call)

            return handle

        return around

    async def answer(call: Call) -> Outcome:
        seen.append(call.method)
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b"{}"))

    assert await stack(answer, layer("a"), layer("b"))(Call("ping")) == Complete(Raw(b"{}"))
    assert seen == ["a", "b", "ping"]
    assert stack(answer) is answer
