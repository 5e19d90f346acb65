"""A sandbox that is found again at a start and is not what it was: no turn hangs, nothing is left."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent_runtime import holder, runner_link
from agent_runtime.errors import SandboxFault
from agent_runtime.profile import FileRules
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.testing.scripted_runner import ScriptedRunner
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import encode
from tests.runtime.scripts import Curtain, cut_off
from tests.runtime.world import ANNA, runtime
from tests.waiting import eventually

Greets = Callable[[ScriptedRunner, int, Callable[[bytes], None]], None]


def hello(**fields: Any) -> bytes:
    return encode({"k": "hello", "v": 1, "head": 3, "oldest": 1, "agent": "running", **fields})


def with_garbage(_: ScriptedRunner, _after: int, send: Callable[[bytes], None]) -> None:
    send(b"garbage\n")


def with_an_endless_line(_: ScriptedRunner, _after: int, send: Callable[[bytes], None]) -> None:
    send(b"x" * 10_000_000)


def behind_its_checkpoint(_: ScriptedRunner, _after: int, send: Callable[[bytes], None]) -> None:
    send(hello(head=0))


def and_is_silent(_: ScriptedRunner, _after: int, send: Callable[[bytes], None]) -> None:
    send(hello(head=10**18))


def and_leaves_frames_out(_: ScriptedRunner, after: int, send: Callable[[bytes], None]) -> None:
    send(hello(head=after + 9, oldest=after + 8) + encode({"k": "agent", "o": after + 9, "t": 0, "line": {}}))


def and_says_nothing(_: ScriptedRunner, _after: int, _send: Callable[[bytes], None]) -> None:
    """Takes the connection."""


@pytest.mark.parametrize(
    "greets",
    [
        with_garbage,
        with_an_endless_line,
        behind_its_checkpoint,
        and_is_silent,
        and_leaves_frames_out,
        and_says_nothing,
    ],
)
async def test_a_runner_that_is_not_what_it_was_ends_with_its_turn_and_the_next_message_works(
    greets: Greets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "_CATCH_UP_S", 0.1)
    monkeypatch.setattr(runner_link, "COMMAND_TIMEOUT_S", 0.2)
    monkeypatch.setitem(runner_link.RunnerLink.command.__kwdefaults__, "timeout_s", 0.2)
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        runner = sandboxes.made[0].runner
        monkeypatch.setattr(runner, "attach", lambda after, send: greets(runner, after, send))
        async with runtime(sandboxes, store) as it:
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.FAILED
            await eventually(lambda: not sandboxes.living())
            curtain.raised.set()
            await it.send(session_id, "next")
            assert (await it.ended(session_id, 2))[1].status is TurnStatus.COMPLETED


async def test_a_sandbox_that_cannot_be_reached_for_a_moment_is_gone_on_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with ScriptedSandboxes(curtain) as sandboxes:
        session_id, _ = await cut_off(sandboxes, store, curtain)
        tries = 0
        connect = ScriptedSandbox.connect

        async def busy(sandbox: ScriptedSandbox) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise SandboxFault("The sandbox cannot be reached.")
            return await connect(sandbox)

        monkeypatch.setattr(ScriptedSandbox, "connect", busy)
        async with runtime(sandboxes, store) as it:
            await it.manager.snapshot(ANNA, session_id)
            assert await it.phase(session_id) is Phase.RUNNING
            curtain.raised.set()
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert len(sandboxes.made) == 1


async def test_a_runner_that_tells_of_files_without_end_costs_no_memory_without_end() -> None:
    curtain, store = Curtain(), MemoryPersistence()
    async with (
        ScriptedSandboxes(curtain) as sandboxes,
        runtime(sandboxes, store, file_rules=FileRules(max_files=10)) as it,
    ):
        session_id = await it.new(message="hello")
        stage = await curtain.playing()
        for number in range(100):
            stage.write(f"{number}.txt", b"x")
        stage.text("last", "last")
        await it.reaches_events(session_id, "block_complete", 2)
        async with asyncio.timeout(20):
            files = await it.manager.manifest(ANNA, session_id)
        assert 10 <= len(files) <= 20
        stage.write("3.txt", b"known ones may change")
        await eventually(lambda: it.manager._loaded.find(session_id).recorder.files["3.txt"].size_bytes > 1)
