from __future__ import annotations

from cord_trio.protocol.eras import (
    CACHEABLE,
    ERAS,
    INPUT_METHODS,
    LATEST_LEGACY,
    LATEST_MODERN,
    LEGACY,
    MODERN,
    NAME_MEMBER,
    choose_legacy,
    choose_modern,
)


def test_revisions_are_listed_best_first() -> None:
    assert MODERN == ("2026-07-28",)
    assert LEGACY == ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
    assert (LATEST_MODERN, LATEST_LEGACY) == ("2026-07-28", "2025-11-25")
    assert list(ERAS) == [*MODERN, *LEGACY]
    assert all(ERAS[revision].revision == revision for revision in ERAS)


def test_only_modern_revisions_are_chosen_for_modern() -> None:
    assert choose_modern(["2025-11-25", "2026-07-28"]) == "2026-07-28"
    assert choose_modern(["2025-11-25", "2099-01-01"]) is None
    assert choose_modern([]) is None


def test_a_legacy_request_is_echoed_or_answered_with_our_latest() -> None:
    assert [choose_legacy(revision) for revision in LEGACY] == list(LEGACY)
    assert choose_legacy("2026-07-28") == choose_legacy("1.0") == "2025-11-25"


def test_batches_exist_in_one_revision() -> None:
    assert [revision for revision in ERAS if ERAS[revision].batches] == ["2025-03-26"]


def test_modern_has_no_handshake_and_no_questions_from_the_server() -> None:
    modern = ERAS[LATEST_MODERN]
    assert modern.modern
    assert not modern.asks
    assert not modern.requests & {"initialize", "ping", "logging/setLevel", "resources/subscribe", "tasks/list"}
    assert modern.requests >= CACHEABLE | INPUT_METHODS


def test_legacy_has_no_discovery_and_learned_to_ask_step_by_step() -> None:
    assert all("server/discover" not in ERAS[revision].requests for revision in LEGACY)
    assert [revision for revision in LEGACY if "elicitation/create" in ERAS[revision].asks] == [
        "2025-11-25",
        "2025-06-18",
    ]
    assert [revision for revision in LEGACY if "tasks/get" in ERAS[revision].requests] == ["2025-11-25"]
    assert [revision for revision in LEGACY if not ERAS[revision].version_header] == ["2025-03-26", "2024-11-05"]
    assert [revision for revision in ERAS if ERAS[revision].priming] == ["2025-11-25"]


def test_results_grew_with_the_revisions() -> None:
    assert {revision: (ERAS[revision].structured, sorted(ERAS[revision].blocks)) for revision in ERAS} == {
        "2026-07-28": ("any", ["audio", "image", "resource", "resource_link", "text"]),
        "2025-11-25": ("object", ["audio", "image", "resource", "resource_link", "text"]),
        "2025-06-18": ("object", ["audio", "image", "resource", "resource_link", "text"]),
        "2025-03-26": ("none", ["audio", "image", "resource", "text"]),
        "2024-11-05": ("none", ["image", "resource", "text"]),
    }


def test_only_methods_about_something_have_a_name_header() -> None:
    assert dict(NAME_MEMBER) == {
        "tools/call": "name",
        "prompts/get": "name",
        "resources/read": "uri",
        "tasks/get": "taskId",
        "tasks/update": "taskId",
        "tasks/cancel": "taskId",
    }
