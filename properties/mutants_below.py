# ruff: noqa: E501  # the code is quoted as it stands
"""Seeded faults in what is below agents: pending table, cells, registry, layers, links, drain."""

from __future__ import annotations

from typing import Final

BELOW: Final[list[tuple[str, str, str]]] = [
    # The pending table
    ("protocol/peer.py", "        self._next = id + 1\n", "        self._next = id + (id % 3 > 0)\n"),
    ("protocol/peer.py", "        return self.open.pop(id, None)\n\n    def close_all", "        return self.open.get(id)\n\n    def close_all"),
    ("protocol/peer.py", "            yield id, self.open.pop(id)\n", "            yield id, self.open.pop(id)\n            break\n"),
    ("protocol/peer.py", "namesake = self.open.pop(number, None)", "namesake = None"),
    ("protocol/peer.py", "        if key in self.asked:\n            return False\n", ""),
    ("protocol/peer.py", "0 < number < self._next", "0 < number <= self._next + 1"),
    # A call
    ("pending.py", "        executed = self.session.executed(self.id)\n", '        executed = "no"\n'),
    ("pending.py", 'self.session.withdraw(self, "the caller was cancelled")', "self.session.peer.abandon(self.id)"),
    ("pending.py", '        self.session.withdraw(self, "the deadline passed")\n', "        self.session.peer.abandon(self.id)\n"),
    ("session.py", "        if self.transport.withdraw(pending.id) or not pending.cancellable:\n            return\n", "        if not pending.cancellable:\n            return\n"),
    ("session.py", "        if self.peer.abandon(pending.id) is None:\n            return\n        self._counters", "        self.peer.abandon(pending.id)\n        self._counters"),
    ("pending.py", "            timer.discard(self)\n", "            pass\n"),
    ("session.py", '"unknown" if written(id) else "no"', '"no" if written(id) else "unknown"'),
    ("session.py", "                pending = waiting.pop(message.id, None)  #", "                pending = waiting.get(message.id, None)  #"),
    ("session.py", "        except BaseException as exc:\n            self.peer.abandon(id)\n", "        except BaseException as exc:\n"),
    ("session.py", "        if self._loss is not None:\n            raise ConnectionLost(self._loss, \"no\")\n", ""),
    ("session.py", "        if deadline > pending.deadline:\n", "        if deadline != pending.deadline:\n"),
    ("session.py", "self.peer.close(next(iter(self.peer.open)))", "None"),
    # Cells and the timer
    ("cell.py", "        if self.settled:\n            return False\n", ""),
    ("cell.py", "            self.settled = True\n            self._task = None\n            abandoned()\n", "            self._task = None\n            abandoned()\n"),
    ("cell.py", "            await trio.lowlevel.cancel_shielded_checkpoint()\n", "            await trio.lowlevel.checkpoint()\n"),
    ("cell.py", "            self._scope.deadline = deadline\n", "            pass\n"),
    ("cell.py", "if deadline <= now]", "if deadline < now]"),
    ("cell.py", "                if self._waiting.pop(cell, None) is not None:\n                    expired()\n", "                self._waiting.pop(cell, None)\n                expired()\n"),
    # The registry
    ("registry.py", "            if update.epoch <= view.epoch:\n", "            if update.epoch < view.epoch:\n"),
    ("registry.py", "        version = old.version + 1\n", "        version = old.version + len(sources)\n"),
    ("registry.py", "        if any(view is not old.sources[name] for name, view in sources.items()):\n", "        if True:\n"),
    ("registry.py", "        watchers, self._watchers = self._watchers, {}\n", "        watchers = self._watchers\n"),
    ("registry.py", "        for watcher in watchers:\n            watcher.settle(None)\n", "        pass\n"),
    ("registry.py", "        if self.snapshot.version > since:\n", "        if self.snapshot.version >= since:\n"),
    ("registry.py", "        sources = dict(old.sources)\n        applied", "        sources = getattr(old.sources, 'copy', dict)() if not self._watchers else dict(reversed(list(old.sources.items())))\n        applied"),
    ("registry.py", "            ack.settle(self.snapshot)\n", "            ack.settle(old)\n"),
    ("registry.py", "            ack.fail(trio.BrokenResourceError())\n", "            pass\n"),
    ("registry.py", 'listed_tools=version if "tools" in changed else old.listed_tools', "listed_tools=old.listed_tools"),
    # Layers
    ("layers/limit.py", "            if gate.taken < gate.size:\n", "            if gate.taken <= gate.size:\n"),
    ("layers/limit.py", "cell, _ = self.queue.popitem(last=False)", "cell, _ = self.queue.popitem()"),
    ("layers/limit.py", "        self.queue.pop(cell, None)\n        self._timer.discard(cell)\n", "        self._timer.discard(cell)\n"),
    ("layers/limit.py", "        if len(self.queue) >= self._bound:\n", "        if len(self.queue) > self._bound:\n"),
    ("layers/limit.py", "            cell.settle(None)\n        else:\n            self.taken -= 1\n", "            self.taken -= 1\n            cell.settle(None)\n        else:\n            self.taken -= 1\n"),
    ("layers/rate.py", "        if self._queue:\n            return False\n        now", "        now"),
    ("layers/rate.py", "self._slack = (burst - 1) * self._interval", "self._slack = burst * self._interval"),
    ("layers/rate.py", "        self._drop(cell)\n        self._arm()\n", "        self._drop(cell)\n"),
    ("layers/rate.py", "        self.full = max(self.full, now) + self._interval\n        return True", "        self.full = self.full + self._interval\n        return True"),
    ("layers/rate.py", "            cell, _ = self._queue.popitem(last=False)\n", "            cell, _ = self._queue.popitem()\n"),
    ("layers/retry.py", '        if error.executed == "unknown" and not may_run_twice(call):\n            return None\n', ""),
    ("layers/retry.py", "        if again + 1 > self._reserve", "        if again > self._reserve"),
    ("layers/retry.py", "        if not clock() + pause < call.deadline:\n            return None\n", ""),
    ("layers/retry.py", "call.attempt >= attempts", "call.attempt > attempts"),
    ("layers/retry.py", '                            exc.executed = "unknown"  #', '                            pass  #'),
    ("layers/retry.py", "        current[2] += 1\n", ""),
    ("layers/deadline.py", "            if now + seconds >= inherited:\n                return handler(call)\n", ""),
    ("layers/deadline.py", "latest = min(inherited, now + longest)", "latest = now + longest"),
    # A link
    ("link.py", "                    self._refuse()  #", "                    pass  #"),
    ("link.py", "            self._dismiss()  # at once", "            pass  # at once"),
    ("link.py", "            cell.settle(client)\n", "            pass\n"),
    ("link.py", "            self._around.timer.discard(cell)\n\n    def _late", "            pass\n\n    def _late"),
    ("link.py", "        self._waiting.pop(cell, None)\n        cell.fail(DeadlineExceeded", "        cell.fail(DeadlineExceeded"),
    # The drain, and the ends of a connection in this process
    ("fabric.py", "        if self.draining.is_set():\n            raise Draining\n        limit", "        limit"),
    ("fabric.py", "        if self.draining.is_set():\n            raise Draining\n        return super", "        return super"),
    # Sources that come and go
    ("sources.py", "while slots.taken or slots.waiting or link.asks:", "while slots.waiting:"),
    ("sources.py", "if name in before and after[name] != before[name])", "if name in before)"),
    ("sources.py", "            self._retire(name)\n", "            self.links[name].end('gone')\n"),
    ("sources.py", "epoch=epoch, before=self.links.get(name))", "epoch=epoch)"),
    ("registry.py", "view = attrs.evolve(view, epoch=epochs[name], ", "view = attrs.evolve(view, "),
    # What is written together
    ("transports/lines.py", "            self._gathering = False\n            if", "            if"),
    ("transports/lines.py", "        if self._backlog and self._writing:\n            self._start_flush()\n", ""),
    ("transports/lines.py", "        if not self._waiting_bytes:\n            backlog.clear()\n            self._begun = 0\n", "        if not self._waiting_bytes:\n            self._begun = 0\n"),
    ("fabric.py", "        with trio.move_on_after(grace):\n            await self._wait_done()\n", "        with trio.move_on_after(grace):\n            await self._wait_quiet()\n"),
    ("fabric.py", "        with trio.move_on_after(grace):\n            await self._wait_done()\n", "        await self._wait_done()\n"),
    ("fabric.py", "        self._running -= 1\n", "        self._running = max(0, self._running - 2)\n"),
    ("fabric.py", "        if not self._running:\n            self._quiet.set()\n", "        pass\n"),
    ("fabric.py", "        if self._running >= limit:\n", "        if self._running > limit:\n"),
    ("fabric.py", "                    await fabric.drain(config.gateway.grace)\n", ""),
    ("transports/memory.py", "        peer._inbox_bytes -= len(message)\n        self._relieve()\n        return True\n", "        return True\n"),
    ("transports/memory.py", "        self._peer._unsent |= self._inbox.keys()\n", ""),
]  # fmt: skip
"""(file, what stands there once, what it becomes)."""

TESTS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "protocol/": (("properties/test_peer.py", "properties/test_calls.py"), ("tests/protocol/test_peer.py", "tests/test_session.py")),
    "session.py": (("properties/test_calls.py",), ("tests/test_session.py",)),
    "cell.py": (("properties/test_cells.py", "properties/test_calls.py"), ("tests/test_cell.py",)),
    "registry.py": (("properties/test_registry.py", "properties/test_reconfiguring.py"), ("tests/test_registry.py", "tests/test_reconfiguring.py")),
    "layers/": (("properties/test_layers.py",), ("tests/layers",)),
    "link.py": (("properties/test_programs.py", "properties/test_fabric.py"), ("tests/test_link.py", "tests/test_fabric.py")),
    "fabric.py": (("properties/test_programs.py", "properties/test_fabric.py"), ("tests/test_fabric.py", "tests/test_fabric_agents.py", "tests/test_reconfiguring.py")),
    "pending.py": (("properties/test_calls.py",), ("tests/test_session.py",)),
    "sources.py": (("properties/test_reconfiguring.py",), ("tests/test_reconfiguring.py",)),
    "transports/lines.py": (("properties/test_invariants.py",), ("tests/transports/test_lines.py",)),
    "transports/": (("properties/test_calls.py",), ("tests/transports/test_memory.py", "tests/test_session.py")),
}  # fmt: skip
"""What to run for faults in which files; properties first."""
