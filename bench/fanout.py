"""Fan-out: one event to 1, 10, 100 and 500 viewers: the server's processor time a delivery, and latency.

Ours is the runtime's whole application on its memory log; an event begins with `log.append`. Peers:
python-socketio as it comes, the official server in Node.js, and plain broadcasts with aiohttp and picows,
which know neither a log nor who missed what. All servers run at once, each with all its viewers, and are
asked in turn for events at the same pace. Then, on ours: one viewer of a hundred stops reading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from fanout_load import Server
from fanout_servers import NAMES, envelope
from figures import ratio, save, summary, table
from picture import Bar, Panel
from processes import LOAD_CORE, SERVER_CORE, cpu_seconds, memory, process
from rounds import rounds

HERE: Final = Path(__file__).parent
PACES: Final = {
    "of 1": (1, 500, 0.001),
    "of 10": (10, 500, 0.001),
    "of 100": (100, 120, 0.004),
    "of 500": (500, 20, 0.025),
}
"""Viewers, events a sample, seconds between two events: no server is overloaded, not even stock."""
PEERS: Final = {
    "stock": "python-socketio as it comes",
    "node": "socket.io in Node.js",
    "aiohttp": "aiohttp broadcast",
    "picows": "picows broadcast",
}
FILLING, FILL_BYTES, FILL_TIMES = "filling", 64 * 1024, 160
"""What the stalled viewer is sent besides, alone: the system takes some 6 MiB, the rest waits with us."""
MIB: Final = 1 << 20


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


async def sample(server: Server, room: str) -> dict[str, float]:
    """One stream to one room: microseconds of processor time a delivery, milliseconds until it came."""
    _, events, interval_s = PACES.get(room, PACES["of 100"])
    before = cpu_seconds(server.pid)
    ages = await server.stream(room, events, interval_s)
    used = cpu_seconds(server.pid) - before
    ages.sort()
    return {
        "us": used / len(ages) * 1e6,
        "a_second": len(ages) / used,
        "p50": statistics.median(ages) / 1e6,
        "p99": ages[len(ages) * 99 // 100] / 1e6,
    }


async def compare(
    stack: AsyncExitStack, count: int
) -> tuple[Server, dict[str, dict[str, list[dict[str, float]]]]]:
    """All servers beside each other, room by room; ours is returned for more."""
    servers = {name: await stack.enter_async_context(started(name)) for name in ("ours", *PEERS)}
    for server in servers.values():
        for room, (viewers, _, _) in PACES.items():
            for _ in range(viewers):
                await server.join(room)
    found = {}
    for room in PACES:
        variants = {name: partial(sample, server, room) for name, server in servers.items()}
        found[room] = await rounds(variants, count)
    return servers["ours"], found


async def stall(server: Server, count: int) -> dict[str, Any]:
    """A hundred viewers of whom one does not read, in turn with a hundred who all do."""
    room = "one stalled"
    for _ in range(99):
        await server.join(room)
    before = memory(server.pid).rss
    stalled, its = await server.join(FILLING, room)
    server.arrivals[FILLING].expect(0)
    stalled.underlying_transport.pause_reading()
    for _ in range(FILL_TIMES):
        server.ask(FILLING, FILL_BYTES)
        await server.control.drain()
    variants = {"all read": partial(sample, server, "of 100"), "one does not": partial(sample, server, room)}
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


def told(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
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


def show(result: dict[str, Any], stalled: dict[str, Any]) -> None:
    """Print tables."""
    names = {"ours": "ours", **PEERS}
    head = ["", *(f"{viewers} viewers" for viewers, _, _ in PACES.values())]
    for title, figure in (
        ("deliveries a CPU second of the server", "a_second"),
        ("latency p50, ms", "p50"),
        ("latency p99, ms", "p99"),
    ):
        table(
            title,
            head,
            [
                [label, *(result[room][name][figure]["median"] for room in PACES)]
                for name, label in names.items()
            ],
        )
    table(
        "ours, times each",
        head,
        [
            [label, *(result[room][name]["ours_is"]["median"] for room in PACES)]
            for name, label in PEERS.items()
        ],
    )
    rows = [[name, of["median"], of["min"], of["max"]] for name, of in stalled["p99_ms"].items()]
    table("one viewer of a hundred does not read: p99 of the others, ms", ["", "median", "min", "max"], rows)
    print(f"\n  ratio {stalled['p99_ratio']['median']:g}; the server grew by {stalled['grown_mib']:g} MiB")


async def measure(count: int) -> None:
    """Measure, print and keep."""
    async with AsyncExitStack() as stack:
        ours, found = await compare(stack, count)
        stalled = await stall(ours, count)
    result = told(found)
    show(result, stalled)
    panels = [
        Panel(
            f"{viewers} viewers: deliveries a CPU second",
            [
                Bar.of({"ours": "ours", **PEERS}[name], of["a_second"], ours=name == "ours")
                for name, of in result[room].items()
            ],
        )
        for room, (viewers, _, _) in PACES.items()
    ]
    save("fanout", {"rooms": result, "stalled": stalled}, *panels)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench/fanout.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(argv)
    cores = os.sched_getaffinity(0)
    try:
        if LOAD_CORE in cores:
            os.sched_setaffinity(0, {LOAD_CORE})  # this process is the load; servers are moved to theirs
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(chosen.rounds))
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
