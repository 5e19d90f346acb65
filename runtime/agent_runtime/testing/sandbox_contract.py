"""SandboxContract: is your `SandboxProvider` right? Derive from it and let pytest tell you.

    class TestMySandboxes(SandboxContract):
        @asynccontextmanager
        async def adapter(self):
            provider = MySandboxes(...)   # a place that nobody else uses; the real runner inside
            try:
                yield provider
            finally:
                ...                       # end what a failed test left running

        def restarted(self, provider):
            return MySandboxes(...)       # the same place, as a runtime finds it after a restart

        def leftovers(self):
            return [...]                  # what can be seen of it from outside: folders, processes

Three laws stand behind all of it: a sandbox outlives whoever made it and is found again; whoever
creates one can end it, whatever happened; what is ended leaves nothing. Isolation is not tested
here: what it means differs, and only an attack from inside proves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Channel, Sandbox, SandboxProvider
from agent_runtime.testing.runner_talk import ATTACH, RUNTIME_ID, first_line, gateway, greeted, one_of
from agent_runtime.testing.sandbox_promises import (
    EndPromises,
    NeedPromises,
    RunnerPromises,
    SnapshotPromises,
)
from agent_runtime.testing.stories import refused, story
from agent_runtime_sandbox import frames

DEATH_WITHIN_S: Final = 10.0
IN_A_ROW: Final = 12


class SandboxContract(RunnerPromises, EndPromises, NeedPromises, SnapshotPromises):
    """The promises of `ports.SandboxProvider`, `Sandbox` and `Channel`; found and ended are those here."""

    def adapter(self) -> AbstractAsyncContextManager[SandboxProvider]:
        """A provider with a place of its own; called once per test."""
        raise NotImplementedError

    @story
    async def test_the_probe_says_what_can_be_had(self, provider: SandboxProvider) -> None:
        """And the next one says the same."""
        found = await provider.probe()
        assert found.provider == provider.name
        assert found.available, found.reasons
        assert found.isolation
        assert await provider.probe() == found

    @story
    async def test_a_new_sandbox_has_a_runner_that_says_hello(self, provider: SandboxProvider) -> None:
        """The first line of a connection is the runner's greeting."""
        async with one_of(provider) as sandbox:
            assert await sandbox.alive()
            hello = await greeted(sandbox)
            assert hello["k"] == "hello"
            assert hello["v"] == frames.PROTOCOL_VERSION

    @story
    async def test_its_reference_tells_where_it_is(self, provider: SandboxProvider) -> None:
        """Provider, isolation and time are filled in; it survives being stored as JSON."""
        async with one_of(provider) as sandbox:
            ref = sandbox.ref
            assert ref.provider == provider.name
            assert ref.isolation == (await provider.probe()).isolation
            assert ref.started_at.utcoffset() is not None
            stored = type(ref).model_validate_json(ref.model_dump_json())
            assert (await provider.attach(stored)).ref == ref

    @story
    async def test_connections_come_and_go_and_the_sandbox_stays(self, provider: SandboxProvider) -> None:
        """Three in turn, the second closed without a word."""
        async with one_of(provider) as sandbox:
            await greeted(sandbox)
            await (await sandbox.connect()).close()
            assert (await greeted(sandbox))["k"] == "hello"
            assert await sandbox.alive()

    @story
    async def test_a_channel_can_be_closed_twice(self, provider: SandboxProvider) -> None:
        """And is of no use afterwards."""
        async with one_of(provider) as sandbox:
            channel = await sandbox.connect()
            await channel.close()
            await channel.close()
            try:
                await channel.send(ATTACH)
            except SandboxFault:
                return
            raise AssertionError("a closed channel took bytes")

    @story
    async def test_a_channel_ends_with_its_sandbox(self, provider: SandboxProvider) -> None:
        """Whoever waits for bytes is told, by the end of the stream or by a fault."""
        async with one_of(provider) as sandbox:
            channel = await sandbox.connect()
            await channel.send(ATTACH)
            await first_line(channel)
            await sandbox.stop()
            async with asyncio.timeout(DEATH_WITHIN_S):
                await _until_it_ends(channel)
            await channel.close()

    @story
    async def test_stopping_ends_it_and_may_be_repeated(self, provider: SandboxProvider) -> None:
        """Nothing is left to connect to, to attach to, or in the list."""
        async with one_of(provider) as sandbox:
            await sandbox.stop()
            await sandbox.stop()
            assert not await sandbox.alive()
            await refused(sandbox.connect(), SandboxFault, "sandbox_lost")
            await refused(provider.attach(sandbox.ref), SandboxFault, "sandbox_lost")
            assert await provider.list(RUNTIME_ID) == ()

    @story
    async def test_two_sandboxes_are_two(self, provider: SandboxProvider) -> None:
        """Also when they are of one session; ending one does nothing to the other."""
        async with one_of(provider) as first, one_of(provider) as second:
            assert first.ref.sandbox_id != second.ref.sandbox_id
            await first.stop()
            assert await second.alive()
            assert (await greeted(second))["k"] == "hello"

    @story
    async def test_sandboxes_are_made_at_once(self, provider: SandboxProvider) -> None:
        """Three together are as good as three in turn."""
        with gateway() as spec:
            made = await asyncio.gather(*(provider.create(spec) for _ in range(3)))
            try:
                assert {(await greeted(sandbox))["k"] for sandbox in made} == {"hello"}
                assert {r.sandbox_id for r in await provider.list(RUNTIME_ID)} == {
                    sandbox.ref.sandbox_id for sandbox in made
                }
            finally:
                for sandbox in made:
                    await sandbox.stop()

    @story
    async def test_the_list_holds_what_carries_the_label(self, provider: SandboxProvider) -> None:
        """And nothing of another runtime."""
        async with one_of(provider) as ours, one_of(provider, runtime_id="runtime-2") as theirs:
            assert await provider.list(RUNTIME_ID) == (ours.ref,)
            assert await provider.list("runtime-2") == (theirs.ref,)
            assert await provider.list("runtime-3") == ()

    @story
    async def test_a_sandbox_outlives_its_provider(self, provider: SandboxProvider) -> None:
        """Closing ends nothing; the next provider lists it, attaches and goes on."""
        async with one_of(provider) as sandbox:
            await greeted(sandbox)
            await provider.close()
            following = self.restarted(provider)
            assert await following.list(RUNTIME_ID) == (sandbox.ref,)
            found = await following.attach(sandbox.ref)
            assert await found.alive()
            assert (await greeted(found))["k"] == "hello"
            await following.close()

    @story
    async def test_a_death_is_seen(self, provider: SandboxProvider) -> None:
        """Also one that another process brought about."""
        async with one_of(provider) as sandbox:
            await (await self.restarted(provider).attach(sandbox.ref)).stop()
            assert not await sandbox.alive()
            await refused(sandbox.connect(), SandboxFault, "sandbox_lost")
            await refused(provider.attach(sandbox.ref), SandboxFault, "sandbox_lost")
            await sandbox.stop()

    @story
    async def test_an_unknown_sandbox_is_lost(self, provider: SandboxProvider) -> None:
        """Whatever its id looks like: references come out of stores that others write to."""
        async with one_of(provider) as sandbox:
            for sandbox_id in ("sb-0123456789abcdef", "../../etc", "", "sb-\n", "x" * 10_000):
                ref = sandbox.ref.model_copy(update={"sandbox_id": sandbox_id})
                await refused(provider.attach(ref), SandboxFault, "sandbox_lost")

    @story
    async def test_a_dozen_in_a_row_leave_nothing(self, provider: SandboxProvider) -> None:
        """No folder, no process, no descriptor."""
        with gateway() as spec:
            await (await provider.create(spec)).stop()
            before = self.leftovers(), _open_descriptors()
            for _ in range(IN_A_ROW):
                sandbox = await provider.create(spec)
                await (await sandbox.connect()).close()
                await sandbox.stop()
            assert (self.leftovers(), _open_descriptors()) == before

    @story
    async def test_a_creation_that_fails_leaves_nothing(self, provider: SandboxProvider) -> None:
        """Here the gateway is not there; the fault names no path."""
        with gateway() as spec:
            await (await provider.create(spec)).stop()
            before = self.leftovers(), _open_descriptors()
            broken = replace(spec, gateway_socket=spec.gateway_socket.with_name("absent.sock"))
            assert "/" not in await _detail_of_the_fault(provider.create(broken))
            assert await provider.list(RUNTIME_ID) == ()
            assert (self.leftovers(), _open_descriptors()) == before

    @story
    async def test_a_creation_that_is_cancelled_leaves_nothing(self, provider: SandboxProvider) -> None:
        """Wherever the cancellation meets it."""
        with gateway() as spec:
            await (await provider.create(spec)).stop()
            before = self.leftovers()
            for delay_ms in (0, 1, 5, 10, 15, 20, 25, 30, 40, 60):
                try:
                    async with asyncio.timeout(delay_ms / 1000):
                        sandbox = await provider.create(spec)
                    await sandbox.stop()
                except TimeoutError:
                    pass
            assert await provider.list(RUNTIME_ID) == ()
            assert self.leftovers() == before


async def _detail_of_the_fault(creation: Awaitable[Sandbox]) -> str:
    try:
        await creation
    except SandboxFault as fault:
        return fault.detail
    raise AssertionError("a sandbox without a gateway was made")


async def _until_it_ends(channel: Channel) -> None:
    try:
        while await channel.receive():
            pass
    except SandboxFault:
        return


def _open_descriptors() -> int:
    """How many descriptors this process has open, where that can be seen."""
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0
