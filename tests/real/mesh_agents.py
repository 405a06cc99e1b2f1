"""Agents that a node of a mesh serves from its configuration, for tests with real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from cord_trio import Context


async def echo(ctx: Context, payload: object) -> object:
    """Gives back what it is given, and who led to it."""
    await trio.lowlevel.checkpoint()
    return [payload, ctx.chain]


async def slow(ctx: Context, payload: float) -> object:
    """Takes so many seconds."""
    await ctx.emit("begun")
    await trio.sleep(payload)
    return "done"


async def hands_back(ctx: Context, payload: str) -> object:
    """Hands on to whom it is told."""
    await trio.lowlevel.checkpoint()
    return ctx.handoff(payload, "handed")


class Clerk:
    """Counts what it was told."""

    def __init__(self) -> None:
        self.told = 0

    async def __call__(self, ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        self.told += payload == "one more"
        return self.told
