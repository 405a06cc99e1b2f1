"""Each room imports only what lies above it, and from outside only what it may know."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1] / "src" / "cord_trio"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))

ROWS: list[list[str]] = [
    # A room may import rooms of the rows above, and those before it in its own row.
    ["version", "errors", "mesh_errors"],
    ["protocol", "nats.wire", "mesh.frames", "stages", "cell", "call", "counters", "trace"],
    [
        "observe",
        "config",
        "auth",
        "transports",
        "nats",
        "answering",
        "pending",
        "session",
        "handshake",
        "names",
        "snapshot",
        "background",
        "client",
        "rooted",
        "awaiting",
        "registry",
        "redacting",
        "layers",
        "recording",
        "recorder",
    ],
    [
        "following",
        "pages",
        "parking",
        "running",
        "pool",
        "surroundings",
        "manifests",
        "connecting",
        "idling",
        "link",
        "balance",
        "routing",
        "replicas",
        "nodes",
        "stacking",
        "subscribing",
        "sources",
        "agents",
    ],
    ["fabric"],
    ["gateway", "mesh", "testing", "web"],
    ["cli"],
    ["__init__", "__main__"],
]
STRANGERS = {"gateway", "mesh", "testing", "web"}
"""Rooms of one row that never import each other: `cli` puts them together."""

ALLOWED: dict[str, set[str]] = {
    # What a room may import from outside beside the standard library; others: attrs, msgspec, outcome and trio.
    "errors": {"attrs"},
    "protocol": {"msgspec", "attrs"},
    "transports": {"attrs", "httptools", "msgspec", "outcome", "trio", "trio_websocket", "wsproto"},
    "nats.wire": {"msgspec"},
    "mesh.frames": {"msgspec"},
    "nats": {"attrs", "cryptography", "msgspec", "outcome", "trio", "trio_websocket"},
    "observe": {"attrs", "msgspec", "opentelemetry", "prometheus_client", "trio"},
    "auth": {"attrs", "cryptography", "httpx", "joserfc", "msgspec", "trio"},
    "testing": {"attrs", "hypothesis", "msgspec", "outcome", "pytest", "trio"},
    "cli": {"attrs", "httpx", "msgspec", "rich", "trio"},
}
USUAL = {"attrs", "msgspec", "outcome", "trio"}

PROTOCOL = [
    *("jsonrpc", "scanning", "framing", "peer", "eras", "headers", "tools", "items", "uris", "mcp", "questions"),
    "notices",
]
"""The order inside the protocol."""

PURE = {"errors", "mesh_errors", "protocol", "nats.wire", "mesh.frames", "call", "counters"}
IO_MODULES = {
    *("asyncio", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select"),
    *("selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib"),
}

STANDALONE: dict[str, set[str]] = {
    # Programs that run with `python -I -S`: standard library, and these files, which obey the same rule.
    "testing/script.py": set(),
    "testing/conversation.py": {"testing.script"},
    "testing/tool_server.py": {"testing.script", "testing.conversation"},
    "testing/http_tool_server.py": {"testing.script", "testing.conversation"},
    "transports/guardian_main.py": set(),
}


ROOMS_OF_ONE_FILE = {"nats.wire", "mesh.frames"}
"""Files that are pure, in rooms that are not."""


def room(module: str) -> str:
    """The room of a path within the package, or of a dotted name after `cord_trio.`."""
    name = module.removesuffix(".py").replace("/", ".")
    return next((one for one in ROOMS_OF_ONE_FILE if f"{name}.".startswith(f"{one}.")), name.split(".")[0])


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names imported anywhere in the file; without those in `TYPE_CHECKING` blocks if `at_run_time`."""

    def nodes(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        children = ast.iter_child_nodes(node)
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            children = iter(node.orelse)
        for child in children:
            yield from nodes(child)

    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from package import module` names a module too, where there is one.
            found |= {f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")}
            if node.module != "cord_trio" or not all(is_module(f"cord_trio.{alias.name}") for alias in node.names):
                found.add(node.module)
    return found


def is_module(name: str) -> bool:
    if not name.startswith("cord_trio."):
        return False
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or path.is_dir()


def own(names: set[str]) -> set[str]:
    """Of dotted names, those in this package, without its name."""
    return {name.removeprefix("cord_trio.") if "." in name else "__init__" for name in names if in_package(name)}


def in_package(name: str) -> bool:
    return name.split(".")[0] == "cord_trio"


def above(name: str) -> set[str]:
    """The rooms that the room `name` may import, itself included."""
    row = next(index for index, rooms in enumerate(ROWS) if name in rooms)
    before = set(ROWS[row][: ROWS[row].index(name)])
    if name in STRANGERS:
        before -= STRANGERS
    return {name}.union(before, *ROWS[:row])


@pytest.mark.parametrize("file", FILES)
def test_a_file_has_a_room(file: str) -> None:
    assert room(file) in {name for row in ROWS for name in row}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_up(file: str) -> None:
    names = own(imported(ROOT / file))
    assert {name for name in names if room(name) not in above(room(file))} == set()


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_from_outside_only_what_it_may(file: str) -> None:
    outside = {name.split(".")[0] for name in imported(ROOT / file) if not in_package(name)}
    third_party = outside - sys.stdlib_module_names
    assert third_party - ALLOWED.get(room(file), USUAL) == set()
    assert "asyncio" not in outside
    if room(file) in PURE:
        assert outside & IO_MODULES == set()


@pytest.mark.parametrize("file", [name for name in FILES if name.startswith("protocol/") and "__init__" not in name])
def test_the_protocol_is_read_in_order(file: str) -> None:
    stem = Path(file).stem
    names = {name.split(".")[1] for name in own(imported(ROOT / file)) if name.startswith("protocol.")}
    assert names <= set(PROTOCOL[: PROTOCOL.index(stem)])


@pytest.mark.parametrize("file", STANDALONE)
def test_programs_for_the_bare_interpreter_need_nothing_else(file: str) -> None:
    if file not in FILES:
        pytest.skip("not there yet")
    names = imported(ROOT / file, at_run_time=True)
    assert own(names) - {"testing"} <= STANDALONE[file]
    assert {name.split(".")[0] for name in names if not in_package(name)} <= sys.stdlib_module_names


def test_no_modules_need_each_other() -> None:
    needs: dict[str, set[str]] = {}
    for file in FILES:
        name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        needs[name] = {one for one in own(imported(ROOT / file, at_run_time=True)) if one not in (name, "__init__")}
    while needs:
        free = {name for name in needs if not needs[name] & needs.keys()}
        assert free, f"a circle among {sorted(needs)}"
        for name in free:
            del needs[name]


@pytest.mark.parametrize("file", FILES)
def test_a_module_stays_short(file: str) -> None:
    assert len((ROOT / file).read_text("utf-8").splitlines()) <= 480
