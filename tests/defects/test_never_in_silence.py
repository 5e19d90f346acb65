"""A sandbox is never replaced in silence, and a message is never said twice: its agent and its user know."""

from typing import Any

import pytest

from agent_runtime.clock import now
from agent_runtime.creation import NewSession
from agent_runtime.profile import FileRules
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.world import ANNA, PROFILE, killed, runtime, world


class Hearing:
    """Remembers each message as it came, and keeps a file of which only the name is stored."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def __call__(self, stage: Stage) -> None:
        self.heard.append(stage.message)
        if stage.message == "make":
            stage.tell(AgentIdentity("agent"))
            stage.write("small", b"small")
            large = {"path": "large", "change": "created", "size": 2**40, "sha256": None}
            stage._runner.keep("file", [{**large, "mtime": now().timestamp(), "omitted": "too_large"}])
            stage.remember({"n": 1})
        stage.text(f"{stage.turn_id}-text", "heard")
        stage.rest()


def text_of(message: Any) -> str:
    """Both a message and the note before it."""
    return message if isinstance(message, str) else "\n".join(part["text"] for part in message)


@pytest.mark.parametrize("dies", [True, False])
async def test_the_agent_is_told_once_that_its_sandbox_is_another_one_and_what_was_lost(dies: bool) -> None:
    script = Hearing()
    async with world(script) as it:
        session_id = await it.new(message="make")
        await it.ended(session_id, 1)
        await it.reaches(session_id, Phase.READY)
        if dies:
            it.sandboxes.made[0].die()
            await it.reaches(session_id, Phase.DORMANT)
        else:
            await it.manager.stop_session(ANNA, session_id)
        for number, text in enumerate(("/compact", "go on", "and on"), 2):
            await it.send(session_id, text)
            await it.ended(session_id, number)

        order, noted, plain = script.heard[1:]
        assert order == "/compact", "an order to the agent itself comes as it is"
        assert "Your sandbox was replaced" in text_of(noted)
        assert "- large" in text_of(noted)
        assert text_of(noted).endswith("go on")
        assert plain == "and on"
        (restored,) = await it.of(session_id, "workspace_restored")
        assert (restored.restored_files, restored.lost_paths) == (1, ("large",))
        sandbox = (await it.manager.session(ANNA, session_id)).runtime.sandbox
        assert sandbox is not None
        assert sandbox.restart_count == 1
        blocks = (await it.store.load_blocks(session_id, limit=20)).blocks
        said = [each.block.content for each in blocks if each.block.type == "user_message"]
        assert said == ["make", "/compact", "go on", "and on"], "the note is not the user's"


async def test_the_agent_is_told_which_folders_its_own_profile_leaves_out() -> None:
    script = Hearing()
    async with world(script) as it:
        rules = FileRules(ignore=("scratch",))
        own = PROFILE.model_copy(update={"profile_id": "own", "file_rules": rules})
        await it.store.inner.save_profile(own)
        session, _ = await it.manager.create_session(ANNA, NewSession("own", message="make"))
        await it.ended(session.session_id, 1)
        await it.manager.stop_session(ANNA, session.session_id)
        await it.send(session.session_id, "go on")
        await it.ended(session.session_id, 2)
        assert "that are not saved (scratch)." in text_of(script.heard[-1])


async def test_what_an_agent_was_not_told_of_one_sandbox_it_is_told_in_the_next() -> None:
    script = Hearing()
    async with world(script) as it:
        session_id = await it.new(message="make")
        await it.ended(session_id, 1)
        await it.manager.stop_session(ANNA, session_id)
        await it.manager.prewarm_session(ANNA, session_id)
        await it.reaches(session_id, Phase.READY)
        await it.manager.stop_session(ANNA, session_id)
        await it.send(session_id, "go on")
        await it.ended(session_id, 2)
        assert "- large" in text_of(script.heard[-1])
        assert text_of(script.heard[-1]).count("Your sandbox was replaced") == 1


async def test_a_message_sent_ten_times_around_a_kill_is_one_turn_and_heard_once() -> None:
    script, store = Hearing(), MemoryPersistence()
    async with ScriptedSandboxes(script) as sandboxes:
        async with runtime(sandboxes, store, leaves=True) as it:
            session_id = await it.new(message="make")
            await it.ended(session_id, 1)

            async def nothing_arrives(frame: Frame) -> bool:
                return frame["k"] != "message"

            sandboxes.made[0].runner.before = nothing_arrives
            receipts = [await it.send(session_id, "once", "m") for _ in range(5)]
            await it.reaches(session_id, Phase.RUNNING)
            await killed(it)

        async def all_arrives(_: Frame) -> bool:
            return True

        sandboxes.made[0].runner.before = all_arrives
        async with runtime(sandboxes, store) as it:
            receipts += [await it.send(session_id, "once", "m") for _ in range(5)]
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert {receipt.turn_id for receipt in receipts} == {turn.turn_id}
            assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 9
            assert script.heard == ["make", "once"]
            blocks = (await it.store.load_blocks(session_id, limit=20)).blocks
            said = [each.block.content for each in blocks if each.block.type == "user_message"]
            assert said == ["make", "once"]
