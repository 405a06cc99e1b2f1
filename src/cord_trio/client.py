"""An MCP server as we use it: a conversation in its era, and calls in the inner language.

Here a `Call` becomes the bytes of the server's era and its reply an `Outcome`. Payloads are spliced in
unparsed; what belongs to one hop alone (ids, progress tokens, the envelope) is ours.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from cord_trio.background import call_as_task, call_in_background, insists, only_as_tasks
from cord_trio.call import Call, Complete, Error, InputRequired, Outcome, Task
from cord_trio.errors import BadReply, CallError, CallFailed, ConnectionLost, Malformed
from cord_trio.protocol import items, jsonrpc, mcp
from cord_trio.protocol.eras import HEADER_MISMATCH, INPUT_METHODS, MISSING_CAPABILITY, UNSUPPORTED_VERSION
from cord_trio.protocol.mcp import LEVELS, declared_upstream
from cord_trio.protocol.uris import export_uri, relink
from cord_trio.session import LISTEN
from cord_trio.snapshot import NOTHING_LISTED, WORDS, Listed
from cord_trio.trace import with_traceparent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from msgspec import Raw

    from cord_trio.handshake import Greeting
    from cord_trio.protocol.items import Page
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Tool
    from cord_trio.session import Session
    from cord_trio.snapshot import Item, Kind

MAX_PAGES: Final = 1000
"""Pages of one list that are fetched, unless told otherwise."""

MAX_TOOLS: Final = 10_000
"""Tools of one server that are listed, unless told otherwise."""

MAX_NOTES: Final = 100
"""Notes kept on one list: enough to see what is wrong with it."""

MAX_HEADS: Final = 10_000
"""Beginnings of requests that are kept, one for each name that is called."""

BRACE: Final = ord("{")

TASK_METHODS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
"""What is asked of a task in the background; its state may come as either type of result (tasks extension)."""

MAX_DECLARED: Final = 256
"""Sets of capabilities of which the envelope is kept."""

COMPLETION: Final = "completion/complete"
CONTEXT_SINCE: Final = "2025-06-18"
"""The first revision in which what is completed has a `context`: strict servers of older ones refuse it."""

NAMED_BY: Final[Mapping[str, bytes]] = {
    "tools/call": b'"name":',
    "prompts/get": b'"name":',
    "resources/read": b'"uri":',
}
"""Under which member a request says what it is about, if that is not among its parameters."""

CAPABILITY: Final[Mapping[Kind, str]] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "templates": "resources",
}
"""What a server declares if it has lists of a kind."""

LISTS: Final[Mapping[Kind, str]] = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "templates": "resources/templates/list",
}
"""What asks for a list of each kind."""

DECODERS: Final[Mapping[Kind, Callable[[Raw], Page[Any]]]] = {
    "tools": items.decode_tools,
    "prompts": items.decode_prompts,
    "resources": items.decode_resources,
    "templates": items.decode_templates,
}
"""What reads its pages."""

TELLS: Final[tuple[Kind, ...]] = ("tools", "prompts", "resources")
"""Kinds of which a server can tell that they changed; resources and their templates are one in this."""


class Client:
    """One server's conversation in the inner language.

    Attributes:
        session: below it.
        greeting: what the server said of itself.
        max_pages: pages of one list that are fetched; a server with more is listed up to here.
        max_tools: tools that are listed; the others are left out and reported.
        prefix: under which the server's URIs are exported; "" for as they are.
        tasked: tools that the server runs only as tasks; shared by all sessions of this era with it.

    """

    def __init__(
        self,
        session: Session,
        greeting: Greeting,
        client_info: Mapping[str, Json],
        *,
        max_pages: int = MAX_PAGES,
        max_tools: int = MAX_TOOLS,
        prefix: str = "",
        tasked: dict[str, None] | None = None,
    ) -> None:
        self.session = session
        self.asked = self.asking = 0
        self.prefix = prefix
        self.greeting = greeting
        self._modern = greeting.modern
        self._context = greeting.revision >= CONTEXT_SINCE
        self.max_pages = max_pages
        self.max_tools = max_tools
        meta = mcp.envelope_meta(greeting.revision, client_info, {}) if greeting.modern else {}
        self._envelope = jsonrpc.object_of(meta)[1:-1]
        """Members of `_meta` that every request carries, without the braces."""
        self._tail = b',"_meta":{%b%b"progressToken":' % (self._envelope, b"," if self._envelope else b"")
        """What stands between the last parameter and the id of a plain request, which is its progress token."""
        self._client_info = client_info
        self._declared: dict[bytes, bytes] = {}
        self._level: str | None = None
        self._heads: dict[tuple[str, str | None, str | None], bytes] = {}
        self.tasked: dict[str, None] = {} if tasked is None else tasked
        self._mirrored: dict[str, Tool] = {}
        """Tools some of whose arguments are sent as headers too (MCP 2026-07-28, x-mcp-header)."""
        self._reserved: Mapping[str, bytes] = {}
        self._special: dict[str, object] = {**self.tasked}
        """Tools that are called otherwise than most."""

    async def call(self, call: Call, name: str | None = None, *, relisted: bool = False) -> Outcome:
        """How the server ended `call`, which it knows as `name`.

        A server that misses a header gets a call once more, after its tools were listed anew: what is sent as
        headers may have changed (MCP 2026-07-28, x-mcp-header). It has refused the first before running it.

        Raises:
            CallError: it ended without an answer of the server.

        """
        session = self.session
        method = call.method
        headers: Sequence[tuple[str, str]] = ()
        if name in self._special and name is not None:
            if name in self._reserved and method == "tools/call":
                what = f"{name!r} is only for callers that can be asked (elicitation, sampling or roots)"
                return Error(MISSING_CAPABILITY, what, b'{"requiredCapabilities":%b}' % self._reserved[name])
            if name in self.tasked and method == "tools/call":
                return await (call_in_background if self._modern else call_as_task)(self, call, name)
            headers = self.headers(call, name)
        id = session.peer.mint()
        if call.log_level is not None:
            await self._raise_level(call)
            session.logging[id] = call.log_level
        try:
            result = await session.exchange(
                id, self.message(id, call, name), method, name, headers, call.deadline, call.events, call.patience,
                call.latest,
            )  # fmt: skip
        except CallFailed as exc:
            if exc.code == UNSUPPORTED_VERSION and self._modern:
                # It was another server's when we asked which it speaks: ask again, on a new connection.
                lost = ConnectionLost(f"the server no longer speaks {self.greeting.revision}", "no")
                session.lost(lost)
                raise lost from exc
            if name is not None and method == "tools/call" and self._modern and insists(exc, call.capabilities):
                self._special[name] = self.tasked[name] = None
                return await call_in_background(self, call, name)
            if exc.code != HEADER_MISMATCH or method != "tools/call" or relisted or not self._modern:
                return Error(exc.code, exc.message, exc.data)
            await self.list_tools(deadline=call.deadline)
            return await self.call(call, name, relisted=True)
        finally:
            if session.logging:
                session.logging.pop(id, None)
        return self.outcome(method, result)

    def reserve(self, tools: Mapping[str, bytes]) -> None:
        """Refuse to call these: the server shows them only to who declares the capabilities beside each."""
        self._reserved = tools
        self._special = {**self._mirrored, **self.tasked, **tools}

    def headers(self, call: Call, name: str) -> Sequence[tuple[str, str]]:
        """What of a call's arguments is sent as headers too (MCP 2026-07-28, x-mcp-header)."""
        tool = self._mirrored.get(name)
        return mcp.param_headers(tool, call.params.get("arguments", jsonrpc.NOTHING)) if tool else ()

    def message(self, id: int, call: Call, name: str | None) -> bytes:
        """The request `id` that asks the server for `call`, of what it knows as `name`."""
        method, params, digits = call.method, call.params, b"%d" % id
        # Joined: `%b` copies once more, which of 16 MB took 7 ms.
        if len(params) == 1:  # nearly always, and a list for it would cost as much as all the rest
            ((member, value),) = params.items()
            if (
                call.patience
                and not (call.meta or call.trace)
                and call.log_level is None
                and (call.capabilities == b"{}" or not self._envelope)
            ):
                # The plain case, in one piece: half of what it takes member by member (0.3 of 0.6 µs).
                head = self._heads.get((method, name, member))
                if head is None:
                    head = self._head(method, name, member)
                return b"".join((b'{"jsonrpc":"2.0","id":', digits, head, value, self._tail, digits, b"}}}"))
        elif method == COMPLETION and not self._context and "context" in params:
            params = {member: value for member, value in params.items() if member != "context"}
        head = self._heads.get((method, name, None)) or self._head(method, name)
        pieces: list[bytes] = [b'{"jsonrpc":"2.0","id":', digits, head]
        for member, value in params.items():
            pieces += (jsonrpc.encode(member), b":", value, b",")
        meta = self._envelope
        if call.trace:
            call = replace(call, meta=with_traceparent(call.meta, call.trace))
        if meta and call.capabilities != b"{}":
            meta = self._declaring(call.capabilities)
        if call.patience or call.events is not None:
            # Also where nobody listens: progress keeps the call alive.
            meta = b'%b,"progressToken":%d' % (meta, id) if meta else b'"progressToken":%d' % id
        if call.log_level is not None and self._envelope:
            meta = b'%b,"%b":%b' % (meta, mcp.META_LOG_LEVEL.encode(), jsonrpc.encode(call.log_level))
        if call.meta:
            more = [b"%b:%b" % (jsonrpc.encode(member), value) for member, value in call.meta.items()]
            meta = b",".join([meta, *more] if meta else more)
        if meta:
            pieces += (b'"_meta":{', meta, b"}}}")
        else:
            pieces[-1] = pieces[-1].removesuffix(b",")
            pieces.append(b"}}")
        return b"".join(pieces)

    def outcome(self, method: str, result: Raw) -> Outcome:
        """What the server's result means, its URIs as they are exported.

        Raises:
            BadReply: it breaks the protocol.

        """
        text = bytes(result)
        if not self._modern and text[0] == BRACE:
            pass  # as nearly always in that era: there is one type of result
        elif not text.startswith(mcp.COMPLETE_HEAD):
            if not text.startswith(b"{"):
                raise BadReply(f"{self.session.name}: the result of {method} is not an object")
            kind = self._kind(text) if self._modern else mcp.COMPLETE
            if kind == mcp.INPUT_REQUIRED and method in INPUT_METHODS:
                return InputRequired(result)
            if kind == mcp.TASK and method == "tools/call":
                return Task(result)
            if kind != mcp.COMPLETE and not (kind == mcp.TASK and method in TASK_METHODS):
                what = f"{method} was answered with resultType {kind!r}, which it cannot have"
                raise BadReply(f"{self.session.name}: {what}")
        if self.prefix and text.find(b'ri"') >= 0:  # `in` costs an exception that CPython raises and drops
            return Complete(relink(method, result, partial(export_uri, self.prefix)))
        return Complete(result)

    def _kind(self, text: bytes) -> str:
        try:
            return mcp.result_type(text)
        except Malformed as exc:
            raise BadReply(f"{self.session.name}: {exc}") from exc

    def _declaring(self, capabilities: bytes) -> bytes:
        """The members of `_meta` that tell the server what it can ask in one request."""
        meta = self._declared.get(capabilities)
        if meta is None:
            if len(self._declared) >= MAX_DECLARED:
                self._declared.clear()
            asked = declared_upstream(capabilities)
            members = mcp.envelope_meta(self.greeting.revision, self._client_info, asked)
            meta = self._declared[capabilities] = jsonrpc.object_of(members)[1:-1]
        return meta

    async def _raise_level(self, call: Call) -> None:
        """Have a legacy server log at the level that `call` wants, or below (MCP 2025-11-25, logging)."""
        level = call.log_level
        if self.greeting.modern or level not in LEVELS or "logging" not in self.greeting.capabilities:
            return
        if self._level is not None and LEVELS.index(self._level) <= LEVELS.index(level):
            return
        self._level = level
        try:
            await self.request("logging/setLevel", {"level": jsonrpc.encode(level)}, deadline=call.deadline)
        except CallError:
            self._level = None

    def _head(self, method: str, name: str | None, member: str | None = None) -> bytes:
        """What stands between the id and the parameters of a request, or the only one's value; kept for each name."""
        by = NAMED_BY.get(method)
        named = b"" if name is None or by is None else b"%b%b," % (by, jsonrpc.encode(name))
        head = b',"method":%b,"params":{%b' % (jsonrpc.encode(method), named)
        if member is not None:
            head += b"%b:" % jsonrpc.encode(member)
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[method, name, member] = head
        return head

    def params(self, call: Call, members: Mapping[str, Raw | bytes]) -> bytes:
        """The parameters of a request that is about `call`, and declares what that does."""
        meta = self._declaring(call.capabilities) if self._envelope else b""
        return jsonrpc.object_of({**members, "_meta": b"{%b}" % meta} if meta else {**members})

    async def request(self, method: str, members: Mapping[str, Raw | bytes] = {}, *, deadline: float = math.inf) -> Raw:
        """The result of a request that no `Call` stands for, such as a list's page."""
        params = dict(members)
        if self._envelope:
            params["_meta"] = b"{%b}" % self._envelope
        self.asked += 1
        self.asking += 1
        try:
            return await self.session.request(method, jsonrpc.object_of(params), deadline=deadline)
        finally:
            self.asking -= 1

    async def probe(self) -> None:
        """Ask what every server answers, and what changes nothing. An error is an answer too."""
        try:
            await self.request("server/discover" if self._modern else "ping")
        except CallFailed:
            pass

    async def list_tools(self, *, deadline: float = math.inf) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """All tools of the server, in its order, and notes on what was left out. For the rest see `list_all`."""
        listed = await self.list_all("tools", deadline=deadline)
        return listed.items, listed.notes  # type: ignore[return-value]  # under that kind there are tools

    def lists(self, kind: Kind) -> bool:
        """Whether the server says that it has lists of `kind`."""
        return CAPABILITY[kind] in self.greeting.capabilities

    async def list_all(self, kind: Kind, *, deadline: float = math.inf) -> Listed:
        """All that the server lists of `kind`, in its order, and notes on what was left out.

        A server that does not declare it is not asked. A cursor that repeats, or that the server no longer
        knows, ends the list. Of items with one name or URI the first counts.

        Raises:
            CallError: the list could not be fetched.

        """
        if not self.lists(kind):
            return NOTHING_LISTED
        method, word = LISTS[kind], WORDS[kind]
        found: dict[str, Item] = {}
        notes: list[str] = []
        cursors: set[str] = set()
        cursor: str | None = None
        ttl = math.inf
        for _ in range(self.max_pages):
            try:
                raw = await self.request(
                    method, {} if cursor is None else {"cursor": jsonrpc.encode(cursor)}, deadline=deadline
                )
                page = DECODERS[kind](raw)
            except CallFailed as exc:
                if exc.code == jsonrpc.METHOD_NOT_FOUND:
                    break
                if exc.code == jsonrpc.INVALID_PARAMS and cursor is not None:
                    notes.append(f"the server refuses its own cursor {cursor!r}; the list ends there")
                    break
                raise
            except Malformed as exc:
                raise BadReply(f"{self.session.name}: {method}: {exc}") from exc
            notes += (*page.skipped, *page.notes)
            ttl = min(ttl, page.ttl_ms / 1000)
            for item in page.items:
                if found.setdefault(item.key, item) is not item:
                    notes.append(f"{word} {item.key!r} is listed twice; the first counts")
            del notes[MAX_NOTES:]
            cursor = page.next_cursor
            if cursor is None or len(found) > self.max_tools:
                break
            if cursor in cursors:
                notes.append(f"the cursor {cursor!r} repeats; the list ends there")
                break
            cursors.add(cursor)
        else:
            self.session.counters.add("client.list_cut")
            notes.append(f"more than {self.max_pages} pages; the list ends there")
        listed = tuple(found.values())
        if len(listed) > self.max_tools:
            self.session.counters.add("client.list_cut")
            notes.append(f"{len(listed)} {word}s; those after {self.max_tools} are left out")
            listed = listed[: self.max_tools]
        if kind == "tools":
            tools = [tool for tool in listed if isinstance(tool, mcp.Tool)]
            if self._modern:
                self._mirrored = {tool.name: tool for tool in tools if tool.headers}
            else:
                for tool in tools:
                    self.tasked.pop(tool.name, None)
                self.tasked |= only_as_tasks(self.greeting.capabilities, tools)
            self.reserve(self._reserved)
        return Listed(listed, tuple(notes), 0.0 if ttl == math.inf else ttl)

    @property
    def made(self) -> int:
        """Requests made so far that are no list or the like of our own: calls."""
        return self.session.peer.minted - self.asked

    @property
    def calls(self) -> int:
        """Calls that await their reply."""
        return len(self.session.peer.open) - self.asking

    @property
    def announces_tools(self) -> bool:
        """Whether the server says that it will tell when its tools change."""
        return self.announces("tools")

    def announces(self, kind: Kind) -> bool:
        """Whether the server says that it will tell when its list of `kind` changes."""
        return self._says(kind, "listChanged")

    @property
    def subscribes(self) -> bool:
        """Whether the server says that it will tell when a resource changes."""
        return self._says("resources", "subscribe")

    def _says(self, kind: Kind, what: str) -> bool:
        settings = self.greeting.capabilities.get(CAPABILITY[kind])
        return isinstance(settings, dict) and settings.get(what) is True

    async def listen(self, uris: Sequence[str] = ()) -> None:
        """Ask a modern server to tell of changes, of `uris` too, and return when it stops telling.

        Notifications go to the session's `told`.
        """
        wanted: dict[str, Json] = {f"{kind}ListChanged": True for kind in TELLS if self.announces(kind)}
        if uris:
            wanted["resourceSubscriptions"] = list(uris)
        await self.request(LISTEN, {"notifications": jsonrpc.encode(wanted)})
