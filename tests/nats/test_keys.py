from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace

from cord_trio.nats.keys import KINDS, Credentials, Key, load_credentials, make_key, sign_in
from cord_trio.nats.wire import Hello, Info

if TYPE_CHECKING:
    from pathlib import Path

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
"""The pair that the documentation of NATS shows."""

CREDS = """-----BEGIN NATS USER JWT-----
e30.e30.sig
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


def test_a_seed_is_the_key_that_it_is_elsewhere() -> None:
    key = Key.from_seed(SEED)
    assert (key.public, key.seed) == (PUBLIC, SEED)
    assert repr(key) == f"Key({PUBLIC})"


def test_who_signs_in_is_shown_without_what_is_secret(tmp_path: Path) -> None:
    (tmp_path / "a.nk").write_text(SEED)
    found = [load_credentials(tmp_path / "a.nk"), Credentials(user="me", password="x"), Credentials(token="x")]
    assert [each.shown for each in [*found, Credentials()]] == [
        f"the key {PUBLIC} of {tmp_path}/a.nk", "user 'me'", "the token", "somebody without credentials",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_comes_back_from_its_seed(kind: str) -> None:
    key = make_key(kind)
    again = Key.from_seed(key.seed)
    assert (again.public, again.public[0], key.seed[:2]) == (key.public, kind, f"S{kind}")


def test_a_signature_is_of_the_nonce_and_by_the_key() -> None:
    key = Key.from_seed(SEED)
    signature = key.sign(b"nonce")
    raw = base64.b32decode(PUBLIC)[1:33]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.urlsafe_b64decode(signature + "=="), b"nonce")


@pytest.mark.parametrize(
    "seed",
    ["", "x", PUBLIC, SEED[:-1], SEED[:-1] + "A", SEED.lower(), "é" * 58, "SB" + SEED[2:]],
    ids=["nothing", "short", "public", "cut", "checksum", "lower case", "no base32", "kind"],
)
def test_what_is_no_seed_is_refused_and_not_shown(seed: str) -> None:
    with pytest.raises(ValueError, match="no seed of an nkey") as caught:
        Key.from_seed(seed)
    assert len(seed) < 2 or seed not in str(caught.value)


def test_a_right_checksum_does_not_make_a_seed_of_an_unknown_kind() -> None:
    from cord_trio.nats import keys

    with pytest.raises(ValueError, match="no seed"):
        Key.from_seed(keys._written(bytes([18 << 3, 1 << 3]) + bytes(32)))


def test_a_credentials_file_holds_a_jwt_and_its_key(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    path.write_text(CREDS.format(seed=SEED), "utf-8")
    credentials = load_credentials(path)
    assert credentials.jwt == "e30.e30.sig"
    assert credentials.key is not None
    assert credentials.key.public == PUBLIC
    assert SEED not in repr(credentials)
    assert "e30" not in repr(credentials)


def test_a_file_may_hold_a_seed_alone(tmp_path: Path) -> None:
    path = tmp_path / "user.nk"
    path.write_text(f"# ours\n{SEED}\n", "utf-8")
    credentials = load_credentials(path)
    assert (credentials.jwt, credentials.key is not None and credentials.key.public) == ("", PUBLIC)


@pytest.mark.parametrize("text", ["", "a\nb\n", CREDS.format(seed="SUxx"), CREDS[:60]])
def test_a_file_that_holds_no_credentials_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "user.creds"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"user\.creds: no credentials of NATS: no seed") as caught:
        load_credentials(path)
    assert "SUxx" not in str(caught.value)


def test_each_way_to_sign_in_says_what_it_needs() -> None:
    info, hello = Info(nonce="n"), Hello(name="node", version="1", tls_required=True, echo=False)
    key = Key.from_seed(SEED)
    assert sign_in(info, Credentials(), hello) == hello
    assert sign_in(info, Credentials(token="t"), hello) == replace(hello, auth_token="t")
    assert sign_in(info, Credentials(user="u", password="p"), hello) == replace(hello, user="u", password="p")
    signed = key.sign(b"n")
    assert sign_in(info, Credentials(key=key), hello) == replace(hello, nkey=PUBLIC, sig=signed)
    assert sign_in(info, Credentials(key=key, jwt="j"), hello) == replace(hello, jwt="j", sig=signed)


def test_credentials_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="more than one way"):
        Credentials(token="t", user="u")
    with pytest.raises(ValueError, match="a JWT proves nothing"):
        Credentials(jwt="j")
