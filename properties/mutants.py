# ruff: noqa: E501, T201  # the code is quoted as it stands; a program prints
"""Seeded faults: `python -m properties.mutants [PART ...]` breaks the code in one place at a time.

For each fault the tests that should see it are run on a copy, two faults at once; a fault that they do not see is
printed as SURVIVED, and is a test that is missing, or a line that nothing needs. Exit 1 if there is one.

All take an hour and more. `--results FILE` keeps what became of each, and goes on from there the next time; `--minutes N`
begins no other fault after so many; `--write` puts the table of what was kept into the docs. What was kept of a fault
counts as long as it reads the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from properties.mutants_apart import APART, TESTS_APART
from properties.mutants_below import BELOW, TESTS

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parents[1]
COPIED: Final = ("src", "docs", "tests", "properties", "conftest.py", "pyproject.toml")

UNSHRUNK: Final = """
from hypothesis import Phase
settings.register_profile("unshrunk", max_examples=50, deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("unshrunk")
"""
"""Added to the copy's conftest.py: that a test fails is enough, nobody reads the example."""

PAGE: Final = ROOT / "docs" / "faults.md"
BEGIN: Final = "<!-- the seeded faults, by python -m properties.mutants --write -->\n"
END: Final = "<!-- end of the seeded faults -->"

LIMIT: Final = 120.0
"""Seconds for one run of tests, after which the fault counts as seen: it made something hang."""

AGENTS: Final = (
    ("tests/agents",),
    (
        *("properties/test_agents.py", "properties/test_agent_programs.py", "properties/test_budgets.py"),
        *("properties/test_resuming.py", "properties/test_supervision.py", "properties/test_every_step.py"),
    ),
)
"""What to run for faults in agents; the quick ones first. For the others see `mutants_below`."""


@attrs.frozen
class Fault:
    """`old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip().splitlines()[0]} -> {(self.new.strip() or 'nothing').splitlines()[0]}"


FAULTS: Final = [
    Fault(f"agents/{file}.py", old, new)
    for file, old, new in [
        ("post", '            envelope.scope.cancel("whoever asked has gone")', "            pass"),
        ("post", "            envelope.ended = trio.Event()\n", "            pass\n"),
        ("post", "        envelope.abandoned = True\n", "        pass\n"),
        ("post", "                scope.deadline = deadline  #", "                pass  #"),
        ("post", "                scope.deadline = math.inf\n", "                pass\n"),
        ("post", "            more = more - 1 if more else QUANTUM - 1\n", "            more = QUANTUM\n"),
        ("turn", "if len(self._queue) >= WAITING:", "if len(self._queue) > WAITING:"),
        ("mailbox", "if len(self._overflow) >= WAITING:", "if len(self._overflow) > WAITING:"),
        ("post", "if len(self._alarms) >= MAX_ALARMS:", "if len(self._alarms) > MAX_ALARMS:"),
        ("directory", "if self._forwarded >= MAX_FORWARDED:", "if self._forwarded > MAX_FORWARDED:"),
        ("job", "if len(self.ended) > MAX_ENDED:", "if len(self.ended) > MAX_ENDED + 1:"),
        ("budget", "        self.refund()\n\n    @trio", "        pass\n\n    @trio"),
        ("context", "if not agent.may_call(tool):", "if not agent.may_call(tool) and not self.transcript:"),
        (
            "conversation",
            "            await trio.lowlevel.checkpoint_if_cancelled()\n    finally",
            "            await trio.lowlevel.checkpoint()\n    finally",
        ),
        ("post", "                    envelope.asker.release(scope)\n", "                    pass\n"),
        ("post", "asker is not None and asker.deadline == deadline:", "False:"),
        ("answering", "        for scope in self._bound:\n            scope.deadline = deadline\n", ""),
        (
            "conversation",
            "                    _refuse_several(agents, branch, agent, answer)\n",
            "                    pass\n",
        ),
        ("post", "            elif envelope.abandoned:\n                more = 0\n", ""),
        ("post", "                box.put_back(envelope)\n", "                pass\n"),
        (
            "post",
            "                if not settled:  # cancelled\n                    envelope.fail(self._interrupted(life, scope.deadline))\n",
            "",
        ),
        ("post", "if envelope.abandoned or envelope.generation not in (0, life.generation):", "if envelope.abandoned:"),
        ("post", "if envelope.abandoned or envelope.generation not in", "if envelope.generation not in"),
        ("resident", "if generation not in (0, life.generation):", "if False:"),
        ("resident", "            agent.generation += 1\n", "            pass\n"),
        (
            "post",
            "        self._resident.crashed(life, exc)\n\n    def _interrupted",
            "        pass\n\n    def _interrupted",
        ),
        ("post", "                del turn.holders[branch]\n", ""),
        ("post", "                    life.left()\n", "                    pass\n"),
        ("mailbox", "            self._turn.park(envelope.branch)\n        if old", "            pass\n        if old"),
        (
            "mailbox",
            "        self._turn.park(envelope.branch)\n        envelope.room",
            "        pass\n        envelope.room",
        ),
        (
            "mailbox",
            "            self._left(envelope)\n        return envelope",
            "            pass\n        return envelope",
        ),
        ("mailbox", "                self._left(envelope)\n                return True", "                return True"),
        ("mailbox", "            self._keyed[envelope.key] = envelope\n        else", "            pass\n        else"),
        ("mailbox", "            if on and _same(queue[0].context, task.context):", "            if on:"),
        ("mailbox", "all(other.get(var, other) is value for", "all(other.get(var, other) == value for"),
        ("mailbox", "len(queue) >= self.size", "len(queue) > self.size"),
        ("mailbox", "            task.context = envelope.context\n            trio", "            trio"),
        ("mailbox", "            task.context = envelope.context  # in", "            pass  # in"),
        (
            "mailbox",
            "            await trio.lowlevel.checkpoint_if_cancelled()\n            envelope = self._pop(queue)",
            "            envelope = self._pop(queue)\n            await trio.lowlevel.checkpoint()",
        ),
        ("mailbox", "        envelope = queue.popleft()\n", "        envelope = queue.pop()\n"),
        ("mailbox", "self._overflow.popitem(last=False)", "self._overflow.popitem(last=True)"),
        ("mailbox", "waiter.branch.waits = waiter.branch.parent = None", "pass"),
        ("supervisor", "reversed(affected):\n            await", "affected:\n            await"),
        ("supervisor", ">= self.supervisor.max_restarts", "> self.supervisor.max_restarts"),
        ("supervisor", "<= now - self.supervisor.within", "<= now"),
        ("supervisor", "or end.incarnation != member.incarnation", "or False"),
        (
            "supervisor",
            "            if self._agents.draining.is_set():\n                other",
            "            if False:\n                other",
        ),
        (
            "supervisor",
            "        if self._agents.draining.is_set():\n            member.go",
            "        if False:\n            member.go",
        ),
        (
            "supervisor",
            "self.members[self.members.index(member) :]",
            "self.members[self.members.index(member) + 1 :]",
        ),
        ("supervisor", "            agents.fail(failure)", "            pass"),
        ("supervisor", "        failure.__cause__ = end.cause\n", "        pass\n"),
        ("supervisor", "        self._scope.cancel(reason)\n", ""),
        ("supervisor", "        self._restarts.clear()\n", ""),
        ("supervisor", "            self.parent.ended(End(self, self.incarnation, True, str(failure), failure))\n", ""),
        ("resident", "            while life is None or life.over", "            if life is None or life.over"),
        ("turn", "if self.reentrant:\n                    return True", "if True:\n                    return True"),
        ("turn", "len(turn.holders) < turn.size or any(", "any("),
        (
            "turn",
            "        if self.holders.pop(branch, self) is self:\n            return\n",
            "        self.holders.pop(branch, self)\n",
        ),
        ("conversation", "        branch.account = asker\n", "        pass\n"),
        (
            "conversation",
            "elif not (giver.every_agent or giver.granted.get(target) or giver.may_ask(target)):",
            "elif False:",
        ),
        ("conversation", "elif branch.children:", "elif False:"),
        ("conversation", "generation, transfer = 0, True", "generation, transfer = generation, True"),
        ("conversation", "                branch.account.hop(giver.name)", "                pass"),
        (
            "budget",
            "account.spent[counter] + account.reserved[counter] + amount > limit",
            "account.spent[counter] + amount > limit",
        ),
        ("budget", "        self.refund()\n        account._spend", "        account._spend"),
        (
            "budget",
            "                account.spent[counter] += amount\n                account = account.parent",
            "                account.spent[counter] += amount\n                account = None",
        ),
        ("budget", '                    if exc.executed != "no":\n', '                    if exc.executed == "yes":\n'),
        ("budget", "reserved.settle(calls=calls, bytes=size)  # cancelled: it may have run", "pass"),
        ("job", "if saved.calls and not force:", "if False:"),
        (
            "job",
            "            await self._keep(replace(self._saved, calls=self._saved.calls | {tool}))",
            "            self._saved = replace(self._saved, calls=self._saved.calls | {tool})",
        ),
        ("job", "        if not self._calls[tool] and", "        if"),
        ("stream", '        nursery.cancel_scope.cancel("the block of the stream was left")', "        pass"),
        (
            "crew",
            '            self._nursery.cancel_scope.cancel(f"another that was spawned failed: {exc!r}")',
            "            pass",
        ),
        ("directory", "                await agents.stop()", "                pass"),
        ("directory", "        agents.end()", "        pass"),
        (
            "directory",
            "for agent in reversed(list(self.by_name.values())):",
            "for agent in list(self.by_name.values()):",
        ),
        ("job", "calls=self._still_flying()))", "calls=frozenset()))"),
        ("job", " or self._written < self._asked", ""),
        ("job", "            ended.add(job.id)\n", "            pass\n"),
        ("job", "                await self.forget(id)  # it may have been written\n", "                pass\n"),
        (
            "context",
            '            if exc.executed != "no" or answer is not None:  # it is known of the last round alone\n                raise\n',
            "            pass\n",
        ),
        ("resident", "        self._scope.deadline = math.inf\n", "        pass\n"),
        ("turn", "waiter, cell = self._queue.popitem(last=False)", "waiter, cell = self._queue.popitem()"),
        ("turn", "            self.holders[waiter] = None\n", "            pass\n"),
        ("turn", "            self.release(branch)\n            raise\n", "            raise\n"),
        ("turn", "if len(self.holders) >= self.size:", "if len(self.holders) > self.size:"),
        ("turn", "        del self._queue[branch]\n", "        pass\n"),
        ("turn", "        if circle:\n            branch.waits = None\n", "        if circle:\n"),
        ("conversation", "branch.hops >= agents.max_hops", "branch.hops > agents.max_hops"),
        (
            "conversation",
            "            transcript = tuple(answer.keep(transcript))\n",
            "            answer.keep(transcript)\n",
        ),
        ("conversation", "    finally:\n        del siblings[branch]\n", "    finally:\n        siblings.clear()\n"),
        ("supervisor", "            self._restarts.append(trio.current_time())\n", "            pass\n"),
        (
            "supervisor",
            "                return [member]\n",
            "                return [one for one in self.members if one.down is None]\n",
        ),
        (
            "supervisor",
            'agents.monitors.tell(Notice(name.partition("#")[0], end.incarnation, "gave_up", failure))',
            "pass",
        ),
        ("supervisor", "            self._ended.append(end)\n", "            self._ended.appendleft(end)\n"),
        ("context", "            return self.snapshot.tools\n", "            return self._agents.snapshot().tools\n"),
        ("agent", "self.every_tool or any(fnmatchcase(tool, pattern) for pattern in self.tools)", "True"),
        (
            "resident",
            "        self._scope.deadline = trio.current_time() + self.agent.grace  # for leaving the state\n",
            "        pass\n",
        ),
    ]
] + [Fault(file, old, new) for file, old, new in BELOW + APART]


@attrs.frozen
class Found:
    """What became of a fault, by its `key_of`: the test that saw it, empty if none did, and the seconds it took."""

    fault: str
    test: str
    seconds: float


class CannotRun(Exception):
    """The tests did not run, so nothing is known of a fault; says what pytest said last."""


def seen(copy: Path, fault: Fault) -> str:
    """The test that sees the fault in `copy`; empty if none does."""
    folder = copy.parent / f"{copy.name}.tmp"
    folder.mkdir(exist_ok=True)
    more = {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
    for tests in next(
        (tests for start, tests in {**TESTS_APART, **TESTS}.items() if fault.file.startswith(start)), AGENTS
    ):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        with subprocess.Popen(
            command, cwd=copy, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                return "something hangs"
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)  # what the broken code has left of its children, too
                except ProcessLookupError:
                    pass
        if process.returncode:
            failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
            if not failed:
                raise CannotRun((said.strip() or "nothing").splitlines()[-1])
            return failed[0].split(" - ")[0].rpartition("::")[2]
    return ""


def copy_into(copy: Path) -> None:
    """All that the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    with (copy / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(UNSHRUNK)


class Run:
    """Faults that are tried, several at once, each in a copy of its worker's.

    Args:
        faults: to be tried.
        results: the file to add to; None for none.
        until: by `time.monotonic`, after which no other is begun.

    """

    def __init__(self, faults: Iterable[Fault], results: Path | None, until: float) -> None:
        self.found: list[Found] = []
        self._faults = iter(list(faults))
        self._results = results
        self._until = until
        self._next = threading.Lock()  # between threads, which wait for processes; there is no Trio here

    def work(self, copy: Path) -> None:
        """Try one after the other in `copy`."""
        copy_into(copy)
        while (fault := self._take()) is not None:
            path = copy / "src" / "cord_trio" / fault.file
            whole = path.read_text("utf-8")
            began = time.monotonic()
            if whole.count(fault.old) != 1:
                test = ""
            else:
                path.write_text(whole.replace(fault.old, fault.new), "utf-8")
                try:
                    test = seen(copy, fault)
                except CannotRun as exc:
                    print(f"NOT TRIED  {fault}  since the tests cannot run: {exc}", flush=True)
                    continue
                finally:
                    path.write_text(whole, "utf-8")
            self._tell(fault, Found(key_of(fault), test, round(time.monotonic() - began, 1)))

    def _take(self) -> Fault | None:
        with self._next:
            return next(self._faults, None) if time.monotonic() < self._until else None

    def _tell(self, fault: Fault, found: Found) -> None:
        with self._next:
            self.found.append(found)
            print(f"{'seen' if found.test else 'SURVIVED'}  {fault}  by {found.test or 'nobody'}", flush=True)
            if self._results is not None:
                with self._results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(attrs.asdict(found)) + "\n")


def key_of(fault: Fault) -> str:
    """Which fault it is, as long as it reads the same."""
    return json.dumps([fault.file, fault.old, fault.new])


def kept(results: Path) -> dict[str, Found]:
    """What became of which faults, the newest of each, in the present list alone."""
    known = {key_of(fault) for fault in FAULTS}
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    every = (Found(**json.loads(line)) for line in lines)
    return {found.fault: found for found in every if found.fault in known}


def table(found: dict[str, Found]) -> str:
    """By file: how many there are, were tried and seen, and those that no test saw."""
    of_file = Counter(fault.file for fault in FAULTS)
    tried = Counter(json.loads(one.fault)[0] for one in found.values())
    was_seen = Counter(json.loads(one.fault)[0] for one in found.values() if one.test)
    lines = ["| file | faults | tried | seen |", "|---|---|---|---|"]
    lines += [f"| `{file}` | {of_file[file]} | {tried[file]} | {was_seen[file]} |" for file in sorted(of_file)]
    lines.append(f"| all | {len(FAULTS)} | {sum(tried.values())} | {sum(was_seen.values())} |")
    survived = [fault for fault in FAULTS if key_of(fault) in found and not found[key_of(fault)].test]
    lines += ["", "Not seen: " + ("; ".join(f"`{fault}`" for fault in survived) or "none") + "."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m properties.mutants", description="Try seeded faults.")
    parser.add_argument("parts", nargs="*", help="only faults in whose file or text one of these is")
    parser.add_argument("--results", type=Path, help="keep what became of each here, and go on from it")
    parser.add_argument("--minutes", type=float, default=180.0, help="begin no other fault after so many (180)")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once (2)")
    parser.add_argument("--write", action="store_true", help="put the table of what was kept into the docs")
    options = parser.parse_args(arguments)
    done = {} if options.results is None else kept(options.results)
    chosen = [fault for fault in FAULTS if not options.parts or any(part in str(fault) for part in options.parts)]
    # Who names a fault that was not seen wants to know about it again.
    chosen = [fault for fault in chosen if not (one := done.get(key_of(fault))) or (options.parts and not one.test)]
    run = Run(chosen, options.results, time.monotonic() + options.minutes * 60)
    with tempfile.TemporaryDirectory() as folder:
        workers = [threading.Thread(target=run.work, args=(Path(folder) / str(job),)) for job in range(options.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = {**done, **{one.fault: one for one in run.found}}
    print(f"{len(run.found)} tried now, {len(found)} of {len(FAULTS)} in all")
    if options.write:
        before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        PAGE.write_text(before + begin + table(found) + end + after, "utf-8")
    return 0 if all(one.test for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
