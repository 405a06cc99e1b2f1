"""What is left of a mesh when its brokers and the ways to them fail: a cluster, a cut link, a storm, a full disk."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from contextlib import contextmanager

import trio

from bench.mesh_ground import LEASE, Load, Row, ended, gone, rss, seen, unless
from bench.mesh_network import apart, monitor, monitored
from cord_trio.errors import CallError
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import Bucket, BucketOptions, open_bucket
from tests.real.mesh_node import MESH, asked
from tests.real.nats_server import cluster, running

NODES = ("b1", "b2", "idle1", "idle2")
STREAM = f"KV_cord_{MESH}"


async def formed(url):
    """Return once a cluster has made the bucket on all three."""
    with trio.fail_after(60):
        async with open_nats(url.split(",")) as nats:
            while True:
                try:
                    with trio.fail_after(3):
                        await open_bucket(nats, f"cord_{MESH}", BucketOptions(replicas=3))
                    return
                except (CallError, trio.TooSlowError):
                    await trio.sleep(0.1)


async def leader(nats):
    """The name of the broker that leads the bucket, and whether all follow."""
    info = json.loads((await nats.request(f"$JS.API.STREAM.INFO.{STREAM}")).data).get("cluster", {})
    replicas = info.get("replicas", [])
    return info.get("leader", ""), len(replicas) == 2 and all(each["current"] for each in replicas)


async def whole(nats, within=60):
    """Return the name of the leader, once all three keep the bucket."""
    with trio.fail_after(within):
        while True:
            try:
                with trio.fail_after(3):
                    name, all_follow = await leader(nats)
                if name and all_follow:
                    return name
            except (CallError, trio.TooSlowError):
                pass
            await trio.sleep(0.2)


def fences(ground, here, count):
    return sum(ground.incarnations().values()) - count + here.counters["mesh.fences"]


async def killed_leader(ground):
    with cluster() as brokers:
        url = ",".join(broker.url for broker in brokers)
        await formed(url)
        with ground.children(url, NODES, replicas=3, epochs=True):
            async with ground.node(url, replicas=3) as (here, nats, _), trio.open_nursery() as nursery:
                await seen(here, *NODES)
                load = Load(ground, here, ("b1", "b2"))
                nursery.start_soon(load.run)
                stalls = []
                for _ in range(ground.seconds(3, 1)):
                    killed = brokers[int((await whole(nats)).rpartition("-")[2])]
                    killed.kill()
                    at = time.perf_counter()
                    store = open_store(nats)
                    stalls.append(await writes_again(store) - at)
                    await trio.sleep(ground.seconds(12, 6))
                    killed.start()
                load.stop()
                left = fences(ground, here, len(NODES))
    return Row(
        f"three brokers, R3: the leader of the bucket is killed, {len(stalls)} x; 12 callers, 2 replicas",
        "calls go on (a node on that broker dials another); the store stalls for 9 s at most; nobody lets go",
        f"{load.found()}; writes stalled for up to {max(stalls):.1f} s; {left} let go of their names",
        load.wrong() + unless(calls_went_on=load.gap < 2, nobody_let_go=not left, writes_came_back=max(stalls) < 11),
    )


def open_store(nats):
    return Bucket(nats, f"cord_{MESH}", BucketOptions(replicas=3))


async def writes_again(store):
    """When a write is done."""
    while True:
        try:
            with trio.fail_after(0.3):
                await store.put("probe", b"")
            return time.perf_counter()
        except (CallError, trio.TooSlowError):
            await trio.sleep(0.05)


async def rolling(ground):
    lame = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"'
    with cluster(lame) as brokers:
        url = ",".join(broker.url for broker in brokers)
        await formed(url)
        with ground.children(url, NODES, replicas=3, epochs=True):
            async with ground.node(url, replicas=3) as (here, nats, _), trio.open_nursery() as nursery:
                await seen(here, *NODES)
                load = Load(ground, here, ("b1", "b2"))
                nursery.start_soon(load.run)
                began = time.perf_counter()
                for broker in brokers:
                    await whole(nats)
                    broker.signal(signal.SIGUSR2)
                    await trio.to_thread.run_sync(broker.wait, 60)
                    broker.start()
                await whole(nats)
                took = time.perf_counter() - began
                load.stop()
                left = fences(ground, here, len(NODES))
    return Row(
        "three brokers are restarted one after the other, by SIGUSR2; 12 callers, 2 replicas",
        "no call fails, nobody lets go of its name",
        f"in {took:.0f} s; {load.found()}; {left} let go of their names",
        load.wrong() + unless(none_failed=not load.failed, calls_went_on=load.gap < 2, nobody_let_go=not left),
    )


async def cut_link(ground):
    ground.hurry(LEASE)
    with running(jetstream=True, host="0.0.0.0") as broker:
        async with apart(broker.port) as way, ground.node(broker.url) as (here, _, _):
            async with ground.child_on(way, "owner", epochs=True):
                await seen(here, "owner")
                epoch = here.roster.epoch("owner")
                told = []

                async def ask():
                    told.extend(await ended(here.calling.call(asked(number=1, seconds=60), ["owner"])))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await ground.logged("begun", 1)
                    at, then = time.perf_counter(), time.time()
                    way.cut()
                    await gone(here, "owner")
                    left = time.perf_counter() - at
                cancelled = await ground.logged("cancelled", 1) - then
                await trio.sleep(2 * LEASE)
                way.mend()
                at = time.perf_counter()
                await seen(here, "owner", not_epoch=epoch)
                back = time.perf_counter() - at
                # One that comes while it takes its name is refused, and did not run.
                well = await answers(here, 5)
                ran = len(ground.noted("begun", 1))
    how, took = told
    return Row(
        f"the link of an owner is cut without a reset ({way.kind}), and mended",
        f"it lets go before others see it gone, within the lease ({LEASE} s); the call is unknown and ran once; "
        "it comes back by itself",
        f"{how} after {took:.1f} s; cancelled where it ran after {cancelled:.1f} s, gone for others after {left:.1f} "
        f"s; back {back:.1f} s after the mend, and {'answers' if well else 'does not answer'}",
        unless(
            the_call_was_lost_as_unknown=how == "OwnerLost(unknown)",
            it_let_go_first=cancelled <= left,
            it_was_gone_in_time=left < LEASE + 1.5,
            it_came_back=back < 40 and well,
            it_ran_once=ran == 1,
        ),
    )


async def storm(ground):
    """All clients lose their broker at once."""
    count = ground.seconds(300, 60)
    clients, back = [], []
    with monitored() as (broker, port):
        async with trio.open_nursery() as nursery:

            async def live(number, task_status):
                async with open_nats(broker.url, name=f"client {number}") as nats:
                    bucket = await open_bucket(nats, f"cord_{MESH}")
                    with bucket.watch("up.>") as watching:
                        await watching.receive()
                        clients.append(nats)
                        task_status.started()
                        while True:
                            await watching.receive()

            for number in range(count):
                await nursery.start(live, number)
            held = held_by(port)
            memory = rss(os.getpid())
            broker.kill()
            while any(nats.connected for nats in clients):  # noqa: ASYNC110  # 300 of them
                await trio.sleep(0.01)
            await trio.sleep(2)
            broker.start()
            at = time.perf_counter()

            async def returned(nats):
                await nats.wait_connected()
                back.append(time.perf_counter() - at)

            with trio.move_on_after(60):
                async with trio.open_nursery() as waiting:
                    for nats in clients:
                        waiting.start_soon(returned, nats)
            await trio.sleep(8)  # what was watched before is forgotten after 5
            held_after = held_by(port)
            grown = rss(os.getpid()) - memory
            nursery.cancel_scope.cancel("it is done")
    back.sort()
    p50, most = statistics.median(back), back[-1]
    tenth = max(sum(start <= each < start + most / 10 for each in back) for start in back)
    return Row(
        f"{count} clients lose their broker, back after 2 s",
        "all are back within 10 s, spread; as many connections, subscriptions and watches as before",
        f"{len(back)} back, p50 {p50:.1f} s, longest {most:.1f} s, {100 * tenth // len(back)} % of them within the "
        f"fullest tenth of that; {held_after[0]} connections ({held[0]}), {held_after[1]} subscriptions ({held[1]}), "
        f"{held_after[2]} watches ({held[2]}); +{grown:.0f} MB",
        unless(
            all_are_back=len(back) == count and most < 10,
            they_were_spread=tenth < 0.6 * count,
            nothing_leaked=held_after == held,
            memory_is_as_before=grown < 40,
        ),
    )


def held_by(port):
    """Connections, subscriptions of clients, and watches, as a broker counts them."""
    about = monitor(port, "varz")
    streams = monitor(port, "jsz?streams=true")["account_details"][0]["stream_detail"]
    return (
        about["connections"],
        sum(each["subscriptions"] for each in monitor(port, "connz?limit=2000")["connections"]),
        sum(stream["state"]["consumer_count"] for stream in streams),
    )


@contextmanager
def small_disk(folder, megabytes):
    """A file system of its own of that size, or None where we may not have one."""
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=False, capture_output=True
    ).returncode
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


async def full_disk(ground):
    what = "the disk of the broker's store is full for three leases, then has room again"
    expected = "calls go on until the leases end; then all are told that they did not run; all are back once it stores"
    ground.hurry(LEASE)
    with small_disk(ground.folder / "disk", 8) as disk:
        if disk is None:
            return Row(what, expected, "not run: this machine lets us mount nothing", [])
        with running(jetstream=True) as broker:
            broker.kill()
            broker.store = disk
            broker.start()
            with ground.child(broker.url, "owner", epochs=True):
                async with ground.node(broker.url) as (here, nats, _), trio.open_nursery() as nursery:
                    await seen(here, "owner")
                    load = Load(ground, here, ("owner",), callers=4)
                    nursery.start_soon(load.run)
                    await trio.sleep(1)
                    fill(disk / "filler")
                    refused = await refusal(nats)
                    await trio.sleep(3 * LEASE)
                    (disk / "filler").unlink()
                    load.stop()
                    await trio.sleep(5)
                    stores = not await refusal(nats)
                    if not stores:  # it does so again only after a restart
                        broker.kill(signal.SIGTERM)
                        broker.start()
                    at = time.perf_counter()
                    back = await answers(here, 60)
                    took = time.perf_counter() - at
    ended_so = {kind for kind, _ in load.kinds.most_common()}
    return Row(
        what,
        expected,
        f"the store: {refused or 'refuses nothing'}; {load.found()}; answers {took:.1f} s after the broker "
        f"{'stored again by itself' if stores else 'was restarted, which it needs to store again'}",
        load.wrong()
        + unless(
            the_store_refused=bool(refused),
            it_came_back=back,
            those_that_failed_say_why=all(kind.endswith(("(no)", "(unknown)")) for kind in ended_so),
        ),
    )


async def refusal(nats):
    """How a bucket refuses what is written, if it does."""
    bucket = Bucket(nats, f"cord_{MESH}", BucketOptions())
    for _ in range(64):
        try:
            with trio.fail_after(2):
                await bucket.put("probe", bytes(65536))
        except (CallError, trio.TooSlowError) as exc:
            return str(exc) or "no answer"
    return ""


async def answers(here, within):
    """Whether the owner answers within so many seconds."""
    with trio.move_on_after(within):
        while True:
            try:
                with trio.fail_after(5):
                    await here.calling.call(asked(), ["owner"])
                return True
            except (CallError, trio.TooSlowError):
                await trio.sleep(0.1)
    return False


def fill(path):
    """Leave no room on its file system."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


FAULTS = (killed_leader, rolling, cut_link, storm, full_disk)
