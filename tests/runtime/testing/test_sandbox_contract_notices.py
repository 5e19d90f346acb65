"""The scripted provider keeps what the port promises; the suite notices those that break a promise."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities, SandboxProvider, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime.testing.sandbox_contract import SandboxContract
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox
from tests.runtime.testing.scripted_provider import Provider
from tests.runtime.testing.test_contracts_notice import broken


class Scripted(SandboxContract):
    def provider(self) -> Provider:
        return Provider()

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[SandboxProvider]:
        async with self.provider() as provider:
            yield provider

    def restarted(self, provider: SandboxProvider) -> SandboxProvider:
        return provider  # they are in this process: nobody else could know them


class TestScripted(Scripted):
    pass


class TestScriptedWithoutSnapshots(Scripted):
    def provider(self) -> Provider:
        return Provider(snapshots=False)


class ListsEverybodys(Provider):
    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        del runtime_id
        return tuple(sandbox.ref for sandbox in self.living())


class ListsTheDead(Provider):
    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        return tuple(each.ref for each in self.made if each.spec.runtime_id == runtime_id)


class AttachesToTheDead(Provider):
    async def attach(self, ref: SandboxRef, *, gateway_socket: Path | None = None) -> ScriptedSandbox:
        del gateway_socket
        for sandbox in self.made:
            if sandbox.ref.sandbox_id == ref.sandbox_id:
                return sandbox
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")


class RemembersAll(Provider):
    def __init__(self) -> None:
        super().__init__()
        self.ever: list[ScriptedSandbox] = []

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        self.ever.append(await super().create(spec))
        return self.ever[-1]


class GivesTheSameTwice(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        return next(iter(self.living()), None) or await super().create(spec)


class LeavesWhatFailed(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        with suppress(SandboxFault):
            return await super().create(spec)
        self.made.append(ScriptedSandbox("sb-half", spec, self, self.script, self._tasks))
        raise SandboxFault("The gateway is missing.")


class TellsThePath(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        if not spec.gateway_socket.is_socket():
            raise SandboxFault(f"There is no socket at {spec.gateway_socket}.")
        return await super().create(spec)


class OffersInSilence(Provider):
    """Says that it keeps no snapshots, and makes sandboxes without their files."""

    async def probe(self) -> Capabilities:
        return replace(await super().probe(), snapshots=False)


class RestoresNothing(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        if spec.snapshot is not None:
            self.kept.setdefault(spec.snapshot.snapshot_id, {})
        sandbox = await super().create(spec)
        sandbox.runner.files = {}
        return sandbox


class ForgetsNothing(Provider):
    async def forget(self, snapshot: SandboxSnapshot) -> None:
        del snapshot


class BoundsWhatItDoesNotKnow(Provider):
    async def probe(self) -> Capabilities:
        return replace(await super().probe(), enforces=("everything",))


class KeepsSecretsToItself(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        return await super().create(replace(spec, secrets={}))


class LosesTheLane(Provider):
    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        return await super().create(replace(spec, lane=None))


class _Flawed(ScriptedSandbox):
    """One whose provider makes these."""


class HasNoEnd(_Flawed):
    @property
    def expires_at(self) -> datetime | None:
        return None


class IsDeafToGrace(_Flawed):
    async def stop(self, grace_s: float = 0.0) -> None:
        del grace_s
        await super().stop()


class StopsOnce(_Flawed):
    async def stop(self, grace_s: float = 0.0) -> None:
        if self.stopped:
            raise SandboxFault("It was stopped before.")
        await super().stop(grace_s)


class IsAliveForEver(_Flawed):
    async def alive(self) -> bool:
        return True


class TakesTheDead(_Flawed):
    async def assign(self, session_id: str) -> None:
        self.spec = replace(self.spec, session_id=session_id)


class TellsAllAgain(_Flawed):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        attach = self.runner.attach
        self.runner.attach = lambda _, send: attach(0, send)  # type: ignore[method-assign]


class ForgetsWhatNobodyHeard(_Flawed):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        attach = self.runner.attach
        self.runner.attach = lambda _, send: attach(10**6, send)  # type: ignore[method-assign]


def makes(flawed: type[ScriptedSandbox]) -> type[Provider]:
    class Makes(Provider):
        async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
            good = await super().create(spec)
            self.made.remove(good)
            name = good.ref.sandbox_id
            good.die()
            self.made.append(flawed(name, spec, self, self.script, self._tasks))
            return self.made[-1]

    Makes.__name__ = flawed.__name__
    return Makes


PROVIDERS = [
    ListsEverybodys,
    ListsTheDead,
    AttachesToTheDead,
    RemembersAll,
    GivesTheSameTwice,
    LeavesWhatFailed,
    TellsThePath,
    OffersInSilence,
    RestoresNothing,
    ForgetsNothing,
    BoundsWhatItDoesNotKnow,
    KeepsSecretsToItself,
    LosesTheLane,
    *map(makes, _Flawed.__subclasses__()),
]


@pytest.mark.parametrize("flawed", PROVIDERS, ids=lambda flawed: flawed.__name__)
def test_a_flawed_provider_is_found_out(flawed: type[Provider], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.testing.stories.STORY_BOUND_S", 2.0)

    class Suite(Scripted):
        def provider(self) -> Provider:
            return flawed()

    assert 1 <= len(broken(Suite())) <= 12
