"""Sandboxes that nobody has are ended, whatever their provider does; those that somebody has never are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import Phase
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.fast_time import told_fast
from tests.runtime.world import ANNA, World, killed, runtime, world

INTERVAL_S = 10.0
A_WAKE_S = 40.0
"""What is younger may be on its way: the time for a wake, and a little."""
NEVER_IDLE: dict[str, Any] = {
    "agent_idle_timeout_s": 1e6,
    "sandbox_idle_timeout_s": 1e6,
    "session_idle_timeout_s": 1e6,
    "reap_interval_s": INTERVAL_S,
    "wake_timeout_s": 5.0,
    "orphan_timeout_s": 1e6,
}


async def lost_one(sandboxes: ScriptedSandboxes) -> ScriptedSandbox:
    """A sandbox that carries the runtime's label and that nobody knows of."""
    spec = SandboxSpec("nobody", "agent-runtime", Path("none.sock"), 1e6)
    return await sandboxes.create(spec)


def reaped(outcome: str) -> float:
    return REGISTRY.get_sample_value("agent_runtime_sandboxes_reaped_total", {"outcome": outcome}) or 0.0


@asynccontextmanager
async def looked_after(**options: Any) -> AsyncIterator[World]:
    async with world(takes_its_time, **NEVER_IDLE | options) as it:
        yield it


async def takes_its_time(stage: Stage) -> None:
    if stage.message == "long":
        await asyncio.sleep(1e5)
    await echo(stage)


def test_what_nobody_has_is_ended_when_it_cannot_be_on_its_way_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with looked_after() as it:
            before = reaped("ended")
            lost = await lost_one(it.sandboxes)
            await asyncio.sleep(A_WAKE_S - INTERVAL_S)
            assert it.sandboxes.living() == [lost]
            await asyncio.sleep(2 * INTERVAL_S)
            assert it.sandboxes.living() == []
            assert reaped("ended") == before + 1

    told_fast(story(), monkeypatch)


def test_what_somebody_has_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with looked_after(session_idle_timeout_s=1e6, agent_idle_timeout_s=20.0) as it:
            busy, asleep = await it.new(message="long"), await it.new(message="short")
            await asyncio.sleep(50)
            assert [await it.phase(each) for each in (busy, asleep)] == [Phase.RUNNING, Phase.HIBERNATED]
            its = it.sandboxes.living()
            await asyncio.sleep(1000)
            assert it.sandboxes.living() == its
            assert [await it.phase(each) for each in (busy, asleep)] == [Phase.RUNNING, Phase.HIBERNATED]

    told_fast(story(), monkeypatch)


def test_one_that_is_long_on_its_way_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with looked_after(wake_timeout_s=500.0) as it:

            async def connects_late(_: ScriptedSandbox) -> None:
                await asyncio.sleep(400)

            it.sandboxes.before_connect = connects_late
            session_id = await it.new()
            await it.manager.prewarm_session(ANNA, session_id)
            await asyncio.sleep(450)
            assert await it.phase(session_id) is Phase.READY

    told_fast(story(), monkeypatch)


def test_one_whose_session_is_not_in_memory_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record names it; the session itself may be failing to be taken up."""

    async def story() -> None:
        store = MemoryPersistence()
        async with ScriptedSandboxes(echo) as sandboxes:
            async with runtime(sandboxes, store, leaves=True, **NEVER_IDLE) as it:
                session_id = await it.new(message="hello")
                await it.ended(session_id, 1)
                await killed(it)
            async with runtime(sandboxes, store, **NEVER_IDLE) as it:
                await asyncio.sleep(1)
                session = it.manager._loaded.find(session_id)
                assert session is not None
                session.close(detach=True)
                await asyncio.sleep(1)
                assert it.manager._loaded.find(session_id) is None
                await asyncio.sleep(500)
                assert len(sandboxes.living()) == 1
                await it.send(session_id, "again")
                await it.ended(session_id, 1)
                assert len(sandboxes.made) == 1

    told_fast(story(), monkeypatch)


async def fails(_: object) -> None:
    raise SandboxFault("The provider has a bad day.")


async def hangs(_: object) -> None:
    await asyncio.sleep(1e6)


async def is_broken(_: object) -> None:
    raise ValueError("what an adapter should have translated")


Trouble = Callable[[object], Awaitable[None]]


@pytest.mark.parametrize("trouble", [fails, hangs, is_broken])
def test_a_list_that_is_not_to_be_had_is_asked_for_again(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with looked_after() as it:
            lost, good = await lost_one(it.sandboxes), it.sandboxes.before_list
            it.sandboxes.before_list = trouble
            await asyncio.sleep(200)
            assert it.sandboxes.living() == [lost]
            it.sandboxes.before_list = good
            await asyncio.sleep(50)
            assert it.sandboxes.living() == []

    told_fast(story(), monkeypatch)


@pytest.mark.parametrize("trouble", [fails, hangs])
def test_without_a_list_at_the_start_what_was_left_is_ended_one_interval_later(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with ScriptedSandboxes(echo) as sandboxes:
            await lost_one(sandboxes)
            await asyncio.sleep(1)
            good, sandboxes.before_list = sandboxes.before_list, trouble
            async with runtime(sandboxes, MemoryPersistence(), **NEVER_IDLE) as it:
                session_id = await it.new(message="hello")
                await it.ended(session_id, 1)
                sandboxes.before_list = good
                await asyncio.sleep(INTERVAL_S + 1)
                assert len(sandboxes.living()) == 1
                assert await it.phase(session_id) is Phase.READY

    told_fast(story(), monkeypatch)


@pytest.mark.parametrize("trouble", [fails, hangs, is_broken])
def test_one_that_does_not_end_is_tried_again_and_spares_no_other(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with looked_after() as it:
            stubborn, other = await lost_one(it.sandboxes), await lost_one(it.sandboxes)
            before, is_stubborn = reaped("failed"), True

            async def ends_late(sandbox: ScriptedSandbox) -> None:
                if sandbox is stubborn and is_stubborn:
                    await trouble(sandbox)

            it.sandboxes.before_stop = ends_late
            await asyncio.sleep(200)
            assert it.sandboxes.living() == [stubborn]
            assert other.stopped == 1
            assert reaped("failed") > before
            is_stubborn = False
            await asyncio.sleep(50)
            assert it.sandboxes.living() == []

    told_fast(story(), monkeypatch)
