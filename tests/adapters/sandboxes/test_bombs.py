"""An agent takes all that it can get, in a real sandbox with small bounds: the machine and its neighbours
stay as they are, and the runner lives to tell."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.testing.runner_talk import RUNTIME_ID, one_of, said, talking, with_agent
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.registry import Registry
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes.machine import (
    Inside,
    as_ordinary_user,
    death_of,
    inside,
    needs_groups,
    needs_local_sandboxes,
    needs_root,
    place,
)
from tests.waiting import eventually

MIB = 1024 * 1024
MEMORY = 128 * MIB
WITHOUT_GROUPS = (Tier.BUBBLEWRAP,)


HEAP = "held = bytearray(1 << 30)\nfor i in range(0, len(held), 4096): held[i] = 1\n"
SHARED = "import mmap\nheld = mmap.mmap(-1, 1 << 30)\nfor i in range(0, len(held), 4096): held[i] = 1\n"
FLOOD = """
import sys
for _ in range(64):
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * (1 << 20))
"""
ONE_AFTER_THE_OTHER = "held = []\nwhile True: held.append(b'x' * (1 << 20))\n"


@needs_local_sandboxes
@needs_groups
@pytest.mark.parametrize("bomb", [HEAP, SHARED, ONE_AFTER_THE_OTHER])
async def test_a_program_that_takes_too_much_memory_is_ended_and_nothing_else(bomb: str) -> None:
    with place() as root:
        async with inside(root, memory_bytes=MEMORY) as agent, inside(root) as neighbour:
            ended = await agent.run(
                "print(subprocess.run([sys.executable, '-c', bomb], stderr=-3).returncode)", bomb=bomb
            )
            assert ended == -9
            assert _most_memory(agent) <= MEMORY
            assert await agent.run("print(json.dumps('still here'))") == "still here"
            assert await neighbour.run("print(json.dumps('still here'))") == "still here"
            mishap = await agent.sandbox.mishap()
            assert isinstance(mishap, SandboxFault)
            assert (mishap.code, mishap.retryable) == ("sandbox_out_of_memory", False)
            assert "128 MiB" in mishap.detail
            assert await agent.sandbox.mishap() is None, "it is told once"
            assert await neighbour.sandbox.mishap() is None


@needs_local_sandboxes
@needs_groups
async def test_files_in_memory_are_bounded_and_count_as_memory() -> None:
    fill = """
def fill(folder):
    try:
        with open(folder + "/file", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
                file.flush()
    except OSError as error:
        return [os.path.getsize(folder + "/file") >> 20, errno.errorcode[error.errno]]
print(json.dumps([fill("/tmp"), fill("/dev/shm")]))
"""
    with place() as root:
        async with inside(root, memory_bytes=MEMORY) as agent:
            assert await agent.run(fill) == [[32, "ENOSPC"], [16, "ENOSPC"]]
            assert 48 * MIB <= _most_memory(agent) <= MEMORY
            # What they hold is missed elsewhere.
            ended = await agent.run(
                "print(subprocess.run([sys.executable, '-c', bomb], stderr=-3).returncode)",
                bomb="held = bytearray(100 << 20)",
            )
            assert ended == -9


@needs_local_sandboxes
@needs_groups
async def test_nothing_of_its_groups_can_be_seen_or_written_inside() -> None:
    look = """
groups = [line.split(":", 2)[2] for line in open("/proc/self/cgroup").read().splitlines()]
there = [path for path in ("/sys", "/sys/fs/cgroup") if os.path.exists(path)]
print(json.dumps([sorted(set(groups)), there]))
"""
    with place() as root:
        async with inside(root) as agent:
            assert await agent.run(look) == [["/"], []]


@needs_local_sandboxes
@needs_groups
async def test_a_sandbox_that_dies_of_its_memory_says_so_to_whoever_finds_it() -> None:
    glutton = f"import socket; socket.socket(fileno=3).accept()\n{ONE_AFTER_THE_OTHER}"
    needs = SandboxNeeds(resources=Resources(memory_bytes=MEMORY))
    with place() as root:
        provider = LocalSandboxes(root, runner=("-c", glutton))
        async with one_of(provider, needs=needs) as sandbox:
            channel = await sandbox.connect()
            await death_of(sandbox)
            await channel.close()
            following = LocalSandboxes(root)
            assert await following.list(RUNTIME_ID) == (), "somebody clears it away first"
            for code in ("sandbox_out_of_memory", "sandbox_lost"):  # it is told once
                with pytest.raises(SandboxFault) as caught:
                    await following.attach(sandbox.ref)
                assert caught.value.code == code


@needs_local_sandboxes
@needs_groups
@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nmade = 0\nwhile os.fork(): made += 1\nimport time; time.sleep(300)",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(300,)).start()",
        "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(1)",
    ],
)
async def test_a_fork_bomb_meets_its_bound_and_the_neighbours_do_not_notice(bomb: str) -> None:
    with place() as root:
        async with inside(root, processes=64) as agent, inside(root) as neighbour:
            told = await agent.run(
                """
bombs = subprocess.Popen([sys.executable, "-c", bomb], stdout=-3, stderr=-3)
import time
most, deadline = 0, time.monotonic() + 20
while most < 60 and time.monotonic() < deadline:
    tasks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            tasks += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            pass
    most = max(most, tasks)
print(most)
""",
                bomb=bomb,
            )
            assert 32 < told <= 64
            assert await neighbour.run("print(subprocess.run(['/bin/true']).returncode)") == 0
            assert await (await asyncio.create_subprocess_exec("/bin/true")).wait() == 0


@needs_local_sandboxes
@needs_root
async def test_without_control_groups_a_fork_bomb_is_bounded_by_its_own_uid() -> None:
    forks = """
made = 0
try:
    while True:
        if not os.fork():
            import time; time.sleep(3); os._exit(0)
        made += 1
except OSError as error:
    print(json.dumps([made, errno.errorcode[error.errno]]))
"""
    with place() as root:
        async with inside(root, tiers=WITHOUT_GROUPS, processes=64) as agent:
            made, refusal = await agent.run(forks)
            assert 32 < made <= 64
            assert refusal == "EAGAIN"


@needs_local_sandboxes
@needs_root
async def test_processes_of_an_ordinary_users_sandboxes_are_counted_for_each_by_itself() -> None:
    """Far below what a user may have: the kernel counts them in the user namespace of each."""
    forks = """
made = 0
try:
    while made < 200:
        if not os.fork():
            import time; time.sleep(3); os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
    program = f"""
import asyncio, json
from tests.adapters.sandboxes.machine import inside, place
from agent_runtime_adapters.sandboxes.tiers import Tier
WITHOUT_GROUPS = (Tier.BUBBLEWRAP,)
async def main():
    with place() as root:
        async with (
            inside(root, tiers=WITHOUT_GROUPS, processes=64) as first,
            inside(root, tiers=WITHOUT_GROUPS, processes=64) as second,
        ):
            made = await asyncio.gather(first.run({forks!r}), second.run({forks!r}))
    print(json.dumps(made))
asyncio.run(main())
"""
    first, second = await as_ordinary_user(program)
    assert 32 < first <= 64
    assert 32 < second <= 64


@needs_local_sandboxes
async def test_without_control_groups_a_process_has_a_bound_of_its_own() -> None:
    with place() as root:
        async with inside(root, tiers=WITHOUT_GROUPS, memory_bytes=MEMORY) as agent:
            heap = "try:\n    held = bytearray(2 << 30)\nexcept MemoryError:\n    print(1)\n"
            assert await agent.run(heap) == 1


@needs_local_sandboxes
@needs_groups
async def test_a_program_that_spins_gets_its_share_of_the_cpu() -> None:
    spin = """
import multiprocessing, time
def spin(_):
    began = time.monotonic()
    while time.monotonic() - began < 2: pass
    return time.process_time()
with multiprocessing.Pool(2) as pool:
    print(sum(pool.map(spin, range(2))))
"""
    with place() as root:
        async with inside(root, cpu=0.25) as agent:
            assert await agent.run(spin) < 1.5


@needs_local_sandboxes
async def test_descriptors_of_a_process_are_bounded() -> None:
    with place() as root:
        async with inside(root) as agent:
            taken = await agent.run(
                """
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    refusal = errno.errorcode[error.errno]
[os.close(number) for number in held]
print(json.dumps([len(held) <= 4096, refusal]))
"""
            )
            assert taken == [True, "EMFILE"]


@needs_local_sandboxes
async def test_arguments_without_end_are_refused_by_the_kernel() -> None:
    huge = """
try:
    subprocess.run(["/bin/true", *["x" * 100_000] * 1000])
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    with place() as root:
        async with inside(root) as agent:
            assert await agent.run(huge) == "E2BIG"


@needs_local_sandboxes
@needs_root
async def test_watches_of_one_sandbox_are_no_loss_to_others() -> None:
    take_all = """
libc = ctypes.CDLL(None, use_errno=True)
held = 0
while held < 100_000 and libc.inotify_init1(0) >= 0:
    held += 1
print(json.dumps([held < 4096, errno.errorcode[ctypes.get_errno()]]))
sys.stdout.flush()
"""
    one = "print(ctypes.CDLL(None).inotify_init1(0) >= 0 and 1 or 0)"
    with place() as root:
        async with inside(root) as agent, inside(root) as neighbour:
            assert await agent.run(take_all) == [True, "EMFILE"]
            held = "import time\n" + take_all + "os.close(1); time.sleep(300)"
            await agent.run(
                "child = subprocess.Popen([sys.executable, '-c', held], stdout=-1, stderr=-3)\n"
                "child.stdout.read()\nprint(0)",
                held="import ctypes, errno, json, os, sys\n" + held,
            )
            assert await neighbour.run(one) == 1


@needs_local_sandboxes
async def test_a_flood_of_output_is_held_back_and_fills_no_disk() -> None:
    """What nobody reads waits in the agent; what is complained is cut."""
    with place() as root:
        async with one_of(LocalSandboxes(root)) as sandbox:
            journal = root / sandbox.ref.sandbox_id / "journal"
            async with talking(sandbox) as talk:
                await with_agent(talk)
                await talk.say(f"run {FLOOD}", "m1")
                result: dict[str, Any] = await talk.until(said("m1"))
                assert result["line"]["code"] == 0
                assert len(result["line"]["out"]) + len(result["line"]["err"]) <= MIB
                await talk.say("lines 300 1000000", "m2")
                await talk.until(lambda frame: "line" in frame)
            await eventually(lambda: journal.stat().st_size > 200 * MIB, within=30)
            async with talking(sandbox) as talk:
                await talk.until(lambda frame: "line" in frame)
            assert journal.stat().st_size < 300 * MIB
            assert (journal.parent / "runner.log").stat().st_size < MIB


def _most_memory(agent: Inside) -> int:
    """The most memory that was ever counted for a sandbox."""
    record = Registry(agent.root).load(agent.sandbox.ref.sandbox_id)
    assert record is not None
    for path in map(Path, record.cgroups):
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (path / name).exists():
                return int((path / name).read_text())
    raise AssertionError("no memory is counted")
