"""Which feature of the protocol is exercised between clients and servers of which eras, and by what.

`python -m tests.test_pairings_page` writes docs/pairings.md anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.mesh.test_bridge import HERE
from tests.mesh.test_bridge import rows as rows_across
from tests.test_failures import ROOT, defined

PAGE = ROOT / "docs" / "pairings.md"
BRIDGE = ROOT / "tests" / "mesh" / "test_bridge.py"
MATRIX = ROOT / "tests" / "gateway" / "test_pairings.py"
PAIRINGS = ("L→L", "L→M", "M→L", "M→M")

ROWS = {
    1: "opening",
    2: "discovery",
    3: "envelope of each request",
    4: "what a client can be asked",
    5: "lists",
    6: "cursors",
    7: "calls, prompts, reads",
    8: "form elicitation",
    9: "URL elicitation",
    10: "URLs to open first (-32042)",
    11: "sampling",
    12: "roots",
    13: "questions that were not declared",
    14: "ping",
    15: "progress",
    16: "cancellation by the client",
    17: "cancellation of a question",
    18: "logging",
    19: "changed lists",
    20: "subscriptions to resources",
    21: "loss of a server",
    22: "tasks",
    23: "completion",
    24: "errors",
    25: "resumed streams",
    26: "expired sessions",
    27: "content that an older revision lacks",
    28: "batches",
    29: "extensions, Apps",
    30: "authorization",
    31: "`Mcp-*` headers",
    32: "caching hints",
}

NOTHING = {10: "L→M M→M", 17: "L→M M→M", 25: "M→L M→M", 26: "L→M M→M", 28: "M→L M→M", 31: "L→L"}
"""Where the protocol has no such thing."""

ALSO = {
    25: [
        "tests/gateway/test_resuming.py::test_what_the_standing_stream_lost_on_the_way_is_given_again",
        "tests/gateway/test_resuming.py::test_cancelling_ends_the_resumed_stream_with_its_answer",
    ],
    31: [
        "tests/gateway/test_http.py::test_m09_the_name_header_is_decoded_and_then_compared",
        "tests/gateway/test_http.py::test_headers_that_a_tool_declares_must_say_what_its_arguments_say",
    ],
}
"""Tests of one hop whose names tell no row."""

NO_SDK = {
    14: ("M→M", "the modern era has no ping, and SDK 2.x sends none: a scripted client is refused one"),
    22: (
        "L→M M→M",
        "no official SDK has a server with the tasks extension, only seams for one: the server is FastMCP's, on top "
        "of the Python SDK 2.3, and the client that knows of tasks is the TypeScript SDK with the official `ext-tasks`",
    ),
    28: (
        "L→L L→M",
        "no official Python SDK sends arrays; the transport of the TypeScript SDK 1.x does, if a program gives it one",
    ),
    32: ("M→L", "legacy servers have no hints: the client sees that nothing of theirs may be kept"),
}
"""Rows of which an SDK has only a part in these pairings, and what to say of it."""

LATER = {30: "comes with authorization"}

MODERN_SUITE = "the suite's scenarios of 2026-07-28"
LEGACY_SUITE = "the suite's scenarios of 2025-11-25"
FOUR = "tests/real/test_sdk_pairings.py::"
RARE = "tests/real/test_rare.py::"
TYPESCRIPT = "tests/real/test_typescript.py::test_rows_1_5_7_8_15_28_its_clients_use_its_servers_of_both_eras"
TASKS = "tests/real/test_tasks.py::test_row_22_clients_of_both_eras_use_tools_that_are_run_as_tasks"
REST = f"{FOUR}test_rows_6_9_12_14_16_19_20_23_27_29_31_32_all_the_rest"
TWO = "tests/real/test_principals.py::"
ACROSS = "tests/real/test_across_eras.py::"

REAL: list[tuple[str, str, str, tuple[int, ...]]] = [
    # shown as, what it is, pairing, rows
    ("suite", MODERN_SUITE, "M→M", (2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 19, 20, 23, 24, 31, 32)),
    ("suite", LEGACY_SUITE, "L→L", (1, 4, 5, 7, 8, 11, 14, 15, 18, 20, 23)),
    ("SDKs", f"{ACROSS}test_a_modern_client_uses_all_of_a_legacy_server", "M→L",
     (1, 2, 3, 4, 5, 7, 8, 11, 12, 15, 18, 23)),
    ("SDKs", f"{ACROSS}test_eight_modern_clients_of_a_legacy_server_get_their_own_answers", "M→L", (8, 11, 12)),
    ("SDKs", f"{ACROSS}test_a_legacy_client_uses_all_of_a_modern_server", "L→M",
     (1, 3, 4, 5, 7, 8, 11, 12, 15, 18, 23, 31)),
    ("SDKs", f"{ACROSS}test_eight_legacy_clients_of_a_modern_server_get_their_own_answers", "L→M", (8, 11)),
    ("SDK", "tests/real/test_ten_servers.py::test_clients_of_both_eras_see_and_use_all_of_ten_servers",
     "L→L L→M M→L M→M", (1, 5, 7)),
    ("SDK", "tests/real/test_clients.py::test_both_eras_meet_a_legacy_source_behind_the_gateway", "L→L M→L", (1, 5, 7)),
    ("SDK", "tests/real/test_sdk1.py::test_its_client_resumes_a_stream_that_was_cut", "L→L L→M", (25,)),
    ("SDKs", f"{FOUR}test_rows_1_2_5_7_14_15_18_23_24_what_every_client_does", "L→L L→M M→L M→M",
     (1, 2, 5, 7, 15, 18, 23, 24)),
    ("SDKs", f"{FOUR}test_rows_1_2_5_7_14_15_18_23_24_what_every_client_does", "L→L L→M", (14,)),
    ("SDKs", f"{FOUR}test_rows_3_4_8_11_12_13_what_a_person_is_asked", "L→L L→M M→L M→M", (3, 4, 8, 11, 13)),
    ("SDKs", f"{FOUR}test_rows_3_4_8_11_12_13_what_a_person_is_asked", "L→M M→M", (12,)),
    ("SDKs", REST, "L→L L→M M→L M→M", (6, 9, 12, 16, 19, 20, 23, 27, 29, 32)),
    ("SDKs", REST, "L→L M→L", (14,)),
    ("SDKs", REST, "L→M M→L M→M", (31,)),
    ("TS", TYPESCRIPT, "L→L L→M M→L M→M", (1, 5, 7, 8, 15)),
    ("TS", TYPESCRIPT, "L→L L→M", (28,)),
    ("SDK", TASKS, "L→M M→M", (22,)),
    ("TS", TASKS, "M→M", (22,)),
    ("SDKs", f"{TWO}test_row_8_two_principals_at_once_are_each_asked_their_own", "L→L L→M M→L M→M", (4, 8)),
    ("SDK", f"{TWO}test_row_8_a_state_is_good_once_and_for_whom_and_what_it_was_given", "M→L", (8,)),
    ("SDK", f"{TWO}test_row_8_a_session_is_of_no_use_to_another_principal", "L→L", (1,)),
    ("SDKs", f"{TWO}test_rows_8_16_a_client_that_is_gone_while_it_is_asked_leaves_nothing", "L→L L→M M→L M→M", (8, 16)),
    ("SDKs", f"{TWO}test_rows_8_21_a_server_that_is_gone_while_it_asks_is_told_of", "L→L L→M M→L M→M", (8, 21)),
    ("SDKs", f"{RARE}test_rows_10_17_22_26_what_only_legacy_servers_have", "L→L M→L", (10, 17, 22, 26)),
]  # fmt: skip

PREFACE = """\
# Clients and servers of both eras

What passes through the gateway between a client of one era and a server of another, and what shows it. *L* is a legacy
client or server (2024-11-05 to 2025-11-25), *M* a modern one (2026-07-28); *L→M* is a legacy client of a modern server.
Made by `python -m tests.test_pairings_page` from the tests.

- **memory**: a scripted client and a scripted server of those eras, with gateway and fabric between them
  (`tests/gateway/test_pairings.py`).
- **SDKs**: the official Python SDKs on both sides (`tests/real`): 2.x held to the two eras, and across the eras also
  2.x and 1.30, where the server knows no other era; **SDK**: one of them on one side.
- **TS**: the official TypeScript SDKs, 1.x as the legacy and 2.x as the modern client and server; with the row of tasks
  its client alone.
- **suite**: the official conformance suite as the client, the official SDK's server behind (`python -m conformance`).
- —: the protocol has no such thing there.
"""


ONE_HOP = {
    1: "each hop opens by itself",
    14: "each hop answers pings itself",
    25: "between client and gateway",
    26: "between owner and server",
    28: "between client and gateway",
    31: "each hop has its own",
}
"""Rows, or parts of them, of which nothing crosses from node to node."""

ACROSS_PREFACE = """
## Across nodes

The same with two nodes of a [mesh](mesh.md): the client is at the gateway of one, and the server is the other's.
**memory**: the tests of the matrix once more, with both nodes and a broker in one process
(`tests/mesh/test_bridge.py`). **SDKs**: the official Python SDK 2.x on both sides, held to the two eras, and two
processes that meet at a real nats-server and sign their calls (`tests/real/test_mesh_bridge.py`).
"""

BETWEEN = "tests/real/test_mesh_bridge.py::test_its_rows_cross_between_two_nodes"
REAL_ACROSS: list[tuple[str, str, str, tuple[int, ...]]] = [
    ("SDKs", BETWEEN, "L→M", (1, 2, 5, 7, 14, 15, 18, 23, 24)),
    ("SDKs", BETWEEN, "M→L", (3, 4, 8, 11, 13)),
    ("SDKs", BETWEEN, "L→L M→M", (6, 9, 12, 16, 19, 20, 23, 27, 29, 32)),
]


def numbers(test: str) -> list[int]:
    """The rows that a test's name tells."""
    found = re.search(r"_rows?_((?:\d+_)+(?:and_(?:\d+_)+)?)", test)
    return [int(each) for each in re.findall(r"\d+", found[1])] if found else []


def tables() -> tuple[dict[tuple[int, str], list[str]], dict[int, list[str]]]:
    """What exercises each cell, and the other tests of each row: those of one hop alone."""
    cells: dict[tuple[int, str], list[str]] = defaultdict(list)
    alone: dict[int, list[str]] = defaultdict(list, {row: list(tests) for row, tests in ALSO.items()})
    everywhere = set(re.findall(r"@pairings\nasync def (\w+)", MATRIX.read_text()))
    for test in defined():
        file, _, name = test.partition("::")
        for row in () if file.startswith("tests/real/") else numbers(name):
            if name in everywhere and ROOT / file == MATRIX:
                for pairing in PAIRINGS:
                    cells[row, pairing].append("memory")
            elif ROOT / file != BRIDGE:
                alone[row].append(test)
    for shown, _, pairings, rows in REAL:
        for row in rows:
            for pairing in pairings.split():
                cells[row, pairing].append(shown)
    return cells, alone


def across() -> tuple[dict[tuple[int, str], list[str]], dict[int, list[str]]]:
    """What exercises each cell on two nodes, and the other tests of each row there."""
    cells: dict[tuple[int, str], list[str]] = defaultdict(list)
    for name, eras in (param.values for param in rows_across()):
        # Where a test has one era of a side alone, its name says which.
        fixed = {
            side: found[1] for side in ("client", "server") if (found := re.search(rf"(legacy|modern)_{side}", name))
        }
        for row in numbers(name):
            for pairing in PAIRINGS:
                client, server = ({"L": "legacy", "M": "modern"}[each] for each in pairing.split("→"))
                held = {**fixed, **eras}
                if held.get("client", client) == client and held.get("server", server) == server:
                    cells[row, pairing].append("memory")
    for shown, _, pairings, told in REAL_ACROSS:
        for row in told:
            for pairing in pairings.split():
                cells[row, pairing].append(shown)
    alone: dict[int, list[str]] = defaultdict(list)
    for test in defined():
        file, _, name = test.partition("::")
        if ROOT / file == BRIDGE:
            for row in numbers(name):
                alone[row].append(test)
    return cells, alone


def across_page() -> str:
    """The part of the page that is about two nodes."""
    cells, alone = across()
    lines = [ACROSS_PREFACE, f"\n| | feature | {' | '.join(PAIRINGS)} | other tests |\n|---|---|---|---|---|---|---|\n"]
    for row, feature in ROWS.items():
        shown = [
            "—"
            if pairing in NOTHING.get(row, "").split()
            else ", ".join(dict.fromkeys(cells[row, pairing])) or LATER.get(row) or ONE_HOP[row]
            for pairing in PAIRINGS
        ]
        lines.append(f"| {row} | {feature} | {' | '.join(shown)} | {len(alone[row]) or ''} |\n")
    lines.append("\nTests of the matrix that are of one node alone:\n\n")
    lines += [f"- `{name}`: it {why}.\n" for name, why in HERE.items()]
    return "".join(lines)


def page() -> str:
    """docs/pairings.md as it should be."""
    cells, alone = tables()
    lines = [PREFACE, f"\n| | feature | {' | '.join(PAIRINGS)} | one hop alone |\n|---|---|---|---|---|---|---|\n"]
    for row, feature in ROWS.items():
        shown = []
        for pairing in PAIRINGS:
            what = ", ".join(dict.fromkeys(cells[row, pairing]))
            shown.append("—" if pairing in NOTHING.get(row, "").split() else what or LATER.get(row, "one hop"))
        tests = ", ".join(f"{count} in `{file}`" for file, count in _counted(alone[row]).items())
        lines.append(f"| {row} | {feature} | {' | '.join(shown)} | {tests} |\n")
    lines.append("\nWhat an official SDK has only a part of:\n\n")
    lines += [f"- {row} ({ROWS[row]}), {where}: {why}.\n" for row, (where, why) in NO_SDK.items()]
    lines.append("\nWhat runs with real peers:\n\n")
    real = dict.fromkeys(what for _, what, _, _ in REAL)
    lines += [f"- {what if ' ' in what else f'`{what}`'}\n" for what in real]
    return "".join([*lines, across_page()])


def _counted(tests: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for test in tests:
        file = Path(test.partition("::")[0]).name
        found[file] = found.get(file, 0) + 1
    return dict(sorted(found.items()))


def test_every_cell_is_exercised() -> None:
    cells, alone = tables()
    bare = [
        (row, pairing)
        for row in ROWS
        for pairing in PAIRINGS
        if not (cells[row, pairing] or alone[row]) and pairing not in NOTHING.get(row, "") and row not in LATER
    ]
    assert bare == []


def test_every_cell_of_what_crosses_is_exercised_on_two_nodes() -> None:
    cells, _ = across()
    bare = [
        (row, pairing)
        for row in ROWS
        for pairing in PAIRINGS
        if not cells[row, pairing] and pairing not in NOTHING.get(row, "") and row not in ONE_HOP and row not in LATER
    ]
    assert bare == []


def test_tests_that_are_named_exist() -> None:
    known = defined()
    named = [what for _, what, _, _ in (*REAL, *REAL_ACROSS) if "::" in what] + [
        test for tests in ALSO.values() for test in tests
    ]
    assert [test for test in named if test not in known] == []


def test_the_page_is_as_the_tests_say() -> None:
    if PAGE.read_text() != page():
        pytest.fail("docs/pairings.md is old; run `python -m tests.test_pairings_page`")


if __name__ == "__main__":
    PAGE.write_text(page())
