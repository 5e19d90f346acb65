"""Whoever asks a runner that is just beginning for an agent has it started before the runner is up."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.drivers.adopted import AdoptedProcess
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent, Wanted, look_who_waits
from tests.sandbox_image.agent_world import (
    a_conversation_about_a_heron,
    agent_world,
    alive,
    ask,
    descendants,
    kill,
    start,
)
from tests.sandbox_image.runner_client import Frame, RunnerClient
from tests.waiting import eventually

WANTED = Wanted("claude", {})
ATTACH = {"k": "attach", "after": 0}


def starting(**options: object) -> tuple[Frame, ...]:
    options = {"gatewayToken": "session-token", **options}
    return (ATTACH, {"k": "start", "id": "first", "driver": "claude", "options": options})


def started(client: RunnerClient) -> Frame:
    info: Frame = client.of_kind("started")[-1]["info"]
    return info


async def test_an_agent_that_was_asked_for_before_there_was_a_runner_is_the_one_that_answers() -> None:
    async with agent_world(first=starting(instructions="Answer in rhymes.")) as (runner, model):
        client = runner.clients[0]
        assert (await client.reply_to("first"))["ok"]
        assert started(client)["early"]
        assert (await ask(client, "please [[script:bash]]"))["subtype"] == "success"
        asked = model.requests[0]
        assert asked.headers["x-api-key"] == "session-token"
        assert "Answer in rhymes." in str(asked.body["system"])
        await client.result("close")
        assert client.of_kind("exit")[-1]["reason"] == "closed"
        assert client.of_kind("exit")[-1]["code"] == 0

        await start(client)
        assert not started(client)["early"]
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


async def test_an_early_agent_that_is_killed_is_told_and_another_one_can_be_started() -> None:
    async with agent_world(first=starting()) as (runner, _):
        client = runner.clients[0]
        await client.reply_to("first")
        pids = descendants(runner.process.pid)
        kill(started(client)["pid"])
        assert (await client.until_kind("exit"))["code"] == -9
        await eventually(lambda: not alive(pids))
        await start(client)
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


async def test_an_early_agent_for_which_nobody_comes_ends_with_the_runner() -> None:
    async with agent_world(first=starting()) as (runner, _):
        await eventually(lambda: descendants(runner.process.pid))
        pids = descendants(runner.process.pid)
        runner.process.terminate()
        await runner.process.wait()
        await eventually(lambda: not alive(pids))


async def test_it_ends_with_a_runner_that_is_told_to_end_while_it_is_still_being_imported() -> None:
    async with agent_world(first=starting()) as (runner, _):
        (pid,) = await eventually(lambda: descendants(runner.process.pid))
        os.kill(pid, signal.SIGSTOP)  # so that it does not end by itself when nobody is there any more
        runner.process.terminate()
        assert await runner.process.wait() == 0
        assert not alive({pid})


async def test_who_comes_after_one_who_asked_and_left_gets_the_agent_that_it_asks_for() -> None:
    first, transcript = await a_conversation_about_a_heron()

    for options in ({"model": "claude-haiku-4-5"}, {"resume": first["session_id"]}):
        async with agent_world(first=starting()) as (runner, model):
            (early,) = await eventually(lambda: descendants(runner.process.pid))
            runner.clients[0].close()
            client = await runner.attach()
            for key, entries in transcript.items():
                await client.result("transcript", key=key, entries=entries)
            await start(client, gatewayToken="other-token", **options)
            assert not started(client)["early"]
            assert not alive({early})
            assert (await ask(client, "and now? [[script:text]]"))["subtype"] == "success"
            asked = model.requests[-1]
            assert asked.headers["x-api-key"] == "other-token"
            assert asked.body["model"] == options.get("model", asked.body["model"])
            assert ("heron" in str(asked.body["messages"])) == ("resume" in options)


async def test_an_early_agent_ends_when_the_one_who_would_have_started_it_leaves() -> None:
    async with agent_world(first=starting()) as (runner, _):
        (early,) = await eventually(lambda: descendants(runner.process.pid))
        runner.clients[0].close()
        await eventually(lambda: not alive({early}))
        client = await runner.attach()
        await start(client)
        assert not started(client)["early"]


START_BESIDE_AN_EARLY_ONE = """
import asyncio, json, subprocess, sys
from pathlib import Path
from agent_runtime_sandbox import process
from agent_runtime_sandbox.agent import AgentPlace
from agent_runtime_sandbox.drivers import Places
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent, Wanted
from agent_runtime_sandbox.drivers.fresh import fresh_folders
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.outbox import Outbox
async def main():
    home, wanted, asked = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    early = EarlyAgent(Wanted("claude", wanted), Asked(["sleep", "60"], pipes), fresh_folders(home))
    places = Places(workspace=home, home=home, gateway=home / "nobody", early=early)
    with (home / "journal").open("w+b") as journal:
        outbox = Outbox(Journal(journal.fileno()))
        async with asyncio.TaskGroup() as tasks:
            agent = AgentPlace(outbox, places, tasks)
            await agent.start("claude", asked)
            (pid,) = process.children()
            folder = next(line for line in Path(f"/proc/{pid}/environ").read_text().split(chr(0))
                          if line.startswith("CLAUDE_CONFIG_DIR="))
            told, _ = outbox.read(0, 1 << 20)
            await agent.close()
    print(json.dumps([str(early.folders.config), folder.partition("=")[2]]))
    print(told.splitlines()[-1].decode())
asyncio.run(main())
"""


@pytest.mark.parametrize("wanted", [{"gatewayToken": "one"}, {"gatewayToken": "two"}])
async def test_another_agent_than_the_early_one_has_folders_of_its_own_and_lives_alone(
    wanted: dict[str, str], tmp_path: Path
) -> None:
    """Whether other options are asked for, or the SDK makes something else of the same."""
    program = (sys.executable, "-c", START_BESIDE_AN_EARLY_ONE, str(tmp_path), json.dumps(wanted))
    process = await asyncio.create_subprocess_exec(
        *program, json.dumps({"gatewayToken": "two"}), stdout=subprocess.PIPE
    )
    said, _ = await process.communicate()
    folders, frame = map(json.loads, said.splitlines())
    assert len(set(folders)) == 2
    assert frame["k"] == "started"
    assert frame["info"]["early"] is False


async def test_options_that_are_refused_start_nothing_and_are_refused_by_the_driver() -> None:
    async with agent_world(first=starting(unheard_of=1)) as (runner, _):
        client = runner.clients[0]
        assert (await client.reply_to("first"))["error"]["code"] == "invalid_options"
        assert not descendants(runner.process.pid)
        await start(client)


async def test_what_comes_after_the_look_is_served_as_ever() -> None:
    async with agent_world(first=(ATTACH,)) as (runner, _):
        client = runner.clients[0]
        await start(client)
        assert (await ask(client, "[[script:text]]"))["subtype"] == "success"


def waiting_at(path: Path, sent: bytes) -> tuple[socket.socket, socket.socket]:
    listener, caller = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    caller.connect(str(path))
    caller.sendall(sent)
    return listener, caller


def test_a_look_takes_nothing_away(tmp_path: Path) -> None:
    sent = b"".join(map(frames.encode, starting(model="small")))
    listener, caller = waiting_at(tmp_path / "socket", sent)
    with listener, caller:
        connection, wanted = look_who_waits(listener)
        assert connection is not None
        assert wanted == Wanted("claude", {"gatewayToken": "session-token", "model": "small"})
        assert connection.recv(1 << 20) == sent
        connection.close()


def test_whoever_asks_for_something_else_first_is_let_in_and_nothing_is_started(tmp_path: Path) -> None:
    attach, begin = map(frames.encode, starting())
    memory = frames.encode({"k": "transcript", "id": 1, "key": "main", "entries": []})
    others = (b"", attach, attach + memory + begin, begin + attach, attach + begin[:-9], b"\xff\n{}\n")
    for number, sent in enumerate(others):
        listener, caller = waiting_at(tmp_path / str(number), sent)
        with listener, caller:
            connection, wanted = look_who_waits(listener)
            assert connection is not None
            assert wanted is None
            connection.close()


def test_with_nobody_there_the_look_does_not_wait(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        assert look_who_waits(listener) == (None, None)


def test_a_process_is_given_out_once_and_only_to_who_asks_for_the_same() -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    asked = Asked([sys.executable, "-c", "input()"], {**pipes, "env": {"A": "1"}})
    early = EarlyAgent(WANTED, asked, None)
    assert early.take(Asked(asked.command, {**pipes, "env": {"A": "2"}})) is None
    process = early.take(asked)
    assert process is not None
    assert early.take(asked) is None
    early.drop()
    process.communicate(b"\n")
    assert process.returncode == 0

    dropped = EarlyAgent(WANTED, asked, None)
    (pid,) = dropped.pids
    dropped.drop()
    dropped.drop()
    assert not dropped.waits
    assert dropped.pids == ()
    assert not alive({pid})


HAVE_A_HELPER = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"


async def test_to_end_one_does_not_wait_for_what_it_started_and_what_holds_its_pipes() -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    asked = Asked([sys.executable, "-c", HAVE_A_HELPER], pipes)
    early = EarlyAgent(WANTED, asked, None)
    assert early._process is not None
    assert early._process.stdout is not None
    helper = int(await asyncio.to_thread(early._process.stdout.readline))
    try:
        async with asyncio.timeout(20):
            await asyncio.to_thread(early.drop)
        assert early.pids == ()
        assert alive({helper})
    finally:
        kill(helper)


def sleeping() -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(["sleep", "60"], stdin=pipe, stdout=pipe, stderr=pipe)


async def test_a_process_whose_adoption_is_broken_off_ends() -> None:
    for instants in range(1, 12):
        process = sleeping()
        async with asyncio.TaskGroup() as tasks:
            adoption = tasks.create_task(AdoptedProcess.adopt(process))
            for _ in range(instants):
                await asyncio.sleep(0)
            if adopted := adoption.done():
                process.kill()
            adoption.cancel()
        await eventually(lambda: process.returncode is not None)  # noqa: B023 - called at once
        if adopted:
            for stream in (adoption.result().stdin, adoption.result().stdout, adoption.result().stderr):
                await stream.aclose()
    assert adopted


BEGIN_WITH_A_BROKEN_SDK = """
import sys
from pathlib import Path
from agent_runtime_sandbox.drivers import Places, claude_early
from agent_runtime_sandbox.drivers.early import Wanted
home = Path(sys.argv[1])
places = Places(workspace=home, home=home, gateway=None)
print(claude_early.begin_early(Wanted("claude", {"gatewayToken": "one"}), places), "anyio" in sys.modules)
"""


def test_an_sdk_that_fails_while_it_is_imported_is_left_to_the_driver(tmp_path: Path) -> None:
    module = tmp_path / "claude_agent_sdk" / "_internal" / "transport" / "subprocess_cli.py"
    module.parent.mkdir(parents=True)
    for folder in module.parents[:3]:
        (folder / "__init__.py").touch()
    for body in ("sys = None; sys.nothing", "{}['missing']", "raise RuntimeError('not like this')"):
        module.write_text(body)
        path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
        said = subprocess.run(
            [sys.executable, "-c", BEGIN_WITH_A_BROKEN_SDK, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            check=True,
        )
        assert said.stdout == b"None False\n"
