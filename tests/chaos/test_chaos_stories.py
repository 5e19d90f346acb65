# ruff: noqa: T201 - what it says is for people
"""A fixed set of seeds and some fresh ones, whole: nothing is lost, whatever dies. See the README."""

import asyncio
import secrets
from collections.abc import Sequence

import pytest

from tests.chaos.plan import plan
from tests.chaos.processes import fork_server
from tests.chaos.run import Verdict, tell

FIXED = (2, 101, 102, 104, 105, 108, 1000, 1002, 1010, 1059)
FRESH = 5
AT_ONCE = 4
LONG = pytest.mark.timeout(400)
"""Longer than a busy machine needs: a story that stands still ends by itself."""


@LONG
async def test_stories_that_were_told_before_still_end_well() -> None:
    judge(await told(FIXED))


@LONG
async def test_stories_that_nobody_told_before_end_well() -> None:
    first = secrets.randbelow(10**9)
    print(f"fresh seeds: {first} to {first + FRESH - 1}")
    judge(await told(range(first, first + FRESH)))


@pytest.mark.parametrize("seed", [1, 77])
def test_a_seed_is_one_plan(seed: int) -> None:
    assert plan(seed) == plan(seed)
    assert plan(seed) != plan(seed + 1)


async def told(seeds: Sequence[int]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    waiting = list(seeds)

    async def work() -> None:
        while waiting:
            verdicts.append(await tell(plan(waiting.pop(), lasts=2.0), forks))

    async with fork_server() as forks, asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())
    return verdicts


def judge(verdicts: list[Verdict]) -> None:
    failed = [verdict for verdict in verdicts if verdict.wrong]
    for verdict in failed:
        print(verdict.told())
    seeds = [verdict.plan.seed for verdict in failed]
    assert seeds == [], "tell one again: make chaos SEED=n"
    assert sum(verdict.figures.blows.get("kill", 0) for verdict in verdicts) > 0
    assert sum(verdict.figures.messages for verdict in verdicts) > len(verdicts)
