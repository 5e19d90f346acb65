"""A terminal in a real runner: what a person types and sees, and what is left when they go."""

import asyncio
import base64
import os
from pathlib import Path

from agent_runtime_sandbox import terminals
from tests.sandbox_image.runner_client import RunnerProcess, running
from tests.sandbox_image.shell_client import Terminal, connected, terminal
from tests.waiting import eventually


def family(runner: RunnerProcess) -> set[int]:
    """All processes that have the runner's home in their environment, but for the runner."""
    sign = str(runner.directory).encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), runner.process.pid):
            try:
                if sign in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


async def settled(shell: Terminal) -> None:
    """The shell has started and is asked for something it answers."""
    await shell.ask("echo set''tled", "settled")


async def test_what_is_typed_runs_in_the_workspace() -> None:
    async with running() as runner, terminal(runner) as shell:
        await shell.ask("pwd; echo hello > there.txt; echo do''ne", f"{runner.workspace}[\\s\\S]*done")
        assert (runner.workspace / "there.txt").read_text() == "hello\n"


async def test_it_has_the_size_that_it_is_given_and_is_told_of_another() -> None:
    async with running() as runner, terminal(runner, rows=30, cols=100) as shell:
        await shell.ask("stty size", "30 100")
        await shell.ask(
            'sh -c \'trap "stty size; exit" WINCH; echo re""ady; while :; do sleep 0.1; done\'', "ready"
        )
        shell.say("resize", rows=50, cols=132)
        await shell.until("50 132")


async def test_ctrl_c_ends_what_runs_and_not_the_shell() -> None:
    async with running() as runner, terminal(runner) as shell:
        shell.type("sleep 1000\n")
        await eventually(lambda: [pid for pid in family(runner) if _is(pid, "sleep")])
        shell.type(b"\x03")
        await shell.ask("echo code $?", "code 130")


async def test_jobs_can_be_stopped_and_taken_up_again() -> None:
    async with running() as runner, terminal(runner) as shell:
        shell.type("cat\n")
        await eventually(lambda: [pid for pid in family(runner) if _is(pid, "cat")])
        shell.type(b"\x1a")
        await shell.until("Stopped")
        await shell.ask("jobs", "Stopped +cat")
        shell.type("fg\n")
        await shell.until("cat")
        await shell.ask("echoed", "echoed\r\nechoed")
        shell.type(b"\x04")
        await shell.ask("echo code $?", "code 0")


async def test_the_end_of_the_shell_has_its_code_and_all_that_was_shown() -> None:
    async with running() as runner, terminal(runner) as shell:
        await settled(shell)
        shell.type("echo last''words; exit 7\n")
        assert await shell.exit() == 7
        assert b"lastwords" in shell.shown


async def test_a_shell_that_is_killed_says_so_as_shells_do() -> None:
    async with running() as runner, terminal(runner) as shell:
        await settled(shell)
        shell.type("kill -9 $$\n")
        assert await shell.exit() == 137


async def test_bytes_of_any_kind_come_through() -> None:
    async with running() as runner, terminal(runner) as shell:
        await settled(shell)
        shell.type("printf '\\377\\376\\000\\033[31m\\303(<%s>' end\n")
        while b"\xff\xfe\x00\x1b[31m\xc3(<end>" not in shell.shown:
            shell.shown += base64.b64decode((await shell.line())["data"])


async def test_a_flood_stops_itself_while_nobody_reads_and_ctrl_c_still_ends_it() -> None:
    async with running() as runner, terminal(runner) as shell:
        await settled(shell)
        before = runner.memory_bytes()
        shell.type("yes flood\n")
        await shell.until("flood\r\nflood")
        [flood] = [pid for pid in family(runner) if _is(pid, "yes")]
        await eventually(lambda: _rests(flood))
        assert runner.memory_bytes() - before < 8 * 2**20
        shell.type(b"\x03")
        await shell.ask("echo sur''vived", "survived")
        await eventually(lambda: flood not in family(runner))


async def test_a_paste_that_nobody_takes_waits_and_harms_nobody() -> None:
    async with running() as runner, terminal(runner) as shell:
        await shell.ask("stty raw -echo; echo rea''dy; sleep 1000", "ready")
        for _ in range(64):
            shell.type(b"x" * 2**16)
        async with terminal(runner) as other:
            await settled(other)
        assert runner.memory_bytes() < 200 * 2**20
        shell.writer.transport.abort()
        await eventually(lambda: not family(runner))


async def test_who_leaves_takes_all_processes_along() -> None:
    async with running() as runner:
        async with terminal(runner) as shell:
            await settled(shell)
            deaf = "trap '' HUP TERM INT; while :; do sleep 0.1; done"
            await shell.ask(
                f'sh -c "{deaf}" & nohup sleep 1000 & sh -c "setsid sleep 1000; :" & echo al\'\'l', "all"
            )
            await eventually(lambda: len([pid for pid in family(runner) if _is(pid, "sleep")]) >= 3)
        await eventually(lambda: not family(runner))
        assert runner.process.returncode is None


async def test_the_shells_end_takes_its_background_along() -> None:
    async with running() as runner, terminal(runner) as shell:
        await shell.ask("(trap '' HUP; exec sleep 1000) & echo al''l", "all")
        shell.type("exit\n")
        assert await shell.exit() == 0
        assert not family(runner)


async def test_a_daemon_that_left_and_holds_the_terminal_does_not_hold_up_the_end() -> None:
    async with running() as runner:
        async with terminal(runner) as shell:
            await settled(shell)
            shell.type("setsid sleep 1000 & sleep 0.3; exit 3\n")
            assert await shell.exit() == 3
        [daemon] = family(runner)
        assert _is(daemon, "sleep")
    assert not family(runner), "it ends with the sandbox"


async def test_nothing_of_the_runner_is_inherited() -> None:
    async with running() as runner, terminal(runner) as shell:
        shell.type("ls -l /proc/$$/fd | grep -c -e socket -e journal -e anon; echo counted\n")
        found = await shell.until(r"(\d+)\r\ncounted")
        assert found[1] == b"0"
        await shell.ask("tty", r"/dev/pts/\d+")


async def test_the_environment_is_that_of_the_tools() -> None:
    async with running() as runner, terminal(runner) as shell:
        await shell.ask(
            "echo $HOME:$TERM:$AGENT_RUNTIME_WORKSPACE:", f"{runner.directory}/home:xterm-256color:"
        )


async def test_an_agents_end_leaves_terminals_alone() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        async with terminal(runner) as shell:
            await shell.ask("sleep 1000 & echo st''arted", "started")
            await client.result("close")
            await client.until_kind("exit")
            await shell.ask("jobs", "Running +sleep 1000")


async def test_terminals_are_no_attachment() -> None:
    async with running() as runner:
        client = await runner.attach()
        async with terminal(runner) as shell:
            await settled(shell)
            assert await client.result("list") is not None
            client.close()
            again = await runner.attach()
            await settled(shell)
            assert again.hello["agent"] == "none"


async def test_only_so_many_are_open() -> None:
    async with running() as runner:
        async with asyncio.TaskGroup() as group:
            full = asyncio.Event()
            opened = asyncio.Semaphore(0)

            async def one() -> None:
                async with terminal(runner) as shell:
                    await settled(shell)
                    opened.release()
                    await full.wait()

            for _ in range(terminals.MAX_OPEN):
                group.create_task(one())
            for _ in range(terminals.MAX_OPEN):
                await opened.acquire()
            async with connected(runner, "terminal", rows=24, cols=80) as refused:
                assert (await refused.line())["code"] == "too_many_terminals"
            full.set()
        await eventually(lambda: not family(runner))
        async with terminal(runner) as shell:
            await settled(shell)


async def test_nonsense_ends_its_own_terminal_only() -> None:
    async with running() as runner, terminal(runner) as good:
        await settled(good)
        for line in (
            b"rubbish\n",
            b'{"k": "data", "data": "***"}\n',
            b'{"k": "data"}\n',
            b'{"k": "resize", "rows": 0, "cols": 80}\n',
            b'{"k": "resize", "rows": true, "cols": 80}\n',
            b'{"k": "start", "driver": "claude"}\n',
            b"x" * (terminals.MAX_LINE_BYTES + 1),
        ):
            async with terminal(runner) as bad:
                bad.writer.write(line)
                assert await bad.closed()
        for fields in (
            {},
            {"rows": 24},
            {"rows": -1, "cols": 80},
            {"rows": "24", "cols": 80},
            {"rows": 1e9, "cols": 8},
        ):
            async with connected(runner, "terminal", **fields) as bad:
                assert await bad.reader.read() == b""
        await settled(good)


def _is(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


def _rests(pid: int) -> bool:
    """It is seen to wait, many times in a row."""
    return all(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" for _ in range(50))
