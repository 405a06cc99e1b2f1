"""`python -m conformance [--optional] [--quick]`: see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from conformance import build

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

Json: TypeAlias = Any

HERE: Final = Path(__file__).parent
REVISIONS: Final = ("2026-07-28", "2025-11-25")
SERVER_LIMIT: Final = 200
"""Seconds for all server scenarios of a revision; they run one after another."""

CLIENT_LIMIT: Final = 60
"""Seconds for one client scenario, with the start of three interpreters."""

REFERENCES: Final = ("the SDK's everything server", "the SDK's client", "the SDK's client through our gateway")
"""What is only compared with: that client calls a tool which is not listed, and wants a member that may be absent."""

STAMP: Final = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
EVERYWHERE: Final = "wire-schema-valid"
"""The check that every scenario has, whatever it looks at."""


class Suite:
    """The suite, its demands, and where its reports go."""

    def __init__(self, reports: Path) -> None:
        self.folder = build.suite()
        self.node = build.node()
        self.reports = reports
        self.required = {(kind, rev): self._required(kind, rev) for kind in ("server", "client") for rev in REVISIONS}

    def server(self, label: str, url: str, revision: str) -> Mapping[str, str]:
        """How each scored scenario ended against the server at `url`."""
        out = self.reports / label / revision
        self._run(SERVER_LIMIT, out, "server", "--url", url, "--requirements", revision)
        found = read(out)
        return {name: found.get(name, "missing") for name in self.required["server", revision]}

    def client(self, label: str, command: Sequence[str], revision: str) -> Mapping[str, str]:
        """How each scored scenario that needs no authorization ended for a client."""
        ended = {}
        for name in self.required["client", revision]:
            if name.startswith("auth/"):
                continue
            ended[name] = self._play(self.reports / label / revision / name, command, name, revision)
            if ended[name] != "passed":
                # One of them measures half a second, which a busy machine misses; so each has a second try.
                again = self._play(self.reports / label / revision / f"{name}-again", command, name, revision)
                sys.stdout.write(f"{label}: {revision} {name}: {ended[name]}, then {again}\n")
                ended[name] = again
        return ended

    def _play(self, out: Path, command: Sequence[str], name: str, revision: str) -> str:
        """How one client scenario ended."""
        done = self._run(
            CLIENT_LIMIT, out, "client", "--command", shlex.join(command), "--scenario", name,
            "--spec-version", revision, "--timeout", "30000",
        )  # fmt: skip
        checks = set(read(out).values())
        return "failed" if done else "passed" if checks == {"passed"} else ", ".join(checks) or "missing"

    def _run(self, limit: float, out: Path, *words: str) -> int:
        out.mkdir(parents=True)
        command = [str(self.node), str(self.folder / "dist" / "index.js"), *words, "-o", str(out)]
        with (out / "log").open("w") as log:
            try:
                return subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False).returncode
            except subprocess.TimeoutExpired:
                return -1

    def _required(self, kind: str, revision: str) -> Sequence[str]:
        """The scored scenarios: a plain list in a file of YAML."""
        text = (self.folder / "requirements" / f"{revision}.yaml").read_text()
        _, _, section = text.partition(f"\n{kind}:\n")
        lines = re.split(r"^\w", section, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
        return [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]


def read(out: Path) -> Mapping[str, str]:
    """How each scenario ended: "passed" only if a check of its own was made, and none failed."""
    found = {}
    for file in out.rglob("checks.json"):
        name = STAMP.sub("", str(file.parent.relative_to(out))).removeprefix("server-")
        checks: Json = json.loads(file.read_text())
        failed = [check["id"] for check in checks if check["status"] == "FAILURE"]
        made = [check["id"] for check in checks if check["status"] == "SUCCESS" and check["id"] != EVERYWHERE]
        found[name] = f"failed ({', '.join(failed)})" if failed else "passed" if made else "nothing checked"
    return found


@contextmanager
def server(python: Path, source: Path) -> Generator[str]:
    """The URL of the SDK's everything server."""
    path = source / "examples" / "servers" / "everything-server"
    command = [str(python), str(HERE / "everything.py"), "http"]
    with _child(command, {"PYTHONPATH": str(path)}, subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def gateway(url: str, folder: Path) -> Generator[str]:
    """The URL of our gateway in front of `url`."""
    config = folder / "cord.toml"
    config.write_text(f'[sources.server]\nurl = "{url}"\nprefix = ""\n')
    command = [sys.executable, "-m", "cord_trio", "serve", "--http", "127.0.0.1:0", "--config", str(config)]
    with _child(command, {}, None, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        found = None
        while found is None:
            line = process.stderr.readline()
            if not line:
                raise SystemExit("our gateway has not started")
            found = re.search(r"http://\S+/mcp", line)
        yield found.group()


@contextmanager
def _child(
    command: Sequence[str], more: Mapping[str, str], stdout: int | None, stderr: int | None = None
) -> Generator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    with subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=_environment(more)) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(more: Mapping[str, str]) -> Mapping[str, str]:
    """Ours, in which our package and this one are found by interpreters started elsewhere."""
    paths = [str(HERE.parent), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def table(rows: Mapping[tuple[str, str], Mapping[str, Mapping[str, str]]]) -> tuple[str, int]:
    """The scores as text, and how many scenarios of ours did not pass."""
    lines = [f"{'':10}{'':42}" + "".join(f"{revision:>12}" for revision in REVISIONS)]
    notes: list[str] = []
    misses = 0
    for (kind, label), by_revision in rows.items():
        cells = ""
        for revision in REVISIONS:
            ended = by_revision[revision]
            passed = sum(each == "passed" for each in ended.values())
            cells += f"{passed:>8}/{len(ended):<3}"
            missed = [name for name, how in ended.items() if how != "passed"]
            notes += [f"{kind}: {label}: {revision} {name}: {ended[name]}" for name in missed]
            misses += 0 if label in REFERENCES else len(missed)
        lines.append(f"{kind:10}{label:42}{cells}")
    return "\n".join([*lines, *notes]), misses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description="The official suite against cord_trio.")
    parser.add_argument("--optional", action="store_true", help="where it cannot be installed, say so and exit 0")
    parser.add_argument(
        "--quick", action="store_true", help="leave out the SDK's client, which is only to compare with"
    )
    parser.add_argument("--reports", type=Path, help="folder for the suite's reports (a temporary one)")
    args = parser.parse_args()
    began = time.monotonic()
    os.environ.update(_environment({}))
    with tempfile.TemporaryDirectory(prefix="cord-trio-conformance-") as temporary:
        try:
            suite = Suite(args.reports or Path(temporary))
            python, source = build.sdk(build.SDK2)
        except build.CannotBuildError as exc:
            sys.stdout.write(f"skipped: {exc}\n" if args.optional else f"cannot install the suite: {exc}\n")
            return 0 if args.optional else 1
        sys.stdout.write(f"installed, {time.monotonic() - began:.0f} s\n")
        rows: dict[tuple[str, str], Mapping[str, Mapping[str, str]]] = {}
        with server(python, source) as url, gateway(url, Path(temporary)) as own:
            for label, address in (("the SDK's everything server", url), ("the same behind our gateway", own)):
                rows["server", label] = {rev: suite.server(label, address, rev) for rev in REVISIONS}
        ours = [sys.executable, "-m", "conformance.client"]
        through = [sys.executable, "-m", "conformance.through"]
        theirs = [str(python), str(source / ".github" / "actions" / "conformance" / "client.py")]
        clients = {"our client": ours, "the SDK's client": theirs}
        clients |= {f"{label} through our gateway": [*through, *command] for label, command in clients.items()}
        for label, command in clients.items():
            if not (args.quick and label in REFERENCES):
                rows["client", label] = {rev: suite.client(label, command, rev) for rev in REVISIONS}
    shown, misses = table(rows)
    sys.stdout.write(f"{shown}\n{time.monotonic() - began:.0f} s\n")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
