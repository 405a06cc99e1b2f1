"""Whether anybody uses a source. Looked at now and then, so that no call pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

LOOKS: Final = 8
"""Looks at whether a source is used, in the time after which it is stopped."""


async def wait_idle(idle: float, uses: Callable[[], int | None]) -> None:
    """Return once a source was not used for `idle` seconds.

    Args:
        idle: seconds.
        uses: how often it was used so far; None while it is.

    """
    before: int | None = None
    since = trio.current_time()
    while trio.current_time() - since < idle:
        await trio.sleep(idle / LOOKS)
        now = uses()
        if now is None or now != before:
            before, since = now, trio.current_time()
