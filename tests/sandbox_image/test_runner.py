"""The runner as a process: attaching, losing nothing, surviving strangers, ending."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from agent_runtime_sandbox import frames
from tests.sandbox_image.runner_client import RunnerClient, running
from tests.waiting import eventually


def offsets(client: RunnerClient) -> list[int]:
    return [frame["o"] for frame in client.kept]


async def test_a_first_attachment_is_greeted_and_told_that_no_agent_runs() -> None:
    async with running() as runner:
        client = await runner.attach()
        assert client.hello == {"k": "hello", "v": 1, "head": 0, "oldest": 1, "agent": "none"}


async def test_a_message_is_answered_by_kept_frames_with_contiguous_offsets() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="lines 20")
        await client.until_result("m1")
        assert [frame["k"] for frame in client.kept] == ["started"] + ["agent"] * 21
        assert offsets(client) == list(range(1, 23))
        assert all(isinstance(frame["t"], float) for frame in client.kept)


async def test_what_a_program_writes_in_pieces_is_handed_on_in_whole_lines_and_in_order(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "agent"
    os.mkfifo(pipe)
    said = b"".join(b'{"n":%d}\n' % number for number in range(1000)) + b'{"type":"result","message":"m1"}\n'
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content=f"follow {pipe}")
        with pipe.open("r+b", buffering=0) as program:
            for at in range(0, len(said), 777):
                program.write(said[at : at + 777])
                await asyncio.sleep(0)
            await client.until_result("m1")
    assert [frame["line"]["n"] for frame in client.kept[1:-1]] == list(range(1000))
    assert offsets(client) == list(range(1, 1003))


async def test_whoever_attaches_again_in_mid_stream_misses_nothing_and_gets_nothing_twice() -> None:
    async with running() as runner:
        first = await runner.attach()
        await first.start_scripted(linesPerSecond=500)
        await first.result("message", uuid="m1", content="lines 200")
        await first.until(lambda frame: frame["k"] == "agent" and frame["line"].get("n") == 50)
        seen = first.kept[-1]["o"]
        first.close()

        second = await runner.attach(after=seen)
        assert second.hello["agent"] == "running"
        await second.until_result("m1")
        numbers = [frame["line"]["n"] for frame in first.kept + second.kept if "n" in frame.get("line", {})]
        assert numbers == list(range(200))
        assert offsets(first) + offsets(second) == list(range(1, 203))


async def test_acknowledged_frames_are_not_sent_again() -> None:
    async with running() as runner:
        first = await runner.attach()
        await first.start_scripted()
        await first.result("message", uuid="m1", content="lines 9")
        await first.until_result("m1")
        first.say("ack", o=6)
        await first.result("list")
        first.close()
        second = await runner.attach()
        assert second.hello["oldest"] == 7
        await second.until_result("m1")
        assert offsets(second) == [7, 8, 9, 10, 11]


async def test_a_newer_attachment_closes_the_older_one() -> None:
    async with running() as runner:
        older = await runner.attach()
        newer = await runner.attach()
        await older.until_closed()
        assert await newer.result("list") == {"files": []}


async def test_an_offset_from_another_life_is_answered_with_what_there_is() -> None:
    async with running() as runner:
        client = await runner.attach(after=10**9)
        assert client.hello["head"] == 0
        await client.start_scripted()
        assert offsets(client) == [1]


async def test_garbage_closes_the_connection_and_nothing_else() -> None:
    async with running() as runner:
        good = await runner.attach()
        await good.start_scripted()
        good.close()
        for garbage in (
            b"\x00\xff\xfe\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            b'{"k": 1}\n',
            b'{"k": "attach"}\n',
            b'{"k": "attach", "after": true}\n',
            b'{"k": "attach", "after": -1}\n',
            b'{"k": "list", "id": 1}\n',
            b"[" * 100_000 + b"\n",
            b'{"k": "attach", "after": 0}\n{"k": "ack", "o": "x"}\n',
            b'{"k": "attach", "after": 0}\n{"k": "list", "id": []}\n',
            b'{"k": "attach", "after": 0}\nrubbish\n',
        ):
            stranger = await runner.raw()
            stranger.say_raw(garbage)
            await stranger.until_closed()
        again = await runner.attach()
        assert again.hello["agent"] == "running"


async def test_silent_strangers_do_not_shut_the_door() -> None:
    async with running() as runner:
        strangers = [await runner.raw() for _ in range(3)]
        client = await runner.attach()
        assert await client.result("list") == {"files": []}
        for stranger in strangers:
            stranger.close()


async def test_bad_commands_are_refused_one_by_one() -> None:
    async with running() as runner:
        client = await runner.attach()
        assert await client.refusal("dance") == "unknown_command"
        assert await client.refusal("message", uuid="m1", content="x") == "agent_not_running"
        assert await client.refusal("message", uuid=7, content="x") == "invalid_command"
        assert await client.refusal("message", uuid="m1") == "invalid_command"
        assert await client.refusal("interrupt") == "agent_not_running"
        assert await client.refusal("start", driver="nobody", options={}) == "unknown_driver"
        assert await client.refusal("start", driver="scripted") == "invalid_command"
        assert await client.refusal("transcript", key="main", entries="x") == "invalid_command"
        assert await client.refusal("write", path="a", data="%%%") == "invalid_command"


async def test_an_agent_on_its_way_out_takes_no_new_message_and_knows_those_it_had() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="hang")
        client.say("close", id="closing")
        client.say("message", id="late", uuid="m2", content="too late")
        client.say("message", id="again", uuid="m1", content="hang")
        late, again = await client.reply_to("late"), await client.reply_to("again")
        assert late["error"]["code"] == "agent_not_running"
        assert again["result"] == {"duplicate": True}


async def test_a_reader_that_stalls_costs_the_runner_no_memory() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        before = runner.memory_bytes()
        client.say("message", uuid="m1", content="lines 10000 4000")
        journal = runner.directory / "journal"
        await eventually(lambda: journal.stat().st_size > 40_000_000, within=30)
        assert runner.memory_bytes() - before < 16_000_000
        await client.until_result("m1")
        assert [frame["line"]["n"] for frame in client.of_kind("agent")[:-1]] == list(range(10_000))


async def test_the_journal_shrinks_when_all_is_acknowledged() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="lines 100 1000")
        last = await client.until_result("m1")
        client.say("ack", o=last["o"])
        await client.result("list")
        assert (runner.directory / "journal").stat().st_size == 0


async def test_replies_come_after_the_frames_that_were_written_before_them() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        assert [frame["k"] for frame in client.kept] == ["started"]
        assert await client.refusal("start", driver="scripted", options={}) == "agent_running"


async def test_the_same_uuid_reaches_the_agent_once_also_over_another_connection() -> None:
    async with running() as runner:
        first = await runner.attach()
        await first.start_scripted()
        assert await first.result("message", uuid="m1", content="hello") == {"duplicate": False}
        second = await runner.attach()
        assert await second.result("message", uuid="m1", content="hello") == {"duplicate": True}
        await second.result("message", uuid="m2", content="end")
        await second.until_result("m2")
        texts = [frame["line"]["text"] for frame in second.of_kind("agent") if "text" in frame["line"]]
        assert texts == ["hello", "end"]


async def test_messages_that_are_sent_without_waiting_stay_in_order_behind_the_start() -> None:
    async with running() as runner:
        client = await runner.attach()
        client.say("start", id="s", driver="scripted", options={})
        for number in range(100):
            client.say("message", id=f"id{number}", uuid=f"m{number}", content=f"text {number}")
        await client.until_result("m99")
        texts = [frame["line"]["text"] for frame in client.of_kind("agent") if "text" in frame["line"]]
        assert texts == [f"text {number}" for number in range(100)]


async def test_an_interrupt_is_not_held_up_by_what_runs() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="hang")
        await client.result("interrupt")
        assert (await client.until_result("m1"))["line"]["interrupted"]


async def test_an_agent_that_dies_is_told_once_and_another_one_can_be_started() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="exit 3")
        end = await client.until_kind("exit")
        assert (end["code"], end["reason"]) == (3, "died")
        assert (await runner.attach()).hello["agent"] == "exited"
        client = await runner.attach(after=end["o"])
        await client.start_scripted()
        await client.result("message", uuid="m1", content="the same uuid, for another agent")
        await client.until_result("m1")


async def test_closing_ends_the_agent_and_keeps_the_runner() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("close")
        assert client.kept[-1]["k"] == "exit"
        assert client.kept[-1]["reason"] == "closed"
        await client.result("close")
        assert len(client.of_kind("exit")) == 1


async def test_a_start_that_fails_is_refused_and_told_as_an_exit() -> None:
    async with running() as runner:
        client = await runner.attach()
        assert (
            await client.refusal("start", driver="scripted", options={"failToStart": "no"}) == "agent_failed"
        )
        assert client.kept[-1]["reason"] == "start_failed"
        await client.start_scripted()


async def test_a_transcript_that_was_sent_before_is_there_at_the_start() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.result("transcript", key="main", entries=[{"n": 1}, {"n": 2}])
        await client.result("transcript", key="subagents/agent-x", entries=[{"n": 3}])
        await client.start_scripted()
        await client.result("message", uuid="m1", content="recall")
        assert (await client.until_result("m1"))["line"]["recalled"] == 3


async def test_scripted_turns_are_played_with_the_messages_own_uuid() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted(turns=[[{"type": "result", "deep": [{"message": "$MESSAGE"}]}]])
        await client.result("message", uuid="m1", content="go")
        line = (await client.until_kind("agent"))["line"]
        assert line == {"type": "result", "deep": [{"message": "m1"}]}


async def test_complaints_are_cut_and_transcripts_kept() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        await client.result("message", uuid="m1", content="stderr " + "x" * 100_000)
        await client.result("message", uuid="m2", content="transcript 3")
        await client.until_result("m2")
        assert len(client.of_kind("stderr")[0]["text"]) == 8192
        assert [entry["n"] for entry in client.of_kind("transcript")[0]["entries"]] == [0, 1, 2]


async def test_a_runner_that_nobody_attaches_to_ends_itself() -> None:
    async with running(orphan_timeout=1.0, first=({"k": "attach", "after": 0},)) as runner:
        (client,) = runner.clients  # it came before there was a runner: nobody has to be in time
        await client.start_scripted()
        await client.until_kind("started")
        assert runner.process.returncode is None
        client.close()
        assert await runner.process.wait() == 0


async def test_a_signal_ends_the_runner_in_order() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.start_scripted()
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.process.wait() == 0


def test_the_process_cannot_be_looked_into_and_prints_nothing_to_its_output() -> None:
    asks = "process.harden(); print('dumpable', ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)"
    script = f"import ctypes; from agent_runtime_sandbox import process; {asks}"
    ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, timeout=20)
    assert (ended.stdout, ended.stderr) == (b"", b"dumpable 0\n")


def test_a_runner_can_make_its_socket_and_journal_by_path(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        frames.WORKSPACE_ENV: str(tmp_path / "workspace"),
        frames.HOME_ENV: str(tmp_path),
    }
    places = ["--listen", str(tmp_path / "s"), "--journal", str(tmp_path / "j")]
    command = [sys.executable, "-P", "-m", "agent_runtime_sandbox", *places, "--orphan-timeout", "0.2"]
    ended = subprocess.run([*command, "--preload="], env=environment, timeout=20, check=False)
    assert ended.returncode == 0
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600


async def test_ten_clients_that_come_and_go_at_once_leave_one_attached() -> None:
    async with running() as runner:
        clients = await asyncio.gather(*(runner.raw() for _ in range(10)))
        for client in clients:
            client.say("attach", after=0)
        last = await runner.attach()
        assert await last.result("list") == {"files": []}
