"""A story that stands still is told for that, with what it waits for; one that is only slow is waited for."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from tests.chaos.plan import Plan, Said, plan
from tests.chaos.processes import fork_server
from tests.chaos.progress import LOOK_S, MOST_OF_A_LOOK_S, Progress, Unwell
from tests.chaos.run import tell
from tests.runtime.scripts import others_get_on

HANGING = next(
    drawn for drawn in map(plan, itertools.count()) if any(s.order.fate == "hangs" for s in drawn.said)
)


async def test_a_turn_that_hangs_is_told_with_its_session_and_what_that_awaits() -> None:
    # The patience has to be enough for the sandbox to come up.
    one = _nobody_knows_that_it_hangs(HANGING)
    async with fork_server() as forks:
        verdict = await tell(_alone(one), forks, patience_s=6.0)

    told = "\n".join(verdict.wrong)
    assert "not at rest, and nothing new for 6 s" in told
    assert "waits for every turn to end" in told
    (open_turns,) = [line for line in verdict.wrong if line.startswith("session 0 (")]
    assert f"('{one.order.message_id}', " in open_turns
    assert "AgentSession.run (session.py:" in verdict.log
    assert verdict.log in verdict.told()


async def test_what_stands_still_is_waited_for_as_long_as_the_patience_lasts() -> None:
    progress = Progress(patience_s=1.0)
    progress.waits_for = "a word"
    with pytest.raises(Unwell, match="not at rest, and nothing new for 1 s"):
        async with progress.wanted():
            await _looks_pass(progress, 25)
    assert progress.stand().endswith("since the beginning; waits for a word")


async def test_each_step_forward_is_given_the_whole_patience() -> None:
    progress = Progress(patience_s=1.0)
    async with progress.wanted():
        for count in range(1, 9):
            await _looks_pass(progress, 15)
            assert progress.reached("turns", count)
    assert 0.7 < progress.longest_s < 0.8


async def test_to_go_round_in_circles_is_no_progress() -> None:
    progress = Progress(patience_s=1.0)
    with pytest.raises(Unwell):
        async with progress.wanted():
            await _go_round(progress)
    assert "since 2 turns" in progress.stand()


async def test_what_we_ourselves_come_too_late_for_is_nobodys_standstill() -> None:
    progress = Progress(patience_s=1.0)
    async with progress.wanted():
        for _ in range(5):
            progress.passed(30.0)
        await others_get_on()
    assert progress.longest_s == pytest.approx(5 * MOST_OF_A_LOOK_S)


async def test_a_bound_within_is_not_called_a_standstill() -> None:
    with pytest.raises(TimeoutError):
        async with Progress(patience_s=1.0).wanted(), asyncio.timeout(0):
            await asyncio.Event().wait()


async def _looks_pass(progress: Progress, looks: int) -> None:
    for _ in range(looks):
        progress.passed(LOOK_S)
    await others_get_on()


async def _go_round(progress: Progress) -> None:
    for turns in itertools.cycle((1, 2)):
        progress.reached("turns", turns)
        await _looks_pass(progress, 1)


def _nobody_knows_that_it_hangs(drawn: Plan) -> Said:
    """Its agent works for ever, and the story does not know that it has to interrupt it."""
    said = next(each for each in drawn.said if each.order.fate == "hangs")
    return replace(
        said, at=0.0, session=0, viewer=0, when_busy="queue", order=replace(said.order, fate="rests")
    )


def _alone(said: Said) -> Plan:
    calm = HANGING.without("socket", "log", "store", "channel", "runtime", "idle", "pool", "client")
    return replace(calm, lasts=0.1, sessions=1, viewers=1, said=(said,), strikes=())
