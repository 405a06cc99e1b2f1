"""What a conversation itself reads of the notifications that come: whose they are, and how much they matter."""

from __future__ import annotations

from typing import Final

import msgspec

LOG_HEADS: Final = (
    b'{"jsonrpc":"2.0","method":"notifications/message"',
    b'{"method":"notifications/message"',
)
"""How a log notification begins, as the common servers write it: enough to count it unread."""


class Progressed(msgspec.Struct, gc=False):
    """Of `notifications/progress`: the request that goes on."""

    progressToken: int | str | None = None  # the protocol's spelling


class Logged(msgspec.Struct, gc=False):
    """Of `notifications/message`: one of `mcp.LEVELS`, if the peer keeps to them."""

    level: str = ""


class Cancelled(msgspec.Struct, gc=False):
    """Of `notifications/cancelled`: the request that nobody wants an answer to any more."""

    requestId: int | str | None = None  # the protocol's spelling


decode_progressed: Final = msgspec.json.Decoder(Progressed).decode
decode_logged: Final = msgspec.json.Decoder(Logged).decode
decode_cancelled: Final = msgspec.json.Decoder(Cancelled).decode
