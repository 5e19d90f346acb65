"""The traps of Modal's SDK, each walked into on purpose: nothing is lost, doubled, stalled or cut."""

import asyncio
import base64
import hashlib
import random

from agent_runtime.testing.runner_talk import ATTACH, Talk, one_of, said, talking, with_agent
from agent_runtime_modal_local import Do, Fault
from agent_runtime_sandbox import frames
from tests.adapters.sandboxes.modal_world import modal_world, needs_users

pytestmark = needs_users

MANY = 200


async def test_what_is_written_while_something_is_being_written_is_not_lost() -> None:
    """`write` during a `drain` loses its data: there is one writer, whoever has something to say."""
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        channel = await sandbox.connect()
        await channel.send(ATTACH)
        await it.local.set_fault(Fault("TaskExecStdinWrite", do=Do.SLOW, delay_s=0.05, times=10))
        asked = [frames.encode({"k": "list", "id": f"n{number}"}) for number in range(MANY)]
        await asyncio.gather(*(channel.send(line) for line in asked))
        splitter, answered = frames.LineSplitter(), set[str]()
        async with asyncio.timeout(20):
            while len(answered) < MANY:
                lines = map(frames.decode, splitter.feed(await channel.receive()))
                answered |= {frame["id"] for frame in lines if frame["k"] == "reply"}
        await channel.close()


async def test_any_bytes_pass_both_ways() -> None:
    """Decoding by the SDK would end the stream at the first byte that is no UTF-8."""
    content = random.Random(7).randbytes(3_000_000)
    async with modal_world() as it, one_of(it.provider()) as sandbox, talking(sandbox) as talk:
        await written(talk, "any.bin", content)
        assert await talk.command("read", path="any.bin") == content


async def written(talk: Talk, path: str, content: bytes) -> None:
    for start in range(0, len(content), frames.CHUNK_BYTES):
        piece = base64.b64encode(content[start : start + frames.CHUNK_BYTES]).decode()
        result = await talk.command("write", path=path, data=piece, append=start > 0)
    assert result["sha256"] == hashlib.sha256(content).hexdigest()


async def test_a_connection_that_nobody_reads_stalls_no_other() -> None:
    """One that is opened and not read stops all calls of a sandbox once 64 MiB of it are waiting."""
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        async with talking(sandbox) as talk:
            await with_agent(talk)
            await talk.say("lines 100 1000000", "m-1")  # a hundred megabytes
            await talk.until(said("m-1"))
        stuck = await sandbox.connect()
        await stuck.send(ATTACH)
        try:
            for _ in range(20):
                assert await sandbox.alive()
                async with asyncio.timeout(10):
                    other = await sandbox.connect()
                    await other.close()
            assert await it.inside(sandbox, "echo fine") == "fine\n"
        finally:
            await stuck.close()


async def test_a_stream_that_breaks_in_the_middle_goes_on_at_the_right_byte() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox, talking(sandbox) as talk:
        await with_agent(talk)
        for do in (Do.FAIL, Do.RESET):
            await it.local.set_fault(Fault("TaskExecStdioRead", do=do, after_messages=3))
        await talk.say("lines 300 2000", "m-1")
        await talk.until(said("m-1"))
        offsets = [frame["o"] for frame in talk.kept]
        assert offsets == list(range(1, len(offsets) + 1))


async def test_no_process_is_left_inside_when_this_one_lets_go() -> None:
    """There is no way to end one but the end of its input, which has to be flushed to be seen."""
    async with modal_world() as it:
        provider = it.provider()
        async with one_of(provider) as sandbox:
            await (await sandbox.connect()).close()
            await provider.close()
            found = await it.provider().attach(sandbox.ref)
            async with asyncio.timeout(20):
                while "sandbox.trunk" in await it.inside(found, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"):
                    await asyncio.sleep(0.2)
            await found.stop()


async def test_a_hundred_connections_at_once_are_one_process_inside() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        channels = await asyncio.gather(*(sandbox.connect() for _ in range(100)))
        assert (await it.local.calls())["TaskExecStart"] == 1
        processes = await it.inside(sandbox, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert processes.count("agent_runtime_sandbox.trunk") == 1
        for channel in channels:
            await channel.close()
        assert {await channel.receive() for channel in channels} == {b""}
