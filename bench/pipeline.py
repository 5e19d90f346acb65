"""From a line on an agent's standard output to its viewer: what it costs, how late it comes, how many can be.

    ours      pipe -> runner -> journal -> frames -> translator -> log and fold -> encoder -> Socket.IO
    minimal   pipe -> one websocket write a line, and nothing else (aiohttp, uvloop)
    naive     pipe -> JSON -> an emit of stock python-socketio a line

All three read the same agents (`streaming_agents`) and are read by the same viewers (`line_viewers`), in the
same rounds. Every line is counted: a turn in which one is missing, doubled or out of place fails the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import uvloop

from figures import ratio, save, summary, table
from picture import Bar, Panel
from pipeline_carriers import MINIMAL, NAIVE, OURS, Carrier, Sample, carrier
from processes import LOAD_CORE, pin
from rounds import rounds

FULL = 0.0
SECONDS = {50.0: 1.0, 500.0: 1.0, 5000.0: 3.0, FULL: 1.0}
LOADS = (50.0, 500.0, 5000.0, FULL)
PLAN = {50: (LOADS, 2), 1: (LOADS, 1), 500: (LOADS[-2:], 1)}
"""Sessions: lines a second of all of them together, and how many rounds."""
MOST_NAIVE = 50
"""With more sessions it is not asked for all it can: what a second brought takes it a minute."""
MIB = 1024 * 1024
GATED_SESSIONS, GATED_RATE, GATED_SECONDS = 20, 1000.0, 0.5
"""More than `MOST_PROCESSES`, so that the runners are one process, which is weighed as one."""


async def one_load(carriers: dict[str, Carrier], rate: float, count: int) -> dict[str, list[Sample]]:
    """Rounds of all carriers under one load."""
    turns = {name: partial(each.turn, rate, SECONDS[rate]) for name, each in carriers.items()}
    return await rounds(turns, count, warm_up=0)


async def measure(kinds: list[str], sessions: int, rates: tuple[float, ...], count: int) -> dict[str, Any]:
    """All loads for so many sessions: by load, by carrier, samples."""
    async with AsyncExitStack() as stack:
        carriers = {kind: await stack.enter_async_context(carrier(kind, sessions)) for kind in kinds}
        found: dict[str, Any] = {}
        for rate in rates:
            fit = {k: c for k, c in carriers.items() if k != NAIVE or rate != FULL or sessions <= MOST_NAIVE}
            found[shown(rate)] = await one_load(fit, rate, count)
        if OURS in carriers and FULL in rates:
            caught_up = partial(carriers[OURS].turn, FULL, 1.5, from_journals=True)
            found["from journals"] = await rounds({OURS: caught_up}, count, warm_up=0)
    return found


def shown(rate: float) -> str:
    return f"{rate:.0f}/s" if rate else "saturation"


def told(samples: list[Sample]) -> dict[str, Any]:
    """What is kept of one carrier under one load."""
    return {
        "lines": sum(each.written for each in samples),
        "lines_per_second": summary([each.lines_per_second for each in samples]),
        "server_us_per_line": summary([each.server_us for each in samples]),
        "runners_us_per_line": summary([each.runners_us for each in samples]),
        "load_us_per_line": summary([each.load_us for each in samples]),
        "late_us_p50": summary([each.lateness(0.5) for each in samples]),
        "late_us_p99": summary([each.lateness(0.99) for each in samples]),
        "peak_mib": summary([each.peak_bytes / MIB for each in samples]),
        "lines_per_frame": summary([each.written / each.frames for each in samples]),
        "slowest_to_fastest_session": summary([each.fairness for each in samples]),
    }


def tell(sessions: int, found: dict[str, dict[str, list[Sample]]]) -> dict[str, Any]:
    """Print one number of sessions; return what is kept."""
    kept: dict[str, Any] = {}
    rows = []
    for load, by_carrier in found.items():
        kept[load] = {name: told(samples) for name, samples in by_carrier.items()}
        for name, figures in kept[load].items():
            medians = [value["median"] for value in figures.values() if isinstance(value, dict)]
            rows.append([f"{load} {name}", *medians])
        if MINIMAL in by_carrier and OURS in by_carrier:
            kept[load]["cpu_to_minimal"] = ratio(
                [each.server_us for each in by_carrier[OURS]],
                [each.server_us for each in by_carrier[MINIMAL]],
            )
        if NAIVE in by_carrier and OURS in by_carrier:
            kept[load]["rate_to_naive"] = ratio(
                [each.lines_per_second for each in by_carrier[OURS]],
                [each.lines_per_second for each in by_carrier[NAIVE]],
            )
    head = [
        "load",
        "lines/s",
        "server us",
        "runners us",
        "load us",
        "p50 us",
        "p99 us",
        "MiB",
        "lines/frame",
        "min/max",
    ]
    table(f"{sessions} sessions", head, rows)
    return kept


def panels(kept: dict[str, Any]) -> list[Panel]:
    """Processor time at a steady rate, and how many lines at most, of fifty sessions."""
    fifty = kept.get("50", {})
    drawn = []
    for load, title, name in (
        ("5000/s", "server's microseconds a line, 50 sessions, 5,000 lines/s", "server_us_per_line"),
        ("saturation", "lines a second at saturation, 50 sessions", "lines_per_second"),
    ):
        carriers = {kind: fifty.get(load, {}).get(kind) for kind in (OURS, MINIMAL, NAIVE)}
        bars = [Bar.of(kind, told[name], ours=kind == OURS) for kind, told in carriers.items() if told]
        drawn.append(Panel(title, bars))
    return drawn


async def gate() -> dict[str, float]:
    """What `gate` compares: processor seconds a line, the server's and the runners', steady and saturated."""
    pin(os.getpid(), LOAD_CORE)
    costs: dict[str, float] = {}
    async with carrier(OURS, GATED_SESSIONS) as ours:
        for rate in (GATED_RATE, FULL):
            taken = [await ours.turn(rate, GATED_SECONDS) for _ in range(3)]
            server = statistics.median(each.server_us for each in taken)
            runners = statistics.median(each.runners_us for each in taken)
            costs |= {
                f"the server's CPU a line, {shown(rate)}": server / 1e6,
                f"the runners' CPU a line, {shown(rate)}": runners / 1e6,
            }
    return costs


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="pipeline", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="*", default=list(PLAN))
    parser.add_argument("--rounds", type=int, help="of each load (default: two or three)")
    parser.add_argument("--rates", type=float, nargs="*", help="lines a second, 0: saturation")
    parser.add_argument("--kinds", nargs="*", default=[OURS, MINIMAL, NAIVE])
    chosen = parser.parse_args(argv)
    pin(os.getpid(), LOAD_CORE)
    kept = {}
    for sessions in chosen.sessions:
        rates, count = PLAN.get(sessions, (LOADS, 2))
        rates = tuple(chosen.rates) if chosen.rates is not None else rates
        found = uvloop.run(measure(chosen.kinds, sessions, rates, chosen.rounds or count))
        kept[str(sessions)] = tell(sessions, found)
    save("pipeline", {"sessions": kept}, *panels(kept))


if __name__ == "__main__":
    main()
