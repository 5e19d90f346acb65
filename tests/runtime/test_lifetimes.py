"""Sandboxes that their provider ends after a while: their sessions move before, and lose nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import SandboxNeeds
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import Phase, SandboxSnapshot, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.fast_time import told_fast
from tests.runtime.world import ANNA, PROFILE, World, killed, runtime, world

LIFETIME_S = 1000.0
SHORT_LIVED = PROFILE.model_copy(update={"sandbox": SandboxNeeds(lifetime_s=LIFETIME_S)})
NEVER_IDLE: dict[str, Any] = {
    "profiles": [SHORT_LIVED],
    "agent_idle_timeout_s": 1e6,
    "sandbox_idle_timeout_s": 1e6,
    "session_idle_timeout_s": 1e6,
}

Story = Callable[[World], Awaitable[None]]


async def works(stage: Stage) -> None:
    """Answers with what it recalls; `work N` takes N seconds and leaves a file."""
    text = str(stage.message[-1]["text"] if isinstance(stage.message, list) else stage.message)
    stage.tell(AgentIdentity("agent"))
    stage.remember({"said": text})
    if text.startswith("work"):
        await asyncio.sleep(float(text.split()[1]))
        stage.write("work.txt", text.encode())
    if text == "background":
        stage.line({"report": "at_work", "tasks": 1})
    recalled = [entry["said"] for entry in stage.recalled.get("main", [])]
    stage.text(f"{stage.turn_id}-text", ", ".join(recalled))
    stage.rest()


@asynccontextmanager
async def short_lived(**options: Any) -> AsyncIterator[World]:
    async with world(works, **NEVER_IDLE | options) as it:
        yield it


async def answers(it: World, session_id: str) -> list[str]:
    blocks = (await it.store.load_blocks(session_id, limit=99)).blocks
    return [each.block.content for each in blocks if each.block.type == "assistant_text"]


def notes(sandbox: ScriptedSandbox) -> list[str]:
    """What the agent of a sandbox was told behind the user's back."""
    messages = [frame["content"] for frame in sandbox.runner.commands if frame["k"] == "message"]
    return [part["text"] for content in messages if isinstance(content, list) for part in content[:-1]]


def test_an_idle_session_leaves_its_old_sandbox_and_wakes_with_all_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True) as it:
            session_id = await it.new(message="work 10")
            await asyncio.sleep(0.89 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.READY
            (old,) = it.sandboxes.living()
            old.runner.files["node_modules/x.js"] = b"never told of"
            await asyncio.sleep(0.02 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.DORMANT
            assert it.sandboxes.living() == []
            assert len(it.sandboxes.kept) == 1
            assert (await it.store.load_session(session_id)).snapshot is not None  # type: ignore[union-attr]

            await it.send(session_id, "two")
            await it.ended(session_id, 2)
            (new,) = it.sandboxes.living()
            assert new.runner.files == {"work.txt": b"work 10", "node_modules/x.js": b"never told of"}
            assert not [frame for frame in new.runner.commands if frame["k"] == "write"]
            assert await answers(it, session_id) == ["", "work 10"]
            (restored,) = await it.of(session_id, "workspace_restored")
            assert (restored.from_sandbox_id, restored.restored_files) == (old.ref.sandbox_id, 1)
            assert "Its files are as they were, but running processes are gone." in notes(new)[0]
            changed = [event.file.path for event in await it.of(session_id, "file_changed")]
            assert changed == ["work.txt", "node_modules/x.js"]
            await asyncio.sleep(1)
            assert it.sandboxes.kept == {}
            assert (await it.store.load_session(session_id)).snapshot is None  # type: ignore[union-attr]

    told_fast(story(), monkeypatch)


def test_without_snapshots_the_files_come_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with short_lived() as it:
            session_id = await it.new(message="work 10")
            await asyncio.sleep(0.91 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.DORMANT
            await it.send(session_id, "two")
            await it.ended(session_id, 2)
            assert it.sandboxes.living()[0].runner.files == {"work.txt": b"work 10"}
            assert "were put back as they were last saved" in notes(it.sandboxes.living()[0])[0]

    told_fast(story(), monkeypatch)


def test_a_busy_session_ends_its_turn_and_those_that_wait_are_answered_in_the_next_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True) as it:
            session_id = await it.new(message="one")
            await asyncio.sleep(0.85 * LIFETIME_S)
            await it.send(session_id, "work 80")
            await it.send(session_id, "three")
            await asyncio.sleep(0.06 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.RUNNING
            await it.send(session_id, "four")
            await asyncio.sleep(0.04 * LIFETIME_S)
            turns = await it.ended(session_id, 4)
            assert [turn.status for turn in turns] == [TurnStatus.COMPLETED] * 4
            old, new = it.sandboxes.made
            assert it.sandboxes.living() == [new]
            assert new.runner.files == {"work.txt": b"work 80"}
            assert await answers(it, session_id) == ["", "", "one, work 80", "one, work 80"]
            assert await it.of(session_id, "workspace_restored")
            assert old.ref.sandbox_id != new.ref.sandbox_id

    told_fast(story(), monkeypatch)


def test_every_sandbox_has_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with short_lived() as it:
            session_id = await it.new(message="one")
            await asyncio.sleep(0.5 * LIFETIME_S)
            it.sandboxes.made[0].die()
            await it.send(session_id, "two")
            await asyncio.sleep(0.6 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.READY
            await asyncio.sleep(0.31 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.DORMANT

    told_fast(story(), monkeypatch)


def test_what_works_in_the_background_gets_a_little_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with short_lived() as it:
            finishes, goes_on = await it.new(message="background"), await it.new(message="background")
            await asyncio.sleep(0.93 * LIFETIME_S)
            assert [await it.phase(each) for each in (finishes, goes_on)] == [Phase.READY] * 2
            it.sandboxes.made[0].runner.stage().line({"report": "at_work", "tasks": 0})
            await asyncio.sleep(0.01 * LIFETIME_S)
            assert [await it.phase(each) for each in (finishes, goes_on)] == [Phase.DORMANT, Phase.READY]
            await asyncio.sleep(0.02 * LIFETIME_S)
            assert await it.phase(goes_on) is Phase.DORMANT
            await it.send(goes_on, "two")
            await it.ended(goes_on, 2)
            assert "Running processes are gone" in notes(it.sandboxes.living()[0])[0]

    told_fast(story(), monkeypatch)


def test_a_turn_that_takes_longer_than_its_sandbox_lives_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with short_lived() as it:
            session_id = await it.new(message="one")
            await asyncio.sleep(0.85 * LIFETIME_S)
            await it.send(session_id, "work 500")
            await asyncio.sleep(0.01 * LIFETIME_S)
            it.sandboxes.made[0].runner.stage().text("partly", "so far")
            await asyncio.sleep(0.2 * LIFETIME_S)
            turns = await it.ended(session_id, 2)
            assert turns[1].error is not None
            assert (turns[1].error.code, turns[1].error.retryable) == ("sandbox_expired", True)
            await it.send(session_id, "three")
            assert (await it.ended(session_id, 3))[2].status is TurnStatus.COMPLETED

    told_fast(story(), monkeypatch)


def test_a_hibernated_agents_sandbox_is_left_too_and_an_idle_one_is_kept_as_a_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True, agent_idle_timeout_s=10.0) as it:
            session_id = await it.new(message="work 1")
            await asyncio.sleep(0.5 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.HIBERNATED
            await asyncio.sleep(0.41 * LIFETIME_S)
            assert await it.phase(session_id) is Phase.DORMANT
            assert list(it.sandboxes.kept.values()) == [{"work.txt": b"work 1"}]
        async with short_lived(snapshots=True, sandbox_idle_timeout_s=10.0) as it:
            session_id = await it.new(message="work 1")
            await asyncio.sleep(20)
            assert await it.phase(session_id) is Phase.DORMANT
            assert list(it.sandboxes.kept.values()) == [{"work.txt": b"work 1"}]

    told_fast(story(), monkeypatch)


async def fails(_: object) -> None:
    raise SandboxFault("The provider has a bad day.")


async def hangs(_: object) -> None:
    await asyncio.sleep(1e6)


@pytest.mark.parametrize("trouble", [fails, hangs])
def test_a_snapshot_that_cannot_be_taken_costs_nothing_that_is_kept(
    trouble: Callable[[object], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True, sandbox_idle_timeout_s=10.0) as it:
            it.sandboxes.before_snapshot = trouble
            session_id = await it.new(message="work 1")
            await asyncio.sleep(200)
            assert await it.phase(session_id) is Phase.DORMANT
            assert it.sandboxes.living() == []
            await it.send(session_id, "two")
            await it.ended(session_id, 2)
            assert it.sandboxes.living()[0].runner.files == {"work.txt": b"work 1"}

    told_fast(story(), monkeypatch)


@pytest.mark.parametrize("trouble", [fails, hangs])
def test_a_snapshot_that_does_not_come_back_is_replaced_by_the_store(
    trouble: Callable[[object], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_with_a_snapshot(spec: SandboxSpec) -> None:
        if spec.snapshot is not None:
            await trouble(spec)

    async def story() -> None:
        async with short_lived(snapshots=True, sandbox_idle_timeout_s=10.0) as it:
            it.sandboxes.before_create = not_with_a_snapshot
            session_id = await it.new(message="work 1")
            await asyncio.sleep(20)
            await it.send(session_id, "two")
            await it.ended(session_id, 2)
            assert it.sandboxes.living()[0].runner.files == {"work.txt": b"work 1"}
            assert "were put back as they were last saved" in notes(it.sandboxes.living()[0])[0]
            await asyncio.sleep(1)
            assert it.sandboxes.kept == {}

    told_fast(story(), monkeypatch)


def test_where_a_snapshot_differs_the_store_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True, sandbox_idle_timeout_s=10.0) as it:
            session_id = await it.new(message="work 1")
            await asyncio.sleep(20)
            (kept,) = it.sandboxes.kept.values()
            kept["work.txt"] = b"older"
            await it.send(session_id, "two")
            await it.ended(session_id, 2)
            assert it.sandboxes.living()[0].runner.files == {"work.txt": b"work 1"}
            stored = await it.manager.file(ANNA, session_id, "work.txt")
            assert stored.content == "work 1"

    told_fast(story(), monkeypatch)


def test_a_session_that_is_deleted_leaves_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with short_lived(snapshots=True, sandbox_idle_timeout_s=10.0) as it:
            asleep, unloaded = await it.new(message="work 1"), await it.new(message="work 1")
            await asyncio.sleep(20)
            assert len(it.sandboxes.kept) == 2
            await it.manager.delete_session(ANNA, asleep)
            await it.manager._loaded._put_away(it.manager._loaded._sessions[unloaded], 0.0)
            await it.manager.delete_session(ANNA, unloaded)
            assert it.sandboxes.kept == {}

    told_fast(story(), monkeypatch)


def test_a_snapshot_is_found_again_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        store = MemoryPersistence()
        async with ScriptedSandboxes(works, snapshots=True) as sandboxes:
            options = NEVER_IDLE | {"sandbox_idle_timeout_s": 10.0}
            async with runtime(sandboxes, store, leaves=True, **options) as it:
                session_id = await it.new(message="work 1")
                await asyncio.sleep(20)
                (kept,) = sandboxes.kept.values()
                kept["extra"] = b"in no store"
                await killed(it)
            async with runtime(sandboxes, store, **options) as it:
                await it.send(session_id, "two")
                await it.ended(session_id, 1)
                assert sandboxes.living()[0].runner.files == {"work.txt": b"work 1", "extra": b"in no store"}

    told_fast(story(), monkeypatch)


def test_a_record_without_a_snapshot_is_read_as_before() -> None:
    snapshot = SandboxSnapshot.model_validate_json(
        '{"snapshotId": "sn-1", "provider": "scripted", "takenAt": "2030-01-01T00:00:00.000Z"}'
    )
    assert snapshot.data == {}
