"""Reported failures of calls, their progress and their ends."""

from __future__ import annotations

import base64
import json
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import main
from cord_trio.config import Bounds, Config
from cord_trio.errors import ConnectionLost, DeadlineExceeded
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.cases.servers import TEMPLATE, scripted

if TYPE_CHECKING:
    from pathlib import Path

    from msgspec import Raw

AFTERWARDS = """
def own_answer(message):
    if message.get("method") != "tools/call": return False
    said(message["id"], result={"content": content(message)})
    for number in range(3):
        params = {"progressToken": message["params"].get("_meta", {}).get("progressToken"), "progress": number}
        put(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}).encode() + END)
    return True
"""


async def test_c05_progress_after_the_reply_reaches_nobody_and_breaks_nothing() -> None:
    seen: list[str] = []

    def see(method: str, params: Raw) -> None:
        seen.append(method)

    async with open_fabric([scripted(AFTERWARDS)]) as fabric:
        for number in range(3):
            assert (await fabric.call("it__echo", {"text": str(number)}, events=see)).text == str(number)
        assert seen == []
        assert fabric.links["it"].starts == 1


async def test_c08_progress_keeps_a_call_alive_though_its_caller_did_not_ask_for_any() -> None:
    async with open_fabric([ToolServer(name="it").source(deadline=0.8)]) as fabric:
        await fabric.wait_started()
        result = await fabric.call("it__progress", {"steps": 12, "seconds": 1.2})
        assert not result.is_error


SLOW_COUNT = """
ran = 0
def content(message):
    global ran
    ran += 1
    time.sleep(message["params"]["arguments"]["seconds"])
    return [{"type": "text", "text": str(ran)}]
"""


async def test_c14_a_call_that_timed_out_ran_once() -> None:
    async with open_fabric([scripted(SLOW_COUNT, deadline=0.3, retries=2)]) as fabric:
        await fabric.wait_started()
        with pytest.raises(DeadlineExceeded) as caught:
            await fabric.call("it__echo", {"seconds": 0.5})
        assert caught.value.executed == "unknown"
        await trio.sleep(0.4)
        assert (await fabric.call("it__echo", {"seconds": 0})).text == "2"


async def test_c15_what_was_done_before_the_connection_broke_is_not_done_again(tmp_path: Path) -> None:
    done = tmp_path / "done"
    commit = f"def content(message):\n    open({str(done)!r}, 'a').write('x')\n    os._exit(1)"
    quickly = Bounds(backoff_first=0.01, backoff_longest=0.01)
    async with open_fabric(Config(sources=[scripted(commit, retries=2)], bounds=quickly)) as fabric:
        await fabric.wait_started()
        with pytest.raises(ConnectionLost) as caught:
            await fabric.call("it__echo", {})
        assert caught.value.executed == "unknown"
        while fabric.links["it"].starts < 2:  # noqa: ASYNC110  # nobody but a test asks
            await trio.sleep(0.01)
        assert list(fabric.registry.snapshot.tools) == ["it__echo"]
    assert done.read_text() == "x"


async def test_c24_many_calls_with_many_notifications_before_their_replies_all_end() -> None:
    seen: list[str] = []

    def see(method: str, params: Raw) -> None:
        seen.append(method)

    async with open_fabric([ToolServer(name="it").source()]) as fabric:
        await fabric.call("it__echo", {"text": "up"})
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(10):

                    async def call() -> None:
                        await fabric.call("it__progress", {"steps": 5, "seconds": 0.1}, events=see)

                    nursery.start_soon(call)
        assert seen == ["notifications/progress"] * 50


PICTURE = base64.b64encode(bytes(1 << 20)).decode()
PICTURES = """
def content(message):
    import base64
    picture = base64.b64encode(bytes(1 << 20)).decode()
    return [{"type": "image", "data": picture, "mimeType": "image/png"}] * 3
"""


def test_c21_pictures_pass_whole_and_flood_neither_terminal_nor_logs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.chdir(tmp_path)
    args = ["-I", "-S", "-c", TEMPLATE.replace("SCRIPT", PICTURES)]
    (tmp_path / ".mcp.json").write_text(json.dumps({"mcpServers": {"it": {"command": sys.executable, "args": args}}}))
    assert main(["call", "it__echo", "--json"]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert [block["data"] == PICTURE for block in whole["content"]] == [True] * 3
    assert main(["call", "it__echo"]) == 0
    view = capfd.readouterr()
    assert view.out.count("image/png") == 3
    assert len(view.out) + len(view.err) + len(caplog.text) < 10 << 10
