"""The command line: one file a verb, and the only `trio.run`.

Errors are one line that says what to do; a trace is shown with `--debug` alone. Exit codes: 0 done,
1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import trio

from cord_trio.errors import CallError, ConfigError, CordError
from cord_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

VERBS: Final = {
    "demo": "show the topology at work, without any set-up",
    "serve": "serve the configured sources to MCP clients as one endpoint",
    "tools": "list the tools of all configured sources, and of a mesh with --mesh",
    "call": "call one tool and print its result",
    "run": "run an agent and print its answer",
    "tree": "print the tree of a running fabric: what runs, who waits for whom, what is left",
    "top": "watch a running fabric",
    "simulate": "run a program of agents under one seed after the other, until one fails",
    "replay": "serve a recording: its servers answer what they answered then",
    "mesh": "look at a mesh of fabrics, move its agents, let nodes in, and run a broker to try one out",
    "check": "check the configuration, connect to each source, and say what is wrong",
}
"""Each verb is the module of its name, and what it does."""

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

WELCOME: Final = """\
No cord.toml or .mcp.json in this folder. What next:
  python -m cord_trio demo          see agents call fifty MCP servers, no set-up needed
  put your client's block {"mcpServers": {...}} into .mcp.json, as it is, then:
  python -m cord_trio check         what is wrong with it, and what to do
  python -m cord_trio tools         every tool of every server
  python -m cord_trio serve         one endpoint for all: http://127.0.0.1:8931/mcp
  python -m cord_trio --help        the rest"""


class Verb(Protocol):
    """What the module of a verb offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's own arguments."""

    def run(self, args: argparse.Namespace, interrupted: trio.Event) -> Awaitable[int]:
        """Do it; returns the exit code.

        Args:
            args: parsed.
            interrupted: set by the first signal, for a verb with `DRAINS = True`, which then ends by
                itself; the second signal cancels it. Other verbs are cancelled by the first.

        """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # JSON is UTF-8 whatever the locale; half a surrogate pair from a server must end nothing.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments and not os.path.lexists("cord.toml") and not os.path.lexists(".mcp.json"):
        print(WELCOME)
        return DONE
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["serve", *arguments]
    args = _parser(arguments[0]).parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING,
        format="%(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        verb = importlib.import_module(f"cord_trio.cli.{args.verb}")
        code = trio.run(partial(_until_signalled, verb, args))
        sys.stdout.flush()  # here, where it may fail
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:
        if _reader_left(exc):
            # Whoever read our output has gone, which is their right: say nothing, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        if args.debug:
            traceback.print_exception(exc)
        return report(exc)


def script() -> NoReturn:
    """Run the command of this process and exit."""
    _open_standard_files()
    sys.exit(main())


def tell(text: str) -> None:
    """One line to whoever looks after us, if somebody still does: that nobody reads it must end nothing."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _open_standard_files() -> None:
    """Put the null device where whoever started us closed a standard file: else the next one opened takes its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            file = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115  # until the process ends
            setattr(sys, name, file)


def _reader_left(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_reader_left, exc.exceptions))
    return isinstance(exc, BrokenPipeError)


def report(exc: Exception) -> int:
    """Say what went wrong, in one line for each thing; returns the exit code."""
    if isinstance(exc, ExceptionGroup):
        return max([report(inner) for inner in exc.exceptions], default=FAILED)
    if isinstance(exc, ConfigError):
        for problem in exc.problems:
            tell(f"error: {problem}")
        return USAGE
    if isinstance(exc, CallError) and exc.executed == "unknown":
        tell(f"error: {exc}; the call may have run")
    elif isinstance(exc, CordError | OSError):
        tell(f"error: {exc}")
    else:
        tell(f"error: {type(exc).__name__}: {exc}; --debug shows where")
    return FAILED


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cord_trio", description="An agent fabric for the Model Context Protocol."
    )
    parser.add_argument("--version", action="version", version=f"cord-trio {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, what in VERBS.items():
        verb = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        verb.add_argument("--debug", action="store_true", help="show traces and debug logs on stderr")
        if name == chosen:  # the others need not be imported
            importlib.import_module(f"cord_trio.cli.{name}").add_arguments(verb)
    return parser


def _ending() -> list[signal.Signals]:
    """The signals that end us: SIGHUP, that our terminal is gone, unless `nohup` has it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


async def _until_signalled(verb: Verb, args: argparse.Namespace) -> int:
    """Run `verb` until it ends or is interrupted; returns the exit code."""
    code: int | None = None
    interrupted = trio.Event()
    error: Exception | None = None

    async def watch(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(*_ending()) as signals:
            task_status.started()
            async for _ in signals:
                if interrupted.is_set() or not getattr(verb, "DRAINS", False):
                    nursery.cancel_scope.cancel("interrupted by a signal")
                interrupted.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        try:
            code = await verb.run(args, interrupted)
        # Cancelled must travel through the nursery.
        except Exception as exc:
            error = exc
        nursery.cancel_scope.cancel("the verb has ended")
    if error is not None:
        raise error
    return INTERRUPTED if code is None else code
