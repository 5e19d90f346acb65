"""Fan-out: one event to 1, 10, 100 and 500 viewers: the server's processor time a delivery, and latency.

Ours is the runtime's whole application on its memory log; an event begins with `log.append`. Peers:
python-socketio as it comes, the official server in Node.js, and plain broadcasts with aiohttp and picows,
which know neither a log nor who missed what. All servers run at once, each with all its viewers, and are
asked in turn for events: at the same pace, where each comes alone and finds cold caches; one at a time, the
next as soon as all have seen it; and as fast as each delivers them. Then, on ours: one viewer of a hundred
stops reading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from fanout_load import Server
from fanout_servers import NAMES, envelope
from figures import ratio, save, summary, table
from picture import Bar, Panel
from processes import LOAD_CORE, SERVER_CORE, cpu_seconds, memory, pin, process
from rounds import rounds

HERE: Final = Path(__file__).parent
PACED, ALONE, RUSHED = "at a pace", "one at a time", "as fast as can be"
WINDOWS: Final = {ALONE: 1, RUSHED: 64}
"""Events that may be on their way at a time. With one nothing can be written together; with many no server
waits for the load, and what a server makes of events that are there at once is its own affair."""


@dataclass(frozen=True)
class Room:
    """Its viewers; the pace, at which no server is overloaded, not even stock; events of a sample."""

    viewers: int
    interval_s: float
    events: dict[str, int]


ROOMS: Final = {
    "of 1": Room(1, 0.001, {PACED: 500, ALONE: 1000, RUSHED: 2000}),
    "of 10": Room(10, 0.001, {PACED: 500, ALONE: 400, RUSHED: 1000}),
    "of 100": Room(100, 0.004, {PACED: 120, ALONE: 120, RUSHED: 192}),
    "of 500": Room(500, 0.025, {PACED: 20, ALONE: 24, RUSHED: 128}),
}
HUNDRED: Final = "of 100"
PEERS: Final = {
    "stock": "python-socketio as it comes",
    "node": "socket.io in Node.js",
    "aiohttp": "aiohttp broadcast",
    "picows": "picows broadcast",
}
NAMED: Final = {"ours": "ours", **PEERS}
FIGURES: Final = {
    "deliveries a CPU second of the server": "a_second",
    "deliveries a second": "delivered",
    "of the load's core": "load",
    "latency p50, ms": "p50",
    "latency p99, ms": "p99",
}
OF_A_RUSH: Final = {"delivered", "load"}
"""Told only where it is the server, and not the load, that bounds them."""
GATED_SAMPLES: Final = 5
FILLING, FILL_BYTES, FILL_TIMES = "filling", 64 * 1024, 160
"""What the stalled viewer is sent besides, alone: the system takes some 6 MiB, the rest waits with us."""
MIB: Final = 1 << 20

Sample = dict[str, float]
"""Of the server: `us` of processor time a delivery, and deliveries `a_second` of it. Then milliseconds until
they came, those `delivered` in a second of the clock, and how much of its core the load took."""
Found = dict[str, dict[str, list[Sample]]]
"""Samples by room and server."""


@asynccontextmanager
async def started(name: str) -> AsyncIterator[Server]:
    """A server on its core, with nobody there yet."""
    if name == "node":
        head = {key: value for key, value in envelope(1, "").items() if key in {"v", "sessionId", "epoch"}}
        argv = ("node", str(HERE / "peers" / "fanout.mjs"), json.dumps(head))
    else:
        argv = (sys.executable, str(HERE / "fanout_servers.py"), name)
    async with process(*argv, core=SERVER_CORE) as (child, said):
        _, control = await asyncio.open_connection("127.0.0.1", said["control"])
        said.setdefault("rooms", NAMES)
        yield Server(child.pid, said, name in {"ours", "stock", "node"}, control)
        control.close()


async def sample(server: Server, name: str, mode: str, like: str | None = None) -> Sample:
    """One stream to one room, with as many events as one `like` it gets."""
    room = ROOMS[like or name]
    before, began, own = cpu_seconds(server.pid), time.perf_counter(), time.process_time()
    if mode == PACED:
        ages = await server.paced(name, room.events[mode], room.interval_s)
    else:
        ages = await server.rushed(name, room.events[mode], WINDOWS[mode])
    used, took = cpu_seconds(server.pid) - before, time.perf_counter() - began
    own = time.process_time() - own
    ages.sort()
    return {
        "us": used / len(ages) * 1e6,
        "a_second": len(ages) / used,
        "p50": statistics.median(ages) / 1e6,
        "p99": ages[len(ages) * 99 // 100] / 1e6,
        "delivered": len(ages) / took,
        "load": own / took,
    }


async def compare(stack: AsyncExitStack, count: int) -> tuple[Server, dict[str, Found]]:
    """All servers beside each other, room by room, in all modes; ours is returned for more."""
    servers = {name: await stack.enter_async_context(started(name)) for name in ("ours", *PEERS)}
    for server in servers.values():
        for name, room in ROOMS.items():
            for _ in range(room.viewers):
                await server.join(name)
    found: dict[str, Found] = {mode: {} for mode in (PACED, ALONE, RUSHED)}
    for room_name in ROOMS:
        for mode, of_mode in found.items():
            variants = {name: partial(sample, server, room_name, mode) for name, server in servers.items()}
            if mode == PACED:
                of_mode[room_name] = await rounds(variants, count)
            else:  # they are warm now; and stock takes seconds for a rush
                many = count if mode == ALONE else (count + 1) // 2
                of_mode[room_name] = await rounds(variants, many, warm_up=0)
    return servers["ours"], found


async def stall(server: Server, count: int) -> dict[str, Any]:
    """A hundred viewers of whom one does not read, in turn with a hundred who all do."""
    room = "one stalled"
    for _ in range(99):
        await server.join(room)
    before = memory(server.pid).rss
    stalled, its = await server.join(FILLING, room)
    server.arrivals[FILLING].empty()
    stalled.underlying_transport.pause_reading()
    for _ in range(FILL_TIMES):
        server.ask(FILLING, FILL_BYTES)
        await server.control.drain()
    variants = {
        "all read": partial(sample, server, HUNDRED, PACED),
        "one does not": partial(sample, server, room, PACED, HUNDRED),
    }
    samples = await rounds(variants, count)
    grown = (memory(server.pid).rss - before) / MIB
    if its.is_over:
        raise SystemExit("the viewer that does not read was cut: it has to be sent less")
    late = {name: [one["p99"] for one in of] for name, of in samples.items()}
    return {
        "p99_ms": {name: summary(of) for name, of in late.items()},
        "p99_ratio": ratio(late["one does not"], late["all read"]),
        "grown_mib": round(grown, 1),
    }


def told(found: Found) -> dict[str, Any]:
    """Summaries of all samples, and ours beside each peer."""
    return {
        room: {
            name: {figure: summary([one[figure] for one in of]) for figure in of[0]}
            | {
                "ours_is": ratio(
                    [one["a_second"] for one in samples["ours"]], [one["a_second"] for one in of]
                )
            }
            for name, of in samples.items()
        }
        for room, samples in found.items()
    }


def show(mode: str, result: dict[str, Any]) -> None:
    """Print the tables of one mode."""
    head = ["", *(f"{room.viewers} viewers" for room in ROOMS.values())]
    for title, figure in FIGURES.items():
        if mode == RUSHED or figure not in OF_A_RUSH:
            rows = [
                [label, *(result[room][name][figure]["median"] for room in ROOMS)]
                for name, label in NAMED.items()
            ]
            table(f"{mode}: {title}", head, rows)
    rows = [
        [label, *(result[room][name]["ours_is"]["median"] for room in ROOMS)] for name, label in PEERS.items()
    ]
    table(f"{mode}: ours, times each", head, rows)


def show_stalled(stalled: dict[str, Any]) -> None:
    """Print what one who does not read costs the others."""
    rows = [[name, of["median"], of["min"], of["max"]] for name, of in stalled["p99_ms"].items()]
    table("one viewer of a hundred does not read: p99 of the others, ms", ["", "median", "min", "max"], rows)
    print(f"\n  ratio {stalled['p99_ratio']['median']:g}; the server grew by {stalled['grown_mib']:g} MiB")


def panels(mode: str, result: dict[str, Any]) -> list[Panel]:
    """Deliveries a CPU second, a panel for each room."""
    return [
        Panel(
            f"{ROOMS[room].viewers} viewers, {mode}: deliveries a CPU second",
            [Bar.of(NAMED[name], of["a_second"], ours=name == "ours") for name, of in servers.items()],
        )
        for room, servers in result.items()
    ]


async def measure(count: int) -> None:
    """Measure, print and keep."""
    async with AsyncExitStack() as stack:
        ours, found = await compare(stack, count)
        stalled = await stall(ours, count)
    results = {mode: told(of_mode) for mode, of_mode in found.items()}
    for mode, result in results.items():
        show(mode, result)
    show_stalled(stalled)
    drawn = [panel for mode, result in results.items() for panel in panels(mode, result)]
    save("fanout", {"modes": results, "stalled": stalled}, *drawn)


async def gate() -> dict[str, float]:
    """What `gate` compares: processor seconds of a delivery to a hundred viewers, two modes."""
    pin(os.getpid(), LOAD_CORE)
    async with started("ours") as server:
        for _ in range(ROOMS[HUNDRED].viewers):
            await server.join(HUNDRED)
        costs = {}
        for mode in (RUSHED, PACED):
            await sample(server, HUNDRED, mode)
            taken = [await sample(server, HUNDRED, mode) for _ in range(GATED_SAMPLES)]
            costs[f"CPU a delivery, {mode}"] = statistics.median(one["us"] for one in taken) / 1e6
    return costs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench/fanout.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(argv)
    pin(os.getpid(), LOAD_CORE)  # this process is the load; servers are moved to theirs
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(chosen.rounds))


if __name__ == "__main__":
    main()
