"""A runtime is killed at every step of making a sandbox, connecting to it and ending it.

Whatever it left, the next one has exactly the sandboxes that its sessions have, one look at the provider's
list later; nothing of others is left on the machine: no process, folder, control group, mount or device.
And the message that was accepted is answered.
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.config import RuntimeConfig
from agent_runtime.creation import NewSession
from agent_runtime.manager import SessionManager
from agent_runtime.pool import PoolSettings
from agent_runtime.ports import EventLog, SandboxProvider
from agent_runtime.records import SandboxRef, TurnStatus
from agent_runtime.testing.scripted_agent import ScriptedAgent
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from agent_runtime_modal_local import LocalModal
from tests.adapters.sandboxes.machine import needs_local_sandboxes
from tests.adapters.sandboxes.modal_world import needs_users
from tests.chaos.life import LIGHT_RUNNER, SilentGateway
from tests.chaos.processes import CHECKOUT
from tests.killed_at_a_step import Life, Steps, lived
from tests.runtime.world import ANNA, PROFILE
from tests.seen_from_outside import devices_of, groups, is_empty, processes_of
from tests.waiting import eventually

REAP_S = 0.1
RUNTIME_ID = "agent-runtime"
TURNS_BETWEEN_KILLS_ON_MODAL = 25
A_FEW = 20
ANSWER = 'play {"steps": [], "end": {"report": "ended", "status": "completed"}}'
KINDS: dict[str, Callable[[Path], SandboxProvider]] = {
    "local": lambda root: LocalSandboxes(root, runner=LIGHT_RUNNER),
    "unsafe-subprocess": lambda root: UnsafeSubprocess(root, runner=LIGHT_RUNNER),
}


@dataclass(frozen=True)
class Place:
    """Where lives come one after the other: a provider that was tried out, so that this is done once."""

    root: Path
    provider: SandboxProvider


class Watched:
    """A provider of which it is known how often its list was looked at."""

    def __init__(self, inner: SandboxProvider) -> None:
        self._inner = inner
        self._looks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        self._looks += 1
        return await self._inner.list(runtime_id)

    async def another_look(self) -> None:
        """Wait until a look that begins later is over, however long it takes: then the next one begins."""
        before = self._looks
        await eventually(lambda: self._looks >= before + 2, within=30)


@contextmanager
def place(kind: str) -> Iterator[Place]:
    """In the end no process, device or control group has to do with its sandboxes."""
    before = groups()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sandboxes"
        provider = KINDS[kind](root)
        found = asyncio.run(provider.probe())
        assert found.available, found.reasons
        yield Place(root, provider)
        assert processes_of(root) == []
        deadline = time.monotonic() + 5  # the kernel gives back devices a moment after the last process
        while left := [*devices_of(root), *filter(is_empty, groups() - before)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def config(at: Place, data: Path, log: EventLog, pool: int) -> RuntimeConfig:
    return RuntimeConfig(
        runtime_id=RUNTIME_ID,
        persistence=SqlitePersistence(data / "agent-runtime.db"),
        log=log,
        sandboxes=at.provider,
        agents=(ScriptedAgent(),),
        gateway=SilentGateway(data / "gateway"),
        profiles=(PROFILE,),
        sync_interval_s=0.01,
        reap_interval_s=REAP_S,
        pool=PoolSettings(size=pool, profiles=(PROFILE.profile_id,)),
    )


async def answered(manager: SessionManager, log: EventLog, session_id: str) -> None:
    """Wait until the session's one turn is over; without polling, which would be steps as well."""
    while True:
        (turn,) = await manager.turns(ANNA, session_id, before=None, limit=10)
        if turn.status not in {TurnStatus.QUEUED, TurnStatus.RUNNING}:
            return
        head = await log.head(session_id)
        (turn,) = await manager.turns(ANNA, session_id, before=None, limit=10)
        if turn.status in {TurnStatus.QUEUED, TurnStatus.RUNNING}:
            await log.wait(session_id, head)


def one_session(at: Place, data: Path, pool: int) -> Life:
    """A runtime that opens, answers one message in a sandbox, ends that, and closes."""

    async def life(steps: Steps) -> None:
        log = MemoryEventLog()
        manager = SessionManager(config(at, data, log, pool))
        if pool:
            steps.begin()
        await manager.open()
        steps.begin()
        new = NewSession(PROFILE.profile_id, message=ANSWER)
        session, _ = await manager.create_session(ANNA, new)
        await answered(manager, log, session.session_id)
        await manager.stop_session(ANNA, session.session_id)
        if not pool:
            steps.end()
        await manager.close()

    return life


@asynccontextmanager
async def the_next_life(at: Place, data: Path) -> AsyncIterator[set[str]]:
    """A runtime after the killed one, one look later; yields the sandboxes that its sessions have.

    It stops them all in the end.
    """
    log = MemoryEventLog()
    provider = Watched(at.provider)
    settings = replace(config(at, data, log, pool=0), sandboxes=provider)
    manager = SessionManager(settings)
    await manager.open()
    try:
        async with asyncio.timeout(60):
            known = (await settings.persistence.list_sessions(ANNA.owner, limit=10)).sessions
            for record in known:
                turns = await settings.persistence.load_turns(record.session_id, limit=10)
                if turns:
                    await answered(manager, log, record.session_id)
            await manager._takeover.done()
            await provider.another_look()
        records = [await settings.persistence.load_session(each.session_id) for each in known]
        yield {each.sandbox.sandbox_id for each in records if each is not None and each.sandbox}
    finally:
        await manager.stop_all()
        await manager.close()


async def check_the_next_life(at: Place, data: Path) -> None:
    """What it has is all that there is; when it stops all there is nothing."""
    async with the_next_life(at, data) as live:
        assert {ref.sandbox_id for ref in await at.provider.list(RUNTIME_ID)} == live
        assert {path.name for path in at.root.iterdir()} <= {".lock", *live}
        assert set(processes_of(at.root)) == {pid for each in live for pid in processes_of(at.root / each)}
    assert {path.name for path in at.root.iterdir()} <= {".lock"}


@needs_local_sandboxes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pool", [0, 1], ids=["cold", "pooled"])
@pytest.mark.parametrize("turns", [False, True], ids=["deeds", "turns of the loop"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_look_later_exactly_the_live_sandboxes_are_left(kind: str, turns: bool, pool: int) -> None:
    """All steps without a pool; with one, whose sandboxes are made by the same code, some of them."""
    with place(kind) as at, tempfile.TemporaryDirectory() as folder:
        for dies_at in itertools.count(0, 1 + 6 * pool):
            data = Path(folder) / f"killed-at-{dies_at}"
            data.mkdir()
            steps = lived(one_session(at, data, pool), data / "log", dies_at=dies_at, counts_turns=turns)
            try:
                asyncio.run(check_the_next_life(at, data))
            except BaseException as error:
                error.add_note(f"the runtime was killed at step {dies_at}")
                raise
            if steps is not None:
                break
        assert dies_at > A_FEW, "nothing was counted"


@needs_users
@pytest.mark.timeout(900)
def test_so_it_is_on_modal() -> None:
    """At some turns of the loop, over the whole of that life: each takes two processes and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        modal = LocalModal(Path(folder) / "modal")
        modal.start()
        try:
            environment = {**os.environ, **modal.environment(), "MODAL_SANDBOX_V2": "1"}
            for dies_at in itertools.count(0, TURNS_BETWEEN_KILLS_ON_MODAL):
                data = Path(folder) / f"killed-at-{dies_at}"
                data.mkdir()
                killed = _on_modal(environment, str(data), str(dies_at))
                assert killed.returncode in {0, -signal.SIGKILL}, killed.stderr
                after = _on_modal(environment, str(data))
                assert after.returncode == 0, f"killed at {dies_at}: {after.stderr}"
                if killed.returncode == 0:
                    break
        finally:
            modal.stop()
        assert dies_at > A_FEW, "nothing was counted"


def _on_modal(environment: dict[str, str], *given: str) -> "subprocess.CompletedProcess[str]":
    argv = (sys.executable, "-m", "tests.killed_on_modal", *given)
    return subprocess.run(
        argv, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=240
    )
