"""The person at the terminal, who answers what an agent or a server asks in the middle of its work."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import tell
from cord_trio.cli.common import clean, one_line
from cord_trio.cli.forms import Unclear, describe, fields, read
from cord_trio.errors import InputNeeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.agents.answering import Answer, Question
    from cord_trio.cli.forms import Schema
    from cord_trio.protocol.jsonrpc import Json

DECLINE: Final = "/decline"
CANCEL: Final = "/cancel"
"""Lines that end a question; so does the end of the input."""

LONGEST: Final = 64 * 1024
"""Bytes of one line: a terminal gives 4 KiB at most."""


def find_person(who: str) -> Answer | None:
    """What asks the person at the terminal on behalf of `who`; None if there is nobody who reads and writes there."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return Person(who, sys.stdin.fileno()).answer


class _Ended(Exception):
    """The person said how the whole question ends."""


class Person:
    """Asks on stderr, so that stdout keeps the answer alone, and reads lines from a descriptor."""

    def __init__(self, who: str, descriptor: int) -> None:
        self._who = who
        self._descriptor = descriptor
        self._asking = trio.Lock()
        self._typed = b""

    async def answer(self, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        """The result of each question; those of one caller come one after the other.

        Raises:
            InputNeeded: one of them is not for a person at a terminal.

        """
        strange = sorted({each.method for each in questions.values() if each.method != "elicitation/create"})
        if strange:
            await trio.lowlevel.checkpoint()
            raise InputNeeded(self._who, strange)
        async with self._asking:  # it spans the wait for lines, which are one question's
            return {key: await self._ask(each.params) for key, each in questions.items()}

    async def _ask(self, params: Mapping[str, Json]) -> Json:
        tell(f"{clean(self._who)} asks: {clean(str(params.get('message') or ''))}")
        try:
            if params.get("mode") == "url":
                return await self._visit(str(params.get("url") or ""))
            return {"action": "accept", "content": await self._fill_in(fields(params.get("requestedSchema")))}
        except _Ended as ended:
            return {"action": str(ended)}

    async def _visit(self, url: str) -> Json:
        tell(f"It wants you to visit {one_line(url)}")
        tell(f"Enter once you have, {DECLINE} if you will not")
        await self._line("> ")
        return {"action": "accept"}

    async def _fill_in(self, form: list[tuple[str, Schema, bool]]) -> Mapping[str, Json]:
        if not form:
            tell(f"Enter for yes, {DECLINE} for no")
            await self._line("> ")
            return {}
        tell(f"({DECLINE} says no, {CANCEL} does not answer)")
        content = {}
        for name, field, required in form:
            tell(clean(describe(name, field, required=required)))
            while True:
                line = await self._line("> ")
                if not line and "default" in field:
                    content[name] = field["default"]
                elif line or required:
                    try:
                        content[name] = read(field, line)
                    except Unclear as exc:
                        tell(f"please: {exc}")
                        continue
                break
        return content

    async def _line(self, prompt: str) -> str:
        """What she types up to Enter, without the blanks around it."""
        sys.stderr.write(prompt)
        sys.stderr.flush()
        whole = False
        try:
            # No thread, which could not be called back, and would take the line of the next question.
            while b"\n" not in self._typed and len(self._typed) < LONGEST:
                await trio.lowlevel.wait_readable(self._descriptor)
                piece = os.read(self._descriptor, 4096)
                if not piece:
                    raise _Ended("cancel")
                self._typed += piece
            whole = True
        finally:
            if not whole:  # ended or cancelled: what comes next begins on a line of its own
                tell("")
        typed, _, self._typed = self._typed.partition(b"\n")
        line = typed.decode("utf-8", "replace").strip()
        if line in (DECLINE, CANCEL):
            raise _Ended(line[1:])
        return line
