"""Copies of programs that can be run and not read, and what the kernel makes of their processes."""

import asyncio
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from agent_runtime_adapters.sandboxes import execute_only
from agent_runtime_adapters.sandboxes.execute_only import AgentCopies, cache_folder
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_sandbox import process
from tests.adapters.sandboxes.machine import as_ordinary_user, needs_local_sandboxes, needs_root


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy("/bin/sleep", tmp_path / "sleep"))


def _let_through(folder: Path, copy: Path) -> None:
    for each in (*folder.parents[:2], folder, copy.parent.parent, copy.parent):
        each.chmod(mode(each) | 0o011)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_copy_is_made_once_and_can_be_run_and_not_read(program: Path, tmp_path: Path) -> None:
    made = execute_only.execute_only(program, tmp_path / "cache")
    again = execute_only.execute_only(program, tmp_path / "cache")
    assert (made, made.stat().st_ino) == (again, again.stat().st_ino)
    assert mode(made) == 0o111
    assert mode(made.parent) == mode(made.parent.parent) == 0o700
    assert mode(program) & 0o444, "the original is as it was"
    assert not list(made.parent.glob(".*"))


def test_a_copy_that_somebody_changed_is_made_anew(program: Path, tmp_path: Path) -> None:
    made = execute_only.execute_only(program, tmp_path / "cache")
    made.chmod(0o755)
    assert mode(execute_only.execute_only(program, tmp_path / "cache")) == 0o111
    made.chmod(0o700)
    made.write_bytes(b"short")
    made.chmod(0o111)
    assert execute_only.execute_only(program, tmp_path / "cache").stat().st_size == program.stat().st_size


def test_another_version_has_a_copy_of_its_own_and_old_ones_go(program: Path, tmp_path: Path) -> None:
    first = execute_only.execute_only(program, tmp_path / "cache")
    long_ago = time.time() - execute_only.UNUSED_FOR_S - 60
    os.utime(first.parent, (long_ago, long_ago))
    program.write_bytes(program.read_bytes() + b"newer")
    second = execute_only.execute_only(program, tmp_path / "cache")
    assert second != first
    assert not first.exists()


async def test_makers_at_the_same_time_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copies = [AgentCopies(tmp_path / "spare") for _ in range(3)]
    assert all(await asyncio.gather(*(each.make() for each in copies)))
    assert len({each.found["claude"] for each in copies}) == 1
    assert len(list(cache_folder().iterdir())) == 1


@needs_local_sandboxes
async def test_where_no_copy_can_be_made_sandboxes_say_so_and_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk, a cache that cannot be written to."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / ".agents").write_text("no folder either")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = await LocalSandboxes(tmp_path / "sandboxes").probe()
    assert found.available
    assert execute_only.NO_COPY in found.reasons


@needs_local_sandboxes
async def test_where_the_agent_is_shut_nothing_is_said(tmp_path: Path) -> None:
    found = await LocalSandboxes(tmp_path / "sandboxes").probe()
    assert {execute_only.NO_COPY, execute_only.NOT_SHUT}.isdisjoint(found.reasons)


@needs_root
async def test_its_process_is_shut_to_whoever_started_it(program: Path, tmp_path: Path) -> None:
    """And that of the original is not: so the difference is seen by those who look for it."""
    copy = execute_only.execute_only(program, tmp_path / "cache")
    _let_through(tmp_path, copy)
    told = await as_ordinary_user(
        "import json\n"
        "from agent_runtime_sandbox import process\n"
        f"print(json.dumps([process.is_open(path, '60') for path in ({str(copy)!r}, {str(program)!r})]))"
    )
    assert told == [False, True]


def test_a_process_that_was_stopped_is_known_as_that() -> None:
    assert not process.is_stopped(os.getpid())
    assert not process.is_stopped(2**22)
