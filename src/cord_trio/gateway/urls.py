"""Pages that a person must open before a server of 2025-11-25 runs a call (error -32042), as modern questions. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.gateway.capabilities import ELICIT, lacks
from cord_trio.protocol.jsonrpc import encode, parse

if TYPE_CHECKING:
    from cord_trio.gateway.steps import Run
    from cord_trio.protocol.jsonrpc import Json

PAGES_REFUSED: Final = "the server still asks to open the same pages"


def page_ids(data: bytes) -> tuple[str, ...]:
    """The ids of the pages in the error's `data`."""
    return tuple(str(each.get("elicitationId", each.get("url"))) for each in _pages(data))


def as_questions(data: bytes, capabilities: bytes) -> Raw | None:
    """An `input_required` result that asks to open them; None if there are none, or the client opens no pages."""
    pages = _pages(data)
    if not pages or lacks(capabilities, {"elicitation": {"url": {}}}):
        return None
    asked = {
        f"page{number}": {
            "method": ELICIT,
            "params": {"mode": "url", "message": page.get("message", ""), "url": page["url"]},
        }
        for number, page in enumerate(pages, 1)
    }
    return Raw(encode({"inputRequests": asked}))


def refused_pages(run: Run) -> str:
    """Why there is no use in calling again: the person did not open all pages. Empty if there is."""
    try:
        answers = parse(run.answers or b"{}")
        fine = bool(answers) and all(each.get("action") == "accept" for each in answers.values())
    except (msgspec.DecodeError, AttributeError):
        fine = False
    return "" if fine else "the user did not open the page that the server asked for"


def _pages(data: bytes) -> list[dict[str, Json]]:
    try:
        listed = parse(data)["elicitations"]
        return [each for each in listed if isinstance(each, dict) and isinstance(each.get("url"), str)]
    except (msgspec.DecodeError, KeyError, TypeError):
        return []
