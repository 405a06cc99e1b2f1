"""The fabrics that run now, as `tree` and `top` find them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import trio

from cord_trio.cli import tell
from cord_trio.cli.common import one_line, print_json
from cord_trio.observe.control import look, pid_of, sockets

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path

    from cord_trio.protocol.jsonrpc import Json


@attrs.frozen
class Running:
    """One fabric that runs.

    Attributes:
        path: its socket.
        said: what it answered; None if it did not.

    """

    path: Path
    said: Mapping[str, Json] | None

    @property
    def tree(self) -> Mapping[str, Json]:
        """Its tree."""
        found = None if self.said is None else self.said.get("tree")
        return found if isinstance(found, dict) else {}


def add_pid(parser: argparse.ArgumentParser) -> None:
    """Add the argument that chooses one of them."""
    parser.add_argument("pid", metavar="PID", type=int, nargs="?", help="its process; needed if several run")


async def find(pid: int | None) -> list[Running]:
    """The fabrics that run, or those of process `pid`; all are asked at once."""
    found: list[Running] = []

    async def ask(path: Path) -> None:
        said = await look(path)
        if said is not None or path in sockets():  # else it ended meanwhile
            found.append(Running(path, said))

    async with trio.open_nursery() as nursery:
        for path in sockets(pid):
            nursery.start_soon(ask, path)
    return sorted(found, key=lambda one: one.path.name)


def about(running: Running) -> str:
    """Which one it is, in one line."""
    said = running.said
    if said is None:
        return f"pid {pid_of(running.path)} does not answer"
    since = said.get("since")
    moment = time.localtime(since if isinstance(since, int | float) else 0)
    config = said.get("config") or "no configuration file"
    return one_line(f"pid {said.get('pid')}, {said.get('verb')}, {config}, since {time.strftime('%F %T', moment)}")


async def only(args: argparse.Namespace) -> Running | None:
    """The fabric to look at; None if there is none, or no single one, which is said then."""
    found = await find(args.pid)
    if len(found) == 1 and found[0].said is not None:
        return found[0]
    _tell_choice(found, args)
    return None


def _tell_choice(found: list[Running], args: argparse.Namespace) -> None:
    if len(found) == 1:
        tell(f"error: the fabric with {about(found[0])}")
        return
    if not found:
        which = "no fabric runs" if args.pid is None else f"no fabric runs in process {args.pid}"
        tell(f"error: {which} that this user may look at; start one with `python -m cord_trio serve`")
        return
    if getattr(args, "json", False):
        print_json([{name: value for name, value in (one.said or {}).items() if name != "tree"} for one in found])
    else:
        for one in found:
            print(about(one))
    tell(f"error: several fabrics run; name one: `python -m cord_trio {args.verb} PID`")
