"""Whoever sits at the terminal is asked, and only where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Question
from cord_trio.cli import main
from cord_trio.cli.person import Person, find_person
from cord_trio.errors import InputNeeded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cord_trio.protocol.jsonrpc import Json

FORM: Json = {
    "mode": "form",
    "message": "How many \x1b[31mcups?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "cups": {"type": "integer", "minimum": 1},
            "milk": {"type": "boolean", "default": True},
            "note": {"type": "string"},
        },
        "required": ["cups"],
    },
}
CODE = """
async def barista(ctx, payload):
    form = {"type": "object", "properties": {"cups": {"type": "integer"}}, "required": ["cups"]}
    filled = await ctx.elicit(f"{payload}: how many?", form)
    return "none" if filled is None else f"{filled['cups']} of {payload}"
"""


@attrs.frozen
class Desk:
    """A terminal of its own: what is typed at the one end, the person reads at the other."""

    person: Person
    typing: int

    def type(self, *lines: str) -> None:
        os.write(self.typing, "".join(f"{line}\n" for line in lines).encode())

    async def ask(self, params: Json, *lines: str) -> Json:
        self.type(*lines)
        return (await self.person.answer({"q": Question("elicitation/create", params)}))["q"]


@pytest.fixture
def desk() -> Iterator[Desk]:
    typing, reading = os.openpty()
    yield Desk(Person("barista", reading), typing)
    os.close(typing)
    os.close(reading)


async def test_a_form_is_filled_in_field_by_field(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    answer = await desk.ask(FORM, "none", "0", " 2 ", "n", "")
    assert answer == {"action": "accept", "content": {"cups": 2, "milk": False}}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "barista asks: How many \N{REPLACEMENT CHARACTER}[31mcups?",
        "(/decline says no, /cancel does not answer)",
        "cups (integer from 1)",
        "> please: a whole number",
        "> please: a number from 1",
        "> milk (y or n; else y)",
        "> note (may be left empty)",
        "> ",
    ]


async def test_an_empty_line_takes_what_is_there_else_and_what_must_be_said_is_asked_again(desk: Desk) -> None:
    answer = await desk.ask(FORM, "", "1", "", "with sugar")
    assert answer == {"action": "accept", "content": {"cups": 1, "milk": True, "note": "with sugar"}}


@pytest.mark.parametrize(
    ("typed", "action"), [("/decline\n", "decline"), ("1\n/cancel\n", "cancel"), ("1\n\x04", "cancel")]
)
async def test_she_can_say_no_or_leave_it_at_any_field(desk: Desk, typed: str, action: str) -> None:
    os.write(desk.typing, typed.encode())
    assert await desk.ask(FORM) == {"action": action}


async def test_a_question_without_fields_is_a_yes_or_a_no(desk: Desk) -> None:
    assert await desk.ask({"message": "Sure?"}, "") == {"action": "accept", "content": {}}
    assert await desk.ask({"message": "Sure?"}, "/decline") == {"action": "decline"}


async def test_a_page_to_visit_is_shown_whole(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    page = {"mode": "url", "message": "Sign in", "url": "https://example.org/sign-in?a=1"}
    assert await desk.ask(page, "") == {"action": "accept"}
    assert "It wants you to visit https://example.org/sign-in?a=1\n" in capsys.readouterr().err


async def test_one_is_asked_after_the_other_and_whoever_leaves_takes_no_line_along(desk: Desk) -> None:
    answers: list[Json] = []

    async def ask(message: str) -> None:
        answers.append(await desk.ask({**FORM, "message": message}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(ask, "second")
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel("the second leaves")
        desk.type("3", "n", "")
    with trio.move_on_after(0.01):
        await ask("third")
    assert answers == [{"action": "accept", "content": {"cups": 3, "milk": False}}]
    assert await desk.ask({"message": "Sure?"}, "") == {"action": "accept", "content": {}}


async def test_what_is_not_for_a_person_is_refused_by_name(desk: Desk) -> None:
    asked = {"s": Question("sampling/createMessage", {}), "q": Question("elicitation/create", FORM)}
    with pytest.raises(InputNeeded, match="barista asks for sampling/createMessage, which nobody here can answer"):
        await desk.person.answer(asked)


def test_without_a_terminal_nobody_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_person("barista") is None
    (folder / "person_desk.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["run", "person_desk:barista", "tea"]) == 1
    sys.modules.pop("person_desk")
    assert capsys.readouterr().err.startswith("error: barista asks for elicitation/create, which nobody here can ans")


def test_run_asks_at_the_terminal_and_prints_the_answer_alone(folder: Path) -> None:
    (folder / "person_desk.py").write_text(CODE)
    typing, terminal = os.openpty()
    os.write(typing, b"many\n4\n")
    with subprocess.Popen(
        [sys.executable, "-m", "cord_trio", "run", "person_desk:barista", "tea"],
        cwd=folder, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal,
    ) as process:  # fmt: skip
        out, _ = process.communicate(timeout=20)
    shown = os.read(typing, 4096).decode()
    os.close(typing)
    os.close(terminal)
    assert (process.returncode, out) == (0, b"4 of tea\n")
    assert "barista asks: tea: how many?" in shown
    assert "please: a whole number" in shown
