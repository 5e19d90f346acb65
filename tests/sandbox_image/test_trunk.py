"""The end of a trunk inside a sandbox: it ends when its provider is gone, and gives way to another."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from agent_runtime_sandbox import identity
from agent_runtime_sandbox.multiplex import Broken, Multiplex, Purpose, Stream
from agent_runtime_sandbox.trunk import SOCKET

ENDS_WITHIN_S = 20


@contextmanager
def control_folder() -> Iterator[Path]:
    """A runner's folder: where root is about, the trunk is somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        control = Path(folder) / "control"
        control.mkdir()
        if os.geteuid() == 0:
            identity.own_folder(control, identity.RUNNER_UID, identity.RUNNER_UID, 0o700)
        yield control


@asynccontextmanager
async def echoing(control: Path) -> AsyncIterator[None]:
    """In place of a runner: whatever it is told it says again."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(echo, str(control / SOCKET))
    (control / SOCKET).chmod(0o666)
    async with server:
        yield


class Trunk:
    """A process, and our end of what it carries."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.asked: asyncio.Queue[Stream] = asyncio.Queue()
        self.multiplex = Multiplex(outside=True, accept=self.asked.put_nowait)

    async def read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(65536):
            self.multiplex.feed(data)
        self.multiplex.break_off()

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def ended(self) -> int:
        async with asyncio.timeout(ENDS_WITHIN_S):
            return await self.process.wait()


@asynccontextmanager
async def trunk(control: Path, *options: str) -> AsyncIterator[Trunk]:
    command = (sys.executable, "-P", "-s", "-m", "agent_runtime_sandbox.trunk", "--control", str(control))
    process = await asyncio.create_subprocess_exec(
        *command, *options, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    it = Trunk(process)
    async with asyncio.TaskGroup() as tasks:
        pumps = [tasks.create_task(it.read()), tasks.create_task(it.multiplex.pump(it.write))]
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                await it.multiplex.ready.wait()
            yield it
        finally:
            for pump in pumps:
                pump.cancel()
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_it_joins_streams_to_the_runner() -> None:
    with control_folder() as control:
        async with echoing(control), trunk(control) as it:
            streams = [it.multiplex.open(Purpose.RUNNER) for _ in range(3)]
            for number, stream in enumerate(streams):
                await stream.opened()
                await stream.send(b"%d" % number)
            assert [await stream.receive() for stream in streams] == [b"0", b"1", b"2"]


async def test_it_waits_for_a_runner_that_is_not_there_yet() -> None:
    with control_folder() as control:

        async def later() -> None:
            await asyncio.sleep(0.5)
            async with echoing(control):
                await asyncio.sleep(ENDS_WITHIN_S)

        async with asyncio.TaskGroup() as tasks:
            runner = tasks.create_task(later())
            async with trunk(control) as it:
                await it.multiplex.open(Purpose.RUNNER).opened()
            runner.cancel()


async def test_without_a_runner_a_stream_is_refused() -> None:
    with control_folder() as control:
        async with trunk_without_runner(control) as it:
            with pytest.raises(Broken):
                await it.multiplex.open(Purpose.RUNNER).opened()


@asynccontextmanager
async def trunk_without_runner(control: Path) -> AsyncIterator[Trunk]:
    """There was one when the trunk began."""
    async with echoing(control):
        opened = trunk(control)
        it = await opened.__aenter__()
    (control / SOCKET).unlink()
    try:
        yield it
    finally:
        await opened.__aexit__(None, None, None)


async def test_it_ends_when_its_input_ends() -> None:
    with control_folder() as control:
        async with echoing(control), trunk(control) as it:
            assert it.process.stdin is not None
            it.process.stdin.close()
            assert await it.ended() == 0


async def test_it_ends_when_nothing_is_heard_for_long() -> None:
    """A provider that was killed says nothing, and its end of the pipes may stay open for ever."""
    with control_folder() as control:
        async with echoing(control), trunk(control, "--silence", "0.5") as it:
            assert await it.ended() == 0


async def test_it_ends_when_it_hears_nonsense() -> None:
    with control_folder() as control:
        async with echoing(control), trunk(control) as it:
            await it.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await it.ended() == 0


async def test_the_gateway_is_served_by_the_newest_and_the_older_one_is_told() -> None:
    with control_folder() as control:
        gateway = control.parent / "gateway" / "s"
        serve = ("--gateway", str(gateway))
        async with echoing(control), trunk(control, *serve) as old:
            async with trunk(control, *serve) as new:
                assert await old.ended() == 0
                assert old.multiplex.taken_over
                reader, writer = await asyncio.open_unix_connection(str(gateway))
                stream = await new.asked.get()
                assert stream.purpose == Purpose.GATEWAY
                writer.write(b"a request")
                assert await stream.receive() == b"a request"
                await stream.send(b"an answer")
                stream.end()
                assert await reader.read() == b"an answer"
                writer.close()
                assert not new.multiplex.taken_over
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_unix_connection(str(gateway))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_it_is_root_no_longer_than_it_takes_to_begin() -> None:
    with control_folder() as control:
        async with echoing(control), trunk(control, "--gateway", str(control.parent / "g" / "s")) as it:
            status = await asyncio.to_thread(Path(f"/proc/{it.process.pid}/status").read_text)
            facts = dict(line.split(":", 1) for line in status.splitlines())
            assert set(facts["Uid"].split()) == {str(identity.RUNNER_UID)}
            assert facts["Groups"].split() == []
            assert facts["CapPrm"].strip() == "0" * 16
