"""What is left of calls between nodes when connections are reset, and nodes are killed, stopped and flooded."""

from __future__ import annotations

import random
import signal
import socket
import time

import trio

from bench.mesh_ground import LEASE, Load, Row, ended, gone, rss, seen, unless
from bench.mesh_network import monitor, monitored
from cord_trio.mesh.presence import NodeRecord
from cord_trio.mesh.watchers import chosen
from cord_trio.mesh_errors import DuplicateName
from tests.real.mesh_node import MESH, asked, reset
from tests.real.nats_server import running

LARGE = 4 * 1024 * 1024
FLOOD = 16
"""Results of `LARGE` that are asked for at once: 64 MB, as much as a broker keeps for one reader."""

BY_DEATH = {"OwnerLost(unknown)", "DeadlineExceeded(unknown)"}
"""How a call ends that ran on a node which died: as lost, or by its own deadline if that is sooner."""


async def resets(ground):
    ground.hurry(LEASE)
    rng, count = random.Random(1), 0
    with running(jetstream=True) as broker, ground.children(broker.url, ("b1", "b2")) as owners:
        async with ground.node(broker.url) as (here, nats, bulk), trio.open_nursery() as nursery:
            await seen(here, "b1", "b2")
            load = Load(ground, here, ("b1", "b2"))
            until = time.perf_counter() + ground.seconds(20, 5)
            nursery.start_soon(load.run, until - time.perf_counter())
            while time.perf_counter() < until:
                await trio.sleep(0.3)
                count += 1
                which = rng.randrange(4)
                if which < 2:
                    owners[which].send_signal(signal.SIGUSR1)
                else:
                    reset((nats, bulk)[which - 2])
    return Row(
        "connections of callers and owners are reset, 3 a second; 12 callers, 2 replicas",
        "nothing twice, late or told wrong",
        f"{count} resets, {load.found()}",
        load.wrong(),
    )


async def killed_owner(ground):
    lease = 2 * LEASE  # longer than anybody waits for one that is absent
    ground.hurry(lease)
    with running(jetstream=True) as broker, ground.child(broker.url, "owner") as process:
        async with ground.node(broker.url) as (here, _, _):
            await seen(here, "owner")
            told = []

            async def ask():
                told.extend(await ended(here.calling.call(asked(number=1, seconds=60), ["owner"])))
                told.append(time.perf_counter())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await ground.logged("begun", 1)
                at = time.perf_counter()
                process.kill()
                await trio.sleep(0.1)
                first = await ended(here.calling.call(asked(), ["owner"]))
                after = [await ended(here.calling.call(asked(), ["owner"])) for _ in range(3)]
            how, _, when = told
            await gone(here, "owner")
            left = time.perf_counter() - at
    return Row(
        "the owner is killed within a call",
        f"OwnerLost(unknown) by the end of its lease ({lease} s); calls after it not run, and only the first waits",
        f"{how} after {when - at:.1f} s; next {first[0]} after {first[1]:.1f} s, then {after[0][0]} after "
        f"{max(seconds for _, seconds in after):.3f} s; gone after {left:.1f} s",
        unless(
            the_call_was_lost_as_unknown=how == "OwnerLost(unknown)",
            it_was_told_in_time=when - at < lease + 1.5,
            the_next_did_not_run=first[0].endswith("(no)") and first[1] < 3.5,
            those_after_it_did_not_wait=all(end == "NoOwner(no)" and seconds < 0.5 for end, seconds in after),
            it_was_gone_in_time=left < lease + 1.5,
        ),
    )


async def killed_replica(ground):
    with running(jetstream=True) as broker, ground.children(broker.url, ("b1", "b2")) as owners:
        async with ground.node(broker.url) as (here, _, _), trio.open_nursery() as nursery:
            await seen(here, "b1", "b2")
            load = Load(ground, here, ("b1", "b2"))
            nursery.start_soon(load.run)
            await trio.sleep(1)
            owners[0].kill()
            at, running_there = time.perf_counter(), here.calling.peers.get("b1", here.roster.epoch("b1")).in_flight
            await trio.sleep(ground.seconds(15, 4))
            load.stop()
    return Row(
        "one of two replicas is killed; 12 callers",
        "what ran there is unknown; none fails after it",
        f"{running_there} ran there; {load.found()}; {here.counters['mesh.elsewhere']} made elsewhere",
        load.wrong()
        + unless(
            only_what_ran_there_failed=load.failed <= running_there + 1 and set(load.kinds) <= BY_DEATH,
            calls_went_on=load.gap < 1 and load.results[-1] > at,
        ),
    )


async def killed_caller(ground):
    ground.hurry(LEASE)
    calls = {"owner": "owner", "first": 7, "seconds": 300, "within": 600}
    with running(jetstream=True) as broker, ground.child(broker.url, "owner"):
        async with ground.node(broker.url, "watching") as (here, _, _):
            await seen(here, "owner")
            with ground.child(broker.url, "caller", calls=calls) as process:
                await ground.logged("begun", 7)
                at = time.time()
                process.kill()
            after = await ground.logged("cancelled", 7) - at
    return Row(
        "the caller is killed within a call",
        f"cancelled where it runs by the end of the caller's lease ({LEASE} s)",
        f"cancelled after {after:.1f} s",
        unless(it_was_cancelled_in_time=after < LEASE + 1.5),
    )


async def killed_broker(ground):
    with running(jetstream=True) as broker, ground.child(broker.url, "owner", epochs=True):
        async with ground.node(broker.url) as (here, _, _), trio.open_nursery() as nursery:
            await seen(here, "owner")
            told = []

            async def ask(number, seconds):
                told.append(await ended(here.calling.call(asked(number=number, seconds=seconds), ["owner"])))

            for number in range(20):
                nursery.start_soon(ask, number, 0.2 * number)
            await ground.logged("begun", 19)
            broker.kill()
            await trio.sleep(1.5)
            broker.start()
        ran = [note[1] for note in ground.noted("begun")]
        fences = sum(ground.incarnations().values()) - 1 + here.counters["mesh.fences"]
    return Row(
        "the broker is killed within 20 calls of up to 4 s, and back after 1.5 s",
        "each runs once, and its result comes",
        f"{sum(how == 'result' for how, _ in told)} results, the last after {max(took for _, took in told):.1f} s; "
        f"{fences} let go of their names",
        unless(
            all_had_results=[how for how, _ in told] == ["result"] * 20,
            each_ran_once=sorted(ran) == list(range(20)),
            nobody_let_go=not fences,
        ),
    )


async def lost_store(ground):
    """A broker without a store of its own comes back empty."""
    with running(jetstream=True) as broker, ground.child(broker.url, "owner", epochs=True):
        async with ground.node(broker.url) as (here, nats, _), trio.open_nursery() as nursery:
            await seen(here, "owner")
            load = Load(ground, here, ("owner",), longest=3.0, within=20)
            nursery.start_soon(load.run)
            for _ in range(ground.seconds(3, 1)):
                await trio.sleep(2)
                await nats.request(f"$JS.API.STREAM.DELETE.KV_cord_{MESH}")
                await trio.sleep(7)
            load.stop()
        fences = sum(ground.incarnations().values()) - 1 + here.counters["mesh.fences"]
    return Row(
        "the bucket is lost while calls run",
        "all go on, nobody lets go of its name",
        f"{load.found()}; {fences} let go of their names",
        load.wrong() + unless(all_had_results=not load.failed, nobody_let_go=not fences),
    )


async def stopped_owner(ground):
    ground.hurry(LEASE)
    with running(jetstream=True) as broker, ground.child(broker.url, "owner") as process:
        async with ground.node(broker.url) as (here, _, _):
            await seen(here, "owner")
            epoch = here.roster.epoch("owner")
            told = []

            async def ask(number, seconds):
                told.append(await ended(here.calling.call(asked(number=number, seconds=seconds), ["owner"])))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 1, 60)
                await ground.logged("begun", 1)
                process.send_signal(signal.SIGSTOP)
                nursery.start_soon(ask, 2, 0)  # waits in its socket
            await trio.sleep(1)
            process.send_signal(signal.SIGCONT)
            at = time.perf_counter()
            await seen(here, "owner", not_epoch=epoch)
            back = time.perf_counter() - at
            await trio.sleep(0.5)
            late = len(ground.noted("begun", 2))
    hows = sorted({f"{how} after {after:.1f} s" for how, after in told})
    return Row(
        f"the owner is stopped past its lease ({LEASE} s), and goes on",
        "its calls are unknown; nothing that waited for it runs late; it is back anew",
        f"{' and '.join(hows)}; {late} ran late; back after {back:.1f} s",
        unless(
            both_were_unknown={how for how, _ in told} == {"OwnerLost(unknown)"},
            nothing_ran_late=not late,
            it_was_back_in_time=back < 8,
        ),
    )


async def duplicate(ground):
    ground.hurry(LEASE)
    with running(jetstream=True) as broker, ground.child(broker.url, "owner", epochs=True) as process:
        began = time.perf_counter()
        refused = ""
        try:
            async with ground.node(broker.url, "owner"):
                pass
        except DuplicateName as exc:
            refused = str(exc)
        after = time.perf_counter() - began
        process.kill()
        began = time.perf_counter()
        with ground.child(broker.url, "owner", epochs=True):
            waited = time.perf_counter() - began
    return Row(
        "two nodes of one name; then the first is killed",
        f"the second is refused at once; a successor waits for the lease ({LEASE} s)",
        f"refused after {after:.2f} s: {refused or 'it was not'}; the successor was there after {waited:.1f} s",
        unless(it_was_refused_at_once=bool(refused) and after < 2, it_waited_for_the_lease=waited < LEASE + 4),
    )


async def flooded(ground):
    """A reader that stops reads nothing of 64 MB that it asked for, and nobody else minds."""
    calls = {"owner": "owner", "first": 1000, "count": FLOOD, "size": LARGE, "seconds": 0.2}
    times, most = {"alone": [], "beside": []}, {"owner": 0.0, "broker": 0.0}
    with monitored() as (broker, port), ground.child(broker.url, "owner") as owner:
        async with ground.node(broker.url) as (here, _, bulk), trio.open_nursery() as nursery:
            await seen(here, "owner")
            uncredited = await cut_by_flood(broker, bulk, port)
            await here.calling.call(asked(size=LARGE), ["owner"])
            kind = "alone"

            async def small():
                while True:
                    began = time.perf_counter()
                    await here.calling.call(asked(), ["owner"])
                    times[kind].append(time.perf_counter() - began)
                    for name, pid in (("owner", owner.pid), ("broker", broker.pid)):
                        most[name] = max(most[name], rss(pid))
                    await trio.sleep(0.005)

            nursery.start_soon(small)
            await trio.sleep(2)
            base = dict(most)
            with ground.child(broker.url, "reader", calls=calls) as reader:
                await seen(here, "reader")
                epoch = here.roster.epoch("reader")
                await ground.logged("begun", 1000 + FLOOD - 1)
                await trio.sleep(0.25)
                reader.send_signal(signal.SIGSTOP)
                kind, had = "beside", len(ground.noted("got"))
                await trio.sleep(ground.seconds(6, 4))
                reader.send_signal(signal.SIGCONT)
                with trio.move_on_after(30):
                    while len(ground.noted("got")) < FLOOD:  # noqa: ASYNC110  # a file tells no event
                        await trio.sleep(0.05)
                same = here.roster.epoch("reader") == epoch
                got = len(ground.noted("got"))
            cut = monitor(port, "varz")["slow_consumers"] - uncredited
            nursery.cancel_scope.cancel("it is done")
    slowest = max(times["beside"])
    grown = {name: most[name] - base[name] for name in most}
    return Row(
        "a reader stops within 64 MB that it asked for",
        "the broker does not cut it off, as it does without credits; small calls of others go on; memory is bounded",
        f"{had} of {FLOOD} results came before it stopped, {got} in the end, cut off {cut} x (without credits "
        f"{uncredited} x); {len(times['beside'])} small calls beside, longest {1000 * slowest:.0f} ms (alone "
        f"{1000 * max(times['alone']):.0f}); owner +{grown['owner']:.0f} MB, broker +{grown['broker']:.0f} MB",
        unless(
            all_results_came=got == FLOOD,
            some_waited_for_it=had < FLOOD,
            it_was_not_cut_off=not cut and same,
            it_would_have_been_without_credits=uncredited == 1,
            small_calls_went_on=slowest < 1,
            memory_was_bounded=grown["owner"] < 150 and grown["broker"] < 100,
        ),
    )


async def cut_by_flood(broker, nats, port):
    """How often a broker cuts off a reader that reads nothing of what is published."""
    with socket.create_connection(("127.0.0.1", broker.port)) as reader:
        reader.sendall(b'CONNECT {"verbose":false}\r\nSUB flood 1\r\n')
        await trio.sleep(0.2)
        for _ in range(96 * 16):
            nats.publish("flood", bytes(64 * 1024))
            await nats.flush()
        with trio.move_on_after(12):
            while not monitor(port, "varz")["slow_consumers"]:  # noqa: ASYNC110  # it tells no event
                await trio.sleep(0.2)
        return monitor(port, "varz")["slow_consumers"]


async def killed_watchers(ground):
    ground.hurry(LEASE)
    names = [f"n{number}" for number in range(6)]
    with running(jetstream=True) as broker, ground.children(broker.url, names) as processes:
        # One that does not watch itself.
        records = {name: NodeRecord() for name in names}
        caller = next(
            name
            for name in map("caller{}".format, range(100))
            if name not in chosen(MESH, {**records, name: NodeRecord()})
        )
        async with ground.node(broker.url, caller) as (here, _, _), trio.open_nursery() as nursery:
            await seen(here, *names)
            await trio.sleep(1.5)
            dying = chosen(MESH, here.roster.nodes)
            living = [name for name in names if name not in dying]
            load = Load(ground, here, living)
            nursery.start_soon(load.run)
            for name in dying:
                processes[names.index(name)].kill()
            at = time.perf_counter()
            await gone(here, *dying)
            after = time.perf_counter() - at
            load.stop()
            same = all(here.roster.epoch(name) for name in living)
    return Row(
        f"all that watch the leases are killed ({', '.join(dying)}); 12 callers of the others",
        f"others notice, within the lease and some looks ({LEASE} s here, looks every 5 s); calls go on",
        f"gone after {after:.1f} s; {load.found()}",
        load.wrong() + unless(they_were_gone_in_time=after < 60, none_failed=not load.failed, the_others_stayed=same),
    )


FAULTS = (
    resets, killed_owner, killed_replica, killed_caller, killed_broker, lost_store, stopped_owner, duplicate, flooded,
    killed_watchers,
)  # fmt: skip
