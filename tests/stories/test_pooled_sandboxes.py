"""Sandboxes wait for sessions in the whole system: real processes, the real agent, its model by a lane."""

import signal
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.script import Say, Script, Wait
from tests.stories.process import House, Life, house, until
from tests.stories.viewer import get, new_session, viewing
from tests.waiting import eventually

SCRIPTS: dict[str, Script] = {
    "hello": [[Say("Good morning.")]],
    "slow": [[Wait(1.0), Say("I was asked while another runtime served.")]],
}
POOL = {"pool": {"size": 1}}
WITH_AGENTS = {"pool": {"size": 1, "agents": True}}


@pytest.mark.parametrize("pool", [POOL, WITH_AGENTS], ids=["sandbox", "sandbox and agent"])
async def test_a_session_speaks_from_a_sandbox_that_waited_and_the_next_one_waits_already(
    tmp_path: Path, pool: dict[str, Any]
) -> None:
    async with house(tmp_path, scripts=SCRIPTS, **pool) as it, it.life() as life:
        waited = await one_that_waits(it, life)
        session_id = await new_session(life)
        async with viewing(life, session_id) as viewer:
            await viewer.send(session_id, "[[script:hello]]", "m-1")
            (ended,) = await viewer.turns_ended(1)
            assert ended["status"] == "completed"
            assert [block["content"] for block in viewer.blocks("assistant_text")] == ["Good morning."]
        assert it.sandbox(session_id).sandbox_id == waited
        assert await one_that_waits(it, life) != waited


@pytest.mark.parametrize("pool", [POOL, WITH_AGENTS], ids=["sandbox", "sandbox and agent"])
async def test_a_session_keeps_its_lane_over_a_kill_and_what_waited_is_replaced(
    tmp_path: Path, pool: dict[str, Any]
) -> None:
    async with house(tmp_path, scripts=SCRIPTS, **pool) as it:
        async with it.life() as life:
            waited = await one_that_waits(it, life)
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await viewer.send(session_id, "[[script:hello]]", "m-1")
                await viewer.turns_ended(1)
                waits = await one_that_waits(it, life)
                await viewer.send(session_id, "[[script:slow]]", "m-2")
                await viewer.until(lambda event: event["type"] == "turn_start")
                await life.end(signal.SIGKILL)
        async with it.life() as life:
            async with viewing(life, session_id) as viewer:
                await until(lambda: is_over(life, session_id, 2))
            turns = (await get(life, f"/api/sessions/{session_id}/turns"))["turns"]
            assert [turn["status"] for turn in turns] == ["completed", "completed"]
            assert it.sandbox(session_id).sandbox_id == waited
            await one_that_waits(it, life)
            await eventually(lambda: len(it.sandboxes()) == 2)  # the one that waited before may go later
            assert await one_that_waits(it, life) != waits


async def test_a_runtime_that_is_ended_takes_those_that_wait_with_it(tmp_path: Path) -> None:
    async with house(tmp_path, scripts=SCRIPTS, pool={"size": 2}) as it:
        async with it.life() as life:
            await one_that_waits(it, life)
            session_id = await new_session(life)
            async with viewing(life, session_id) as viewer:
                await viewer.send(session_id, "[[script:hello]]", "m-1")
                await viewer.turns_ended(1)
            await life.end(signal.SIGTERM)
        assert [record.session_id for record in it.sandboxes()] == [session_id]
        async with it.life():
            pass
        assert it.sandboxes() == ()


async def test_the_agent_that_waited_is_the_one_that_answers(tmp_path: Path) -> None:
    async with house(tmp_path, scripts=SCRIPTS, **WITH_AGENTS) as it, it.life() as life:
        await one_that_waits(it, life)
        (lane,) = [each.session_id for each in it.sandboxes()]
        (agent,) = it.agents(lane)
        session_id = await new_session(life)
        async with viewing(life, session_id) as viewer:
            await viewer.send(session_id, "[[script:hello]]", "m-1")
            (ended,) = await viewer.turns_ended(1)
            assert ended["status"] == "completed"
        assert it.agents(session_id) == [agent]


async def one_that_waits(it: House, life: Life) -> str:
    """A sandbox that waits for a session, once the runtime says that one does."""

    async def waits() -> bool:
        pool = (await get(life, "/ready"))["parts"]["pool"]
        return bool(pool["waiting"] == pool["size"])

    await until(waits)
    return next(each.sandbox_id for each in it.sandboxes() if each.session_id.startswith("pool-"))


async def is_over(life: Life, session_id: str, turns: int) -> bool:
    found: list[dict[str, Any]] = (await get(life, f"/api/sessions/{session_id}/turns"))["turns"]
    return len(found) == turns and all(turn["status"] not in {"queued", "running"} for turn in found)
