"""What is found wrong in the store of a mesh."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from cord_trio.mesh.auditing import KINDS, Contents, Finding, audit, judge
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE, TAKEN, NodeRecord
from cord_trio.mesh.sounding import Answer, ask_all
from cord_trio.nats.kv import open_bucket
from cord_trio.testing import ToolServer
from tests.mesh.members import listed, member

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.mesh.sounding import State

ONE, TWO = "11111111", "22222222"


def contents(**kept: bytes) -> Contents:
    """The keys of a sound node `a`, and these; `__` stands for a dot."""
    found = Contents()
    usual = {"up__a": record(), f"hb__a__{ONE}": b""}
    for key, value in {**usual, **kept}.items():
        found.put(key.replace("__", "."), value)
    return found


def record(epoch: str = ONE, **more: object) -> bytes:
    return msgspec.json.encode({"epoch": epoch, **more})


@pytest.mark.parametrize(
    ("kept", "state", "expected"),
    [
        ({}, "answers", []),
        ({}, "forbidden", []),
        ({}, "absent", [("absent", "a")]),
        ({}, "silent", [("silent", "a")]),
        ({"up__a": record(TWO)}, "absent", [("ghost", "a"), ("duplicate name", "a")]),
        ({"up__a": record(TWO)}, "answers", [("lapsed lease", "a"), ("duplicate name", "a")]),
        ({f"hb__a__{ONE}": TAKEN}, "answers", [("lapsed lease", "a")]),
        ({f"hb__a__{TWO}": b""}, "answers", [("duplicate name", "a")]),
        ({f"hb__b__{TWO}": b""}, "answers", [("lease alone", "b")]),
        ({f"hb__b__{TWO}": TAKEN}, "answers", []),
        ({"up__b": b"{"}, "answers", [("bad record", "b")]),
        ({"up__b": record("x")}, "answers", [("bad record", "b")]),
        ({"up__B": record()}, "answers", [("bad record", "B")]),
        ({"up__b": record(more="x" * 4096)}, "answers", [("bad record", "b")]),
        ({"up__a": record(wire=[2, 3])}, "answers", [("wire", "a")]),
        ({"up__a": record(watches=False)}, "answers", [("no watchers", "mesh")]),
        ({"up__a": record(servers={"web": "d1"})}, "answers", [("no catalogue", "a")]),
        ({"up__a": record(servers={"web": "d1"}), "cat__d1": b"2\nx"}, "answers", [("no catalogue", "a")]),
        ({"up__a": record(servers={"web": "d1"}), "cat__d1": b"x"}, "answers", [("no catalogue", "a")]),
        ({"up__a": record(servers={"web": "d1"}), "cat__d1": b"2\nx", "cat__d1__1": b"y"}, "answers", []),
        ({"up__a": record(agents="d1")}, "answers", [("no catalogue", "a")]),
        ({"up__a": record(agents="d1"), "cat__d1": b"1\nx"}, "answers", []),
        ({"cat__d1": b"1\nx"}, "answers", [("unnamed catalogue", "d1")]),
        (
            {
                "up__a": record(servers={"w": "d1", "v": "d2"}, groups={"w": "g", "v": "g"}),
                "cat__d1": b"1\n",
                "cat__d2": b"1\n",
            },
            "answers",
            [("split group", "g")],
        ),
        ({"ag__x": b'{"node":"a","epoch":"%b"}' % ONE.encode()}, "answers", []),
        ({"ag__x": b'{"node":"a","epoch":"%b"}' % TWO.encode()}, "answers", [("agent alone", "x")]),
        ({"ag__x": b"{"}, "answers", []),
        ({"other": b""}, "answers", [("strange key", "other")]),
    ],
)
def test_what_the_store_holds_is_judged(kept: dict[str, bytes], state: State, expected: list[tuple[str, str]]) -> None:
    found = judge(contents(**kept), {"a": Answer(state, 0.0)})
    assert [(each.kind, each.what) for each in found] == expected
    assert {each.kind for each in found} <= set(KINDS)
    harmless = {"unnamed catalogue", "split group", "agent alone", "strange key"}
    assert all(each.wrong is (each.kind not in harmless) for each in found)


async def test_a_mesh_that_is_well_has_nothing_wrong(autojump_clock: MockClock) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", ToolServer(name="web").in_process()) as a,
        member(broker, "b"),
        broker.way().open() as nats,
    ):
        await trio.sleep(2 * LEASE)
        began = trio.current_time()
        found, findings = await audit(nats, await open_bucket(nats, "cord_cord"), mesh="cord", node="c")
        assert (list(found.nodes), len(found.leases), len(found.pages), findings) == (["a", "b"], 2, 1, [])
        assert trio.current_time() - began < 1
        assert a.node.epoch == found.nodes["a"].epoch


async def test_what_is_only_under_way_is_not_wrong_and_what_stays_is(autojump_clock: MockClock) -> None:
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", ToolServer(name="web").in_process()),
        member(broker, "b") as b,
        broker.way().open() as nats,
    ):
        bucket = await open_bucket(nats, "cord_cord")
        await listed(b.fabric, "web__echo")
        await bucket.create(f"hb.c.{TWO}", b"", ttl=1)  # ends before the second look
        await bucket.put(f"hb.d.{TWO}", b"")
        _, findings = await audit(nats, bucket, mesh="cord", node="x")
        assert findings == [Finding("lease alone", "d", f"epoch {TWO} holds a lease, and has no record")]


async def test_a_node_that_is_asked_tells_its_margin_and_who_is_not_there_is_known(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, broker.way().open() as nats:
        await trio.sleep(LEASE)
        asked = {"a": a.node.roster.nodes["a"], "b": NodeRecord(TWO)}
        found = await ask_all(nats, asked, mesh="cord", node="x")
        assert {name: (each.state, each.margin) for name, each in found.items()} == {
            "a": ("answers", round(a.node.presence.margin, 1)),
            "b": ("absent", None),
        }
        broker.kill()
        found = await ask_all(nats, {"a": asked["a"]}, mesh="cord", node="x")
        assert found["a"].state == "silent"
