"""Whoever asks a runner that is just beginning for an agent has it started before the runner is up."""

import socket
import subprocess
import sys
from pathlib import Path

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent, Wanted, look_who_waits
from tests.sandbox_image.agent_world import agent_world, alive, ask, descendants, kill, start
from tests.sandbox_image.runner_client import Frame, RunnerClient
from tests.waiting import eventually

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
    early = EarlyAgent(asked, None)
    assert early.take(Asked(asked.command, {**pipes, "env": {"A": "2"}})) is None
    process = early.take(asked)
    assert process is not None
    assert early.take(asked) is None
    early.drop()
    process.communicate(b"\n")
    assert process.returncode == 0

    dropped = EarlyAgent(asked, None)
    (pid,) = dropped.pids
    dropped.drop()
    assert dropped.pids == ()
    assert not alive({pid})
