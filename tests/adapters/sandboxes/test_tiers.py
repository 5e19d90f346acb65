"""Which isolation is found on a machine, and what is said of what is missing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes import cgroups
from agent_runtime_adapters.sandboxes.bounds import Bounds
from agent_runtime_adapters.sandboxes.cgroups import NOT_OURS, Cgroups
from agent_runtime_adapters.sandboxes.launch import NO_CGROUP, NO_DISK
from agent_runtime_adapters.sandboxes.launching import StartFailed
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.tiers import Tier, find_best
from tests.adapters.sandboxes.machine import (
    ORDINARY_USER,
    as_ordinary_user,
    needs_groups,
    needs_local_sandboxes,
    needs_root,
    place,
)

PROBE_AND_TAKE_TOO_MUCH = """
import asyncio, json, tempfile
from pathlib import Path
from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.testing.runner_talk import one_of
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from tests.adapters.sandboxes.machine import Inside, OBEDIENT
BOMB = "held = []\\nwhile True: held.append(b'x' * (1 << 20))"
async def main():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        provider = LocalSandboxes(root, runner=("-c", OBEDIENT))
        found = await provider.probe()
        needs = SandboxNeeds(resources=Resources(memory_bytes=128 << 20, processes=64))
        async with one_of(provider, needs=needs) as sandbox:
            ended = await Inside(sandbox, root).run(
                "print(subprocess.run([sys.executable, '-c', bomb], stderr=-3).returncode)", bomb=BOMB
            )
            mishap = await sandbox.mishap()
        left = [path.name for path in root.iterdir() if path.name != ".agents"]
    told = [found.isolation, found.enforces, found.reasons, ended, mishap and mishap.code, left]
    print(json.dumps(told))
asyncio.run(main())
"""


@needs_local_sandboxes
@needs_root
@needs_groups
async def test_root_has_all_bounds() -> None:
    with place() as root:
        found = await LocalSandboxes(root).probe()
        assert found.isolation == "bubblewrap+seccomp+netns+cgroup"
        assert found.enforces == ("cpu", "memory_bytes", "processes", "disk_bytes")
        assert found.reasons == ("The kernel is shared with the host.",)


@needs_local_sandboxes
@needs_root
async def test_an_ordinary_user_is_told_what_is_not_bounded_and_how_to_get_it() -> None:
    with place():
        isolation, enforces, reasons, ended, mishap, left = await as_ordinary_user(PROBE_AND_TAKE_TOO_MUCH)
        assert (isolation, enforces) == ("bubblewrap+seccomp+netns", [])
        assert reasons[0].startswith("Not bounded in a sandbox: CPU, memory")
        assert NOT_OURS in reasons
        assert (ended, mishap) == (1, None), "a process has a bound of its own"
        assert set(left) <= {".lock", ".agents"}


@needs_local_sandboxes
@needs_root
@needs_groups
async def test_an_ordinary_user_to_whom_groups_are_delegated_has_their_bounds() -> None:
    with place(), _delegated() as delegated:
        told = await as_ordinary_user(PROBE_AND_TAKE_TOO_MUCH, join=delegated)
        isolation, enforces, reasons, ended, mishap, left = told
        assert isolation == "bubblewrap+seccomp+netns+cgroup"
        assert enforces == ["cpu", "memory_bytes", "processes"]
        assert any("disk" in reason for reason in reasons)
        assert (ended, mishap) == (-9, "sandbox_out_of_memory")
        assert set(left) <= {".lock", ".agents"}


@needs_local_sandboxes
async def test_what_is_not_wished_for_is_not_used() -> None:
    with place() as root:
        found = await LocalSandboxes(root, tiers=(Tier.BUBBLEWRAP,)).probe()
        assert found.isolation == "bubblewrap+seccomp+netns"
        assert "memory_bytes" not in found.enforces


@needs_root
@needs_groups
@pytest.mark.parametrize(
    ("missing", "lost", "told"),
    [(NO_CGROUP, "memory_bytes", "Delegate=yes"), (NO_DISK, "disk_bytes", "loop devices")],
)
async def test_what_a_sandbox_could_not_have_is_left_out_and_told(missing: int, lost: str, told: str) -> None:
    async def attempt(tier: Tier, bounds: Bounds) -> None:
        if lost in bounds.enforces:
            failure = StartFailed("The sandbox could not be started.")
            failure.missing = missing
            raise failure

    found = (await find_best(tuple(Tier), attempt)).capabilities("local")
    assert found.available
    assert lost not in found.enforces
    assert any(told in reason for reason in found.reasons)


async def test_below_the_least_tier_there_is_nothing() -> None:
    async def attempt(tier: Tier, bounds: Bounds) -> None:
        raise SandboxFault("It does not work.")

    found = (await find_best(tuple(Tier), attempt)).capabilities("local")
    assert not found.available
    assert found.isolation == "none"
    assert len(found.reasons) == 1


@contextmanager
def _delegated() -> Iterator[list[Path]]:
    """Groups that belong to an ordinary user, as a service manager makes them."""
    found = cgroups.find_cgroups()
    assert isinstance(found, Cgroups)
    with tempfile.TemporaryDirectory() as name:
        groups = [folder / f"delegated-{Path(name).name}" for folder in dict.fromkeys(found.folders.values())]
    try:
        for group in groups:
            group.mkdir()
            for path in (group, *group.iterdir()):
                os.chown(path, ORDINARY_USER, ORDINARY_USER)
        yield groups
    finally:
        for group in groups:
            group.rmdir()
