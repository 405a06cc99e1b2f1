"""In a mesh for as long as that can be had: at once or, where its broker is not there, as soon as it is.

What is configured here needs no mesh, so that nobody can be reached there keeps nothing from working. What a person has
to mend is an error instead: a name that another has, a key that is refused, a server that is too old. Once the node has
been in the mesh, whatever takes it out again passes.
"""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from cord_trio.errors import ConnectFailed, ConnectionLost, CordError, Draining
from cord_trio.mesh_errors import Conflict, DuplicateName, StoreFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cord_trio.fabric import Fabric
    from cord_trio.mesh.node import Node

    Join: TypeAlias = Callable[[Fabric], AbstractAsyncContextManager[Node]]

FIRST: Final = 3.0
"""Seconds that the first attempt holds the fabric up: a refusal is known within them, as a rule."""

AGAIN: Final = (0.5, 10.0)
"""Seconds before another attempt, at first and at most; drawn from half of that up."""

UNAVAILABLE: Final = 10008
"""JetStream's number for an error that passes: its servers have no leader yet."""


@attrs.frozen
class Entered:
    """The fabric is `node` of the mesh now."""

    node: Node


@attrs.frozen
class Waiting:
    """It is not in the mesh, for `reason`; that is tried again."""

    reason: str


@attrs.frozen
class Refused:
    """The mesh does not take it, since `error`; that is not tried again."""

    error: Exception


News: TypeAlias = Entered | Waiting | Refused


def passes(exc: Exception) -> bool:
    """Whether what kept us out of a mesh ends by itself, rather than by what a person does."""
    match exc:
        case ConnectFailed(step=step, remedy=remedy):
            return step == "connect" or not remedy
        case StoreFailed(code=code):
            return code == UNAVAILABLE or isinstance(exc, Conflict)
        case _:
            return isinstance(exc, ConnectionLost | trio.TooSlowError)


def stay_in_mesh(
    join: Join, hear: Callable[[News], None], *, heir: bool = False, rng: random.Random | None = None
) -> Callable[[Fabric], AbstractAsyncContextManager[None]]:
    """For `open_fabric(mesh=…)`: the fabric is in the mesh whenever that can be had.

    What refuses it within `FIRST` is raised when the fabric opens; what does later is told.

    Args:
        join: makes the fabric a node once; see `in_mesh`.
        hear: told what becomes of it; must not block.
        heir: whether our name is that of one who is about to leave, so that it is waited for.
        rng: draws the pauses.

    """

    @asynccontextmanager
    async def opened(fabric: Fabric) -> AsyncGenerator[None]:
        stay = _Stay(fabric, join, hear, heir, rng or random.Random())
        failure: Exception | None = None

        async def run() -> None:
            nonlocal failure
            try:
                await stay.run()
            except Exception as exc:
                failure = failure or exc
                nursery.cancel_scope.cancel(f"the mesh failed: {exc!r}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await stay.first()
                yield
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                failure = failure or exc
            stay.leaving.set()
            if not stay.inside or failure is not None:
                nursery.cancel_scope.cancel("the fabric needs no mesh any more")
        if failure is not None:
            raise failure

    return opened


class _Stay:
    """One fabric's attempts to be in a mesh."""

    def __init__(
        self, fabric: Fabric, join: Join, hear: Callable[[News], None], heir: bool, rng: random.Random
    ) -> None:
        self.leaving = trio.Event()
        self.inside = False
        self._fabric = fabric
        self._join = join
        self._hear = hear
        self._heir = heir
        self._rng = rng
        self._tried = trio.Event()
        self._held_up = True  # the fabric waits for the first attempt
        self._refusal: Exception | None = None

    async def first(self) -> None:
        """Return once the first attempt has come to something, or takes too long. Raises what refuses us."""
        with trio.move_on_after(FIRST) as scope:
            await self._tried.wait()
        self._held_up = False
        if scope.cancelled_caught:
            self._hear(Waiting("no answer so far, or the lease of the last node of this name has to end first"))
        if self._refusal is not None:
            raise self._refusal

    async def run(self) -> None:
        """Be in the mesh, until the fabric leaves it or it refuses us."""
        been = False
        pause = AGAIN[0]
        while not self._fabric.draining.is_set():  # noqa: ASYNC913  # goes on only after a pause
            try:
                async with self._join(self._fabric) as node:
                    self.inside = been = True
                    pause = AGAIN[0]
                    self._hear(Entered(node))
                    self._tried.set()
                    await self.leaving.wait()
                return
            except (CordError, ValueError, trio.TooSlowError) as exc:
                if not (been or passes(exc) or (self._heir and isinstance(exc, DuplicateName))):
                    self._refuse(exc)
                    return
                self._hear(Waiting(str(exc)))
            self.inside = False
            self._tried.set()
            if been:
                self._fabric.elsewhere = None
                with suppress(Draining):
                    self._fabric.adopt({})
            await trio.sleep(self._rng.uniform(pause / 2, pause))
            pause = min(AGAIN[1], 2 * pause)

    def _refuse(self, exc: Exception) -> None:
        self._refusal = exc
        if not self._held_up:
            self._hear(Refused(exc))
        self._tried.set()
