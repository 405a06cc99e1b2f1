"""Values that clients keep for us and bring back: readable by us alone, and only for what they were made for.

State of an operation, cursors and task ids go through the hands of clients, so what comes back is an attacker's
input until it opens (MCP 2026-07-28, input required, security).
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

KEY_BYTES: Final = 32
"""Bytes of a key."""

MAX_SEALED: Final = 1024 * 1024
"""Characters of a sealed text; a longer one is not looked at."""

_NONCE: Final = 12
_HEAD: Final = struct.Struct(">Bd")
_VERSION: Final = 1


class Sealer:
    """Seals for a purpose and a principal. Whatever is wrong with a text, it does not open, and says no more.

    Args:
        key: secret bytes; whoever has the same can open what another has sealed.
        random: makes bytes that never repeat.

    """

    def __init__(self, key: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key is {KEY_BYTES} bytes")
        self._key = key
        self._random = random

    @cached_property
    def _cipher(self) -> ChaCha20Poly1305:
        # Imported late: most runs of the command line never seal anything.
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        return ChaCha20Poly1305(self._key)

    def seal(self, purpose: str, principal: str, payload: bytes, expires: float = math.inf) -> str:
        """`payload` as a text for one purpose and one principal, until the time `expires`."""
        nonce = self._random(_NONCE)
        sealed = self._cipher.encrypt(nonce, _HEAD.pack(_VERSION, expires) + payload, _bound(purpose, principal))
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, purpose: str, principal: str, text: str, now: float) -> bytes:
        """The payload of `text`.

        Raises:
            ValueError: it was changed, is none of ours, was made for another purpose or principal, or has expired.

        """
        from cryptography.exceptions import InvalidTag

        if len(text) > MAX_SEALED:
            raise ValueError("too long to be ours")
        try:
            sealed = base64.b64decode(text.encode("ascii"), b"-_", validate=True)
            if base64.urlsafe_b64encode(sealed).decode() != text:
                raise ValueError("another spelling of it")
            opened = self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound(purpose, principal))
        except (ValueError, binascii.Error, InvalidTag) as exc:
            raise ValueError("does not open") from exc
        version, expires = _HEAD.unpack_from(opened)
        if version != _VERSION or not now < expires:
            raise ValueError("has expired")
        return opened[_HEAD.size :]


def _bound(purpose: str, principal: str) -> bytes:
    """What a text is bound to, unambiguously: one part cannot run into the other."""
    return b"cord-trio %d %b%b" % (len(purpose), purpose.encode(), principal.encode(errors="surrogatepass"))
