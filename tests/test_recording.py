"""What is recorded of a fabric's calls, and that it is answered again."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

import cord_trio as cord
from cord_trio import recorder as recorder_module
from cord_trio.call import Call, Complete, Error, InputRequired
from cord_trio.call import Task as TaskOutcome
from cord_trio.config import Config, Http, InProcess, Stdio
from cord_trio.errors import CallFailed, ConfigError, ConnectionLost
from cord_trio.fabric import open_fabric
from cord_trio.layers.record import MAX_EVENTS, Taken, record
from cord_trio.recorder import Recorder
from cord_trio.recording import MAX_LINE, Catalogue, Line, Recorded, call_line, decode, fits, header
from cord_trio.redacting import REMOVED, Redactor, secrets_of
from cord_trio.registry import Snapshot
from cord_trio.testing import ToolServer, recorded
from cord_trio.testing.recorded import RecordedServer
from tests.full_server import FullServer

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from cord_trio.call import Handler, Outcome
    from cord_trio.config import Source
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any

PLANTED = "hunter2-planted"


def kept(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def calls(path: Path) -> list[Json]:
    return [line for line in kept(path) if "outcome" in line]


def listed(fabric: Fabric) -> Json:
    return json.loads(fabric.registry.snapshot.encoded_tools)


async def fail_as(fabric: Fabric, tool: str, arguments: Json) -> str:
    try:
        return (await fabric.call(tool, arguments)).text
    except CallFailed as exc:
        return exc.message


async def test_what_was_recorded_is_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    server = ToolServer()
    asked: list[tuple[str, Json]] = [
        ("x__echo", {"text": "a"}), ("x__count", {}), ("x__count", {}), ("x__fail", {"text": "f"}),
        ("x__error", {"code": -5}),
    ]  # fmt: skip
    async with open_fabric([server.in_process(name="x")], recorder=Recorder(path)) as fabric:
        said = [await fail_as(fabric, *each) for each in asked]
        tools = listed(fabric)
    assert {"1", "2"} <= set(said)
    async with open_fabric(recorded(path)) as again:
        await again.wait_started()
        assert listed(again) == tools
        assert [await fail_as(again, *each) for each in asked] == said
        assert await fail_as(again, "x__count", {}) == "2"  # the last one for ever
        unknown = await fail_as(again, "x__echo", {"text": "b"})
    assert unknown == (
        'tools/call echo {"arguments":{"text":"b"}} was not recorded; '
        'the nearest that was: tools/call echo {"arguments":{"text":"a"}}'
    )


async def test_a_recording_is_nobody_elses_and_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    for round_ in range(2):
        async with open_fabric([ToolServer().in_process(name="x")], recorder=Recorder(path)) as fabric:
            await fabric.call("x__echo", {"text": str(round_)})
        with path.open("ab") as file:
            file.write(b'{"source":"x","method":"tools/ca')
        if not round_:
            path.chmod(0o644)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (source,) = decode(path.read_bytes().splitlines(keepends=True), "calls").values()
    assert [line.params["arguments"]["text"] for line in source.lines] == ["0", "1"]


async def test_strictly_an_answer_is_given_as_often_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    async with open_fabric([ToolServer().in_process(name="x")], recorder=Recorder(path)) as fabric:
        await fabric.call("x__echo", {"text": "a"})
    async with open_fabric(recorded(path, strict=True, only="x")) as again:
        assert await fail_as(again, "x__echo", {"text": "a"}) == "a"
        assert "was not recorded as often" in await fail_as(again, "x__echo", {"text": "a"})


async def test_no_planted_secret_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "calls"

    def leak(arguments: Json) -> Json:
        return {
            "said": f"the variable is {PLANTED}!", "apiKey": "k-12345", "n": 3,
            "url": "https://me:pw-12345@example.org/a?token=t-12345&sig=s-12345&page=2",
            "nested": [{"set-cookie": "c-12345"}], "log": "Authorization: Bearer b-12345\nnext",
        }  # fmt: skip

    recorder = Recorder(path, keys=["pet_name"])
    configured = Stdio(name="z", command="never", env={"ANY": PLANTED}, start="lazy")
    async with open_fabric([ToolServer({"leak": leak}).in_process(name="x"), configured], recorder=recorder) as fabric:
        await fabric.call("x__leak", {"password": "p-12345", "deep": {"pet-name": "rex-12345"}, "q": PLANTED})
    text = path.read_text()
    assert [each for each in ("12345", PLANTED) if each in text] == []
    (line,) = calls(path)
    assert line["params"]["arguments"] == {"password": REMOVED, "deep": {"pet-name": REMOVED}, "q": REMOVED}
    assert "page=2" in text
    assert "next" in text
    async with open_fabric(recorded(path)) as again:  # and yet it is found, with other secrets
        result = await again.call("x__leak", {"password": "other", "deep": {"pet-name": "tom"}, "q": "else"})
    assert REMOVED in result.text


PLACES: dict[str, Source] = {
    "environment": Stdio(name="a", command="c", env={"X": PLANTED}),
    "argument": Stdio(name="a", command="c", args=("--api-key", PLANTED)),
    "argument with equals": Stdio(name="a", command="c", args=(f"--token={PLANTED}",)),
    "argument that is a URL": Stdio(name="a", command="c", args=(f"postgres://me:{PLANTED}@h/db",)),
    "header": Http(name="a", url="http://h/", headers={"X-Any": PLANTED}),
    "bearer": Http(name="a", url="http://h/", headers={"Authorization": f"Bearer {PLANTED}"}),
    "query": Http(name="a", url=f"http://h/?k={PLANTED}"),
    "websocket": cord.WebSocket(name="a", url="ws://h/", headers={"X-Any": PLANTED}),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_configured_is_a_secret(place: str) -> None:
    assert PLANTED in secrets_of([PLACES[place]])


@pytest.mark.parametrize(
    ("value", "cleared"),
    [
        ({"max_tokens": 5, "token": "x"}, {"max_tokens": 5, "token": REMOVED}),
        ({"secrets": [{"a": "b"}, None, True]}, {"secrets": [{"a": REMOVED}, None, True]}),
        ('{"password": "x", "a": 1}', '{"password":"[removed]","a":1}'),
        ('{"a":  1}', '{"a":  1}'),
        ("{no json, password=x}", "{no json, password=[removed]}"),
        ("see https://u:p@h/x", "see https://[removed]@h/x"),
        ("cookie: a=b; c=d", "cookie: [removed]"),
        ("İ Token=abc b", "İ Token=[removed] b"),
        ("authorization: Bearer abcdefgh, token=x", "authorization: [removed]"),
        ("a?key=x&b=1&sig=y#z", "a?key=[removed]&b=1&sig=[removed]#z"),
        ("tokentokentoken", "tokentokentoken"),
        ("it says Bearer abcdefgh123", "it says Bearer [removed]"),
        ("abc", REMOVED),
        ("abcd", "abcd"),
        (1234567, REMOVED),
        (7, 7),
        (
            {"inputSchema": {"properties": {"password": {"type": "string", "default": "x"}}}},
            {"inputSchema": {"properties": {"password": {"type": "string", "default": REMOVED}}}},
        ),
    ],
)
def test_secrets_are_removed_where_they_are_and_only_there(value: Json, cleared: Json) -> None:
    redactor = Redactor(["abc", "1234567"])
    assert redactor.json(value) == cleared
    assert redactor.json(cleared) == cleared


@pytest.mark.parametrize(
    ("known", "given", "fit"),
    [
        (REMOVED, 5, True), (f"a{REMOVED}b{REMOVED}", "axxbyy", True), (f"a{REMOVED}b", "a", False),
        (f"a{REMOVED}a", "a", False), (f"a{REMOVED}x{REMOVED}b", "a-b", False), (f"a{REMOVED}", 3, False),
        ({"a": [REMOVED]}, {"a": ["x"]}, True), ({"a": 1}, {"b": 1}, False), ([1], [1, 2], False), (1, True, False),
    ],
)  # fmt: skip
def test_a_secret_is_a_hole_that_anything_fits(known: Json, given: Json, fit: bool) -> None:
    assert fits(known, given) is fit


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"hello\n", "is no recording"),
        (b'{"mcpServers":{}}\n', "is no recording"),
        (b'{"cord_trio":"recording","version":2}\n', "is a recording of format 2, and this release reads 1"),
        (header() + b"rubbish\n" + b"{}\n", "line 2 is damaged"),
    ],
)
def test_a_file_that_is_no_recording_gets_one_clear_error(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "calls"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=what) as caught:
        recorded(path)
    assert len(caught.value.problems) == 1


def test_a_file_that_is_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine\n")
    with pytest.raises(ConfigError, match="is no recording"):
        Recorder(path)
    assert path.read_text() == "mine\n"
    with pytest.raises(ConfigError, match="cannot be recorded to"):
        Recorder(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        recorded(tmp_path / "none")


def test_an_unknown_source_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    path.write_bytes(header() + msgspec.json.encode(Catalogue("web")) + b"\n")
    with pytest.raises(ConfigError, match="has no source 'x'; it has web"):
        recorded(path, only="x")


def test_a_text_full_of_names_of_secrets_is_read_once() -> None:
    text = "cookie:token=" * 20_000
    assert Redactor().text(text) == "cookie:[removed]"


async def test_a_full_recording_ends_and_is_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "calls"
    recorder = Recorder(path, most=12_000)
    async with open_fabric([ToolServer().in_process(name="x")], recorder=recorder) as fabric:
        for number in range(20):
            assert (await fabric.call("x__echo", {"text": str(number) * 1000})).text
    assert path.stat().st_size <= 12_000
    assert recorder.counters["record.full"] == 1
    assert caplog.text.count("recording is full") == 1
    assert decode(path.read_bytes().splitlines(keepends=True), "calls")


async def test_calls_beyond_what_may_wait_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 3000)
    recorder = Recorder(tmp_path / "calls")
    async with open_fabric([ToolServer().in_process(name="x")], recorder=recorder) as fabric:
        for _ in range(4):
            await fabric.call("x__echo", {"text": "a" * 600})
    assert recorder.counters["record.dropped"] == 4 - len(calls(tmp_path / "calls")) > 0


@pytest.mark.parametrize("fits", [0, 100])
async def test_a_disk_that_is_full_ends_the_recording_and_no_call(
    fits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a part of a line still fits; it is told once."""
    recorder = Recorder(tmp_path / "calls")
    write, left = os.write, fits

    def full(file: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(28, "No space left on device")
        written, left = write(file, data[:left]), 0
        return written

    async with open_fabric([ToolServer().in_process(name="x")], recorder=recorder) as fabric:
        monkeypatch.setattr(os, "write", full)
        for text in "abc":
            assert (await fabric.call("x__echo", {"text": text})).text == text
            await trio.sleep(0.05)
    monkeypatch.undo()
    assert recorder.counters["record.failed"] == 1
    assert caplog.text.count("recording ends") == 1
    assert recorder.counters["record.dropped"] >= 1
    assert (tmp_path / "calls").read_bytes() == header()
    assert decode((tmp_path / "calls").read_bytes().splitlines(keepends=True), "calls") == {}


async def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "calls")
    before = (tmp_path / "calls").read_bytes()
    write, sizes = os.write, iter([5])

    def fills(file: int, data: bytes) -> int:
        for size in sizes:
            return write(file, data[:size])
        raise OSError(28, "No space left on device")

    async with open_fabric([ToolServer().in_process(name="x")], recorder=recorder) as fabric:
        monkeypatch.setattr(os, "write", fills)
        assert (await fabric.call("x__echo", {"text": "a"})).text == "a"
    monkeypatch.undo()
    assert next(sizes, None) is None
    assert (tmp_path / "calls").read_bytes() == before


async def test_a_disk_that_hangs_ends_the_recording_and_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.01)
    recorder = Recorder(tmp_path / "calls")
    file, goes_on = recorder._file, threading.Event()

    def hangs(_: int, data: bytes) -> int:
        goes_on.wait(10)
        return len(data)

    with trio.fail_after(5):
        async with open_fabric([ToolServer().in_process(name="x")], recorder=recorder) as fabric:
            monkeypatch.setattr(os, "write", hangs)
            assert (await fabric.call("x__echo", {"text": "a"})).text == "a"
    assert recorder.counters["record.failed"] == 1
    monkeypatch.undo()
    os.fstat(file)  # it is open still: another file could have its number when the thread goes on
    goes_on.set()
    os.close(file)


class Registry:
    """Publishes `later` in the very moment in which whoever waits for it is cancelled."""

    def __init__(self, later: Json) -> None:
        self.snapshot = Snapshot()
        self.later = later

    async def changed(self, since: int) -> Snapshot:
        try:
            await trio.sleep_forever()
        finally:
            self.snapshot = self.later


async def test_what_is_listed_at_the_very_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    async with open_fabric([ToolServer().in_process(name="x")]) as fabric:
        await fabric.wait_started()
        registry: Json = Registry(fabric.registry.snapshot)
    recorder = Recorder(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run, registry)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel("the end")
    assert [line["source"] for line in kept(path)[1:]] == ["x"]


ENDS: list[tuple[Outcome | BaseException, str, str]] = [
    (Complete(Raw(b'{"a":1}')), "result", "yes"),
    (InputRequired(Raw(b'{"resultType":"input_required"}')), "input_required", "unknown"),
    (TaskOutcome(Raw(b'{"resultType":"task"}')), "task", "yes"),
    (Error(-32000, "no", b'{"x":1}'), "error", "yes"),
    (ConnectionLost("gone", "no"), "failed", "no"),
    (ValueError("x"), "failed", "unknown"),
    (KeyboardInterrupt(), "cancelled", "unknown"),
]


@pytest.mark.parametrize(("outcome", "word", "executed"), ENDS, ids=lambda each: type(each).__name__)
async def test_every_end_of_a_call_is_told(outcome: Outcome | BaseException, word: str, executed: str) -> None:
    told: list[Taken] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    layered = record(told.append, "x")(handler)
    with suppress(Exception, KeyboardInterrupt):
        await layered(Call("tools/call", "a", {"arguments": Raw(b"{}")}))
    line = msgspec.json.decode(call_line(told[0], Redactor()), type=Line)
    assert (line.source, line.method, line.name, line.params) == ("x", "tools/call", "a", {"arguments": {}})
    assert (line.outcome, line.executed) == (word, executed)


async def test_an_answer_to_a_parked_question_is_told_with_what_it_belongs_to() -> None:
    told: list[Taken] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if call.park:
            return Complete(Raw(b"{}"))
        return InputRequired(Raw(b'{"inputRequests":{}}'), "token")

    layered = record(told.append, "x")(handler)
    await layered(Call("tools/call", "a", {"arguments": Raw(b"{}")}))
    await layered(Call("tools/call", None, {"inputResponses": Raw(b"[]")}, park="token"))
    assert [(each.name, sorted(each.params)) for each in told] == [
        ("a", ["arguments"]), ("a", ["arguments", "inputResponses"]),
    ]  # fmt: skip


async def test_of_parked_questions_the_oldest_is_forgotten_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[record.__module__], "MAX_PARKED", 2)
    told: list[Taken] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b"{}")) if call.park else InputRequired(Raw(b"{}"), call.name or "")

    layered = record(told.append, "x")(handler)
    for name in "abc":
        await layered(Call("tools/call", name))
    del told[:]
    for park in "abc":
        await layered(Call("tools/call", None, park=park))
    assert [each.name for each in told] == [None, "b", "c"]


async def test_events_are_told_up_to_a_bound_and_all_reach_the_caller() -> None:
    told: list[Taken] = []
    heard: list[str] = []

    async def handler(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        assert call.events is not None
        for _ in range(MAX_EVENTS + 5):
            call.events("notifications/progress", Raw(b"{}"))
        return Complete(Raw(b"{}"))

    layered: Handler = record(told.append, "x")(handler)
    await layered(Call("tools/call", "a", events=lambda method, params: heard.append(method)))
    assert (len(told[0].events), len(heard)) == (MAX_EVENTS, MAX_EVENTS + 5)


def test_what_is_too_long_is_told_without_it() -> None:
    taken = Taken("x", "", "tools/call", "a", {}, Complete(Raw(b'{"a":"%b"}' % (b"x" * MAX_LINE))))
    line = msgspec.json.decode(call_line(taken, Redactor()), type=Line)
    assert line.outcome == "failed"
    assert "longer than" in line.value["message"]


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_questions_and_what_came_of_them_come_again(tmp_path: Path, era: str) -> None:
    path = tmp_path / "calls"
    said: list[tuple[Json, str]] = []

    async def ask(fabric: Fabric) -> None:
        form = {"message": "which", "requestedSchema": {"type": "object", "properties": {"b": {}, "a": {}}}}
        asked: Json = []

        async def answer(questions: Json) -> Json:
            await trio.lowlevel.checkpoint()
            asked.append({key: each.params for key, each in questions.items()})
            return {key: {"action": "accept", "content": {"b": 1}} for key in questions}

        result = await fabric.call("x__ask", {"method": "elicitation/create", "params": form}, answer=answer)
        said.append((asked, result.text))

    async with open_fabric([ToolServer(era=era).in_process(name="x")], recorder=Recorder(path)) as fabric:
        await ask(fabric)
    async with open_fabric(recorded(path, strict=True)) as fabric:
        await ask(fabric)
    assert said[0] == said[1]
    assert len(said[0][0]) == 1


async def test_resources_and_prompts_come_again_under_their_names(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    server = FullServer()
    server.answers["resources/read"] = lambda request: {"contents": [{"uri": request.params["uri"], "text": "r"}]}
    server.answers["prompts/get"] = lambda request: {"messages": [], "description": request.params["name"]}

    async def look(fabric: Fabric) -> list[Json]:
        await fabric.wait_started()
        uri = next(iter(fabric.registry.snapshot.resources))
        found: list[Json] = [uri, listed(fabric), json.loads(fabric.registry.snapshot.encoded_templates)]
        for call in (Call("resources/read", uri), Call("prompts/get", "x__greet")):
            outcome = await fabric.handle(call)
            assert isinstance(outcome, Complete)
            found.append(json.loads(bytes(outcome.result)))
        return found

    async with open_fabric([server.source()], recorder=Recorder(path)) as fabric:
        first = await look(fabric)
    assert [line["name"] for line in calls(path)] == ["file:///a", "greet"]
    async with open_fabric(recorded(path)) as fabric:
        assert await look(fabric) == first


async def test_an_answer_comes_as_late_as_it_did_or_so_many_times_sooner(autojump_clock: MockClock) -> None:
    lines = [Line("x", "tools/call", "result", {"content": []}, "a", {"arguments": {}}, seconds=10.0)]
    source = Recorded(Catalogue("x", "x", {"tools": {}}, lists={"tools": [{"name": "a", "inputSchema": {}}]}), lines)
    for speed, took in ((0.0, 0.0), (1.0, 10.0), (4.0, 2.5)):
        served = InProcess(name="x", serve=RecordedServer(source, speed).serve)
        async with open_fabric([served]) as fabric:
            await fabric.wait_started()
            began = trio.current_time()
            await fabric.call("x__a", {})
            assert trio.current_time() - began == pytest.approx(took)


async def test_a_task_and_what_is_asked_of_it_come_again(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    server = FullServer(modern=True)
    server.tools["slow"] = lambda _: {"resultType": "task", "taskId": "t1", "status": "working"}
    states = ["working", "completed"]
    server.answers["tasks/get"] = lambda request: {**request.params, "resultType": "complete", "status": states.pop(0)}

    async def follow(fabric: Fabric) -> list[Json]:
        await fabric.wait_started()
        task = await fabric.handle(Call("tools/call", "x__slow"))
        assert isinstance(task, TaskOutcome)
        found = [json.loads(bytes(task.result))["taskId"]]
        for _ in range(2):
            outcome = await fabric.handle(Call("tasks/get", "x__slow", {"taskId": Raw(b'"t1"')}))
            assert isinstance(outcome, Complete)
            found.append(json.loads(bytes(outcome.result))["status"])
        return found

    async with open_fabric([server.source(name="x", era="modern")], recorder=Recorder(path)) as fabric:
        first = await follow(fabric)
    assert first == ["t1", "working", "completed"]
    async with open_fabric(recorded(path)) as fabric:
        assert await follow(fabric) == first


async def test_progress_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    heard: list[list[float]] = []
    async with open_fabric([ToolServer().in_process(name="x")], recorder=Recorder(path)) as fabric:
        heard.append(await progress(fabric))
    async with open_fabric(recorded(path, speed=50.0)) as fabric:
        heard.append(await progress(fabric))
    async with open_fabric(recorded(path)) as fabric:
        heard.append(await progress(fabric))
    assert heard[0]
    assert heard[1] == heard[2] == heard[0]


async def progress(fabric: Fabric) -> list[float]:
    heard: list[float] = []

    def hear(method: str, params: Raw) -> None:
        if method == "notifications/progress":
            heard.append(json.loads(bytes(params))["progress"])

    await fabric.call("x__progress", {"steps": 3, "seconds": 0.01}, events=hear)
    return heard


async def test_without_a_recorder_there_is_no_layer(tmp_path: Path) -> None:
    async with open_fabric(Config(sources=[ToolServer().in_process(name="x")])) as fabric:
        await fabric.call("x__echo", {"text": "a"})
        assert not any(name.startswith("record") for name in fabric.counters.snapshot())


def test_of_two_secrets_the_longer_one_goes_whole() -> None:
    assert Redactor([PLANTED[:7], PLANTED]).text(f"it is {PLANTED}") == f"it is {REMOVED}"


def test_a_secret_is_removed_as_it_stands_in_a_url() -> None:
    assert Redactor(["a b/c+d"]).text("see /x/a%20b%2Fc%2Bd/y") == f"see /x/{REMOVED}/y"


def test_what_a_call_told_meanwhile_is_without_secrets() -> None:
    told = (0.1, "notifications/message", Raw(b'{"data":"%b"}' % PLANTED.encode()))
    line = call_line(Taken("x", "", "tools/call", "a", {}, Complete(Raw(b"{}")), (told,)), Redactor([PLANTED]))
    assert json.loads(line)["events"] == [[0.1, "notifications/message", {"data": REMOVED}]]


def test_the_attempt_that_lost_a_race_is_no_answer() -> None:
    lost, won = (Line("x", "tools/call", outcome, {}, "a") for outcome in ("cancelled", "result"))
    source = Recorded(Catalogue("x"), [lost, won])
    assert [source.answer("tools/call", "a", {}) for _ in range(2)] == [won, won]
    assert Recorded(Catalogue("x"), [lost]).answer("tools/call", "a", {}) == lost


def test_what_was_never_asked_is_told_so() -> None:
    source = Recorded(Catalogue("x"), [])
    with pytest.raises(LookupError, match="was not recorded; no call of it was"):
        source.answer("tools/call", "a", {})
