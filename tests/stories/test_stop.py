"""Stop: whatever an agent is doing, an interrupt ends all of it, once, and the next turn works.

In plain processes: there no sandbox's end could hide a process that the interrupt left behind.
"""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.cli.settings import SandboxKind
from agent_runtime.testing.scenarios import agent, bash
from agent_runtime.testing.script import Say, Script, Wait
from tests.stories.process import AGENT, RUNNER, family, program
from tests.stories.serving import Server, serving
from tests.stories.viewer import Viewer, new_session, viewing
from tests.waiting import eventually

PLAIN = SandboxKind.UNSAFE_SUBPROCESS
GRACE_S = 20.0
MARK = "86399.0271828"
"""Seconds that a command of these stories sleeps: so it is known among all processes of the machine."""
WORK = f"sh -c 'sleep {MARK} & sleep {MARK} & wait'"
BEHIND = bash(WORK, "Work behind", run_in_background=True)
TALK = Say("I go on talking. " * 2000, delay_s=0.05)
SCRIPTS: dict[str, Script] = {
    "child": [[Say("I am the child."), bash(WORK, "Work")]],
    "talk": [[TALK]],
    "command": [[bash(WORK, "Work")]],
    "subagent": [[agent("Slow", "Be slow. [[script:child]]")]],
    "background": [[agent("Slow", "Be slow. [[script:child]]", background=True)], [BEHIND], [TALK]],
    "silent": [[Wait(600)]],
}
AT_WORK = {"talk": 0, "command": 2, "subagent": 2, "background": 4, "silent": 0}
"""Sleepers that are there when everything has begun."""


@pytest.mark.parametrize("script", AT_WORK)
async def test_stop_ends_all_that_the_agent_does_and_the_next_turn_works(script: str) -> None:
    async with serving(scripts=SCRIPTS, sandbox=PLAIN, interrupt_grace_s=GRACE_S) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, f"[[script:{script}]]", "one")
            await under_way(script, viewer, server)
            ended = await stopped(viewer, session_id, within=GRACE_S - 5)
            asked = len(server.model.requests)
            await eventually(lambda: not sleepers())
            went_on = await next_turn(viewer, session_id)
            await told_of_all(viewer)

        assert ended["status"] == "cancelled"
        assert went_on["status"] == "completed"
        assert len(server.model.requests) == asked + 1
        assert nothing_is_open(viewer)


async def test_stop_kills_the_sandbox_of_an_agent_that_does_not_listen() -> None:
    async with serving(scripts=SCRIPTS, sandbox=PLAIN, interrupt_grace_s=1.0) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:background]]", "one")
            await under_way("background", viewer, server)
            for pid in (process_of(server, RUNNER), process_of(server, AGENT)):
                os.kill(pid, signal.SIGSTOP)  # the runner first: it kills an agent that it sees to be stopped
            ended = await stopped(viewer, session_id, within=1.0 + 15)
            await eventually(lambda: not sleepers())
            went_on = await next_turn(viewer, session_id)

        assert ended["status"] == "cancelled"
        assert went_on["status"] == "completed"
        assert nothing_is_open(viewer)


async def under_way(script: str, viewer: Viewer, server: Server) -> None:
    """Wait until everything that the script begins has begun."""
    await eventually(lambda: server.model.requests, within=20)
    await eventually(lambda: len(sleepers()) == AT_WORK[script], within=20)
    if script in {"talk", "background"}:
        await viewer.until(lambda event: event["type"] == "text_delta" and "talking" in event["delta"])


async def stopped(viewer: Viewer, session_id: str, *, within: float) -> dict[str, Any]:
    """Press stop; return the turn as it ended."""
    began = asyncio.get_running_loop().time()
    ack = await viewer.call("session:interrupt", {"sessionId": session_id})
    assert ack == {"ok": True, "interrupted": True}
    (turn,) = await viewer.turns_ended(1, within)
    assert asyncio.get_running_loop().time() - began < within
    return turn


async def next_turn(viewer: Viewer, session_id: str) -> dict[str, Any]:
    ack = await viewer.send(session_id, "[[script:text]]", "two")
    assert ack["ok"], ack
    return (await viewer.turns_ended(2))[-1]


async def told_of_all(viewer: Viewer) -> None:
    """The agent's last words about what was stopped come some milliseconds after the turn."""
    await eventually(lambda: nothing_is_open(viewer))


def nothing_is_open(viewer: Viewer) -> bool:
    """Every block begun once and whole, every call answered by one result, every subagent at its end."""
    begun = [event["block"]["id"] for event in viewer.of("block_start")]
    whole = {event["block"]["id"]: event["block"] for event in viewer.of("block_complete")}
    for event in viewer.of("block_update"):
        whole[event["blockId"]] |= event["updates"]
    calls = Counter(block["toolUseId"] for block in whole.values() if block["type"] == "tool_use")
    answers = Counter(block["toolUseId"] for block in whole.values() if block["type"] == "tool_result")
    states = {block.get("status") for block in whole.values()} & {"pending", "running"}
    return sorted(begun) == sorted(whole) and calls == answers and not states


def sleepers() -> list[int]:
    """The processes of these stories' commands, wherever on the machine they run."""
    found = []
    for argv in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = argv.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", MARK.encode()]:
            found.append(int(argv.parent.name))
    return found


def process_of(server: Server, name: str) -> int:
    """The first process of the only sandbox that runs this program."""
    (record,) = [json.loads(file.read_text()) for file in (server.data / "sandboxes").glob("*/record.json")]
    return next(pid for pid in family(record["keeper"]["pid"]) if program(pid).startswith(name))
