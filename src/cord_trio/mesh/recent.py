"""Which calls went through a node lately, on either side of it, so that one can be followed over the mesh.

Only calls that are part of a trace are noted: whoever wants to follow one says so before, and the others cost nothing.
Whoever knows the trace, or the call's id, may ask: both are 128 bits that nobody guesses. Arguments and results are not
noted. Times are told as seconds ago, since no two nodes' clocks are compared.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from cord_trio.call import Error
from cord_trio.errors import CallError
from cord_trio.mesh.outcomes import outcome_of
from cord_trio.mesh_errors import OwnerFailed

if TYPE_CHECKING:
    from cord_trio.mesh.flight import Flight
    from cord_trio.mesh.frames import Frame, Request

MOST: Final = 4096
"""Calls that are known of, at most: the last ones."""

MOST_TOLD: Final = 200
"""Calls of one trace that a node tells of, at most: the last ones."""

TEXT: Final = 300
"""Characters of how a call ended."""


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call, as one of the two nodes knows it.

    Attributes:
        side: "made" where it was made, "ran" where it was run.
        id: of the call.
        trace: its `traceparent`, by which it was handed from one to the other.
        node: the other one.
        epoch: the incarnation that ran it.
        name: the tool, or the method.
        source: whose it is, where its caller said so.
        ago: seconds since it began.
        took: seconds until it ended, or until now.
        executed: no, unknown or yes: what is known of whether it ran.
        how: it ended; "runs" if it has not.
        offers: how often it was sent.

    """

    side: str
    id: str
    trace: str
    node: str
    epoch: str
    name: str
    source: str
    ago: float
    took: float
    executed: str
    how: str
    offers: int = 1


STEPS: Final = msgspec.json.Decoder(list[Step])


@attrs.frozen
class _Noted:
    side: str
    request: Request
    node: str
    epoch: str
    began: float
    ended: float
    executed: str
    how: str
    offers: int


class Recent:
    """The last calls of traces that went through a node."""

    def __init__(self, most: int = MOST) -> None:
        self._noted: deque[_Noted] = deque(maxlen=most)
        self._running: dict[tuple[str, str], tuple[Request, str, float]] = {}  # by caller and id: where, and since when
        self._most = most

    def made(self, flight: Flight, frame: Frame | None, exc: BaseException | None) -> None:
        """A call to another node has ended, by a frame or else by an exception."""
        if frame is not None:
            how, executed = _told(frame)
        elif isinstance(exc, CallError):
            how, executed = f"{type(exc).__name__}: {exc}"[:TEXT], exc.executed
        else:
            how, executed = "cancelled", flight.executed
        now = trio.current_time()
        request = msgspec.structs.replace(flight.request, body=b"")
        self._noted.append(
            _Noted("made", request, flight.node, flight.epoch, flight.began, now, executed, how, flight.offers)
        )

    def came(self, request: Request, caller: str, epoch: str, now: float) -> None:
        """A call of another node runs here from now on."""
        if len(self._running) >= self._most:
            del self._running[next(iter(self._running))]
        self._running[caller, request.id] = msgspec.structs.replace(request, body=b""), epoch, now

    def ran(self, request: Request, caller: str, epoch: str, frame: Frame, now: float) -> None:
        """A call of another node has ended here."""
        _, _, began = self._running.pop((caller, request.id), (None, "", now))
        how, executed = _told(frame)
        request = msgspec.structs.replace(request, body=b"")
        self._noted.append(_Noted("ran", request, caller, epoch, began, now, executed, how, 1))

    def find(self, id: str) -> list[Step]:
        """Those of a trace, or the one with this id; the last first."""
        now = trio.current_time()
        running = [
            _Noted("ran", request, caller, epoch, began, now, "unknown", "runs", 1)
            for (caller, _), (request, epoch, began) in reversed(self._running.items())
        ]
        found: list[Step] = []
        for noted in chain(running, reversed(self._noted)):
            request = noted.request
            if id in (request.id, trace_of(request.trace)) and len(found) < MOST_TOLD:
                found.append(
                    Step(
                        noted.side, request.id, request.trace, noted.node, noted.epoch, request.tool or request.method,
                        request.source, round(now - noted.began, 6), round(noted.ended - noted.began, 6),
                        noted.executed, noted.how, noted.offers,
                    )
                )  # fmt: skip
        return found

    def answer(self, asked: bytes) -> bytes:
        """What is told to who asks for an id."""
        return msgspec.json.encode(self.find(asked[:64].decode(errors="replace")))


def trace_of(traceparent: str) -> str:
    """The id of the trace in a `traceparent`; "" if it is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 else ""


def _told(frame: Frame) -> tuple[str, str]:
    """How a call ended, and whether it ran, as a frame says it."""
    match frame.kind:
        case "rej":
            return f"refused: {frame.reason}", "no"
        case "moved":
            return f"handed on to {frame.node}", "unknown"
        case "end":
            return "answered", "yes"
        case _:
            try:
                outcome = outcome_of(frame, "", "")
            except OwnerFailed as exc:
                return f"{exc.kind}: {exc.reason}"[:TEXT], exc.executed
            except CallError as exc:
                return f"{type(exc).__name__}: {exc}"[:TEXT], exc.executed
            return ("answered an error" if isinstance(outcome, Error) else "answered"), "yes"
