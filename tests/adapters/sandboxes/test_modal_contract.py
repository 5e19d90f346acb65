"""The Modal provider keeps what the port promises, on both of the SDK's backends, with the real runner."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent_runtime.ports import SandboxProvider
from agent_runtime.testing.sandbox_contract import SandboxContract
from tests.adapters.sandboxes.modal_world import ModalWorld, modal_world, needs_users


class OnModal(SandboxContract):
    v2: bool
    world: ModalWorld
    in_a_row = 20  # each starts two interpreters
    orphaned_s = 6.0
    objects_aside = 600

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[SandboxProvider]:
        async with modal_world(v2=self.v2) as self.world:
            yield self.world.provider()

    def restarted(self, provider: SandboxProvider) -> SandboxProvider:
        return self.world.provider()

    def leftovers(self) -> list[str]:
        return self.world.leftovers()


@needs_users
class TestTheSecondBackend(OnModal):
    v2 = True


@needs_users
class TestTheFirstBackend(OnModal):
    v2 = False
