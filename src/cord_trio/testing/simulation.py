"""`simulate`: a whole fabric in one process, on a virtual clock, where a seed decides whatever chance decides.

The order of tasks, the faults on the wire and the fabric's own random pauses are all drawn from the seed, and time
passes only when all wait. So a run that fails fails again, in any process, and a thousand others take seconds.
"""

from __future__ import annotations

import re
import zlib
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio
from trio.testing import MockClock

from cord_trio.config import Bounds, Config
from cord_trio.config.values import InProcess
from cord_trio.fabric import open_fabric
from cord_trio.testing.faults import LONGEST, WIRE_FAULTS
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.wire import FaultyTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from cord_trio.fabric import Fabric
    from cord_trio.testing.faults import WireFaultKind
    from cord_trio.testing.server import ToolServer
    from cord_trio.transports.memory import MemoryTransport

    Program: TypeAlias = Callable[[Fabric], Awaitable[object]]

Json: TypeAlias = Any

CHOICES: Final = 100_000
"""Choices of the next task that are drawn; afterwards the order is first come, first served."""

SHOWN: Final = 300
"""Bytes of a message, or characters of a value, in a trace; of longer ones it has the start and a checksum."""

VIRTUAL_LIMIT: Final = 24 * 3600.0
"""Virtual seconds that a program may take, reached at once when all of it is stuck."""


@attrs.frozen
class Trace:
    """What happened in one run. The same program and seed give the same one, byte for byte.

    Attributes:
        seed: that the run came from.
        lines: each with its virtual time: tasks that were chosen before others, messages, faults, the end.
        result: what the program returned.
        error: what it raised.

    """

    seed: int
    lines: tuple[str, ...]
    result: object = None
    error: Exception | None = None

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    def encode(self) -> bytes:
        return str(self).encode("utf-8", "backslashreplace")

    def unwrap(self) -> object:
        """The result; raises the error, with a note that names the seed, if there was one."""
        if self.error is not None:
            self.error.add_note(f"seed {self.seed}")
            raise self.error
        return self.result


def simulate(
    program: Program, *, seed: int, sources: Mapping[str, ToolServer] | Sequence[ToolServer] = (),
    chance: float = 0.0, among: Sequence[WireFaultKind] = WIRE_FAULTS, longest: float = LONGEST,
    bounds: Bounds | None = None, common: Mapping[str, Json] | None = None,
) -> Trace:  # fmt: skip
    """Run `program` with a fabric of its own, from `seed`. Not from within a run of Trio.

    What the program does must come from its arguments: no threads, no clock but Trio's, no randomness of its own.

    Args:
        program: `async (fabric) -> result`; adds its agents, and asks.
        seed: of the schedule, the faults, and the fabric's pauses.
        sources: servers by name. Each run has them anew, from the options and functions of those given here.
        chance: how often a message to or from a source meets a fault.
        among: the faults that are drawn.
        longest: seconds that a drawn fault takes at most.
        bounds: of the fabric.
        common: fields of every source, such as `deadline` and `slots`.

    """
    recorder = _Recorder()
    servers = sources if hasattr(sources, "items") else {server.options.name: server for server in sources}
    config = Config(
        sources=[
            InProcess(
                name=name,
                serve=_Source(
                    name, server.anew(), recorder, Random(f"wire {name} {seed}"), chance, among, longest
                ).serve,
                **(common or {}),
            )
            for name, server in servers.items()
        ],
        bounds=bounds or Bounds(),
    )

    async def main() -> object:
        with trio.fail_after(VIRTUAL_LIMIT):
            async with open_fabric(config, rng=Random(f"fabric {seed}")) as fabric:
                result = await program(fabric)
        for name, count in sorted(fabric.counters.snapshot().items()):
            recorder.note(f"count {name} {count}")
        recorder.note(f"returned {_shown(repr(result))}")
        return result

    try:
        with scheduled(Random(f"schedule {seed}"), choices=CHOICES, chosen=recorder.run):
            result = trio.run(main, clock=MockClock(autojump_threshold=0))
    except Exception as exc:
        recorder.lines += [f"{recorder.now:.6f} raised {line}" for line in _errors(exc)]
        return Trace(seed, tuple(recorder.lines), error=exc)
    return Trace(seed, tuple(recorder.lines), result)


def find_failure(program: Program, *, seeds: Iterable[int] = range(1000), **options: Json) -> Trace | None:
    """The first run that raises, `options` being those of `simulate`; None if none of these seeds makes it."""
    for seed in seeds:
        trace = simulate(program, seed=seed, **options)
        if trace.error is not None:
            return trace
    return None


class _Recorder:
    """Writes the lines of a trace."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0.0

    def note(self, text: str) -> None:
        self.now = trio.current_time()
        self.lines.append(f"{self.now:.6f} {text}")

    def run(self, task: str) -> None:
        self.note(f"run {_scrubbed(task)}")


@attrs.define
class _Source:
    """A server of this run, and what its connections meet."""

    name: str
    server: ToolServer
    recorder: _Recorder
    rng: Random
    chance: float
    among: Sequence[WireFaultKind]
    longest: float
    connections: int = 0

    async def serve(self, transport: MemoryTransport) -> None:
        self.connections += 1
        way = f"{self.name}#{self.connections}"
        await self.server.serve(_Recorded(transport, self, way))


class _Recorded(FaultyTransport):
    """The server's end of a connection, whose messages are written down."""

    def __init__(self, inner: MemoryTransport, source: _Source, way: str) -> None:
        super().__init__(
            inner, source.rng, among=source.among, chance=source.chance, longest=source.longest,
            told=lambda _, fault: self._note(f"{way} fault {fault.kind} {fault.seconds} s"),
        )  # fmt: skip
        self._note = source.recorder.note
        self._way = way

    def send(self, message: bytes, **about: Json) -> None:
        self._note(f"{self._way} < {_shown(message.decode(errors='backslashreplace'))}")
        super().send(message, **about)

    def _take(self, message: bytes, within: int | str | None) -> None:
        self._note(f"{self._way} > {_shown(message.decode(errors='backslashreplace'))}")
        super()._take(message, within)


def _shown(text: str) -> str:
    text = _scrubbed(text.replace("\n", "\\n"))
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}... {len(text)} characters, checksum {zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def _scrubbed(text: str) -> str:
    """`text` without addresses, which differ from process to process."""
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)


def _errors(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        return [line for inner in exc.exceptions for line in _errors(inner)]
    return [f"{type(exc).__name__}: {_shown(str(exc))}"]
