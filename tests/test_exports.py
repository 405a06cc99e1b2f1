"""What `import cord_trio` gives, and what it costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import cord_trio

PUBLIC = {
    "Account", "AgentCrashed", "AgentDown", "AgentError", "AgentGone", "AgentNotFound", "AgentNotGranted", "Backoff",
    "BadReply", "Budget", "BudgetExceeded", "Call", "CallCycle", "CallError", "CallFailed", "Config", "ConfigError",
    "ConnectFailed", "ConnectionLost", "Content", "Context", "CordError", "DeadlineExceeded", "Denied", "DrainTimeout",
    "Draining", "Events", "Fabric", "Handler", "Handoff", "HandoffRefused", "Http", "HttpFailed", "InDoubt",
    "InProcess", "InputNeeded", "Job", "JobCancelled", "JobNotFound", "Layer", "Mailbox", "Malformed", "MemoryJournal",
    "MessageTooLong", "NoMailbox", "Notice", "Outcome", "Overloaded", "Quota", "Recorder", "Refused",
    "RestartIntensity", "Rule", "Snapshot", "SourceDown", "SqliteJournal", "Stdio", "Supervisor", "TooDeep",
    "TooLate", "Tool", "ToolNotFound", "ToolNotGranted", "ToolResult", "ToolSettings", "TraceContext", "WebSocket",
    "__version__",
    "deadline", "last", "latest", "limit", "load_config", "open_fabric", "rate", "record", "retry", "serve_gateway",
    "stack",
}  # fmt: skip
"""The public API; what else can be reached may change."""


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env={**os.environ, **env}
    )
    return done.stdout


def test_the_public_names_are_these() -> None:
    names = set(json.loads(run("import cord_trio, json; print(json.dumps(dir(cord_trio)))")))
    rooms = {name for name in names if isinstance(getattr(cord_trio, name), ModuleType)}
    private = {name for name in names if name.startswith("_") and name != "__version__"}
    assert names - private - rooms - {"TYPE_CHECKING"} == PUBLIC
    assert all(getattr(cord_trio, name) is not None for name in PUBLIC)


def test_type_checkers_and_programs_see_the_same_names_of_the_same_modules() -> None:
    assert cord_trio.__file__
    tree = ast.parse(Path(cord_trio.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    homes = vars(cord_trio)["_HOME"]
    assert homes == seen
    assert {*homes, "__version__"} == set(cord_trio.__all__)
    assert all(getattr(cord_trio, name) is getattr(import_module(home), name) for name, home in homes.items())


def test_every_error_is_exported() -> None:
    from cord_trio import errors

    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found <= PUBLIC


def test_the_gateway_is_imported_by_those_who_use_it() -> None:
    code = (
        "import sys, cord_trio\n"
        "before = 'cord_trio.gateway' in sys.modules\n"
        "from cord_trio import serve_gateway\n"
        "print(before, serve_gateway.__module__)"
    )
    assert run(code) == "False cord_trio.gateway\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        cord_trio.nonsense  # noqa: B018  # reading it is the point


def test_the_package_alone_imports_nothing_more() -> None:
    code = (
        "import sys, cord_trio; print(sorted(name for name in sys.modules if name.startswith(('cord_trio', 'trio'))))"
    )
    assert run(code) == "['cord_trio', 'cord_trio.version']\n"


def test_importing_it_imports_nothing_that_it_does_not_need() -> None:
    needless = [
        "argparse", "asyncio", "cord_trio.cli", "cord_trio.gateway", "cord_trio.testing", "cryptography", "email",
        "h11", "http.client", "httpx", "joserfc", "multiprocessing", "opentelemetry", "prometheus_client", "pydantic",
        "rich", "tomllib", "trio_websocket", "unittest", "urllib.request", "wsproto",
    ]  # fmt: skip
    code = (
        f"import sys; from cord_trio import open_fabric; print([name for name in {needless!r} if name in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_the_command_line_imports_only_what_its_verb_needs() -> None:
    heavy = ["cord_trio.fabric", "cord_trio.gateway", "httpx", "rich"]
    code = (
        "import sys, cord_trio.cli as cli\n"
        "try: cli.main(['demo', '--servers', '0'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy[1:]!r} if name in sys.modules])"
    )
    assert run(code) == "[]\n"


COST = """
import resource, subprocess, sys
def cost(what):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", what], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
ours = theirs = 9.0
for turn in range(8):  # in turns, since a busy machine makes either dearer for a while; the least is the true cost
    ours, theirs = min(ours, cost("from cord_trio import open_fabric")), min(theirs, cost("import mcp"))
    if turn >= 1 and ours / theirs <= 1 / 3:
        break
print(ours / theirs)
"""


def test_importing_it_costs_at_most_a_third_of_the_official_sdk(tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    # Byte code for both, whatever the environment says about writing it.
    assert float(run(COST, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path))) <= 1 / 3
