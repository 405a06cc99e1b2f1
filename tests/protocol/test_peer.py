from __future__ import annotations

from cord_trio.protocol.peer import Peer


def asking(*entries: str) -> Peer[str, str]:
    peer: Peer[str, str] = Peer()
    for entry in entries:
        peer.open[peer.mint()] = entry
    return peer


def test_i11_fifty_ids_at_once_are_fifty_ids() -> None:
    peer: Peer[str, str] = Peer()
    assert [peer.mint() for _ in range(50)] == list(range(1, 51))


def test_a_reply_closes_its_entry_once() -> None:
    peer = asking("a", "b")
    assert peer.close(2) == "b"
    assert peer.close(2) is None
    assert (peer.open, peer.late, peer.unknown, peer.lenient) == ({1: "a"}, 1, 0, 0)


def test_i01_a_number_that_comes_back_as_a_string_is_matched_and_counted() -> None:
    peer = asking("a")
    assert peer.close("1") == "a"
    assert peer.lenient == 1
    assert peer.close("1") is None
    assert peer.late == 1


def test_i01_only_the_plain_decimal_form_is_ours() -> None:
    peer = asking("a")
    for id in ("01", " 1", "1.0", "+1", "1_0", "१", "", "9" * 30, "x"):
        assert peer.close(id) is None
    assert (peer.open, peer.unknown) == ({1: "a"}, 9)


def test_replies_to_ids_never_minted_are_unknown() -> None:
    peer = asking("a")
    for id in (0, -1, 2, 10**30):
        assert peer.close(id) is None
    assert (peer.unknown, peer.late) == (4, 0)


def test_an_abandoned_entry_is_handed_back_once_and_its_reply_is_late() -> None:
    peer = asking("a")
    assert peer.abandon(1) == "a"
    assert peer.abandon(1) is None
    assert peer.close(1) is None
    assert peer.late == 1


def test_closing_all_hands_back_what_is_left_even_if_some_go_meanwhile() -> None:
    peer = asking("a", "b", "c")
    seen = []
    for id, entry in peer.close_all():
        seen.append((id, entry))
        peer.abandon(2)
    assert seen == [(1, "a"), (3, "c")]
    assert not peer.open


def test_i03_a_number_and_its_string_are_two_requests_of_the_peer() -> None:
    peer: Peer[str, str] = Peer()
    assert peer.ask(1, "number")
    assert peer.ask("1", "string")
    assert not peer.ask(1, "again")
    assert (peer.asking(1), peer.asking("1"), peer.asking(2)) == ("number", "string", None)
    assert (peer.answered("1"), peer.answered("1"), peer.answered(1)) == ("string", None, "number")
    assert peer.ask(1, "later")
