"""The stream to a runner on this machine, over a real unix socket: once, in order, bounded, both loops."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes import channel
from agent_runtime_adapters.sandboxes.channel import RECEIVE_BYTES, UnixChannel
from tests.waiting import eventually

MIB = 1024 * 1024


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[UnixChannel, socket.socket]]:
    """Our end, and the runner's as a plain socket."""
    loop = asyncio.get_running_loop()
    with channel.listen(folder) as listener:
        listener.setblocking(False)
        ours = await channel.connect(folder)
        theirs, _ = await loop.sock_accept(listener)
        with theirs:
            try:
                async with asyncio.timeout(20):
                    yield ours, theirs
            finally:
                await ours.close()


def on_both_loops(test: Callable[[Path], Any]) -> Any:
    """Servers run on uvloop, whose transports are no subclasses of asyncio's; hosts run on either."""

    @pytest.mark.parametrize("library", [asyncio, uvloop])
    def told(library: Any, tmp_path: Path) -> None:
        with asyncio.Runner(loop_factory=library.new_event_loop) as runner:
            runner.run(test(tmp_path))

    return told


@on_both_loops
async def test_bytes_go_both_ways_until_the_other_side_ends(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with connected(tmp_path) as (ours, theirs):
        await loop.sock_sendall(theirs, b"hello")
        assert await ours.receive() == b"hello"
        await ours.send(b"good day")
        assert await loop.sock_recv(theirs, 100) == b"good day"
        await loop.sock_sendall(theirs, b"bye")
        theirs.shutdown(socket.SHUT_WR)
        assert [await ours.receive(), await ours.receive(), await ours.receive()] == [b"bye", b"", b""]
        await ours.send(b"you too")  # only one direction has ended
        assert await loop.sock_recv(theirs, 100) == b"you too"


@on_both_loops
async def test_what_is_taken_is_not_received_and_what_is_refused_comes_alone(
    tmp_path: Path,
) -> None:
    loop, taken = asyncio.get_running_loop(), []

    def take(data: bytes) -> float | None:
        taken.append(data)
        return 0.0 if data != b"refused" else None

    async with connected(tmp_path) as (ours, theirs), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(ours.receive(take))
        await asyncio.sleep(0)  # now it waits
        for said in (b"one", b"two", b"refused"):
            await loop.sock_sendall(theirs, said)
            await eventually(lambda said=said: taken[-1:] == [said])
        await loop.sock_sendall(theirs, b"later")
        assert await waiting == b"refused"
        assert await ours.receive() == b"later"
        assert taken == [b"one", b"two", b"refused"]


@on_both_loops
async def test_whoever_takes_and_refuses_at_random_gets_every_byte_once_and_in_order(tmp_path: Path) -> None:
    loop, dice, got = asyncio.get_running_loop(), random.Random(7), bytearray()
    said = dice.randbytes(2 * MIB)

    def take(data: bytes) -> float | None:
        if dice.random() < 0.3:
            return None
        got.extend(data)
        return dice.choice((0.0, 0.0, 0.001))

    async def tell(theirs: socket.socket) -> None:
        at = 0
        while at < len(said):
            size = dice.choice((1, 100, 5000, 200_000))
            await loop.sock_sendall(theirs, said[at : at + size])
            at += size
            await asyncio.sleep(0)
        theirs.shutdown(socket.SHUT_WR)

    async with connected(tmp_path) as (ours, theirs), asyncio.TaskGroup() as tasks:
        tasks.create_task(tell(theirs))
        while data := await ours.receive(take):
            assert len(data) <= RECEIVE_BYTES
            got.extend(data)
        assert got == said


@on_both_loops
async def test_whoever_asks_for_a_pause_is_brought_what_came_meanwhile_at_once(tmp_path: Path) -> None:
    loop, taken = asyncio.get_running_loop(), []

    def take(data: bytes) -> float | None:
        taken.append(data)
        return 0.2

    async with connected(tmp_path) as (ours, theirs), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(ours.receive(take))
        await asyncio.sleep(0)  # now it waits
        await loop.sock_sendall(theirs, b"first")
        await eventually(lambda: taken == [b"first"])
        for piece in (b"a", b"b", b"c"):
            await loop.sock_sendall(theirs, piece)
        await eventually(lambda: len(taken) > 1)
        assert taken == [b"first", b"abc"]
        theirs.close()  # in the middle of a pause
        assert await waiting == b""


@on_both_loops
async def test_whoever_does_not_receive_holds_back_the_other_side(tmp_path: Path) -> None:
    async with connected(tmp_path) as (ours, theirs):
        theirs.setblocking(False)
        sent, stalled = 0, 0
        while stalled < 20:
            try:
                sent += theirs.send(b"x" * 65536)
            except BlockingIOError:
                stalled += 1
            await asyncio.sleep(0)
        assert sent < 2 * MIB  # what the system holds, and a little
        received = 0
        while received < sent:
            received += len(await ours.receive())
        theirs.send(b"on again")
        assert await ours.receive() == b"on again"


@on_both_loops
async def test_whoever_sends_waits_while_the_other_side_is_slow(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with connected(tmp_path) as (ours, theirs), asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(ours.send(b"x" * (8 * MIB)))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not sending.done()
        read = 0
        while read < 8 * MIB:
            read += len(await loop.sock_recv(theirs, MIB))
        await sending


@on_both_loops
async def test_a_connection_that_breaks_says_so_to_whoever_sends_and_whoever_waits(tmp_path: Path) -> None:
    async with connected(tmp_path) as (ours, theirs), asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_fault_of(ours.send(b"x" * (8 * MIB))))
        waiting = tasks.create_task(_fault_of(ours.receive()))
        for _ in range(10):
            await asyncio.sleep(0)
        theirs.close()
        assert isinstance(await sending, SandboxFault)
        assert await waiting in (b"", None) or isinstance(await waiting, SandboxFault)
        assert isinstance(await _fault_of(ours.send(b"more")), SandboxFault)


async def _fault_of(call: Any) -> Any:
    try:
        return await call
    except SandboxFault as fault:
        return fault
