"""Run a program of agents under one seed after the other, on a virtual clock, until one fails.

The runs are in a process of their own: each is a run of Trio, whose scheduler it changes, and this one has one too.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from cord_trio.cli import DONE, FAILED, INTERRUPTED
from cord_trio.cli.common import clean, count, one_line, wrong_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNS: Final = 100
"""Seeds that are tried, unless said."""

_PROGRAM: Final = """\
from cord_trio.__main__ import hush
hush()
from cord_trio.cli.simulate import process
process()"""
"""What the process runs; Ctrl-C reaches it as well as us, and while it imports, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program", metavar="MODULE:PROGRAM",
        help="async (fabric) -> result, raises what it finds wrong; SOURCES in its module maps names to ToolServers",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed; default 0")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="K", help=f"seeds to try; default {RUNS}")
    parser.add_argument("--chance", type=float, default=0.0, metavar="P", help="of a fault for each message; default 0")
    parser.add_argument("--trace", action="store_true", help="print what happened in the run that failed, or the last")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    if args.runs < 1:
        return wrong_usage("--runs: give 1 or more")
    if not 0 <= args.chance <= 1:
        return wrong_usage("--chance: give a number from 0 to 1")
    command = [sys.executable, "-c", _PROGRAM, args.program, f"--seed={args.seed}"]
    command += [f"--runs={args.runs}", f"--chance={args.chance}", *(["--trace"] if args.trace else [])]
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(command, check=False, stdin=subprocess.DEVNULL)
    return done.returncode if done.returncode >= 0 else FAILED


def search(arguments: Sequence[str]) -> int:
    """Try the seeds; returns the exit code."""
    from cord_trio.testing.simulation import simulate

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(arguments)
    name, _, attribute = args.program.partition(":")
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        return wrong_usage(f"{name}: {one_line(str(exc))}")
    program = getattr(module, attribute, None)
    if not callable(program):
        return wrong_usage(f"{args.program}: there is no such function; write MODULE:PROGRAM")
    sources = getattr(module, "SOURCES", {})
    last = args.seed + args.runs - 1
    for seed in range(args.seed, last + 1):
        trace = simulate(program, seed=seed, sources=sources, chance=args.chance)
        if args.trace and (trace.error is not None or seed == last):
            print(clean(str(trace)), end="")
        if trace.error is not None:
            print(f"seed {seed} fails: {type(trace.error).__name__}: {one_line(str(trace.error))}")
            chance = f" --chance {args.chance}" if args.chance else ""
            print(f"replay: python -m cord_trio simulate {args.program} --seed {seed} --runs 1 --trace{chance}")
            return FAILED
    print(f"{count(args.runs, 'run')}, seeds {args.seed} to {last}: none failed")
    return DONE


def process() -> NoReturn:
    """Search, in a process of our own."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on what the program printed is kept
    with suppress(KeyboardInterrupt):
        sys.exit(search(sys.argv[1:]))
    sys.exit(INTERRUPTED)
