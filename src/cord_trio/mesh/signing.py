"""Who calls, as the node knows it that does the call: signed where the nodes of a mesh share a key.

A signature is of one call, by one incarnation of a node, for one incarnation of another, and good for `LIFE`. It is
told by the clock of whoever checks it: one that is over is answered with that clock's time, and made anew. So no two
clocks are ever compared. Each has a number, so that none is good twice.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from contextvars import ContextVar
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace

from cord_trio.counters import Counters
from cord_trio.mesh.frames import STANDING, Frame
from cord_trio.mesh.outcomes import failure_of
from cord_trio.mesh_errors import OwnerRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.mesh.frames import Request

LIFE: Final = 30.0
"""Seconds for which a signature is good."""

WINDOW: Final = 4096
"""Signatures of one signer that may come in another order than they were made in."""

MAX_SIGNERS: Final = 4096
"""Incarnations of nodes of which it is known which signatures have come."""

LEAST_KEY: Final = 32
"""Characters of a key."""

_SIGNATURE: Final = re.compile(r"([0-9a-f]{8})\.([0-9]{1,15})\.([0-9]{1,15})\.([01])\.([0-9a-f]{32})")
_MAC_BYTES: Final = 16


WHO: ContextVar[str] = ContextVar("cord_trio_mesh_who", default="")
"""The principal, `WHO@NODE`, of the call of another node in which the running task is. Whoever it calls for is named so
already; a text that only looks so is not."""


class Signer:
    """Signs the calls of one node, and judges those of others.

    Args:
        keys: texts that all nodes of the mesh share: the first signs, any of them is taken.
        mesh: its name.
        node: ours.

    """

    def __init__(self, keys: Sequence[str], mesh: str, node: str) -> None:
        # The mesh's name goes into the key: what is signed for one is nothing in another.
        about = b"cord mesh calls 1\0" + mesh.encode()
        self._keys = [hmac.digest(key.encode(), about, "sha256") for key in keys]
        self._node = node
        self._number = 0
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()

    def sign(
        self, request: Request, ours: str, owner: str, epoch: str, until: float | None, *, named: bool = False
    ) -> str:
        """A signature of `request`.

        Args:
            request: as it is sent, but for `ttl` and `settled`.
            ours: our incarnation.
            owner: the node that it goes to.
            epoch: which incarnation of that.
            until: seconds by that one's clock; None where that is not known, which is taken of a call alone that is
                handed on.
            named: whether its principal says already for which node.

        """
        self._number += 1
        head = f"{ours}.{self._number}.{0 if until is None else max(1, int(until * 1000))}.{named:d}"
        return f"{head}.{_mac(self._keys[0], head, self._node, request, owner, epoch)}"

    def signed(self, request: Request, ours: str, owner: str, epoch: str, ahead: float | None) -> Request:
        """`request`, signed as `sign` does for so long as is usual.

        Args:
            request: as there.
            ours: as there.
            owner: as there.
            epoch: as there.
            ahead: seconds by which the owner's clock is ahead of ours; None if it is not known: it will say so.

        """
        until = None if ahead is None else trio.current_time() + ahead + LIFE
        signature = self.sign(request, ours, owner, epoch, until, named=request.principal == WHO.get())
        return replace(request, signature=signature)

    def judge(self, node: str, request: Request, epoch: str, now: float) -> tuple[str, str]:
        """Why `request` of `node` may not run here, one of `frames.REASONS`, and in words; both empty if it may.

        Args:
            node: that sent it, as the broker has proved.
            request: of it.
            epoch: our incarnation.
            now: our clock's time.

        """
        found = _SIGNATURE.fullmatch(request.signature)
        if found is None:
            return "denied", "it is not signed, and this node has a mesh key"
        head = request.signature[: found.start(5) - 1]
        for key in self._keys:
            if hmac.compare_digest(_mac(key, head, node, request, self._node, epoch), found[5]):
                break
        else:
            return "denied", "its signature is not of this mesh's key, this call and this node"
        until, number = int(found[3]), int(found[2])
        if not (0 <= until - now * 1000 <= 2000 * LIFE if until else request.behalf):
            return "expired", "its signature is not of now"
        window = self._windows.get((node, found[1]))
        if window is None:
            window = self._windows[node, found[1]] = _Window()
            if len(self._windows) > MAX_SIGNERS:
                self._windows.popitem(last=False)
        if number <= window.highest - WINDOW:
            return "expired", "its signature is older than too many others"
        if not window.take(number):
            return "denied", "its signature has come before"
        return "", ""

    def believes(self, request: Request) -> bool:
        """Whether a request that was judged says that its principal is named already."""
        return request.signature.split(".", 4)[3] == "1"


class Door:
    """Who may call what is here. What it refuses has not run, and is not remembered.

    Args:
        signer: judges signatures; None where the mesh has no key, and each node is taken at its word.
        callers: globs over those who may call, each `WHO@NODE`.
        counters: where to count.

    """

    def __init__(
        self, signer: Signer | None = None, callers: Sequence[str] = ("*",), counters: Counters | None = None
    ) -> None:
        self._signer = signer
        self._callers = tuple(callers)
        self._all = "*" in callers
        self._counters = counters or Counters()

    def judge(self, node: str, request: Request, epoch: str, now: float) -> tuple[Request, Frame | None]:
        """`request` of `node` with its principal named, and what refuses it; None if it may run.

        Args:
            node: that sent it, as the broker has proved.
            request: of it.
            epoch: our incarnation.
            now: our clock's time.

        """
        believed = False
        if self._signer is not None:
            reason, text = self._signer.judge(node, request, epoch, now)
            if reason:
                return request, self._refused(request, reason, text, now)
            believed = self._signer.believes(request)
        who = request.principal if believed else f"{request.principal}@{node}"
        if not (self._all or self._lets_in(who, node, request.method)):
            return request, self._refused(request, "denied", f"{who!r} may call nothing here", now)
        return replace(request, principal=who), None

    def _lets_in(self, who: str, node: str, method: str) -> bool:
        if method in STANDING:  # for anybody of that node who subscribed
            return any(fnmatchcase(node, glob.rpartition("@")[2]) for glob in self._callers)
        return any(fnmatchcase(who, glob) for glob in self._callers)

    def signed(self, request: Request, ours: str, node: str, epoch: str) -> Request:
        """`request` for whoever it is handed on to. Arguments as of `Signer.sign`."""
        if self._signer is None:
            return request
        signature = self._signer.sign(request, ours, node, epoch, None, named=request.principal == WHO.get())
        return replace(request, signature=signature)

    def _refused(self, request: Request, reason: str, text: str, now: float) -> Frame:
        self._counters.add(f"mesh.refused_{reason}")
        if request.behalf:  # a part of it ran where it was before
            return failure_of(OwnerRefused("", reason, text, "unknown"))
        return Frame("rej", request.id, reason=reason, text=text, seq=int(now * 1000) if reason == "expired" else 0)


class _Window:
    """Which numbers have come, of the highest and those not far below."""

    def __init__(self) -> None:
        self.highest = 0
        self._bits = 0  # bit n: whether highest - n has come

    def take(self, number: int) -> bool:
        """Note that `number`, which is not too old, has come; False if it had before."""
        if number > self.highest:
            self._bits = (self._bits << min(number - self.highest, WINDOW)) & ((1 << WINDOW) - 1) | 1
            self.highest = number
            return True
        bit = 1 << (self.highest - number)
        if self._bits & bit:
            return False
        self._bits |= bit
        return True


def _mac(key: bytes, head: str, node: str, request: Request, owner: str, epoch: str) -> str:
    """The code of all that must arrive as it was sent."""
    tool, bundle = request.tool, request.bundle
    # What can hold any letter comes last, with its length before: so no two requests are the same text.
    text = (
        f"{head} {node} {owner} {epoch} {request.op} {request.id} {request.epoch} {request.hop} {request.behalf} "
        f"{len(request.source)} {len(request.method)} {len(request.principal)} {len(request.park)} "
        f"{-1 if tool is None else len(tool)} "
        f"{'' if bundle is None else (bundle.parts, bundle.size, bundle.sha256)} "
        f"{request.source}{request.method}{request.principal}{request.park}{tool or ''}"
    )
    told = text.encode(errors="replace")  # as headers carry it
    body = request.body if bundle is None else b""
    return blake2b(b"%d %b%b" % (len(told), told, body), key=key, digest_size=_MAC_BYTES).hexdigest()
