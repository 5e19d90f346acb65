# ruff: noqa: T201 - what it says is for people
"""make chaos: run stories by their seeds and say what came of them.

make chaos SEEDS=500          so many fresh seeds (printed)
make chaos SEED=17            one again, with its plan and the runtime's log
python -m tests.chaos --help  all else
"""

import argparse
import asyncio
import secrets
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from tests.chaos.plan import SEAMS, plan
from tests.chaos.processes import fork_server
from tests.chaos.run import Verdict, tell


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, action="append", help="this one; may be given again")
    parser.add_argument("--seeds", type=int, default=20, help="how many fresh ones")
    parser.add_argument("--first", type=int, help="count from here instead of drawing them")
    parser.add_argument("--lasts", type=float, default=2.5, help="seconds of trouble per story")
    parser.add_argument("--at-once", type=int, default=4, help="stories at the same time")
    parser.add_argument(
        "--local", type=int, default=20, metavar="N", help="every Nth seed in bubblewrap; 0: none"
    )
    parser.add_argument("--without", action="append", default=[], choices=SEAMS, help="leave a seam in peace")
    parser.add_argument("--repeat", type=int, default=1, help="each seed so often")
    options = parser.parse_args()
    first = options.first if options.first is not None else secrets.randbelow(10**6) * 1000
    seeds = options.seed or list(range(first, first + options.seeds))
    verdicts: list[Verdict] = []
    whole = asyncio.run(_until_told_to_end(_all(seeds * options.repeat, options, verdicts)))
    failed = [verdict for verdict in verdicts if verdict.wrong]
    for verdict in failed[:10]:
        print(verdict.told())
    if options.seed:
        print(*(verdict.log for verdict in verdicts if not verdict.wrong), sep="\n----\n")
    _summary(verdicts, failed)
    return 1 if failed or not whole else 0


async def _until_told_to_end(work: Coroutine[Any, Any, None]) -> bool:
    """Whether it was done; Ctrl-C and SIGTERM end it, and what was told until then counts."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await work
    except asyncio.CancelledError:
        print("ended before all was told", file=sys.stderr)
        return False
    return True


async def _all(seeds: list[int], options: argparse.Namespace, verdicts: list[Verdict]) -> None:
    waiting = list(reversed(seeds))

    async def work() -> None:
        while waiting:
            seed = waiting.pop()
            local = options.local and seed % options.local == options.local - 1
            drawn = plan(seed, lasts=options.lasts, provider="local" if local else "unsafe")
            verdicts.append(verdict := await tell(drawn.without(*options.without), forks))
            if verdict.wrong or len(verdicts) % 50 == 0:
                state = f"seed {seed}: {verdict.wrong[0][:300]}" if verdict.wrong else "well"
                print(f"[{len(verdicts)}/{len(seeds)}] {state}", file=sys.stderr, flush=True)

    async with fork_server() as forks, asyncio.TaskGroup() as tasks:
        for _ in range(min(options.at_once, len(seeds))):
            tasks.create_task(work())


def _summary(verdicts: list[Verdict], failed: list[Verdict]) -> None:
    blows, deeds, joins, fates, ends = (Counter[str]() for _ in range(5))
    restarts: list[float] = []
    for verdict in verdicts:
        blows.update(verdict.figures.blows)
        deeds.update(verdict.figures.deeds)
        joins.update(verdict.figures.joins)
        ends.update(verdict.figures.ends)
        restarts += verdict.figures.restarts_ms
        fates.update(said.order.fate for said in verdict.plan.said)
    total = {
        name: sum(getattr(v.figures, name) for v in verdicts)
        for name in ("messages", "lives", "cuts", "refused", "hibernated", "moved")
    }
    print(f"{len(verdicts)} stories, {len(failed)} failed: {sorted({v.plan.seed for v in failed})}")
    print(f"runtime: {dict(blows)}, {total['lives']} lives", end="")
    if restarts:
        print(
            f"; birth to ready: median {statistics.median(restarts):.0f} ms, worst {max(restarts):.0f} ms",
            end="",
        )
    print(f"\nmessages {total['messages']}, agents {dict(fates)}, done to sessions {dict(deeds)}")
    seen = f"hibernations {total['hibernated']}, sandboxes replaced {total['moved']}"
    print(f"turns {dict(ends)}; seen by viewers: {seen}")
    slowest = max(verdicts, key=lambda verdict: verdict.figures.standstill_s, default=None)
    if slowest is not None:
        print(f"longest without progress: {slowest.figures.standstill_s:.1f} s, seed {slowest.plan.seed}")
    print(f"connections cut {total['cuts']}, refused {total['refused']}; joins {dict(joins)}")


if __name__ == "__main__":
    sys.exit(main())
