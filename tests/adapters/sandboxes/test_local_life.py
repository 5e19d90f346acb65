"""How local sandboxes come up, outlive whoever made them, and end; and what is said when they cannot."""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import SandboxNeeds
from agent_runtime.records import SandboxRef
from agent_runtime.testing.runner_talk import RUNTIME_ID, gateway, greeted, one_of
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.adapters.sandboxes.machine import (
    OBEDIENT,
    Inside,
    as_ordinary_user,
    death_of,
    inside,
    needs_local_sandboxes,
    needs_root,
    place,
    processes_of,
)
from tests.waiting import eventually

MAKE_ONE_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
async def main():
    with gateway() as spec:
        sandbox = await LocalSandboxes(Path(sys.argv[1])).create(spec)
        print(sandbox.ref.model_dump_json(), flush=True)
        os.kill(0, signal.SIGKILL)
asyncio.run(main())
"""


@needs_local_sandboxes
async def test_it_outlives_a_runtime_that_is_killed_with_its_whole_process_group() -> None:
    with place() as root:
        maker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MAKE_ONE_AND_DIE, str(root)),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        printed, _ = await maker.communicate()
        assert maker.returncode == -signal.SIGKILL
        ref = SandboxRef.model_validate_json(printed.splitlines()[-1])
        following = LocalSandboxes(root)
        assert await following.list(RUNTIME_ID) == (ref,)
        sandbox = await following.attach(ref)
        try:
            assert (await greeted(sandbox))["k"] == "hello"
        finally:
            await sandbox.stop()


@needs_local_sandboxes
async def test_after_a_restart_of_the_machine_nothing_is_killed_and_the_folder_goes() -> None:
    with place() as root:
        async with inside(root) as agent:
            record = root / agent.sandbox.ref.sandbox_id / "record.json"
            kept = record.read_text()
            record.write_text(json.dumps(json.loads(kept) | {"boot": "an earlier start"}))
            assert await LocalSandboxes(root).list(RUNTIME_ID) == ()
            assert not record.parent.exists()
            assert await agent.sandbox.alive()
            record.parent.mkdir()
            record.write_text(kept)


@needs_local_sandboxes
async def test_what_the_agent_left_running_ends_with_the_runner() -> None:
    with place() as root:
        async with inside(root) as agent:
            runner = await agent.run(
                """
daemon = "import os, signal, time; signal.signal(15, 1); signal.signal(1, 1); time.sleep(300)"
for _ in range(3):
    subprocess.Popen([sys.executable, "-c", daemon], start_new_session=True, stdout=-3, stderr=-3)
print(os.getppid())
"""
            )
            assert len(processes_of(root)) >= 5
            with pytest.raises(ConnectionResetError):
                await agent.run(f"os.kill({runner}, 9)")
            await eventually(lambda: processes_of(root) == [])
            await death_of(agent.sandbox)
            assert await LocalSandboxes(root).list(RUNTIME_ID) == ()
            assert [path.name for path in root.iterdir()] == [".lock"]


@needs_local_sandboxes
async def test_the_agents_tools_are_there_under_neutral_names() -> None:
    with place() as root:
        async with inside(root) as agent:
            found = await agent.run(
                """
import agent_runtime_sandbox, claude_agent_sdk
binary = os.path.join(os.path.dirname(claude_agent_sdk.__file__), "_bundled", "claude")
version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
package = agent_runtime_sandbox.__path__[0]
print(json.dumps([package, os.listdir(os.path.dirname(package)), os.access(binary, os.X_OK), version]))
"""
            )
            assert found[:3] == [
                "/opt/agent-runtime/lib/agent_runtime_sandbox",
                ["agent_runtime_sandbox"],
                True,
            ]
            assert "Claude Code" in found[3]


@needs_local_sandboxes
async def test_the_gateway_is_reachable_and_still_is_when_it_was_bound_anew() -> None:
    knock = """
with socket.socket(socket.AF_UNIX) as door:
    door.connect(os.environ["AGENT_RUNTIME_GATEWAY"])
print(json.dumps(os.environ["AGENT_RUNTIME_GATEWAY"]))
"""
    with place() as root, gateway() as spec:
        provider = LocalSandboxes(root, runner=("-c", OBEDIENT))
        sandbox = await provider.create(spec)
        try:
            agent = Inside(sandbox, root)
            assert await agent.run(knock) == "/run/agent-runtime/gateway.sock"
            with _bound_anew(spec.gateway_socket):
                assert await agent.run(knock) == "/run/agent-runtime/gateway.sock"
        finally:
            await sandbox.stop()


@needs_local_sandboxes
async def test_neighbours_of_the_gateways_socket_are_not_shown() -> None:
    with place() as root, gateway() as spec:
        spec.gateway_socket.with_name("private").write_text("x")
        sandbox = await LocalSandboxes(root, runner=("-c", OBEDIENT)).create(spec)
        try:
            listing = "print(json.dumps(os.listdir('/run/agent-runtime')))"
            assert await Inside(sandbox, root).run(listing) == ["gateway.sock"]
        finally:
            await sandbox.stop()


@needs_local_sandboxes
async def test_a_deep_root_is_no_hindrance() -> None:
    with place() as root:
        async with inside(root / ("deep-" * 20) / ("deeper-" * 20)) as agent:
            assert await agent.run("print(json.dumps(os.getcwd()))") == "/workspace"


@needs_local_sandboxes
async def test_creation_fails_cleanly_wherever_descriptors_run_out() -> None:
    with place() as root, gateway() as spec:
        provider = LocalSandboxes(root, runner=("-c", OBEDIENT))
        await (await provider.create(spec)).stop()
        before = processes_of(root)
        refusals = []
        for spare in range(60):
            try:
                with _descriptors_left(spare):
                    sandbox = await provider.create(spec)
            except SandboxFault as fault:
                refusals.append(fault.detail)
                assert processes_of(root) == before
            else:
                await sandbox.stop()
                break
        assert len(refusals) > 5
        assert set(refusals) == {"This machine refused what a sandbox needs (EMFILE)."}
        assert await provider.list(RUNTIME_ID) == ()
        assert [path.name for path in root.iterdir()] == [".lock"]


async def test_without_bubblewrap_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with place() as root, gateway() as spec:
        monkeypatch.setenv("PATH", str(root))
        provider = LocalSandboxes(root)
        found = await provider.probe()
        assert not found.available
        assert "apt-get install bubblewrap" in found.reasons[0]
        with pytest.raises(SandboxFault, match="apt-get install bubblewrap") as caught:
            await provider.create(spec)
        assert caught.value.code == "sandbox_unavailable"
        assert not caught.value.retryable
        assert await provider.list(RUNTIME_ID) == ()


@pytest.mark.parametrize(
    ("complaint", "advice"),
    [
        ("bwrap: No permissions to create new namespace", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: setting up uid map: Permission denied", "--security-opt"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("bwrap: Unknown option --disable-userns", "0.8.0"),
        ("bwrap: something about /root/private", "did not run"),
    ],
)
async def test_a_bubblewrap_that_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, complaint: str, advice: str
) -> None:
    with place() as root, _instead_of_bubblewrap(f'echo "{complaint}" >&2; exit 1', monkeypatch):
        found = await LocalSandboxes(root).probe()
        assert not found.available
        assert advice in found.reasons[0]
        assert "private" not in found.reasons[0]
        assert [path.name for path in root.iterdir()] == [".lock"]


async def test_a_start_that_hangs_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    with place() as root, _instead_of_bubblewrap("exec sleep 60", monkeypatch):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await LocalSandboxes(root).probe()
        assert [path.name for path in root.iterdir()] == [".lock"]


async def test_a_root_that_cannot_be_made_is_a_fault_without_its_path() -> None:
    with tempfile.TemporaryDirectory() as folder, gateway():
        file = Path(folder) / "file"
        file.write_text("x")
        found = await LocalSandboxes(file / "root").probe()
        assert not found.available
        assert folder not in found.reasons[0]


@needs_root
@needs_local_sandboxes
async def test_an_ordinary_user_gets_the_same_sandbox() -> None:
    program = """
import asyncio, json, os, sys, tempfile
from pathlib import Path
from agent_runtime.testing.sandbox_contract import gateway, greeted
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
async def main():
    with tempfile.TemporaryDirectory() as folder, gateway() as spec:
        provider = LocalSandboxes(Path(folder) / "root")
        found = await provider.probe()
        if not found.available:
            sys.exit(" ".join(found.reasons))
        sandbox = await provider.create(spec)
        hello = await greeted(sandbox)
        listed = [ref.sandbox_id for ref in await provider.list("runtime-1")]
        locked = Path(folder, "root", sandbox.ref.sandbox_id, "workspace", "locked")
        locked.mkdir()
        (locked / "file").write_text("x")
        locked.chmod(0)
        await sandbox.stop()
        left = os.listdir(Path(folder) / "root")
        print(json.dumps([found.isolation, hello["k"], listed == [sandbox.ref.sandbox_id], left]))
asyncio.run(main())
"""
    isolation, greeting, is_listed, left = await as_ordinary_user(program)
    assert (isolation, greeting, is_listed) == ("bubblewrap+seccomp+netns", "hello", True)
    assert set(left) == {".lock", ".agents"}, "without a home, copies of agents lie beside the sandboxes"


@contextmanager
def _bound_anew(path: Path) -> Iterator[None]:
    """What a gateway does that comes up again: a new socket at the old path."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield


@contextmanager
def _descriptors_left(spare: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] <= highest:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, fillers[-1] + 1 + spare), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


@contextmanager
def _instead_of_bubblewrap(script: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "bwrap"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


async def test_a_profile_that_names_an_image_is_refused_in_words() -> None:
    with place() as root, gateway() as spec:
        named = replace(spec, needs=SandboxNeeds(image="tools:1"))
        for provider in (LocalSandboxes(root), UnsafeSubprocess(root)):
            with pytest.raises(SandboxFault, match="names an image") as refused:
                await provider.create(named)
            assert (refused.value.code, refused.value.retryable) == ("unsupported", False)
            await provider.close()


@needs_local_sandboxes
async def test_a_sandbox_ends_itself_when_its_lifetime_is_over() -> None:
    with place() as root:
        async with one_of(LocalSandboxes(root), needs=_lifetime(1.0)) as sandbox:
            assert sandbox.expires_at is not None
            assert (await greeted(sandbox))["k"] == "hello"
            await death_of(sandbox)
            mishap = await sandbox.mishap()
            assert mishap is not None
            assert (mishap.code, mishap.retryable) == ("sandbox_expired", True)


@needs_local_sandboxes
async def test_one_that_does_not_end_itself_is_ended_by_whoever_looks() -> None:
    with place() as root:
        provider = LocalSandboxes(root, runner=("-c", OBEDIENT))  # which knows nothing of lifetimes
        async with one_of(provider, needs=_lifetime(0.1)) as sandbox:
            assert await sandbox.alive()
            ended = asyncio.Event()
            asyncio.get_running_loop().call_later(0.2, ended.set)
            await ended.wait()
            assert await LocalSandboxes(root).list(RUNTIME_ID) == ()
            assert not await sandbox.alive()


def _lifetime(seconds: float) -> SandboxNeeds:
    """Shorter than a profile may ask for."""
    return SandboxNeeds.model_construct(**dict(SandboxNeeds()) | {"lifetime_s": seconds})
