"""Reported failures of framing, with real child processes from the fabric's call down."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from cord_trio.config import Bounds, Config
from cord_trio.fabric import open_fabric
from cord_trio.protocol import jsonrpc
from cord_trio.testing import ToolServer
from tests.cases.servers import noise, program, scripted
from tests.gateway.fakes import FakeFabric, echo, initialize, legacy, open_pipe

SEPARATORS = "a\u2028b\u2029c\u0085d"

GATE = """
import trio
import cord_trio as cord
from cord_trio.gateway import serve_gateway

async def main():
    async with cord.open_fabric() as fabric:
        await serve_gateway(fabric, stdio=True)

trio.run(main)
"""
"""A gateway on stdin and stdout, without sources."""


async def test_f01_noise_before_and_between_replies_is_kept_and_disturbs_nothing() -> None:
    server = scripted(
        """
put(b"Server v1 ready\\n[INFO] loaded\\n")
def before(message):
    if message.get("method") == "tools/call": put(b"[INFO] calling\\n")
"""
    )
    async with open_fabric([server]) as fabric:
        for number in range(2):
            assert (await fabric.call("it__echo", {"text": str(number)})).text == str(number)
        assert noise(fabric) == ["Server v1 ready", "[INFO] loaded", "[INFO] calling", "[INFO] calling"]
        assert fabric.counters["session.noise"] == 4
        assert fabric.links["it"].starts == 1


async def test_f02_blank_lines_are_no_event_and_disturb_no_other_server() -> None:
    blanks = 'put(b"\\n  \\n\\r\\n")\ndef before(message): put(b"\\n \\t \\n\\r\\n\\n")'
    async with open_fabric([scripted(blanks, "blanks"), scripted(name="good")]) as fabric:
        for name in ("blanks", "good", "blanks"):
            assert (await fabric.call(f"{name}__echo", {"text": name})).text == name
            assert noise(fabric, name) == []
        assert fabric.counters["session.noise"] == fabric.counters["stdio.noise"] == 0


async def test_f04_separators_come_back_unchanged_through_a_child_and_the_gateway() -> None:
    async with open_fabric([scripted()]) as fabric:
        assert (await fabric.call("it__echo", {"text": SEPARATORS})).text == SEPARATORS
        assert noise(fabric) == []
    async with open_pipe(FakeFabric(echo=echo)) as client:
        await client.ask(initialize())
        raw = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"t":"%s"}}}'
        (answer,) = await client.ask((raw % SEPARATORS).encode())
        assert jsonrpc.parse(answer["result"]["content"][0]["text"].encode()) == {"t": SEPARATORS}


async def test_f05_a_server_that_ends_lines_with_crlf_is_understood() -> None:
    for server in (scripted('END = b"\\r\\n"'), ToolServer(crlf=True, name="it").source()):
        async with open_fabric([server]) as fabric:
            assert (await fabric.call("it__echo", {"text": "x"})).text == "x"
            assert noise(fabric) == []


def test_f05_f06_f12_f13_f20_our_stdio_takes_any_line_and_writes_plain_ones() -> None:
    """One child for all: CRLF, bytes that are no UTF-8, a foreign framing, bad messages, an ASCII locale."""
    name = "řžš→世界😀"
    lines = [
        initialize() + b"\r\n",
        b"\xff\xfe\n",
        b"Content-Length: 58\r\n\r\n",
        b"{this is not json\n",
        b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":null}\n',
        b'[{"jsonrpc":"2.0","id":4,"method":"ping"},{"jsonrpc":"2.0","id":5,"method":"ping"}]\n',
        legacy(6, "tools/list") + b"\n",
        legacy("1", "tools/call", {"name": "WORD"}).replace(b"WORD", name.encode()) + b"\r\n",
        legacy(2, "ping") + b"\r\n",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", GATE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    ) as gate:
        try:
            assert gate.stdin is not None
            assert gate.stdout is not None
            gate.stdin.write(b"".join(lines))
            gate.stdin.flush()
            out = [gate.stdout.readline() for _ in range(9)]
            gate.stdin.close()
            assert gate.stdout.read() == b""
            assert gate.wait(20) == 0
        finally:
            gate.kill()
    assert not any(b"\r" in line for line in out)
    answers = [jsonrpc.parse(line) for line in out]
    broken = [answer["error"] for answer in answers if answer.get("id") is None]
    assert [error["code"] for error in broken] == [-32700, -32700, -32700, -32600]
    assert "Content-Length" in broken[1]["message"]
    by_id = {answer["id"]: answer for answer in answers if answer.get("id") is not None}
    assert name in str(by_id["1"])
    assert by_id[2]["result"] == {}
    assert by_id[3]["error"]["code"] == -32602
    assert by_id[6]["result"] == {"tools": []}


async def test_f06_a_hundred_lines_of_random_bytes_between_a_hundred_calls() -> None:
    server = scripted(
        """
import random
rng = random.Random(6)
def before(message):
    line = bytes(rng.randrange(128, 256) for _ in range(20))
    if message.get("method") == "tools/call": put(line + b"\\n")
"""
    )
    async with open_fabric([server]) as fabric:
        for number in range(100):
            assert (await fabric.call("it__echo", {"text": str(number)})).text == str(number)
        assert fabric.counters["session.noise"] == 100
        assert fabric.links["it"].starts == 1


async def test_f06_the_gateway_answers_random_bytes_and_goes_on() -> None:
    rng = random.Random(6)
    async with open_pipe(FakeFabric(echo=echo)) as client:
        await client.ask(initialize())
        for number in range(100):
            broken, answer = await client.ask(
                bytes(rng.randrange(128, 256) for _ in range(20)),
                legacy(number, "tools/call", {"name": "echo"}),
            )
            assert (broken.get("id"), broken["error"]["code"]) == (None, -32700)
            assert answer["id"] == number


async def test_f07_results_below_the_bound_come_back_whole() -> None:
    async with open_fabric([ToolServer(name="it").source()]) as fabric:
        for size in (70 << 10, 132 << 10, 1_200_000, 9_000_000):
            result = await fabric.call("it__big", {"size": size})
            assert len(result.text) == size
            assert set(result.text) == set(result.text[:1])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_f09_a_flood_without_line_end_fails_its_server_by_name_and_bound_and_no_other() -> None:
    bound = 8 << 20
    flood = program("import sys\nwhile True: sys.stdout.write('a' * (1 << 20))", "flood", max_message=bound)
    quiet = Bounds(backoff_first=5.0, backoff_longest=5.0)
    async with open_fabric(Config(sources=[scripted(name="good"), flood], bounds=quiet)) as fabric:
        assert (await fabric.call("good__echo", {"text": "before"})).text == "before"
        before = resident()
        await fabric.wait_started()
        assert (await fabric.call("good__echo", {"text": "x"})).text == "x"
        assert resident() - before < 3 * bound
        reason = fabric.links["flood"].reason
        assert "'flood'" in reason
        assert "message_in" in reason
        assert str(bound) in reason


@pytest.mark.parametrize(
    "silent",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.xfail(
                strict=True, reason="a server that only waits for its own framing is not suspected"
            ),
        ),
    ],
)
async def test_f12_a_server_of_another_framing_fails_in_time_with_its_name(silent: bool) -> None:
    speaks = "" if silent else "sys.stdout.write('Content-Length: 2\\r\\n\\r\\n{}'); sys.stdout.flush()\n"
    server = program(f"import sys\nsys.stdin.readline()\n{speaks}for _ in sys.stdin: pass", connect=0.3)
    async with open_fabric([server]) as fabric:
        with trio.fail_after(2):
            await fabric.wait_started()
        assert "Content-Length" in fabric.links["it"].reason


async def test_f14_a_flood_on_stderr_within_a_call_delays_nothing() -> None:
    async with open_fabric([ToolServer(name="it").source()]) as fabric:
        await fabric.call("it__echo", {"text": "up"})
        with trio.fail_after(1):
            await fabric.call("it__stderr", {"bytes": 256 << 10})
            assert (await fabric.call("it__echo", {"text": "x"})).text == "x"
