"""What redirects, statuses and waiting times mean to a client of an MCP endpoint. Pure."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from cord_trio.errors import ConnectFailed, HttpFailed
from cord_trio.transports.http1_wire import parse_origin

if TYPE_CHECKING:
    from cord_trio.transports.http1 import Headers

SUBPROTOCOL: Final = "mcp"
"""What a WebSocket that carries MCP is opened with."""

MAX_REDIRECTS: Final = 5
"""Redirects that one request follows, all within its origin."""

ERROR_SHOWN: Final = 300
"""Characters of what a server says that are shown in an error."""

RETRY_BOUNDS: Final = (0.1, 30.0)
"""Seconds before a stream is asked for again, at least and at most, whatever `retry` says."""


def follow(url: str, target: str, status: int, location: str) -> str | HttpFailed:
    """The target that a redirect within the origin of `url` leads to, or why it is not followed."""
    here = urljoin(url, target)
    try:
        there = urljoin(here, location)
        same = parse_origin(there) == parse_origin(here)
    except ValueError:
        return HttpFailed(status, f"redirects to {location[:ERROR_SHOWN]!r}, which is no URL of HTTP")
    shown = there.partition("?")[0][:ERROR_SHOWN]  # a query may hold secrets
    if status not in (307, 308) or not location:
        return HttpFailed(status, f"redirects to {shown!r}, which would lose the message; put it into `url`")
    if not same:
        return HttpFailed(status, f"redirects to another origin, {shown!r}; put it into `url` if you trust it")
    return target_of(there)


def connect_refused(name: str, status: int, what: str, missing: str) -> ConnectFailed:
    """What a status means for a connection, in words that a person can act on."""
    if status == 401:
        remedy = "it asks for authorization: give an Authorization header in `headers`"
        return ConnectFailed(name, "authorize", what, remedy)
    if status == 403:
        return ConnectFailed(name, "authorize", what, "the credentials given are not enough, or our origin is not")
    if status == 407:
        return ConnectFailed(name, "connect", what, "a proxy asks for credentials: user:password@ in its variable")
    if status in (200, 404, 405) or 300 <= status < 400:
        return ConnectFailed(name, "http", what, f"check `url`: {missing}")
    return ConnectFailed(name, "http", what)


def target_of(url: str) -> str:
    """Path and query of a URL, as a request line has them."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def media_type(headers: Headers) -> str:
    """The media type alone, in lower case; "" if none was given."""
    return (headers.get("content-type") or "").partition(";")[0].strip().lower()


def retry_pause(milliseconds: int | None, otherwise: float) -> float:
    """Seconds to wait before a stream is asked for again, within bounds."""
    least, most = RETRY_BOUNDS
    return min(max(otherwise if milliseconds is None else milliseconds / 1000, least), most)


def may_pass(status: int) -> bool:
    """Whether a server that answers so may answer better later."""
    return status == 429 or (status >= 500 and status != 501)


def parse_seconds(text: str | None, date: str | None = None) -> float | None:
    """`Retry-After` in seconds, None if it makes no sense. A date counts from `date`, that of the response.

    So the server's clock need not agree with ours (RFC 9110, 10.2.3). Without `date` a date counts as none.
    """
    if text is not None and text.isascii() and text.isdigit():
        return float(text)
    until, since = _seconds_of(text), _seconds_of(date)
    return None if until is None or since is None else max(0.0, until - since)


def _seconds_of(date: str | None) -> float | None:
    """Seconds since the epoch of an HTTP date."""
    if date is None:
        return None
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()  # one of its forms names no zone
