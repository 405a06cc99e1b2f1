"""An MCP server as we use it: a conversation in its era, and calls in the inner language.

Here a `Call` becomes the bytes of the server's era and its reply an `Outcome`. Payloads are spliced in
unparsed; what belongs to one hop alone (ids, progress tokens, the envelope) is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cord_trio.call import Call, Complete, Error, InputRequired, Outcome, Task
from cord_trio.errors import BadReply, CallFailed, Malformed
from cord_trio.protocol import jsonrpc, mcp
from cord_trio.protocol.eras import HEADER_MISMATCH
from cord_trio.session import LISTEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from msgspec import Raw

    from cord_trio.handshake import Greeting
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Tool
    from cord_trio.session import Session

MAX_PAGES: Final = 1000
"""Pages of one list that are fetched, unless told otherwise."""

MAX_TOOLS: Final = 10_000
"""Tools of one server that are listed, unless told otherwise."""

MAX_NOTES: Final = 100
"""Notes kept on one list: enough to see what is wrong with it."""

MAX_HEADS: Final = 10_000
"""Beginnings of requests that are kept, one for each name that is called."""

BRACE: Final = ord("{")

NAMED_BY: Final[Mapping[str, bytes]] = {
    "tools/call": b'"name":',
    "prompts/get": b'"name":',
    "resources/read": b'"uri":',
}
"""Under which member a request says what it is about."""


class Client:
    """One server's conversation in the inner language.

    Attributes:
        session: below it.
        greeting: what the server said of itself.
        max_pages: pages of one list that are fetched; a server with more is listed up to here.
        max_tools: tools that are listed; the others are left out and reported.

    """

    def __init__(
        self,
        session: Session,
        greeting: Greeting,
        client_info: Mapping[str, Json],
        *,
        max_pages: int = MAX_PAGES,
        max_tools: int = MAX_TOOLS,
    ) -> None:
        self.session = session
        self.greeting = greeting
        self.max_pages = max_pages
        self.max_tools = max_tools
        meta = mcp.envelope_meta(greeting.revision, client_info, {}) if greeting.modern else {}
        self._envelope = jsonrpc.object_of(meta)[1:-1]
        """Members of `_meta` that every request carries, without the braces."""
        self._heads: dict[tuple[str, str | None], bytes] = {}
        self._mirrored: dict[str, Tool] = {}
        """Tools some of whose arguments are sent as headers too (MCP 2026-07-28, x-mcp-header)."""

    async def call(self, call: Call, name: str | None = None, *, relisted: bool = False) -> Outcome:
        """How the server ended `call`, which it knows as `name`.

        A server that misses a header gets a call once more, after its tools were listed anew: what is sent as
        headers may have changed (MCP 2026-07-28, x-mcp-header). It has refused the first before running it.

        Raises:
            CallError: it ended without an answer of the server.

        """
        session = self.session
        method = call.method
        id = session.peer.mint()
        head = self._heads.get((method, name))
        if head is None:
            head = self._head(method, name)
        params = call.params
        members = b"".join([b"%b:%b," % (jsonrpc.encode(member), value) for member, value in params.items()])
        meta = self._envelope
        if call.patience or call.events is not None:
            # Also where nobody listens: progress keeps the call alive.
            meta = b'%b,"progressToken":%d' % (meta, id) if meta else b'"progressToken":%d' % id
        if call.meta:
            more = [b"%b:%b" % (jsonrpc.encode(member), value) for member, value in call.meta.items()]
            meta = b",".join([meta, *more] if meta else more)
        if meta:
            message = b'{"jsonrpc":"2.0","id":%d%b%b"_meta":{%b}}}' % (id, head, members, meta)
        else:
            message = b'{"jsonrpc":"2.0","id":%d%b}}' % (id, (head + members).removesuffix(b","))
        headers: Sequence[tuple[str, str]] = ()
        if name in self._mirrored:
            headers = mcp.param_headers(self._mirrored[name], call.params.get("arguments", jsonrpc.NOTHING))
        try:
            result = await session.exchange(
                id, message, method=method, name=name, headers=headers,
                deadline=call.deadline, events=call.events, patience=call.patience, latest=call.latest,
            )  # fmt: skip
        except CallFailed as exc:
            if exc.code != HEADER_MISMATCH or method != "tools/call" or relisted or not self.greeting.modern:
                return Error(exc.code, exc.message, exc.data)
            await self.list_tools(deadline=call.deadline)
            return await self.call(call, name, relisted=True)
        if memoryview(result)[0] != BRACE:
            raise BadReply(f"{session.name}: the result of {method} is not an object")
        return self._outcome(result) if self.greeting.modern else Complete(result)

    def _outcome(self, result: Raw) -> Outcome:
        try:
            kind = mcp.result_type(result)
        except Malformed as exc:
            raise BadReply(f"{self.session.name}: {exc}") from exc
        if kind == "complete":
            return Complete(result)
        if kind == "input_required":
            return InputRequired(result)
        if kind == "task":
            return Task(result)
        raise BadReply(f"{self.session.name}: unknown resultType {kind!r}")

    def _head(self, method: str, name: str | None) -> bytes:
        """What stands between the id and the parameters of a request, kept for each name that is used."""
        named = b"" if name is None else b"%b%b," % (NAMED_BY[method], jsonrpc.encode(name))
        head = b',"method":%b,"params":{%b' % (jsonrpc.encode(method), named)
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[method, name] = head
        return head

    async def request(self, method: str, members: Mapping[str, Raw | bytes] = {}, *, deadline: float = math.inf) -> Raw:
        """The result of a request that no `Call` stands for, such as a list's page."""
        params = dict(members)
        if self._envelope:
            params["_meta"] = b"{%b}" % self._envelope
        return await self.session.request(method, jsonrpc.object_of(params), deadline=deadline)

    async def list_tools(self, *, deadline: float = math.inf) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """All tools of the server, in its order, and notes on what was left out.

        A server that does not declare tools is not asked. A cursor that repeats, or that the server no longer
        knows, ends the list. Of tools with one name the first counts.

        Raises:
            CallError: the list could not be fetched.

        """
        if "tools" not in self.greeting.capabilities:
            return (), ()
        tools: dict[str, Tool] = {}
        notes: list[str] = []
        cursors: set[str] = set()
        cursor: str | None = None
        for _ in range(self.max_pages):
            try:
                raw = await self.request(
                    "tools/list", {} if cursor is None else {"cursor": jsonrpc.encode(cursor)}, deadline=deadline
                )
                page = mcp.decode_tools_page(raw)
            except CallFailed as exc:
                if exc.code == jsonrpc.METHOD_NOT_FOUND:
                    break
                if exc.code == jsonrpc.INVALID_PARAMS and cursor is not None:
                    notes.append(f"the server refuses its own cursor {cursor!r}; the list ends there")
                    break
                raise
            except Malformed as exc:
                raise BadReply(f"{self.session.name}: tools/list: {exc}") from exc
            notes += (*page.skipped, *page.notes)
            for tool in page.tools:
                if tools.setdefault(tool.name, tool) is not tool:
                    notes.append(f"tool {tool.name!r} is listed twice; the first counts")
            del notes[MAX_NOTES:]
            cursor = page.next_cursor
            if cursor is None or len(tools) > self.max_tools:
                break
            if cursor in cursors:
                notes.append(f"the cursor {cursor!r} repeats; the list ends there")
                break
            cursors.add(cursor)
        else:
            notes.append(f"more than {self.max_pages} pages; the list ends there")
        listed = tuple(tools.values())
        if len(listed) > self.max_tools:
            notes.append(f"{len(listed)} tools; those after {self.max_tools} are left out")
            listed = listed[: self.max_tools]
        self._mirrored = {tool.name: tool for tool in listed if tool.headers}
        return listed, tuple(notes)

    @property
    def announces_tools(self) -> bool:
        """Whether the server says that it will tell when its tools change."""
        tools = self.greeting.capabilities.get("tools")
        return isinstance(tools, dict) and tools.get("listChanged") is True

    async def listen(self) -> None:
        """Ask a modern server to tell of changed tools, and return when it stops telling.

        Notifications go to the session's `told`.
        """
        wanted = {"notifications": b'{"toolsListChanged":true}'}
        await self.request(LISTEN, wanted)
