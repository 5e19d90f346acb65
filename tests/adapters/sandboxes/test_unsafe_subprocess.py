"""The provider without isolation: said aloud, kept apart where it can be, and ended as well as can be."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_runtime.errors import SandboxFault
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime.testing.stories import refused
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.adapters.sandboxes.machine import OBEDIENT, Inside, death_of, is_saying, place, processes_of
from tests.waiting import eventually


async def test_it_says_that_it_is_unsafe() -> None:
    with place() as root, capture_logs() as logs:
        found = await UnsafeSubprocess(root).probe()
        assert found.isolation == "none"
        assert "no isolation" in found.reasons[0]
        assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_its_environment_is_clean_and_its_folders_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-real-one")
    with place() as root, gateway() as spec:
        sandbox = await UnsafeSubprocess(root, runner=("-c", OBEDIENT)).create(spec)
        try:
            folder = root / sandbox.ref.sandbox_id
            environment, here = await Inside(sandbox, root).run(
                "print(json.dumps([dict(os.environ), os.getcwd()]))"
            )
            assert "sk-the-real-one" not in str(environment)
            assert environment["HOME"] == environment["AGENT_RUNTIME_HOME"] == str(folder / "home")
            assert environment["AGENT_RUNTIME_GATEWAY"] == str(spec.gateway_socket)
            assert here == environment["AGENT_RUNTIME_WORKSPACE"] == str(folder / "workspace")
        finally:
            await sandbox.stop()


async def test_stopping_finds_what_detached_itself() -> None:
    daemon = """
import subprocess, sys
sleeper = "import os, signal, time; signal.signal(15, 1); signal.signal(1, 1); time.sleep(300)"
subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True, stdout=-3, stderr=-3)
"""
    with place() as root, gateway() as spec:
        sandbox = await UnsafeSubprocess(root, runner=("-c", OBEDIENT)).create(spec)
        await Inside(sandbox, root).run(
            "subprocess.run([sys.executable, '-c', daemon], start_new_session=True); print(0)", daemon=daemon
        )
        # In mid-exec it has no environment yet; the runner's own shows to root alone.
        await eventually(lambda: [pid for pid in processes_of(root) if is_saying(pid, "sleep(300)")])
        await sandbox.stop()
        assert processes_of(root) == []


async def test_what_a_dead_runner_left_running_is_ended_by_whoever_looks_next() -> None:
    with place() as root, gateway() as spec:
        provider = UnsafeSubprocess(root, runner=("-c", OBEDIENT))
        sandbox = await provider.create(spec)
        with pytest.raises(ConnectionResetError):
            await Inside(sandbox, root).run(
                "subprocess.Popen(['/bin/sleep', '300'], start_new_session=True, stdout=-3, stderr=-3)\n"
                "os.kill(os.getppid(), 9)"
            )
        await death_of(sandbox)
        await eventually(lambda: len(processes_of(root)) == 1)  # its sender ends a moment later
        assert await provider.list(spec.runtime_id) == ()
        assert processes_of(root) == []
        assert _names(root) == [".lock"]


async def test_a_sandbox_of_another_provider_is_not_taken_for_one_of_its_own() -> None:
    with place() as root, gateway() as spec:
        sandbox = await UnsafeSubprocess(root).create(spec)
        local = LocalSandboxes(root)
        await refused(local.attach(sandbox.ref), SandboxFault, "sandbox_lost")
        assert await local.list(spec.runtime_id) == ()
        assert await sandbox.alive()
        await sandbox.stop()


async def test_it_leaves_bystanders_alone() -> None:
    with place() as root, gateway() as spec:
        provider = UnsafeSubprocess(root, runner=("-c", OBEDIENT))
        one, other = await provider.create(spec), await provider.create(spec)
        await one.stop()
        assert await other.alive()
        assert json.loads(json.dumps(await Inside(other, root).run("print(1)"))) == 1
        await other.stop()


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
