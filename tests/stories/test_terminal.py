"""A person opens a terminal in a session's sandbox, over Socket.IO."""

import asyncio
import base64
import random
from pathlib import Path

import pytest

from agent_runtime.transport import terminals
from agent_runtime_adapters.sandboxes.processes import all_pids
from tests.running_node import story
from tests.runtime.transport.world import ANNA, BERT
from tests.stories.inside import everywhere, inside
from tests.waiting import eventually


def running(words: str) -> list[int]:
    """All processes of this machine that were started with just these words."""
    return [pid for pid in all_pids() if _words(pid) == words]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


@everywhere
async def test_a_terminal_wakes_the_sandbox_and_works_in_its_workspace(kind: str) -> None:
    async with inside(kind) as place:
        assert await place.phase() == "dormant"
        shell = await place.shell(rows=31, cols=97)
        await shell.run("stty size", "31 97")
        await shell.run("echo $((6 * 7)) > answer.txt; cat answer.txt", "42")
        resize = {"terminalId": shell.terminal_id, "rows": 50, "cols": 120}
        assert (await place.viewer.ask("terminal:resize", resize))["ok"]
        await shell.run("stty size", "50 120")
        await place.world.call("POST", f"/api/sessions/{place.session_id}/sync")
        _, file, _ = await place.world.call("GET", f"/api/sessions/{place.session_id}/files/answer.txt")
        assert file == b"42\n"
        await shell.type("exit 5\n")
        assert await shell.exit() == {"terminalId": shell.terminal_id, "code": 5}
        answer = await shell.type("gone")
        assert answer["error"]["code"] == "terminal_not_found"


@everywhere
async def test_ctrl_c_and_job_control_work(kind: str) -> None:
    async with inside(kind) as place:
        shell = await place.shell()
        await shell.run("stty -echo; echo re''ady", "ready")
        await shell.run("sh -c 'echo began; exec sleep 1000'", "began")
        await shell.type(b"\x03")
        await shell.run("echo code $?", "code 130")
        await shell.run("sh -c 'echo began; exec sleep 1000'", "began")
        await shell.type(b"\x1a")
        await shell.until("Stopped")
        await shell.run("kill %1; wait; echo al''l over", "all over")


@everywhere
async def test_who_disconnects_leaves_no_process_behind(kind: str) -> None:
    async with inside(kind) as place:
        await place.wake()
        async with place.world.viewer(ANNA) as other:
            shell = await place.shell(viewer=other)
            nap = f"sleep {random.randrange(10**6, 10**8)}"
            await shell.run(f"(trap '' HUP; {nap}) & {nap} & echo sta''rted", "started")
            await eventually(lambda: len(running(nap)) == 2)
        await eventually(lambda: not running(nap))


@everywhere
async def test_a_flood_is_held_back_inside_and_the_connection_stays(kind: str) -> None:
    async with inside(kind, viewer_backlog_bytes=512 * 1024) as place:
        shell = await place.shell()
        await shell.run("yes this is a flood that nobody can read", "flood")
        await eventually(lambda: len(shell.shown) > 2 * 2**20, within=20)
        began, before = asyncio.get_running_loop().time(), len(shell.shown)
        await eventually(lambda: len(shell.shown) > before + 4 * 2**20, within=20)
        took_s = asyncio.get_running_loop().time() - began
        assert 4 * 2**20 / took_s < 1.5 * terminals.SHOWN_A_SECOND
        await shell.type(b"\x03")
        shell.shown = b""
        await shell.run("echo sur''vived", "survived")
        assert place.viewer.client.connected


async def test_only_who_opened_it_hears_it_and_nobody_else_can_type() -> None:
    async with inside() as place, place.world.viewer(ANNA) as other, place.world.viewer(BERT) as bert:
        await other.ask("session:join", {"sessionId": place.session_id})
        shell = await place.shell()
        await shell.run("echo sec''ret", "secret")
        typed = {"terminalId": shell.terminal_id, "data": base64.b64encode(b"exit\n").decode()}
        for stranger in (other, bert):
            for command, fields in (
                ("terminal:input", typed),
                ("terminal:resize", {"terminalId": shell.terminal_id, "rows": 9, "cols": 9}),
                ("terminal:close", {"terminalId": shell.terminal_id}),
            ):
                assert (await stranger.ask(command, fields))["error"]["code"] == "terminal_not_found"
        asked = {"sessionId": place.session_id, "rows": 24, "cols": 80}
        assert (await bert.ask("session:terminal", asked))["error"]["code"] == "session_not_found"
        assert not [name for name in other.names + bert.names if name.startswith("terminal")]
        entries = await place.world.log.since(place.session_id, await place.world.log.head(place.session_id))
        assert "secret" not in str(entries)
        await shell.run("echo still the''re", "still there")


async def test_a_server_that_closes_ends_terminals_and_leaves_the_sandbox_to_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with inside() as place:
        shells = [await place.shell() for _ in range(3)]
        nap = f"sleep {random.randrange(10**6, 10**8)}"
        await shells[0].run(f"{nap} & echo sta''rted", "started")
        await eventually(lambda: running(nap))
        await place.world.close()
        await eventually(lambda: not running(nap))
        assert len(await place.provider.list("agent-runtime")) == 1
    said = capsys.readouterr()
    assert "error" not in said.out + said.err


async def test_a_terminal_in_a_sandbox_whose_agent_hibernates_wakes_no_agent() -> None:
    async with inside(agent_idle_timeout_s=0.3) as place:
        await place.world.call("POST", f"/api/sessions/{place.session_id}/prewarm")

        async with asyncio.timeout(20):
            while await place.phase() != "hibernated":
                await asyncio.sleep(0.05)
        shell = await place.shell()
        await shell.run("echo he''re", "here")
        assert await place.phase() == "hibernated"


@everywhere
async def test_the_sessions_stop_ends_its_terminals_and_says_so(kind: str) -> None:
    async with inside(kind) as place:
        shell = await place.shell()
        await shell.run("echo la''st > last.txt; echo do''ne", "done")
        await place.world.call("POST", f"/api/sessions/{place.session_id}/stop")
        assert await shell.exit() == {"terminalId": shell.terminal_id}
        _, file, _ = await place.world.call("GET", f"/api/sessions/{place.session_id}/files/last.txt")
        assert file == b"last\n"


async def test_terminals_of_a_connection_are_bounded_and_so_is_what_is_typed_ahead() -> None:
    async with inside() as place:
        shells = [await place.shell() for _ in range(terminals.MOST)]
        asked = {"sessionId": place.session_id, "rows": 24, "cols": 80}
        refused = await place.viewer.ask("session:terminal", asked)
        assert (refused["error"]["status"], refused["error"]["code"]) == (429, "too_many_terminals")
        shell = shells[0]
        await shell.run("stty raw -echo; echo re''ady; sleep 1000", "ready")
        answers = [await shell.type(b"x" * 60_000) for _ in range(40)]
        refused = next(answer for answer in answers if not answer["ok"])
        assert refused["error"]["code"] == "terminal_busy"
        assert refused["error"]["retryable"]
        assert (await place.viewer.ask("terminal:close", {"terminalId": shell.terminal_id}))["ok"]
        async with asyncio.timeout(10):
            while not (again := await place.viewer.ask("session:terminal", asked))["ok"]:
                assert again["error"]["code"] == "too_many_terminals", "until the shell is gone"
                await asyncio.sleep(0.5)


async def test_the_official_client_has_a_terminal() -> None:
    async with inside() as place:
        done = await story("terminal_story.mjs", place.world.url, ANNA, place.session_id, within=50)
    assert done == {"size": "40 111", "code": 9}


async def test_openings_have_a_rate() -> None:
    async with inside() as place:
        codes = []
        for _ in range(40):
            answer = await place.viewer.ask(
                "session:terminal", {"sessionId": place.session_id, "rows": 24, "cols": 80}
            )
            codes.append(answer["ok"] or answer["error"]["code"])
            if answer["ok"]:
                await place.viewer.ask("terminal:close", {"terminalId": answer["terminalId"]})
        assert "rate_limited" in codes
        assert codes.count(True) <= 30


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        ("session:terminal", None),
        ("session:terminal", {"sessionId": "x"}),
        ("session:terminal", {"sessionId": "none", "rows": 24, "cols": 80}),
        ("session:terminal", {"sessionId": "none", "rows": 0, "cols": 80}),
        ("session:terminal", {"sessionId": "none", "rows": 24, "cols": 80, "command": "sh"}),
        ("terminal:input", {"terminalId": "x", "data": "***"}),
        ("terminal:input", {"terminalId": "x", "data": ""}),
        ("terminal:input", {"terminalId": "x", "data": "A" * 200_000}),
        ("terminal:input", {"terminalId": "x", "data": "aGk="}),
        ("terminal:resize", {"terminalId": "x", "rows": 1e9, "cols": 80}),
        ("terminal:close", "x"),
        ("terminal:close", {"terminalId": ["x"]}),
    ],
)
async def test_whatever_is_asked_of_a_terminal_is_answered_in_words(command: str, payload: object) -> None:
    async with inside() as place:
        answer = await place.viewer.ask(command, payload)
        assert answer["ok"] is False
        assert answer["error"]["status"] in {404, 422}


@everywhere
async def test_a_terminal_in_use_keeps_the_sandbox_and_one_that_is_closed_does_not(kind: str) -> None:
    async with inside(kind, agent_idle_timeout_s=0.5, sandbox_idle_timeout_s=1.0) as place:
        shell = await place.shell()
        await asyncio.sleep(2.5)
        await shell.run("echo he''re", "here")
        await place.viewer.ask("terminal:close", {"terminalId": shell.terminal_id})

        async with asyncio.timeout(20):
            while await place.phase() != "dormant":
                await asyncio.sleep(0.1)
