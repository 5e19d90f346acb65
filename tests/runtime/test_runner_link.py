"""The link to a runner over a real socket pair; the other end is scripted line by line."""

import asyncio
import base64
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.errors import SandboxFault
from agent_runtime.records import SandboxRef
from agent_runtime.runner_link import RunnerLink
from agent_runtime_adapters.sandboxes.channel import UnixChannel
from agent_runtime_sandbox.frames import Frame, decode, encode
from tests.fast_time import told_fast
from tests.waiting import eventually


class Side:
    """The runner's side of one connection: the test reads and writes its lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self) -> Frame:
        return decode((await self.reader.readline()).rstrip(b"\n"))

    def say(self, *frames: Frame) -> None:
        self.writer.write(b"".join(encode(frame) for frame in frames))

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def cut(self) -> None:
        self.writer.close()


class PairedSandbox:
    """Implements `ports.Sandbox`; each connection is a new socket pair, its far end in `sides`."""

    def __init__(self) -> None:
        self.sides: list[Side] = []
        self.is_alive = True
        self.refuses = 0
        self.expires_at = None
        self.ref = SandboxRef(
            sandbox_id="sb", provider="paired", isolation="none", started_at=datetime(2026, 1, 1, tzinfo=UTC)
        )

    async def connect(self) -> UnixChannel:
        if self.refuses:
            self.refuses -= 1
            raise SandboxFault("not now")
        ours, theirs = socket.socketpair()
        try:
            self.sides.append(Side(*await asyncio.open_connection(sock=theirs)))
            _, made = await asyncio.get_running_loop().create_unix_connection(UnixChannel, sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return made

    async def alive(self) -> bool:
        return self.is_alive

    async def stop(self) -> None:
        self.is_alive = False

    async def mishap(self) -> SandboxFault | None:
        return None

    async def close(self) -> None:
        for side in self.sides:
            side.writer.transport.abort()
        for _ in range(3):  # aborted transports close their sockets a moment later
            await asyncio.sleep(0)


class Reading:
    """What a link's reader got, and how it ended. It takes every other batch at once."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.end: SandboxFault | None = None
        self._takes = False

    @property
    def offsets(self) -> list[Any]:
        return [frame["o"] for frame in self.frames]

    def take(self, frames: list[Frame]) -> float | None:
        self._takes = not self._takes
        self.frames += frames if self._takes else ()
        return 0.0 if self._takes else None

    async def read(self, link: RunnerLink) -> None:
        link.take = self.take
        try:
            while True:
                self.frames += await link.next_batch()
        except SandboxFault as fault:
            self.end = fault


@asynccontextmanager
async def linked(max_file_bytes: int = 1000) -> AsyncIterator[tuple[RunnerLink, PairedSandbox, Reading]]:
    sandbox, reading = PairedSandbox(), Reading()
    link = await RunnerLink.connect(sandbox, max_file_bytes=max_file_bytes)
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(reading.read(link))
            try:
                yield link, sandbox, reading
            finally:
                task.cancel()
    finally:
        await link.close()
        await sandbox.close()


def kept(*offsets: int) -> list[Frame]:
    return [{"k": "agent", "o": offset, "line": {}} for offset in offsets]


async def ended(reading: Reading) -> SandboxFault:
    return await eventually(lambda: reading.end)  # type: ignore[return-value]


async def test_it_attaches_from_the_beginning_and_reads_in_order() -> None:
    async with linked() as (link, sandbox, reading):
        assert await sandbox.sides[0].line() == {"k": "attach", "after": 0}
        sandbox.sides[0].say({"k": "hello", "head": 0}, *kept(1, 2), *kept(2, 1), *kept(3))
        await eventually(lambda: reading.offsets == [1, 2, 3])
        assert link.seen == 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\n",
        b"[]\n",
        b"\n",
        b'{"k": 1}\n',
        b"\xff\xfe\n",
        encode({"k": "agent", "o": 2}),
        encode({"k": "agent", "o": "1"}),
        encode({"k": "agent", "o": True}),
        encode({"k": "agent", "o": 1.5}),
        encode({"k": "agent", "o": None}),
        b'{"k":"agent","o":' + b"9" * 5000 + b"}\n",
        b"[" * 5000 + b"\n",
    ],
)
async def test_garbage_ends_the_link(garbage: bytes) -> None:
    async with linked() as (link, sandbox, reading):
        sandbox.sides[0].raw(garbage)
        assert (await ended(reading)).code == "sandbox_lost"
        assert reading.frames == []
        with pytest.raises(SandboxFault) as no:
            await link.command("sync")
        assert no.value.code == "sandbox_lost"


ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({"a": 1})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "ok", "data", "result", "error", "head", "o", "line"]), ODD, max_size=5
        ).flatmap(
            lambda fields: st.sampled_from(["hello", "reply", "chunk", "agent", "?"]).map(
                lambda kind: {"k": kind, **fields}
            )
        ),
        max_size=6,
    )
)
def test_no_frame_does_harm(frames: list[Frame]) -> None:
    async def story() -> None:
        async with asyncio.timeout(20), linked() as (link, sandbox, reading):
            side = sandbox.sides[0]
            await side.line()
            sandbox.is_alive = False
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(_outcome(link.command("read", path="f")))
                command = await side.line()
                side.say(*({**frame, "id": command["id"]} if frame.get("id") else frame for frame in frames))
                side.cut()
                await asking
            assert (await ended(reading)).code == "sandbox_lost"

    asyncio.run(story())


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except SandboxFault as fault:
        return fault


async def test_whoever_takes_frames_at_once_and_fails_is_told_where_it_reads() -> None:
    def take(frames: list[Frame]) -> float | None:
        raise ZeroDivisionError

    sandbox = PairedSandbox()
    link = await RunnerLink.connect(sandbox, max_file_bytes=1000)
    link.take = take
    sandbox.sides[0].say(*kept(1))  # arrives when it waits
    with pytest.raises(ZeroDivisionError):
        await link.next_batch()
    await link.close()
    await sandbox.close()


async def test_a_break_in_mid_line_loses_and_repeats_nothing() -> None:
    async with linked() as (_, sandbox, reading):
        sandbox.sides[0].say(*kept(1, 2))
        sandbox.sides[0].raw(encode(kept(3)[0])[:7])
        await eventually(lambda: reading.offsets == [1, 2])
        sandbox.sides[0].cut()
        await eventually(lambda: len(sandbox.sides) == 2)
        assert await sandbox.sides[1].line() == {"k": "attach", "after": 2}
        sandbox.sides[1].say({"k": "hello", "head": 3}, *kept(2, 3, 4))
        await eventually(lambda: reading.offsets == [1, 2, 3, 4])


async def test_it_connects_again_as_often_as_there_is_something_new() -> None:
    async with linked() as (_, sandbox, reading):
        for number in range(10):
            sandbox.sides[-1].say(*kept(number + 1))
            await eventually(lambda: len(reading.frames) == number + 1)  # noqa: B023
            sandbox.sides[-1].cut()
            await eventually(lambda: len(sandbox.sides) == number + 2)  # noqa: B023
        assert reading.end is None


async def test_a_runner_that_only_drops_us_is_given_up() -> None:
    async with linked() as (_, sandbox, reading):
        sandbox.refuses = 2
        sandbox.sides[0].cut()
        await eventually(lambda: len(sandbox.sides) == 2)
        sandbox.sides[1].cut()
        assert (await ended(reading)).code == "sandbox_lost"


async def test_a_dead_sandbox_is_not_connected_to() -> None:
    async with linked() as (_, sandbox, reading):
        sandbox.is_alive = False
        sandbox.sides[0].cut()
        assert (await ended(reading)).code == "sandbox_lost"
        assert len(sandbox.sides) == 1


async def test_a_runner_that_began_anew_is_another_one() -> None:
    async with linked() as (_, sandbox, reading):
        sandbox.sides[0].say(*kept(1, 2, 3))
        await eventually(lambda: len(reading.frames) == 3)
        sandbox.sides[0].cut()
        await eventually(lambda: len(sandbox.sides) == 2)
        sandbox.sides[1].say({"k": "hello", "head": 1}, *kept(1))
        await ended(reading)


async def test_a_command_gets_its_own_reply() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        side = sandbox.sides[0]
        await side.line()
        one = tasks.create_task(link.command("list"))
        two = tasks.create_task(link.command("sync"))
        first, second = await side.line(), await side.line()
        assert (first["k"], second["k"]) == ("list", "sync")
        side.say({"k": "reply", "id": "unknown", "ok": True})
        side.say({"k": "reply", "id": second["id"], "ok": True, "result": {"n": 2}})
        side.say({"k": "reply", "id": first["id"], "ok": True, "result": {"n": 1}})
        side.say({"k": "reply", "id": first["id"], "ok": True, "result": {"n": "again"}})
        assert [await one, await two] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        ({"code": "no", "message": "there is no such file"}, "there is no such file"),
        ("plain words", "plain words"),
        ({"message": ["not", "text"]}, "The runner refused."),
        (None, "The runner refused."),
        ("x" * 10_000, "x" * 500),
    ],
)
async def test_a_refusal_is_told_in_the_runners_words(error: Any, detail: str) -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        side = sandbox.sides[0]
        await side.line()
        asking = tasks.create_task(_outcome(link.command("read", path="f")))
        command = await side.line()
        side.say({"k": "reply", "id": command["id"], "ok": False, "error": error})
        fault = await asking
        assert (fault.code, fault.detail) == ("runner_refused", detail)


async def test_a_reply_that_does_not_come_is_a_fault_and_the_runner_counts_as_silent() -> None:
    async with linked() as (link, sandbox, reading):
        with pytest.raises(SandboxFault) as no:
            await link.command("sync", timeout_s=0.01)
        assert no.value.code == "sandbox_timeout"
        assert link.silent
        sandbox.sides[0].say(*kept(1))
        await eventually(lambda: reading.frames)
        assert not link.silent


async def test_a_command_that_may_be_repeated_survives_a_break() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        await sandbox.sides[0].line()
        asking = tasks.create_task(link.command("message", uuid="u", content="hi"))
        assert (await sandbox.sides[0].line())["uuid"] == "u"
        sandbox.sides[0].cut()
        await eventually(lambda: len(sandbox.sides) == 2)
        assert (await sandbox.sides[1].line())["k"] == "attach"
        again = await sandbox.sides[1].line()
        assert again["uuid"] == "u"
        sandbox.sides[1].say({"k": "reply", "id": again["id"], "ok": True, "result": {"duplicate": True}})
        assert await asking == {"duplicate": True}


async def test_a_command_that_must_not_be_repeated_fails_with_the_break() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        await sandbox.sides[0].line()
        asking = tasks.create_task(_outcome(link.command("start", driver="d", options={})))
        await sandbox.sides[0].line()
        sandbox.sides[0].cut()
        assert (await asking).code == "sandbox_lost"


async def test_whoever_waits_when_the_sandbox_dies_is_told() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        await sandbox.sides[0].line()
        asking = [tasks.create_task(_outcome(link.command(kind))) for kind in ("sync", "start")]
        await sandbox.sides[0].line()
        sandbox.is_alive = False
        sandbox.sides[0].cut()
        assert [(await each).code for each in asking] == ["sandbox_lost"] * 2


async def test_a_file_comes_in_pieces() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        side = sandbox.sides[0]
        await side.line()
        reading = tasks.create_task(link.read_file("f"))
        command = await side.line()
        for piece in (b"one ", b"two"):
            side.say({"k": "chunk", "id": command["id"], "data": base64.b64encode(piece).decode()})
        side.say({"k": "reply", "id": command["id"], "ok": True, "result": {}})
        assert await reading == b"one two"
        empty = tasks.create_task(link.read_file("g"))
        command = await side.line()
        side.say({"k": "reply", "id": command["id"], "ok": True, "result": {}})
        assert await empty == b""


async def test_a_file_over_the_bound_is_refused_and_not_collected() -> None:
    async with linked(max_file_bytes=10) as (link, sandbox, reading), asyncio.TaskGroup() as tasks:
        side = sandbox.sides[0]
        await side.line()
        asking = tasks.create_task(_outcome(link.read_file("f")))
        command = await side.line()
        chunk = {"k": "chunk", "id": command["id"], "data": base64.b64encode(b"x" * 8).decode()}
        side.say(chunk, chunk)
        assert (await asking).code == "file_too_large"
        side.say(chunk, {"k": "reply", "id": command["id"], "ok": True}, *kept(1))
        await eventually(lambda: reading.frames)


async def test_a_large_file_goes_in_in_pieces() -> None:
    async with linked() as (link, sandbox, _), asyncio.TaskGroup() as tasks:
        side = sandbox.sides[0]
        side.reader._limit = 4_000_000  # type: ignore[attr-defined]
        await side.line()
        content = bytes(range(256)) * 3000
        writing = tasks.create_task(link.write_file("f", content))
        taken = b""
        while len(taken) < len(content):
            command = await side.line()
            assert command["append"] == bool(taken)
            taken += base64.b64decode(command["data"])
            side.say({"k": "reply", "id": command["id"], "ok": True, "result": {}})
        await writing
        assert taken == content


async def test_a_reply_comes_after_the_frames_before_it_were_dealt_with() -> None:
    """The reply to `sync` promises that all files were told; so they must have been taken in."""
    sandbox = PairedSandbox()
    link = await RunnerLink.connect(sandbox, max_file_bytes=10)
    side = sandbox.sides[0]
    await side.line()
    async with asyncio.TaskGroup() as tasks:
        syncing = tasks.create_task(link.command("sync"))
        command = await side.line()
        side.say(*kept(1, 2), {"k": "reply", "id": command["id"], "ok": True, "result": {}})
        batch = await link.next_batch()
        assert len(batch) == 2
        for _ in range(10):
            await asyncio.sleep(0)
        assert not syncing.done()
        following = tasks.create_task(_outcome(link.next_batch()))
        await syncing
        following.cancel()
    await link.close()
    await sandbox.close()


async def test_an_acknowledgement_is_harmless_on_a_broken_link() -> None:
    async with linked() as (link, sandbox, reading):
        await sandbox.sides[0].line()
        await link.acknowledge(0)
        await link.acknowledge(7)
        assert await sandbox.sides[0].line() == {"k": "ack", "o": 7}
        sandbox.is_alive = False
        sandbox.sides[0].cut()
        await ended(reading)
        await link.acknowledge(9)
        await link.close()
        await link.close()


async def test_a_runner_that_says_nothing_although_it_is_asked_is_given_up() -> None:
    async with linked() as (link, sandbox, reading), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(link.watch(0.3, wanted=lambda: True))
        side = sandbox.sides[0]
        await side.line()
        assert (await side.line())["k"] == "ping"
        await watching
        assert (await ended(reading)).code == "sandbox_timeout"
        assert link.silent
        assert len(sandbox.sides) == 1, "nobody connects again to what does not answer"


def test_a_runner_that_answers_is_kept_however_long_its_agent_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with linked() as (link, sandbox, reading), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(link.watch(60, wanted=lambda: True))
            side = sandbox.sides[0]
            await side.line()
            for _ in range(100):
                ping = await side.line()
                side.say({"k": "reply", "id": ping["id"], "ok": True, "result": {}})
            assert reading.end is None
            assert not link.silent
            watching.cancel()

    told_fast(story(), monkeypatch)  # both ends are on this loop: what one writes is there for the other


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_a_runner_has_a_moment_to_answer_when_a_machine_that_stood_still_goes_on(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def story() -> None:
        async with linked() as (link, sandbox, reading), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(link.watch(0.6, wanted=lambda: True))
            side = sandbox.sides[0]
            await side.line()
            for _ in range(3):
                ping = await side.line()
                time.sleep(0.5)  # noqa: ASYNC251 - all that is on this machine stands still
                await asyncio.sleep(0.01)
                side.say({"k": "reply", "id": ping["id"], "ok": True, "result": {}})
            await side.line()
            assert reading.end is None
            assert not link.silent
            watching.cancel()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(story())


async def test_nobody_is_asked_while_nothing_is_under_way() -> None:
    async with linked() as (link, sandbox, reading), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(link.watch(0.1, wanted=lambda: False))
        await sandbox.sides[0].line()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await sandbox.sides[0].line()
        assert reading.end is None
        watching.cancel()


async def test_what_we_have_not_read_yet_is_no_silence() -> None:
    """A store that is slow holds our reading back, and costs no sandbox."""
    sandbox = PairedSandbox()
    link = await RunnerLink.connect(sandbox, max_file_bytes=1000)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await link.watch(0.1, wanted=lambda: True)
        assert not link.silent
    finally:
        await link.close()
        await sandbox.close()
