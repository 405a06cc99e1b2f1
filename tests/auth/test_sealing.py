"""What was sealed opens for its purpose and principal, in its time, unchanged; nothing else does."""

from __future__ import annotations

import math

import pytest

from cord_trio.auth.sealing import MAX_SEALED, Sealer

KEY = bytes(range(32))


def test_what_was_sealed_opens_again() -> None:
    sealer = Sealer(KEY)
    for payload in (b"", b"x", bytes(100_000)):
        text = sealer.seal("state", "ann", payload, 10.0)
        assert text.isascii()
        assert sealer.open("state", "ann", text, 9.9) == payload
        assert Sealer(KEY).open("state", "ann", text, 0.0) == payload


def test_the_same_payload_never_looks_the_same_and_cannot_be_read() -> None:
    sealer = Sealer(KEY)
    first, second = sealer.seal("state", "ann", b"secret"), sealer.seal("state", "ann", b"secret")
    assert first != second
    assert sealer.open("state", "ann", first, 1e12) == b"secret"


@pytest.mark.parametrize(
    ("purpose", "principal", "now", "key"),
    [
        ("cursor", "ann", 1.0, KEY),
        ("state", "bob", 1.0, KEY),
        ("stateann", "", 1.0, KEY),
        ("state", "ann", 10.0, KEY),
        ("state", "ann", math.nan, KEY),
        ("state", "ann", 1.0, bytes(32)),
    ],
)
def test_it_opens_for_nothing_else(purpose: str, principal: str, now: float, key: bytes) -> None:
    text = Sealer(KEY).seal("state", "ann", b"secret", 10.0)
    with pytest.raises(ValueError, match=r"does not open|has expired"):
        Sealer(key).open(purpose, principal, text, now)


def test_no_changed_text_opens() -> None:
    sealer = Sealer(KEY)
    text = sealer.seal("state", "ann", b"secret", 10.0)
    changed = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text))]
    for other in ["", "A", "é", "=", text[:-1], text + "A", text + "=", text + "\n", text[4:], *changed]:
        if other != text:
            with pytest.raises(ValueError, match="does not open"):
                sealer.open("state", "ann", other, 1.0)


def test_only_so_long_a_text_is_looked_at() -> None:
    with pytest.raises(ValueError, match="too long"):
        Sealer(KEY).open("state", "ann", "A" * (MAX_SEALED + 1), 1.0)


def test_a_key_has_its_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short")
