"""Folders of packages: made once and whole, kept while they are wanted, and removed when they are not."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes.installers import MOST_BYTES, seal
from agent_runtime_adapters.sandboxes.package_folders import KEPT_FOR_S, MOST_KEPT, SPARED_S, PackageFolders
from tests.waiting import eventually


async def fill(folder: Path, held: int) -> None:
    assert os.fstat(held)
    (folder / "package").write_text("whole")


@contextmanager
def a_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "root"


def kept_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.suffix != ".lock"}


def grow_old(folder: Path, by_s: float) -> None:
    before = time.time() - by_s
    os.utime(folder, (before, before))


async def test_a_folder_is_made_once_and_then_taken() -> None:
    with a_root() as root:
        assert await PackageFolders(root).have("python-1", fill) is not None
        assert await PackageFolders(root).have("python-1", fill) is None
        assert (root / "python-1" / "package").read_text() == "whole"
        assert root.stat().st_mode & 0o777 == 0o711


async def test_while_one_makes_it_another_waits_and_sees_it_whole() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(folder: Path, held: int) -> None:
        (folder / "half").write_text("")
        begun.set()
        await go_on.wait()
        await fill(folder, held)

    with a_root() as root:
        one, other = PackageFolders(root), PackageFolders(root)
        async with asyncio.TaskGroup() as both:
            first = both.create_task(one.have("python-1", slowly))
            await begun.wait()
            second = both.create_task(other.have("python-1", slowly))
            assert not (root / "python-1").exists()
            go_on.set()
        assert first.result() is not None
        assert second.result() is None


async def test_a_failure_leaves_nothing_and_the_next_one_begins_anew() -> None:
    async def fail(folder: Path, held: int) -> None:
        await fill(folder, held)
        raise SandboxFault("It failed.", code="dependencies_failed")

    with a_root() as root:
        with pytest.raises(SandboxFault):
            await PackageFolders(root).have("python-1", fail)
        assert list(root.iterdir()) == []
        assert await PackageFolders(root).have("python-1", fill) is not None


async def test_what_the_machine_refuses_is_a_fault_without_a_path() -> None:
    with a_root() as root:
        root.write_text("not a folder")
        with pytest.raises(SandboxFault) as caught:
            await PackageFolders(root).have("python-1", fill)
    assert caught.value.code == "dependencies_failed"
    assert str(root) not in caught.value.detail


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from agent_runtime_adapters.sandboxes.package_folders import PackageFolders
async def die(folder, held):
    (folder / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(PackageFolders(Path(sys.argv[1])).have("python-1", die))
"""


async def test_what_a_killed_runtime_left_half_is_cleared_away_by_the_next() -> None:
    with a_root() as root:
        command = [sys.executable, "-c", KILLED, str(root)]
        await asyncio.to_thread(subprocess.run, command, check=False)
        assert kept_in(root) == {".draft-python-1"}

        await PackageFolders(root).have("python-2", fill)  # somebody who wants something else

        assert kept_in(root) == {"python-2"}
        await PackageFolders(root).have("python-1", fill)
        assert [path.name for path in (root / "python-1").iterdir()] == ["package"]


async def test_what_nobody_took_for_long_is_removed_with_its_lock() -> None:
    with a_root() as root:
        folders = PackageFolders(root)
        for key in ("python-1", "python-2"):
            await folders.have(key, fill)
        grow_old(root / "python-1", KEPT_FOR_S + 60)
        grow_old(root / "python-2", KEPT_FOR_S - 60)

        folders.sweep()

        assert {path.name for path in root.iterdir()} == {"python-2", "python-2.lock"}


async def test_there_are_so_many_and_no_more_but_none_that_was_just_taken() -> None:
    with a_root() as root:
        folders = PackageFolders(root)
        for number in range(MOST_KEPT + 3):
            await folders.have(f"python-{number}", fill)
        grow_old(root / "python-0", SPARED_S + 120)
        grow_old(root / "python-1", SPARED_S + 60)
        grow_old(root / "python-2", SPARED_S - 60)

        folders.sweep()

        assert kept_in(root) == {f"python-{number}" for number in range(2, MOST_KEPT + 3)}


async def test_what_a_process_sees_is_kept_however_old_it_is() -> None:
    with a_root() as root:
        folders = PackageFolders(root)
        await folders.have("python-in-use", fill)
        grow_old(root / "python-in-use", 2 * KEPT_FOR_S)
        user = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "input()"),
            stdin=asyncio.subprocess.PIPE,
            env={"PATH": f"{root}/python-in-use/bin"},
        )
        environment = Path(f"/proc/{user.pid}/environ")
        await eventually(lambda: b"python-in-use" in environment.read_bytes())
        folders.sweep()
        assert kept_in(root) == {"python-in-use"}
        await user.communicate(b"\n")

        folders.sweep()
        assert kept_in(root) == set()


async def test_what_is_being_taken_is_not_removed_meanwhile() -> None:
    with a_root() as root:
        folders = PackageFolders(root)
        await folders.have("python-1", fill)
        grow_old(root / "python-1", 2 * KEPT_FOR_S)

        async def look(folder: Path, held: int) -> None:
            raise AssertionError("it is there")

        async with folders.locked("python-1"):
            folders.sweep()
            assert kept_in(root) == {"python-1"}
        await folders.have("python-1", look)
        folders.sweep()
        assert kept_in(root) == {"python-1"}


def test_everybody_may_read_what_was_installed_and_nobody_gains_by_it() -> None:
    with a_root() as root:
        (root / "folder").mkdir(parents=True)
        program, text = root / "folder" / "program", root / "folder" / "text"
        program.write_text("")
        program.chmod(0o4700)
        text.write_text("")
        text.chmod(0o600)
        (root / "folder").chmod(0o700)
        (root / "link").symlink_to("folder/text")

        seal(root)

        modes = {path.name: path.lstat().st_mode & 0o7777 for path in (root / "folder", program, text)}
        assert modes == {"folder": 0o755, "program": 0o755, "text": 0o644}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "up/../../secret"])
def test_a_link_that_leads_out_is_refused(target: str) -> None:
    with a_root() as root:
        (root / "inner").mkdir(parents=True)
        (root / "inner" / "up").symlink_to("..")
        (root / "inner" / "link").symlink_to(target)
        with pytest.raises(SandboxFault, match="links that lead out"):
            seal(root)
        shutil.rmtree(root)


def test_what_is_neither_a_file_nor_a_folder_is_refused() -> None:
    with a_root() as root:
        root.mkdir()
        os.mkfifo(root / "pipe")
        with pytest.raises(SandboxFault, match="neither a file nor a folder"):
            seal(root)


def test_packages_that_are_too_large_are_refused() -> None:
    with a_root() as root:
        root.mkdir()
        for name in ("one", "other"):
            with (root / name).open("wb") as file:
                file.truncate(MOST_BYTES // 2 + 1)  # a hole: no disk is used
        with pytest.raises(SandboxFault, match="too large"):
            seal(root)
