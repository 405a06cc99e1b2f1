"""Who we are to a NATS server: a token, a user, a key, or a credentials file; and the keys themselves.

A key is Ed25519, written in base32 with a letter in front for its kind (`U` a user, `S` a seed) and a checksum
behind. Source: github.com/nats-io/nkeys.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

if TYPE_CHECKING:
    from pathlib import Path

    from cord_trio.nats.wire import Hello, Info

KINDS: Final = {"A": 0, "C": 2 << 3, "N": 13 << 3, "O": 14 << 3, "U": 20 << 3}
"""Account, cluster, server, operator and user: what stands in front of a public key."""

MAX_CREDENTIALS: Final = 64 * 1024
"""Bytes of the longest credentials file that is read."""

_SEED: Final = 18 << 3
_SEED_LENGTH: Final = 58
_PART: Final = re.compile(r"-{3,}[^\n]*BEGIN[^\n]*?-{3,}\s*(\S+)\s*-{3,}[^\n]*END[^\n]*-{3,}")


class Key:
    """A private key. Its text never shows it.

    Attributes:
        public: how others know it, such as `UDXU4R…`.

    """

    def __init__(self, kind: str, raw: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(raw)
        self._kind = kind
        self.public = _written(bytes([KINDS[kind]]) + self._private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Key({self.public})"

    @classmethod
    def from_seed(cls, seed: str) -> Key:
        """The key that `seed` holds.

        Raises:
            ValueError: it is no seed; the error does not show it.

        """
        raw = _read(seed) if len(seed) == _SEED_LENGTH else b""
        kind = (raw[0] & 7) << 5 | raw[1] >> 3 if raw else -1
        letter = next((letter for letter, number in KINDS.items() if number == kind), None)
        if not raw or raw[0] & 0xF8 != _SEED or letter is None:
            raise ValueError("no seed of an nkey: one has 58 letters, begins with S, and ends with its checksum")
        return cls(letter, raw[2:])

    @property
    def seed(self) -> str:
        """The secret itself, as text."""
        kind = KINDS[self._kind]
        return _written(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + self._private.private_bytes_raw())

    def sign(self, data: bytes) -> str:
        """The signature of `data`, in URL-safe base64 without padding."""
        return base64.urlsafe_b64encode(self._private.sign(data)).rstrip(b"=").decode()


def make_key(kind: str = "U") -> Key:
    """A new key of one of `KINDS`."""
    return Key(kind, Ed25519PrivateKey.generate().private_bytes_raw())


@attrs.frozen
class Credentials:
    """Who we are. What is not given is not said; at most one way is given.

    Attributes:
        token: shared with the server.
        user: with `password`.
        password: with `user`.
        key: proves that we are its owner.
        jwt: of a user, whose owner `key` proves us to be.
        file: they were read from; "" for none.

    """

    token: str = attrs.field(default="", repr=False)
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    key: Key | None = None
    jwt: str = attrs.field(default="", repr=False)
    file: str = ""

    @property
    def shown(self) -> str:
        """Who we say that we are, and by which file, without anything that is secret."""
        who = "somebody without credentials"
        if self.key is not None:
            who = f"the key {self.key.public}"
        elif self.user:
            who = f"user {self.user!r}"
        elif self.token:
            who = "the token"
        return who + (f" of {self.file}" if self.file else "")

    def __attrs_post_init__(self) -> None:
        if [bool(self.token), bool(self.user), self.key is not None].count(True) > 1:
            raise ValueError("more than one way to sign in: give a token, a user, or a key")
        if self.jwt and self.key is None:
            raise ValueError("a JWT proves nothing without the key of its user")


def load_credentials(path: Path) -> Credentials:
    """What a credentials file (`.creds`) or a file with a seed alone holds.

    Raises:
        ValueError: it holds neither; the error names the file and shows nothing of it.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        text = file.read(MAX_CREDENTIALS).decode(errors="replace")
    parts = _PART.findall(text)
    try:
        if len(parts) >= 2:
            return Credentials(jwt=parts[0], key=Key.from_seed(parts[1]), file=str(path))
        lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
        return Credentials(key=Key.from_seed(lines[0] if len(lines) == 1 else ""), file=str(path))
    except ValueError as exc:
        raise ValueError(f"{path}: no credentials of NATS: {exc}") from None


def sign_in(info: Info, credentials: Credentials, hello: Hello) -> Hello:
    """`hello`, with what proves to the server of `info` who we are."""
    key = credentials.key
    if key is None:
        return replace(hello, auth_token=credentials.token, user=credentials.user, password=credentials.password)
    signature = key.sign(info.nonce.encode())
    return replace(hello, jwt=credentials.jwt, nkey="" if credentials.jwt else key.public, sig=signature)


def _written(data: bytes) -> str:
    checked = data + binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(checked).rstrip(b"=").decode()


def _read(text: str) -> bytes:
    """What `text` says, without its checksum; empty if that is wrong."""
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return b""
    return data[:-2] if binascii.crc_hqx(data[:-2], 0).to_bytes(2, "little") == data[-2:] else b""
