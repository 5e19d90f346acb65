"""What is kept of sandboxes on disk, and how processes are told apart."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime_adapters.sandboxes.processes import ProcessMark, boot_id
from agent_runtime_adapters.sandboxes.registry import STARTING_FOR, Record, Registry, new_sandbox_id
from tests.adapters.sandboxes.machine import needs_root

SPEC = SandboxSpec("session-1", "runtime-1", Path("/nowhere"), 60.0)


@contextmanager
def bystander() -> Iterator[ProcessMark]:
    """A process that is nobody's sandbox."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = ProcessMark.of(process.pid)
        assert mark is not None
        yield mark
        process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def made(registry: Registry) -> Record:
    return registry.make(new_sandbox_id(), "local", "tight", SPEC, own_uid=False)


async def test_a_recycled_pid_is_not_killed() -> None:
    with bystander() as process:
        earlier = ProcessMark(pid=process.pid, started=process.started - 1)
        assert not earlier.running()
        earlier.kill()
        await earlier.gone()
        assert process.running()


async def test_a_process_is_killed_and_waited_for() -> None:
    with bystander() as process:
        process.kill()
        await process.gone()
        assert not process.running()
        process.kill()
    assert ProcessMark.of(process.pid) is None


def test_a_process_that_is_not_there_has_no_mark() -> None:
    assert ProcessMark.of(2**22 + 1) is None


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "root")
    record = made(registry)
    assert registry.load(record.sandbox_id) == record
    assert registry.all() == (record,)
    folder = registry.folder(record.sandbox_id)
    assert {path.name for path in folder.iterdir()} == {"record.json", "workspace", "home"}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder / "home")} == {0o700}


def test_a_sandbox_is_alive_while_its_process_is_that_one(tmp_path: Path) -> None:
    record = made(Registry(tmp_path))
    assert record.starting()
    assert not record.alive()
    with bystander() as process:
        up = record.model_copy(update={"keeper": process, "inner": process})
        assert up.alive()
        assert not up.model_copy(update={"boot": "another start of the machine"}).alive()
    assert not up.alive()
    assert not up.starting()


def test_what_never_came_up_is_given_up(tmp_path: Path) -> None:
    record = made(Registry(tmp_path))
    assert not record.model_copy(update={"created": record.created - STARTING_FOR}).starting()
    assert record.model_copy(update={"created": record.created - STARTING_FOR / 2}).starting()
    assert timedelta(seconds=60) < STARTING_FOR


def test_what_was_half_made_when_its_maker_died_is_given_up_at_once(tmp_path: Path) -> None:
    record = made(Registry(tmp_path))
    with bystander() as maker:
        half = record.model_copy(update={"maker": maker})
        assert half.starting()
    assert not half.starting()


@needs_root
def test_runtimes_that_choose_at_the_same_time_do_not_choose_the_same_uid(tmp_path: Path) -> None:
    registries = [Registry(tmp_path / str(number)) for number in range(5)]
    records = [
        registry.make(new_sandbox_id(), "local", "tight", SPEC, own_uid=True) for registry in registries
    ]
    assert len({record.uid for record in records}) == 5


@needs_root
def test_a_uid_is_not_given_twice_while_it_is_in_use(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    records = [registry.make(new_sandbox_id(), "local", "tight", SPEC, own_uid=True) for _ in range(3)]
    assert len({record.uid for record in records}) == 3
    home = registry.folder(records[0].sandbox_id) / "home"
    assert home.stat().st_uid == records[0].uid


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sandboxId": 1}', b"\xff\xfe"])
async def test_a_folder_whose_record_is_broken_is_cleared_away(tmp_path: Path, content: bytes) -> None:
    registry = Registry(tmp_path)
    record = made(registry)
    (registry.folder(record.sandbox_id) / "record.json").write_bytes(content)
    assert registry.load(record.sandbox_id) is None
    assert registry.all() == ()
    await registry.tidy()
    assert names(tmp_path) == {".lock"}


async def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "sb-file").write_text("x")
    registry = Registry(tmp_path)
    await registry.tidy()
    assert names(tmp_path) == {"notes", "sb-file", ".lock"}


async def test_trees_that_no_recursion_can_follow_are_removed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    record = made(registry)
    here = os.open(registry.folder(record.sandbox_id) / "workspace", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    await registry.remove(record.sandbox_id)
    await registry.remove(record.sandbox_id)
    assert names(tmp_path) == {".lock"}


async def test_a_removal_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    record = made(registry)
    registry.folder(record.sandbox_id).rename(tmp_path / f".removed-{record.sandbox_id}")
    await registry.tidy()
    assert names(tmp_path) == {".lock"}


@pytest.mark.parametrize(
    "sandbox_id", ["", ".", "..", "../sb-0123456789abcdef", "sb-0123456789abcdeF", "sb-0123456789abcdef\n"]
)
def test_an_id_never_names_another_place(tmp_path: Path, sandbox_id: str) -> None:
    with pytest.raises(SandboxFault) as caught:
        Registry(tmp_path).folder(sandbox_id)
    assert caught.value.code == "sandbox_lost"


def test_a_record_on_disk_is_plain_json(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    record = made(registry)
    stored = json.loads((registry.folder(record.sandbox_id) / "record.json").read_bytes())
    assert stored["runtimeId"] == "runtime-1"
    assert stored["boot"] == boot_id()
