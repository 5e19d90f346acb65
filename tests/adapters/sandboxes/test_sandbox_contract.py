"""Both providers of this machine keep what the port promises, with the real runner inside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent_runtime.ports import SandboxProvider
from agent_runtime.testing.sandbox_contract import SandboxContract
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.adapters.sandboxes.machine import needs_local_sandboxes, place, processes_of


class OnThisMachine(SandboxContract):
    root: Path

    def provider(self) -> SandboxProvider:
        raise NotImplementedError

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[SandboxProvider]:
        with place() as self.root:
            provider = self.provider()
            yield provider
            await provider.close()

    def restarted(self, provider: SandboxProvider) -> SandboxProvider:
        return self.provider()

    def leftovers(self) -> list[str]:
        return [path.name for path in self.root.glob("*")] + [str(pid) for pid in processes_of(self.root)]


@needs_local_sandboxes
class TestLocal(OnThisMachine):
    def provider(self) -> SandboxProvider:
        return LocalSandboxes(self.root)


class TestUnsafeSubprocess(OnThisMachine):
    def provider(self) -> SandboxProvider:
        return UnsafeSubprocess(self.root)
