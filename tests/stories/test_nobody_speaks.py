"""Nobody speaks for the runtime: what the agent starts tries to, in a real sandbox beside the real agent.

The model is scripted to call Bash. Agent and tools are one user in there, so a signal can always be
sent; what cannot be refused is noticed, ends the turn with a typed error, and the next turn works.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from agent_runtime.needs import Resources
from agent_runtime.testing.script import Say, Script
from agent_runtime_adapters.sandboxes.registry import Registry
from agent_runtime_sandbox.process import is_stopped
from tests.seen_from_outside import files_of
from tests.stories.process import children, until
from tests.stories.serving import Server, serving
from tests.stories.test_hostile_sandbox import bash, outputs, python, turn
from tests.stories.viewer import get, new_session, viewing
from tests.waiting import eventually

ATTACKS = Path(__file__).with_name("attacks")
INJECTED: Script = [[Say("Whatever you say.")]]
SILENCE_S, AGENT_IDLE_S = 3.0, 1.0
TYPED = {"sandbox_timeout", "sandbox_lost", "sandbox_out_of_memory", "sandbox_out_of_disk", "agent_failed"}

RUNNER = "cut -d' ' -f4 /proc/$CLAUDE_PID/stat"
AGENT = "echo $CLAUDE_PID"


ATTACK: Script = bash("python3 attack.py")


async def session_with(server: Server, attack: str) -> str:
    """A session with an attack's program in its workspace."""
    content = (ATTACKS / f"{attack}.py").read_text()
    return await new_session(server, workspaceFiles=[{"path": "attack.py", "content": content}])


async def test_no_way_leads_into_the_runner_or_the_agent() -> None:
    async with serving(scripts={"attack": ATTACK}) as server:
        session_id = await session_with(server, "reach_in")
        async with viewing(server, session_id) as viewer:
            ended = await turn(viewer, session_id, "attack")
            after = await turn(viewer, session_id, "text")

        told = re.search(r"LED IN (.*) END", json.loads(outputs(viewer))[0])
        assert told is not None, outputs(viewer)
        led_in, tried, has_program = json.loads(told[1])
        assert has_program
        assert tried > 1000
        assert led_in == []
        assert (ended["status"], after["status"]) == ("completed", "completed")


async def test_an_agent_whose_program_cannot_be_read_still_runs_itself() -> None:
    """Its search is the same program under another name, which tools are given as a function."""
    async with serving(scripts={"search": bash("type rg | head -1; rg --no-heading needle")}) as server:
        files = [{"path": "hay.txt", "content": "straw\na needle\n"}]
        session_id = await new_session(server, workspaceFiles=files)
        async with viewing(server, session_id) as viewer:
            await turn(viewer, session_id, "search")

        assert "rg is a function" in outputs(viewer)
        assert "hay.txt:a needle" in outputs(viewer)


async def test_a_tool_can_neither_answer_for_the_runtime_nor_speak_as_the_agent() -> None:
    async with serving(scripts={"attack": ATTACK, "injected": INJECTED}) as server:
        session_id = await session_with(server, "answer")
        async with viewing(server, session_id) as viewer:
            await turn(viewer, session_id, "attack")
            await turn(viewer, session_id, "text")

        assert outputs(viewer).count("refused 13") == 3
        assert "said it" not in outputs(viewer)
        assert len(viewer.of("turn_start")) == 2
        assert "forged" not in json.dumps([block["content"] for block in viewer.blocks("assistant_text")])
        assert "injected" not in [asked.script for asked in server.model.requests]


async def test_what_a_tool_plants_steers_no_agent_that_is_started_later() -> None:
    scripts = {"attack": ATTACK, "injected": INJECTED, "look": bash("ls /workspace; env")}
    async with serving(scripts=scripts, agent_idle_timeout_s=AGENT_IDLE_S) as server:
        session_id = await session_with(server, "plant")
        async with viewing(server, session_id) as viewer:
            turns = [await turn(viewer, session_id, "attack"), await turn(viewer, session_id, "look")]
            await hibernated(server, session_id)
            turns += [await turn(viewer, session_id, "look"), await turn(viewer, session_id, "text")]

        assert [ended["status"] for ended in turns] == ["completed"] * 4
        assert "evil.js" in outputs(viewer)
        assert "obeyed" not in outputs(viewer)
        assert len(viewer.of("turn_start")) == 4
        asked = json.dumps([request.body for request in server.model.requests])
        assert "sk-planted" not in asked
        assert "FORGED MEMORY" not in asked
        assert "injected" not in [request.script for request in server.model.requests]


@pytest.mark.parametrize(
    ("deed", "code"),
    [
        (f"kill -STOP $({RUNNER})", "sandbox_timeout"),
        (f"kill -KILL $({RUNNER})", "sandbox_lost"),
        (f"kill -TERM $({RUNNER})", "sandbox_lost"),
        (f"kill -STOP $({AGENT})", "agent_failed"),
        (f"kill -KILL $({AGENT})", "agent_failed"),
        ("kill -STOP -1", "sandbox_timeout"),
        ("kill -KILL -1", "sandbox_lost"),
    ],
)
async def test_whoever_stops_or_ends_the_runner_or_the_agent_is_noticed(deed: str, code: str) -> None:
    async with serving(scripts={"deed": bash(deed)}, runner_silence_s=SILENCE_S) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            ended = await turn(viewer, session_id, "deed")
            after = await turn(viewer, session_id, "text")

        assert (ended["status"], ended["error"]["code"]) == ("failed", code)
        assert ended["error"]["retryable"] is True
        assert after["status"] == "completed"


async def test_a_runner_that_is_stopped_while_nothing_is_under_way_costs_no_turn() -> None:
    # It waits until the turn is over and everything is told of it, however long that takes.
    until = "until [ -e now ]; do sleep 0.05; done"
    later = f"runner=$({RUNNER}); ({until}; kill -STOP $runner) >/dev/null 2>&1 &"
    async with serving(scripts={"deed": bash(later)}, runner_silence_s=SILENCE_S) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            first = await turn(viewer, session_id, "deed")
            (stopped,) = Registry(server.data / "sandboxes").all()
            assert stopped.inner is not None
            (files_of(server.data / "sandboxes" / stopped.sandbox_id) / "now").touch()
            await eventually(lambda: any(is_stopped(pid) for pid in children(stopped.inner.pid)))
            second = await turn(viewer, session_id, "text")

        assert (first["status"], second["status"]) == ("completed", "completed")
        assert viewer.of("workspace_restored"), (
            "the message was not touched: it is answered in another sandbox"
        )


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(
            python("import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(1)"),
            id="forks",
        ),
        pytest.param("cat /dev/zero > fill; rm -f fill", id="disk"),
        pytest.param("yes 'this is a lot of output' | head -c 100000000", id="output"),
        pytest.param(python("held = []\nwhile True: held.append(b'x' * (1 << 20))"), id="memory"),
        pytest.param(python("import os\nwhile True: os.dup(0)"), id="descriptors"),
        pytest.param(
            python("import ctypes\nlibc = ctypes.CDLL(None)\nwhile libc.inotify_init1(0) >= 0: pass"),
            id="watches",
        ),
    ],
)
async def test_taking_all_there_is_of_something_ends_no_more_than_a_turn(deed: str) -> None:
    """A tool may have its own sandbox end; the runtime is told the truth, and the next turn works."""
    bounds = {"cpu": 2, "memory_bytes": 1 << 30, "processes": 256, "disk_bytes": 1 << 26}
    scripts = {
        "deed": bash(f"timeout -s KILL 4 bash -c {shlex.quote(deed)}; kill -9 $(pgrep -x python3); true")
    }
    async with serving(
        scripts=scripts, resources=Resources.model_validate(bounds), runner_silence_s=SILENCE_S
    ) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            ended = await turn(viewer, session_id, "deed")
            after = await turn(viewer, session_id, "text")

        assert ended["status"] == "completed" or ended["error"]["code"] in TYPED, ended
        assert after["status"] == "completed"


async def hibernated(server: Server, session_id: str) -> None:
    """Wait until the agent was ended, and its sandbox was not."""

    async def is_so() -> bool:
        (session,) = (await get(server, "/api/sessions"))["sessions"]
        assert session["sessionId"] == session_id
        return bool(session["runtime"]["phase"] == "hibernated")

    await until(is_so)
