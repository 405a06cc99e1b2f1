"""What a mesh costs against its nodes: `python -m bench.mesh_nodes [NODES …] [--seed N] [--joining SECONDS]`.

All nodes run in this process, over a broker in memory, under a virtual clock: a second there is none here, and the CPU
time is that of all nodes and the broker together. Their faults follow from the seed. After each of them all must know
the same, and that must be who lives; what took too long, or is not so, is named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
from functools import lru_cache
from random import Random

import trio
from trio.testing import MockClock

from bench import report
from cord_trio.counters import Counters
from cord_trio.mesh import roster as roster_module
from cord_trio.mesh.presence import LEASE, decode_record
from cord_trio.mesh.watchers import chosen
from properties.mesh_world import BUCKET, HEALED, VANISHED, open_world

SIZES = (10, 50, 200, 500, 1000)

JOINING = 30.0
"""Seconds within which all start."""

STEADY = 60.0
"""Seconds in which nothing happens."""

SERVERS = 10
"""That each node offers."""


class Phase:
    """Cost of what happens between two moments."""

    def __init__(self, world):
        self.world = world
        self.began = (time.process_time(), trio.current_time(), world.broker.delivered, world.broker.octets)

    def row(self, what, note=""):
        cpu, at, messages, octets = self.began
        passed = max(trio.current_time() - at, 1e-9)
        messages, octets = self.world.broker.delivered - messages, self.world.broker.octets - octets
        return (
            f"  {what:34} {time.process_time() - cpu:8.1f} CPU s  {messages:10,} messages  {messages / passed:8,.0f}/s"
            f"  {octets / 1e6:8.1f} MB  {note}"
        )


def same(world):
    """Whether all who live know the same, and that is who lives."""
    living = world.living()
    epochs = {name: node.epoch for name, node in living.items()}
    return len(living) == sum(place.wanted for place in world.places.values()) and all(
        len(node.roster.nodes) == len(epochs)
        and all(node.roster.epoch(name) == epoch for name, epoch in epochs.items())
        for node in living.values()
    )


async def settle(world, within):
    """Seconds until all know the same; None if they do not within `within` seconds."""
    began = trio.current_time()
    while trio.current_time() - began < within:
        if same(world):
            return trio.current_time() - began
        await trio.sleep(0.5)
    return None


async def simulate(count, seed, joining, say):
    """Print what each phase costs; returns what was wrong."""
    wrong = []
    rng = Random(seed)
    counters = Counters()
    names = [f"node-{number:04}" for number in range(count)]

    def check(took, what, most):
        if took is None:
            wrong.append(f"{count} nodes: {what}: not all knew the same after {most:g} s")
        return "not healed" if took is None else f"all knew after {took:.1f} s"

    async with open_world(names, seed, counters, spread=joining) as world:
        phase = Phase(world)
        await trio.sleep(joining)
        took = await settle(world, HEALED)
        fenced = f"{check(took, 'start', HEALED)}; {counters['mesh.fences']} let go of their names"
        say(phase.row(f"start, within {joining:g} s", fenced))

        phase = Phase(world)
        await trio.sleep(STEADY)
        say(phase.row("steady, 60 s"))

        phase = Phase(world)
        for name, node in world.living().items():
            node.teller.offer({f"server-{number}": f"{name} {number}".encode() for number in range(SERVERS)}, {})
        await trio.sleep(10)
        say(phase.row(f"each offers {SERVERS} servers"))

        phase = Phase(world)
        view = next(iter(world.living().values())).roster.nodes
        dying = rng.sample([name for name in names if name not in chosen("m", view)], max(1, count // 20))
        epochs = [world.living()[name].epoch for name in dying]
        began = trio.current_time()
        for name in dying:
            world.places[name].crash()
        await trio.sleep(VANISHED + 0.1)
        gone = [max(world.gone.get(epoch, [float("inf")])) - began for epoch in epochs]
        told = [len(world.gone.get(epoch, ())) for epoch in epochs]
        if max(gone) > VANISHED or set(told) != {count - len(dying)}:
            wrong.append(f"{count} nodes: some that died were known for {max(gone):.1f} s, or not to all")
        say(phase.row(f"{len(dying)} die", f"gone for all after {min(gone):.1f} to {max(gone):.1f} s"))

        phase = Phase(world)
        for name in dying:
            world.places[name].start()
        took = await settle(world, HEALED)
        say(phase.row("and come back", check(took, "come back", HEALED)))

        phase = Phase(world)
        watching = chosen("m", next(iter(world.living().values())).roster.nodes)
        for name in watching:
            world.places[name].crash()
        took = await settle(world, 4 * LEASE)
        say(phase.row("all who watch die", check(took, "watchers die", 4 * LEASE)))
        for name in watching:
            world.places[name].start()
        await settle(world, HEALED)

        phase, fences = Phase(world), counters["mesh.fences"]
        world.broker.kill()
        await trio.sleep(2)
        world.broker.start()
        await trio.sleep(LEASE)
        took = await settle(world, HEALED)
        note = f"{check(took, 'broker', HEALED)}; {counters['mesh.fences'] - fences} let go of their names"
        say(phase.row("the broker is away for 2 s", note))

        phase, fences = Phase(world), counters["mesh.fences"]
        world.broker.streams.lose(BUCKET)
        await trio.sleep(LEASE)
        took = await settle(world, HEALED)
        note = f"{check(took, 'bucket', HEALED)}; {counters['mesh.fences'] - fences} let go of their names"
        say(phase.row("the bucket is lost", note))

        phase = Phase(world)
        cut = rng.sample(names, max(1, count // 20))
        for name in cut:
            world.places[name].way.cut()
        await trio.sleep(3 * LEASE)
        for name in cut:
            world.places[name].way.mend()
        took = await settle(world, HEALED)
        say(phase.row(f"{len(cut)} are cut off for 45 s", check(took, "cut", HEALED)))
        if world.most != 1:
            wrong.append(f"{count} nodes: {world.most} incarnations of one name lived at once")
        wrong.extend(world.failures)
    return wrong


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m bench.mesh_nodes", description="What a mesh costs against its nodes."
    )
    parser.add_argument("nodes", nargs="*", type=int, default=SIZES, help=f"how many; {SIZES} unless said")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--joining", type=float, default=JOINING, help="seconds within which all start; 0: at once")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    # Here a thousand nodes read each record; a real one reads it once.
    roster_module.decode_record = lru_cache(8192)(decode_record)
    wrong = []
    for count in args.nodes:
        began = time.process_time()
        print(f"{count:,} nodes, seed {args.seed}")
        wrong += trio.run(simulate, count, args.seed, args.joining, print, clock=MockClock(autojump_threshold=0))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {'all of it':34} {time.process_time() - began:8.1f} CPU s  {memory:10,.0f} MB at most\n", flush=True)
    print("\n".join(wrong) or f"all held; {report.machine()}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
