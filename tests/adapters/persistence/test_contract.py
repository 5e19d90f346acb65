"""Both stores keep what the port promises."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from agent_runtime.ports import PersistenceAdapter
from agent_runtime.profile import AgentProfile
from agent_runtime.testing.persistence_contract import PersistenceContract
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence


class TestMemory(PersistenceContract):
    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[PersistenceAdapter]:
        store = MemoryPersistence()
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    async def keep_profile(self, store: PersistenceAdapter, profile: AgentProfile) -> bool:
        assert isinstance(store, MemoryPersistence)
        await store.save_profile(profile)
        return True


class TestSqlite(PersistenceContract):
    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[PersistenceAdapter]:
        with TemporaryDirectory() as folder:
            store = SqlitePersistence(Path(folder) / "store.db")
            await store.open()
            try:
                yield store
            finally:
                await store.close()

    async def keep_profile(self, store: PersistenceAdapter, profile: AgentProfile) -> bool:
        assert isinstance(store, SqlitePersistence)
        await store.save_profile(profile)
        return True
