"""What a sandbox writes is bounded: by a file system of its own where the runtime is root, or by a watch."""

from contextlib import suppress
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.testing.runner_talk import one_of, said, talking, with_agent
from agent_runtime_adapters.sandboxes import disk
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from tests.adapters.sandboxes.machine import death_of, inside, needs_disks, needs_local_sandboxes, place
from tests.seen_from_outside import devices_of
from tests.waiting import eventually

MIB = 1024 * 1024
DISK = 32 * MIB


FILL = """
def fill(path):
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * (1 << 20))
    except OSError as error:
        return [os.path.getsize(path) >> 20, errno.errorcode[error.errno]]
"""


@needs_local_sandboxes
@needs_disks
async def test_a_file_fills_its_own_disk_and_no_other() -> None:
    with place() as root:
        async with inside(root, disk_bytes=DISK) as agent, inside(root, disk_bytes=DISK) as neighbour:
            filled = await agent.run(
                FILL + "print(json.dumps([fill('/workspace/big'), fill('/home/agent/big')]))"
            )
            (first, why), (second, why_too) = filled
            assert (why, why_too) == ("ENOSPC", "ENOSPC")
            assert 20 <= first + second <= 32, "workspace and home share it"
            assert _taken(root, agent.sandbox.ref.sandbox_id) <= DISK
            assert await agent.run(
                "os.unlink('/workspace/big'); open('/workspace/a', 'w').write('x'); print(1)"
            )
            assert await neighbour.run("print(open('/workspace/a', 'w').write('x' * (1 << 20)))") == MIB


@needs_local_sandboxes
@needs_disks
async def test_files_without_number_fill_it_too() -> None:
    many = """
made = 0
try:
    while True:
        open(f"/workspace/{made}", "w").close()
        made += 1
except OSError as error:
    print(json.dumps([made, errno.errorcode[error.errno]]))
"""
    with place() as root:
        async with inside(root, disk_bytes=DISK) as agent:
            made, why = await agent.run(many)
            assert why == "ENOSPC"
            assert 1000 < made < 10_000
            assert _taken(root, agent.sandbox.ref.sandbox_id) <= DISK


@needs_local_sandboxes
async def test_a_file_with_holes_is_bounded_as_if_it_had_none() -> None:
    holes = """
try:
    os.truncate(os.open("/workspace/holes", os.O_CREAT | os.O_RDWR), 1 << 40)
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    with place() as root:
        async with inside(root, disk_bytes=DISK) as agent:
            assert await agent.run("import signal; signal.signal(signal.SIGXFSZ, 1)\n" + holes) == "EFBIG"


@needs_local_sandboxes
@needs_disks
async def test_an_agent_that_fills_its_disk_does_not_silence_the_runner() -> None:
    """Its turn ends, what it wrote is told, and there is room for the next file when it has made some."""
    fill = """
open("small.txt", "w").write("kept")
try:
    with open("big", "wb", buffering=0) as file:
        while True: file.write(b"x" * (1 << 20))
except OSError as error: print(error.errno)
"""
    needs = SandboxNeeds(resources=Resources(disk_bytes=DISK))
    with place() as root:
        async with one_of(LocalSandboxes(root), needs=needs) as sandbox, talking(sandbox) as talk:
            await with_agent(talk)
            await talk.say(f"run {fill}", "m1")
            result = await talk.until(said("m1"))
            assert result["line"]["out"] == "28\n"
            await talk.command("sync")
            told = {frame["path"] for frame in talk.kept if frame["k"] == "file"}
            assert {"small.txt", "big"} <= told
            await talk.say("lines 50 100000", "m2")
            assert (await talk.until(said("m2")))["k"] == "agent"


@needs_local_sandboxes
@needs_disks
async def test_its_device_is_given_back_also_when_it_dies_by_itself() -> None:
    with place() as root:
        async with inside(root) as agent:
            assert len(devices_of(root)) == 1
            assert not _mounts_of(root)
            with pytest.raises(ConnectionResetError):
                await agent.run("os.kill(os.getppid(), 9)")
            await eventually(lambda: devices_of(root) == [])


@needs_local_sandboxes
@needs_disks
async def test_where_no_disk_can_be_mounted_it_says_so_and_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "find_mkfs", lambda: "/bin/true")
    with place() as root:
        provider = LocalSandboxes(root)
        found = await provider.probe()
        assert found.available
        assert "disk_bytes" not in found.enforces
        assert any("loop devices" in reason for reason in found.reasons)
        await _overdrawn(provider)


@needs_local_sandboxes
async def test_a_watched_disk_that_is_overdrawn_ends_the_sandbox_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk, "find_mkfs", lambda: None)
    with place() as root:
        provider = LocalSandboxes(root)
        assert "disk_bytes" not in (await provider.probe()).enforces
        await _overdrawn(provider)


async def _overdrawn(provider: LocalSandboxes) -> None:
    needs = SandboxNeeds(resources=Resources(disk_bytes=DISK))
    write = "for n in range(4): open(f'{n}', 'wb').write(b'x' * (12 << 20))\nimport time; time.sleep(300)"
    async with one_of(provider, needs=needs) as sandbox, talking(sandbox) as talk:
        await with_agent(talk)
        await talk.say(f"run {write}", "m1")
        fault = await talk.until(lambda frame: frame.get("code") == "out_of_disk")
        assert fault["k"] == "fault"
        with suppress(SandboxFault):
            await talk.until_it_ends()
        await death_of(sandbox)


def _mounts_of(root: Path) -> list[str]:
    """What the host has mounted from there: nothing, for it is mounted for the sandbox alone."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if any(sign in line for sign in (str(root), *devices_of(root)))]


def _taken(root: Path, sandbox_id: str) -> int:
    return (root / sandbox_id / disk.IMAGE_NAME).stat().st_blocks * 512
