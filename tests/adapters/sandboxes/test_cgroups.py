"""Control groups of both generations.

The first generation is tested in real groups by `test_bombs`. The second is tested here in a tree that is
made up: that shows what is written where, and not what a kernel makes of it.
"""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from agent_runtime.needs import Resources
from agent_runtime_adapters.sandboxes import cgroups
from agent_runtime_adapters.sandboxes.cgroups import Cgroups, find_cgroups
from tests.adapters.sandboxes.machine import needs_root
from tests.seen_from_outside import groups

BOUNDS = Resources(cpu=1.5, memory_bytes=64 * 1024**2, processes=32)


def test_in_a_delegated_group_the_runtime_makes_room_for_others(tmp_path: Path) -> None:
    tree = _second(tmp_path, group="/user.slice/ours.scope")
    ours = tree / "user.slice/ours.scope"
    found = find_cgroups(tmp_path)
    assert isinstance(found, Cgroups)
    assert (found.version, set(found.folders.values())) == (2, {ours})
    assert found.enforces == ("cpu", "memory_bytes", "processes")
    assert (ours / "agent-runtime/cgroup.procs").read_text() == "42\n", "it moved out of the way"


def test_what_is_written_into_a_group_of_the_second_generation(tmp_path: Path) -> None:
    tree = _second(tmp_path, group="/ours.scope", enabled="cpu memory pids")
    found = find_cgroups(tmp_path)
    assert isinstance(found, Cgroups)
    found.make("sb-1", BOUNDS)
    (group,) = map(Path, found.paths("sb-1"))
    assert group == tree / "ours.scope/agent-runtime-sb-1"
    assert {file.name: file.read_text() for file in group.iterdir()} == {
        "cpu.max": "150000 100000\n",
        "memory.max": "67108864\n",
        "memory.swap.max": "0\n",
        "pids.max": "32\n",
    }
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert cgroups.out_of_memory(found.paths("sb-1")) == 1


def test_a_runtime_that_has_moved_finds_its_group_again(tmp_path: Path) -> None:
    tree = _second(tmp_path, group="/ours.scope/agent-runtime", enabled="")
    enabled = tree / "ours.scope"
    (enabled / "cgroup.controllers").write_text("cpu memory pids\n")
    (enabled / "cgroup.subtree_control").write_text("cpu memory pids\n")
    found = find_cgroups(tmp_path)
    assert isinstance(found, Cgroups)
    assert set(found.folders.values()) == {enabled}


def test_a_controller_that_is_not_offered_is_not_enforced(tmp_path: Path) -> None:
    _second(tmp_path, group="/ours.scope", offered="memory pids", enabled="memory pids")
    found = find_cgroups(tmp_path)
    assert isinstance(found, Cgroups)
    assert found.enforces == ("memory_bytes", "processes")


def test_a_container_sees_its_part_of_the_tree(tmp_path: Path) -> None:
    tree = _second(tmp_path, group="/", root="/docker/abc", own="/docker/abc", enabled="cpu memory pids")
    found = find_cgroups(tmp_path)
    assert isinstance(found, Cgroups)
    assert set(found.folders.values()) == {tree}


@pytest.mark.parametrize("missing", ["no file", "no mount", "not ours"])
def test_without_groups_it_says_how_to_get_them(tmp_path: Path, missing: str) -> None:
    if missing != "no file":
        _second(tmp_path, group="/ours.scope", offered="pids" if missing == "not ours" else "cpu memory pids")
    if missing == "no mount":
        (tmp_path / "self/mountinfo").write_text("22 1 0:21 / /proc rw - proc proc rw\n")
    told = find_cgroups(tmp_path)
    assert told == (cgroups.NOT_OURS if missing == "not ours" else cgroups.NOT_MOUNTED)
    assert "Delegate=yes" in cgroups.NOT_OURS


@needs_root
async def test_a_group_is_removed_when_its_last_process_is_gone() -> None:
    found = find_cgroups()
    if isinstance(found, str):
        pytest.skip(found)
    found.make("sb-of-a-test", BOUNDS)
    paths = found.paths("sb-of-a-test")
    sleeper = subprocess.Popen(["/bin/sleep", "60"])  # noqa: ASYNC220 - does not wait
    try:
        for path in paths:
            (Path(path) / cgroups.PROCESSES).write_text(str(sleeper.pid))
        assert cgroups.members(paths) == {sleeper.pid}
        asyncio.get_running_loop().call_later(0.05, os.kill, sleeper.pid, signal.SIGKILL)
        await cgroups.remove(paths)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not groups() & set(map(Path, paths))
    await cgroups.remove(paths)


@needs_root
def test_groups_that_were_left_behind_are_swept_and_young_ones_are_not() -> None:
    found = find_cgroups()
    if isinstance(found, str):
        pytest.skip(found)
    young = [folder / "agent-runtime-sb-young" for folder in dict.fromkeys(found.folders.values())]
    old = [path.with_name("agent-runtime-sb-old") for path in young]
    try:
        for path in (*young, *old):
            path.mkdir()
        for path in old:
            os.utime(path, (0, 0))
        found.sweep()
        assert [path.exists() for path in young] == [True] * len(young)
        assert [path.exists() for path in old] == [False] * len(old)
    finally:
        for path in (*young, *old):
            if path.exists():
                path.rmdir()


def _second(
    proc: Path,
    *,
    group: str,
    offered: str = "cpu memory pids",
    enabled: str = "",
    root: str = "/",
    own: str | None = None,
) -> Path:
    """A tree of the second generation, and a process 42 in that group of it."""
    tree = proc / "tree"
    folder = tree / group.lstrip("/")
    folder.mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "self/cgroup").write_text(f"0::{own or group}\n")
    (proc / "self/mountinfo").write_text(f"31 23 0:26 {root} {tree} rw - cgroup2 cgroup2 rw\n")
    (folder / "cgroup.controllers").write_text(f"{offered}\n")
    (folder / "cgroup.subtree_control").write_text(f"{enabled}\n")
    (folder / "cgroup.procs").write_text("42\n")
    (folder / "cgroup.type").write_text("domain\n")
    return tree
