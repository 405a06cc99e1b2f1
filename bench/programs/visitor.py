"""Clients of a gateway that come and go: `python -I -S visitor.py PORT SEED FIRST RECORD TOOL,…`, until stdin ends.

A few at a time, of either era; some leave in the middle of a call. Each call has a number of its own, from FIRST on,
and leaves a line in RECORD: the number, and `answer`, `wrong`, `no` (an error that says that it has not run), `error`
or `left`. Standard library only.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import sys
import threading
import time

AT_ONCE = 4
PATIENCE = 15
"""Seconds for any answer; none within is `lost`."""
META = "io.modelcontextprotocol/"
CLIENT = {"name": "visitor", "version": "1"}


class Visit:
    """One client, from its coming to its leaving."""

    def __init__(self, port, modern):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.modern = modern
        self.session = ""
        self.ids = itertools.count(1)

    def send(self, method, params, name="", notify=False):
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        message = {"jsonrpc": "2.0", "method": method, "params": dict(params)}
        if not notify:
            message["id"] = next(self.ids)
        if self.modern:
            headers |= {"mcp-protocol-version": "2026-07-28", "mcp-method": method}
            if name:
                headers["mcp-name"] = name
            message["params"]["_meta"] = {
                META + "protocolVersion": "2026-07-28", META + "clientInfo": CLIENT, META + "clientCapabilities": {},
            }  # fmt: skip
        elif method != "initialize":
            headers |= {"mcp-protocol-version": "2025-11-25", "mcp-session-id": self.session}
        self.connection.request("POST", "/mcp", json.dumps(message), headers)

    def read(self):
        response = self.connection.getresponse()
        text = response.read().decode()
        self.session = response.headers.get("mcp-session-id", self.session)
        return text

    def come(self):
        if not self.modern:
            told = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT}
            self.send("initialize", told)
            self.read()
            self.send("notifications/initialized", {}, notify=True)
            self.read()

    def call(self, tool, n, *, leave):
        self.send("tools/call", {"name": tool, "arguments": {"n": n, "text": "v"}}, tool)
        if leave:
            return "left"
        text = self.read()
        if f'"{n}:1"' in text:
            return "answer"
        if '"cord-trio/executed":"no"' in text.replace(" ", ""):
            return "no"
        return "error" if '"isError":true' in text.replace(" ", "") or '"error"' in text else "wrong"

    def go(self):
        if self.session:
            self.connection.request("DELETE", "/mcp", headers={"mcp-session-id": self.session})
            self.connection.getresponse().read()


def keep_visiting(port, rng, numbers, record, tools):
    while True:
        visit = Visit(port, rng.random() < 0.5)
        n = None
        try:
            visit.come()
            for _ in range(rng.randrange(1, 8)):
                n = next(numbers)
                leave = rng.random() < 0.05
                got = visit.call(rng.choice(tools), n, leave=leave)
                os.write(record, f"{n} {got}\n".encode())
                n = None
                time.sleep(rng.uniform(0.02, 0.1))
                if leave:
                    break
            else:
                visit.go()
        except TimeoutError:
            os.write(record, f"{n or 0} lost\n".encode())
        except (OSError, http.client.HTTPException):
            os.write(record, f"{n or 0} broken\n".encode())
            time.sleep(0.2)
        visit.connection.close()


def main():
    port, seed, first, path, tools = sys.argv[1:]
    record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    numbers = itertools.count(int(first))
    for index in range(AT_ONCE):
        rng = random.Random(int(seed) * 100 + index)
        args = (int(port), rng, numbers, record, tools.split(","))
        threading.Thread(target=keep_visiting, args=args, daemon=True).start()
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
