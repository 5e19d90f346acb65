"""What gathering pieces while the loop is busy saves, and that it costs a lone stream nothing.

Sessions that each say fifty tokens a second to one viewer, on a server with one core: with `coalesceWithinS`
as it comes, and with 0, where nothing waits for more. One session alone; as many as a core can carry; and a
thousand.
Tokens come as ready frames (`frame_source`); from the runner's socket on, all is the real thing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from figures import difference, ratio, save, summary, table
from picture import Bar, Panel
from pipeline_carriers import OURS, Carrier, Sample, runtime, talking
from processes import LOAD_CORE, pin
from rounds import rounds

GATHERING, NOT = "gathering", "not gathering"
WITHIN_S = {GATHERING: 0.05, NOT: 0.0}
TOKENS_PER_SECOND = 50
SECONDS = {1: 3.0, 250: 3.0, 1000: 15.0}
"""By the number of sessions; long enough, where all of a core is taken, to see whether a queue grows."""
LOADS = {1: 2, 250: 2, 1000: 1}
"""Sessions, and how many rounds."""


@asynccontextmanager
async def streaming(within_s: float, sessions: int) -> AsyncIterator[Carrier]:
    """A served runtime whose sessions have agents that wait to be told."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="ar-bench-", ignore_cleanup_errors=True))
        agents = await stack.enter_async_context(talking("frame_source.py", folder, str(sessions)))
        options = ("--runners", str(sessions), "--coalesce", str(within_s))
        server, viewers, ids = await runtime(stack, Path(folder), sessions, *options)
        carrier = Carrier(OURS, server, (), agents, ("",) * sessions, viewers, ids)
        await carrier.turn(sessions, 0.5)  # agents are started
        yield carrier


async def measure(sessions: int, count: int) -> dict[str, list[Sample]]:
    """Rounds of both; every token is counted."""
    async with AsyncExitStack() as stack:
        rate = sessions * TOKENS_PER_SECOND
        turns = {}
        for name, within_s in WITHIN_S.items():
            carrier = await stack.enter_async_context(streaming(within_s, sessions))
            turns[name] = partial(carrier.turn, rate, SECONDS.get(sessions, 3.0))
        return await rounds(turns, count, warm_up=0)


def told(samples: list[Sample]) -> dict[str, Any]:
    """What is kept of one variant."""
    return {
        "tokens_per_second": summary([each.lines_per_second for each in samples]),
        "came_in_time": summary([each.came_in_time / each.written for each in samples]),
        "server_us_per_token": summary([each.server_us for each in samples]),
        "server_share": summary([each.server_share for each in samples]),
        "load_share": summary([each.load_share for each in samples]),
        "late_us_p50": summary([each.lateness(0.5) for each in samples]),
        "late_us_p99": summary([each.lateness(0.99) for each in samples]),
        "late_us_first_third": summary([each.late_thirds_us[0] for each in samples]),
        "late_us_last_third": summary([each.late_thirds_us[2] for each in samples]),
        "tokens_per_frame": summary([each.written / each.frames for each in samples]),
        "peak_mib": summary([each.peak_bytes / 1024 / 1024 for each in samples]),
    }


def tell(found: dict[int, dict[str, list[Sample]]]) -> dict[str, Any]:
    """Print it; return what is kept."""
    kept: dict[str, Any] = {}
    for sessions, variants in found.items():
        figures = {name: told(samples) for name, samples in variants.items()}
        head = [
            "",
            "tokens/s",
            "in time",
            "server us",
            "its core",
            "load's core",
            "p50 us",
            "p99 us",
            "p50 first third",
            "p50 last third",
            "tokens/frame",
            "MiB",
        ]
        rows = [[name, *(value["median"] for value in each.values())] for name, each in figures.items()]
        table(f"{sessions} sessions, {TOKENS_PER_SECOND} tokens a second each", head, rows)
        by_name = {name: [each.server_us for each in samples] for name, samples in variants.items()}
        late = {name: [each.lateness(0.5) for each in samples] for name, samples in variants.items()}
        kept[str(sessions)] = {
            **figures,
            "cpu_to_not_gathering": ratio(by_name[GATHERING], by_name[NOT]),
            "p50_more_us": difference(late[GATHERING], late[NOT]),
        }
    return kept


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="coalescing", description=__doc__)
    parser.add_argument("--rounds", type=int, help="of each load (default: 2, with a thousand 1)")
    parser.add_argument("--sessions", type=int, nargs="*", default=list(LOADS), help="(default: 1 250 1000)")
    chosen = parser.parse_args(argv)
    pin(os.getpid(), LOAD_CORE)
    loads = {sessions: chosen.rounds or LOADS.get(sessions, 2) for sessions in chosen.sessions}
    kept = tell({sessions: uvloop.run(measure(sessions, count)) for sessions, count in loads.items()})
    panels = [
        Panel(
            f"server's microseconds a token, {sessions} sessions",
            [Bar.of(name, found[name]["server_us_per_token"], ours=name == GATHERING) for name in WITHIN_S],
        )
        for sessions, found in kept.items()
    ]
    save("coalescing", {"sessions": kept}, *panels)


if __name__ == "__main__":
    main()
