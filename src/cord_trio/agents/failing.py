"""Handlers that fail while they are cancelled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from cord_trio.counters import Counters

log = logging.getLogger("cord_trio.agents")


def cancelled_alone(exc: BaseExceptionGroup[BaseException], agent: str, counters: Counters) -> BaseException:
    """What is left of `exc` for those above a handler, which may be the whole fabric: its cancellation.

    Tasks of a handler that fail as they are cancelled, when they clean up for one, leave both together. Nobody waits
    for what a cancelled handler would say, so that is logged.
    """
    cancelled, failed = exc.split(trio.Cancelled)
    if cancelled is None or not isinstance(failed, Exception):
        return exc
    counters.add("agents.failed_cancelled")
    log.warning("agent failed as it was cancelled agent=%s", agent, exc_info=failed)
    return cancelled
