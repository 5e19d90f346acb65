"""The feed between a talkative runner and a session: nothing stalls, nothing is out of turn."""

import asyncio
from collections import Counter
from typing import Any

import pytest
import structlog

from agent_runtime import attachment, gathering
from agent_runtime.blocks import AssistantText
from agent_runtime.clock import now
from agent_runtime.events import BlockComplete
from agent_runtime.profile import FileRules
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentTurnBegan
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime_sandbox.frames import Frame
from tests.runtime.scripts import Curtain, assert_orderly, others_get_on
from tests.runtime.world import ANNA, world
from tests.waiting import eventually

MIB = 1024 * 1024
LONGER_THAN_A_TEST_S = 600.0


def much(number: int, size: int = MIB) -> BlockComplete:
    block = AssistantText(id=f"much-{number}", timestamp=now(), content="x" * size)
    return BlockComplete(block_id=block.id, block=block)


async def test_a_long_turn_is_acknowledged_as_it_goes() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        runner = it.sandboxes.made[0].runner
        number = 0
        while runner.acknowledged < 10:
            assert number < 200
            number += 1
            stage.tell(much(number))
            await others_get_on()
        # One frame told that the agent started; all others are blocks, beside the user's own.
        blocks = (await it.store.inner.load_blocks(session_id, limit=1000)).blocks
        assert len(blocks) >= runner.acknowledged, "what is acknowledged is stored"
        curtain.raised.set()
        await it.ended(session_id, 1)


async def test_a_flood_behind_the_end_of_a_turn_does_not_hold_that_end_up() -> None:
    """The session asks the runner for the files then, and the answer comes behind the flood."""

    async def script(stage: Stage) -> None:
        if stage.message == "flood":
            stage.rest()
            stage.tell(AgentTurnBegan())
            for number in range(40):
                stage.tell(much(number))
            stage.rest(autonomous=True)
        else:
            await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="flood")
        mine, _ = await it.ended(session_id, 2)
        assert mine.status is TurnStatus.COMPLETED
        await it.send(session_id, "more")
        await it.ended(session_id, 3)
        assert len(it.sandboxes.made) == 1


async def test_ten_thousand_lines_at_once_are_told_in_order() -> None:
    async def script(stage: Stage) -> None:
        stage.tell(*(much(number, size=1) for number in range(10_000)))
        stage.rest()

    async with world(script) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        told = [
            e.block_id for e in await it.of(session_id, "block_complete") if e.block_id.startswith("much")
        ]
        assert told == [f"much-{number}" for number in range(10_000)]
        assert len((await it.store.inner.load_blocks(session_id, limit=20_000)).blocks) == 10_001


async def test_on_a_loop_that_is_always_busy_all_is_told_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_BUSY_FROM", -2.0)
    monkeypatch.setattr(gathering, "_BUSY_FULLY", -1.0)

    async def script(stage: Stage) -> None:
        for number in range(300):
            stage.tell(much(number, size=1))
            await asyncio.sleep(0)
        stage.rest()

    async with world(script, coalesce_within_s=0.001) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        told = [
            e.block_id for e in await it.of(session_id, "block_complete") if e.block_id.startswith("much")
        ]
        assert told == [f"much-{number}" for number in range(300)]


async def test_lines_that_mean_nothing_are_passed_over() -> None:
    async def script(stage: Stage) -> None:
        for line in (
            None,
            7,
            [],
            "text",
            {},
            {"event": None},
            {"event": {"type": "block_start"}},
            {"report": 1},
        ):
            stage.line(line)
        await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="hello")
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED


async def test_frames_that_mean_nothing_are_passed_over() -> None:
    curtain = Curtain()
    deep: Any = {}
    for _ in range(400):
        deep = {"d": deep}
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        await curtain.playing()
        runner = it.sandboxes.made[0].runner
        runner.keep("transcript", [{"key": "main", "entries": [{"n": 1}, deep, 7, None, {"n": "\ud800"}]}])
        runner.keep("transcript", [{"key": 7, "entries": [{}]}, {"key": "", "entries": [{}]}, {"entries": 1}])
        runner.keep("transcript", [{"key": "k" * 1000, "entries": [{}]}])
        runner.keep("file", [{"path": ["x"], "change": ["created"]}, {"path": "../up", "change": "created"}])
        runner.keep("stderr", [{"text": {"not": "text"}}, {}])
        runner.keep("fault", [{"code": deep}])
        runner.keep("unheard of", [{}])
        curtain.raised.set()
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        assert await it.store.inner.load_transcript(session_id) == {"main": [{"n": 1}, {"n": "\ud800"}]}
        assert await it.manager.manifest(ANNA, session_id) == ()


async def test_a_sandbox_that_complains_without_end_is_a_few_lines_of_log_and_hides_nothing_else() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        await curtain.playing()
        runner = it.sandboxes.made[0].runner
        with structlog.testing.capture_logs() as logs:
            runner.keep("stderr", [{"text": f"complaint {number}"} for number in range(1000)])
            runner.keep("file", [{"path": "../up", "change": "created"}] * 1000)
            runner.keep("fault", [{"code": "unheard of"}] * 1000)
            curtain.raised.set()
            await it.ended(session_id, 1)
    told = Counter(entry["event"] for entry in logs if entry.get("session_id") == session_id)
    for event in ("agent_stderr", "file_report_refused", "runner_fault"):
        # A hundred, and one more for each second that this took.
        assert 100 <= told[event] < 300


async def test_a_very_long_line_is_translated_and_kept_as_others_are() -> None:
    text = 'a "long" line \n' * (MIB // 5)
    entries: list[Any] = [{"said": text}, 7, {"n": 1}]

    async def script(stage: Stage) -> None:
        stage.tell(much(1, size=3 * MIB))
        stage.remember(*entries)
        stage.rest()

    async with world(script) as it:
        session_id = await it.new(message="hello")
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        kept = (await it.store.inner.load_blocks(session_id, limit=10)).blocks[-1].block
        assert isinstance(kept, AssistantText)
        assert len(kept.content) == 3 * MIB
        assert await it.store.inner.load_transcript(session_id) == {"main": [{"said": text}, {"n": 1}]}


async def test_a_file_that_could_not_be_read_when_the_connection_broke_is_read_afterwards() -> None:
    curtain = Curtain()
    async with world(curtain) as it:
        session_id = await it.new(message="hello")
        await curtain.playing()
        sandbox = it.sandboxes.made[0]
        broken: list[Frame] = []

        async def break_once(frame: Frame) -> bool:
            if frame["k"] == "read" and not broken:
                broken.append(frame)
                sandbox.break_connections()
                return False
            return True

        sandbox.runner.before = break_once
        sandbox.runner.change("large.bin", bytes(100_000))
        await eventually(lambda: broken)
        curtain.raised.set()
        await it.ended(session_id, 1)
        file = await it.store.inner.load_file(session_id, "large.bin")
        assert file is not None
        assert file.size_bytes == 100_000


async def test_a_file_that_vanished_before_it_was_read_is_no_trouble() -> None:
    async def script(stage: Stage) -> None:
        stage.write("large.bin", bytes(100_000))
        stage.delete("large.bin")
        await echo(stage)

    async with world(script) as it:
        session_id = await it.new(message="hello")
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.COMPLETED
        assert await it.manager.manifest(ANNA, session_id) == ()
        changes = [event.change for event in await it.of(session_id, "file_changed")]
        assert changes == ["created", "deleted"]


async def test_a_file_over_the_bound_is_told_and_not_kept() -> None:
    async def script(stage: Stage) -> None:
        stage.write("huge.bin", bytes(300_000))
        await echo(stage)

    async with world(script, file_rules=FileRules(max_file_bytes=200_000)) as it:
        session_id = await it.new(message="hello")
        await it.ended(session_id, 1)
        (file,) = await it.manager.manifest(ANNA, session_id)
        assert (file.path, file.omitted) == ("huge.bin", "too_large")
        assert await it.store.load_manifest(session_id) == (file,)


async def test_a_runner_that_falls_silent_costs_the_grace_and_not_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody who is known not to answer is asked again for files or a goodbye."""
    monkeypatch.setattr(attachment, "_GOODBYE_TIMEOUT_S", LONGER_THAN_A_TEST_S)
    monkeypatch.setattr(attachment, "_SYNC_TIMEOUT_S", LONGER_THAN_A_TEST_S)

    async def script(stage: Stage) -> None:
        if stage.message != "hang":
            await echo(stage)

    async with world(script, interrupt_grace_s=0.05) as it:
        session_id = await it.new(message="hang")
        await it.reaches(session_id, Phase.RUNNING)

        async def silence(_: Frame) -> bool:
            return False

        it.sandboxes.made[0].runner.before = silence
        await it.manager.interrupt(ANNA, session_id, None)
        (turn,) = await it.ended(session_id, 1)
        assert turn.status is TurnStatus.CANCELLED
        await it.send(session_id, "hello")
        await it.ended(session_id, 2)
        assert_orderly(await it.events(session_id))
