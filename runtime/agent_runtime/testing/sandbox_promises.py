"""Sandbox promises: the half of the sandbox suite that works with the runner inside.

Journals and offsets over any provider's channel, an end with grace, the death of a runner, what a
spec asks for (bounds, variables, egress), files that come back out of a snapshot. It stands on the
runner's `scripted` driver, so no model and no agent is needed. `SandboxContract` derives from all of them;
whether a sandbox can be found and ended is there.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from contextlib import suppress
from dataclasses import replace
from typing import Final

from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.ports import Sandbox, SandboxProvider, SandboxSpec
from agent_runtime.records import SandboxSnapshot
from agent_runtime.testing.runner_talk import (
    RUNTIME_ID,
    gateway,
    greeted,
    offsets,
    one_of,
    said,
    talking,
    with_agent,
)
from agent_runtime.testing.stories import long_story, refused, story

ENDS_WITHIN_S: Final = 30.0
_LIFETIME_S: Final = 600.0
_A_MOMENT_S: Final = 0.1
_MIB: Final = 1024 * 1024
_BOUNDS: Final = Resources(cpu=1, memory_bytes=768 * _MIB, processes=256, disk_bytes=512 * _MIB)
_A_WHILE: Final = (
    'play {"steps": [{"pause": 0.5}, {"line": {"type": "line"}, "times": 200}],'
    ' "end": {"type": "result", "message": "$MESSAGE"}}'
)
"""What an agent is still at when whoever asked it has left."""


class _Suite:
    """What `SandboxContract` asks of whoever derives from it."""

    in_a_row = 100
    """How many sandboxes are made one after the other; fewer where each takes long."""
    orphaned_s = 0.5
    """How long a runner is alone until it ends itself; longer than it takes to make one and to be seen."""
    objects_aside = 0
    """How many objects a vendor's client may come to hold by itself, however many sandboxes there were."""

    def restarted(self, provider: SandboxProvider) -> SandboxProvider:
        """Another provider over the same place, which knows nothing of what the first remembers."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """What can be seen of sandboxes from outside: names of folders, processes, remote objects."""
        return []


class RunnerPromises(_Suite):
    """What a runner kept, over any number of connections."""

    @story
    async def test_what_came_after_an_offset_comes_again(self, provider: SandboxProvider) -> None:
        """And nothing else, and nothing twice, over a connection that broke in mid-stream."""
        async with one_of(provider) as sandbox:
            async with talking(sandbox) as first:
                await with_agent(first)
                await first.say("lines 40 100", "m-1")
                await first.until(said("m-1"))
                before = {frame["o"]: frame for frame in first.kept}
            assert sorted(before) == list(range(1, len(before) + 1))
            middle = len(before) // 2
            async with talking(sandbox, after=middle) as second:
                await second.until(said("m-1"))
                assert offsets(second.kept) == list(range(middle + 1, len(before) + 1))
                assert all(frame == before[frame["o"]] for frame in second.kept)

    @story
    async def test_a_runner_works_while_nobody_listens(self, provider: SandboxProvider) -> None:
        """What it did meanwhile is there for whoever comes, another process too."""
        async with one_of(provider) as sandbox:
            async with talking(sandbox) as talk:
                await with_agent(talk)
                heard = len(talk.kept)  # not later: of what is quickly said much comes with the answer
                await talk.say(_A_WHILE, "m-1")
            following = self.restarted(provider)
            found = await following.attach(sandbox.ref)
            async with talking(found, after=heard) as talk:
                await talk.until(said("m-1"))
                assert offsets(talk.kept)[0] == heard + 1
                assert offsets(talk.kept) == sorted(set(offsets(talk.kept)))
            await following.close()

    @story
    async def test_several_connections_are_open_at_a_time(self, provider: SandboxProvider) -> None:
        """Those that have not said what they are for disturb nobody; a newer attachment takes over."""
        async with one_of(provider) as sandbox:
            silent = [await sandbox.connect() for _ in range(2)]
            try:
                async with talking(sandbox) as old, talking(sandbox) as new:
                    await with_agent(new)
                    await new.say("hello", "m-1")
                    await new.until(said("m-1"))
                    async with asyncio.timeout(ENDS_WITHIN_S):
                        with suppress(SandboxFault):
                            await old.until_it_ends()
                    assert not any(said("m-1")(frame) for frame in old.kept)
            finally:
                for channel in silent:
                    await channel.close()


class EndPromises(_Suite):
    """How a sandbox ends, by whoever's wish."""

    @story
    async def test_with_grace_the_agent_is_ended_politely(self, provider: SandboxProvider) -> None:
        """Its end is told, as one that was asked for, before the connection breaks."""
        async with one_of(provider) as sandbox, talking(sandbox) as talk:
            await with_agent(talk)
            await talk.say("hello", "m-1")
            await talk.until(said("m-1"))
            async with asyncio.timeout(ENDS_WITHIN_S), asyncio.TaskGroup() as both:
                both.create_task(sandbox.stop(grace_s=10.0))
                with suppress(SandboxFault):
                    await talk.until_it_ends()
            ends = [frame for frame in talk.kept if frame["k"] == "exit"]
            assert [end["reason"] for end in ends] == ["closed"]
            assert not await sandbox.alive()
            assert await provider.list(RUNTIME_ID) == ()

    @story
    async def test_what_ignores_the_grace_is_killed(self, provider: SandboxProvider) -> None:
        """A stop takes little longer than its grace, and ends all the same."""
        async with one_of(provider) as sandbox, talking(sandbox) as talk:
            await with_agent(talk)
            deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            await talk.say(f"run {deaf}", "m-1")
            async with asyncio.timeout(ENDS_WITHIN_S):
                await sandbox.stop(grace_s=0.5)
            assert not await sandbox.alive()
            assert await provider.list(RUNTIME_ID) == ()

    @story
    async def test_two_who_stop_it_at_once_agree(self, provider: SandboxProvider) -> None:
        """One of them from another process."""
        async with one_of(provider) as sandbox:
            other = await self.restarted(provider).attach(sandbox.ref)
            await asyncio.gather(sandbox.stop(), other.stop(), sandbox.stop(grace_s=0.2))
            assert not await sandbox.alive()
            assert await provider.list(RUNTIME_ID) == ()

    @story
    async def test_a_runner_that_ends_itself_is_a_sandbox_that_is_lost(
        self, provider: SandboxProvider
    ) -> None:
        """Nobody was attached for longer than the spec says."""
        async with one_of(provider, orphan_timeout_s=self.orphaned_s) as sandbox:
            async with asyncio.timeout(ENDS_WITHIN_S):
                while await sandbox.alive():  # noqa: ASYNC110 - nobody tells when it ends
                    await asyncio.sleep(0.05)
            await refused(sandbox.connect(), SandboxFault, "sandbox_lost")
            await refused(provider.attach(sandbox.ref), SandboxFault, "sandbox_lost")
            assert await provider.list(RUNTIME_ID) == ()

    @long_story(300.0)
    async def test_a_hundred_in_a_row_leave_nothing_in_memory(self, provider: SandboxProvider) -> None:
        """What a provider remembers of a sandbox goes with it, and so does what it leaves outside."""
        with gateway() as spec:
            await (await provider.create(spec)).stop()
            before, seen = await _objects(), self.leftovers()
            for _ in range(self.in_a_row):
                sandbox = await provider.create(spec)
                await sandbox.stop()
            del sandbox
            assert await _objects() - before < self.in_a_row + self.objects_aside
            assert self.leftovers() == seen


class NeedPromises(_Suite):
    """Whose it is, and what was asked for."""

    @story
    async def test_it_can_be_given_to_a_session_later(self, provider: SandboxProvider) -> None:
        """It is the same one, here and for whoever attaches; what is gone cannot be given."""
        async with one_of(provider, session_id="pool-1", lane="lane-1") as sandbox:
            ref = sandbox.ref
            assert ref.lane == "lane-1"
            await sandbox.assign("session-7")
            await sandbox.assign("session-7")
            assert sandbox.ref.sandbox_id == ref.sandbox_id
            assert (await greeted(sandbox))["k"] == "hello"
            following = self.restarted(provider)
            assert [(r.sandbox_id, r.lane) for r in await following.list(RUNTIME_ID)] == [
                (ref.sandbox_id, "lane-1")
            ]
            await following.close()
            await sandbox.stop()
            await refused(sandbox.assign("session-8"), SandboxFault, "sandbox_lost")

    @story
    async def test_variables_and_secrets_reach_the_agent(self, provider: SandboxProvider) -> None:
        """Those that were asked for, under their names, as they are."""
        needs = SandboxNeeds(env={"GREETING": "good day, 'you'"}, secrets=("A_TOKEN",))
        async with one_of(provider, needs=needs, secrets={"A_TOKEN": "s3cret\nline"}) as sandbox:
            code = "import os, json; print(json.dumps(dict(os.environ)))"
            seen = json.loads(await _ran(sandbox, code))
            assert seen["GREETING"] == "good day, 'you'"
            assert seen["A_TOKEN"] == "s3cret\nline"

    @story
    async def test_bounds_are_taken_and_named(self, provider: SandboxProvider) -> None:
        """A sandbox with every bound comes up; what is enforced is said by the names of the bounds."""
        found = await provider.probe()
        assert set(found.enforces) <= set(Resources.model_fields)
        async with one_of(provider, needs=SandboxNeeds(resources=_BOUNDS)) as sandbox:
            assert (await greeted(sandbox))["k"] == "hello"

    @story
    async def test_memory_that_is_said_to_be_bounded_is(self, provider: SandboxProvider) -> None:
        """Whoever takes more dies of it; where it is not bounded, nobody says so."""
        if "memory_bytes" not in (await provider.probe()).enforces:
            return
        async with one_of(provider, needs=SandboxNeeds(resources=_BOUNDS)) as sandbox:
            code = (
                f"held = bytearray({2 * 768 * _MIB}); held[::4096] = b'x' * len(held[::4096]); print('fine')"
            )
            assert await _ran_or_died(sandbox, code) != "fine\n"

    @story
    async def test_a_sandbox_with_egress_denied_reaches_nobody(self, provider: SandboxProvider) -> None:
        """Where there is isolation at all."""
        if (await provider.probe()).isolation == "none":
            return
        async with one_of(provider) as sandbox:
            code = (
                "import socket\n"
                "try:\n"
                "    socket.create_connection(('192.0.2.1', 80), 2)\n"
                "except OSError as error:\n"
                "    print('refused')\n"
            )
            assert await _ran(sandbox, code) == "refused\n"

    @story
    async def test_a_bounded_life_says_when_it_ends(self, provider: SandboxProvider) -> None:
        """And says the same to whoever finds it again."""
        async with one_of(provider, needs=SandboxNeeds(lifetime_s=_LIFETIME_S)) as sandbox:
            assert sandbox.expires_at is not None
            left_s = (sandbox.expires_at - now()).total_seconds()
            assert 0 < left_s <= _LIFETIME_S
            following = self.restarted(provider)
            assert (await following.attach(sandbox.ref)).expires_at == sandbox.expires_at
            await following.close()


class SnapshotPromises(_Suite):
    """Files that outlive their sandbox, where that is offered."""

    @story
    async def test_files_come_back_out_of_a_snapshot(self, provider: SandboxProvider) -> None:
        """In a new sandbox with a runner that is as new, after the old one is gone; until it is forgotten."""
        if not (await provider.probe()).snapshots:
            return
        with gateway() as spec:
            async with one_of(provider) as sandbox, talking(sandbox) as talk:
                await with_agent(talk)
                data = base64.b64encode(b"kept \x00\xff").decode()
                await talk.command("write", path="deep/kept.bin", data=data, append=False)
                taken = await sandbox.snapshot()
            stored = SandboxSnapshot.model_validate_json(taken.model_dump_json())
            assert stored == taken
            assert stored.provider == provider.name
            following = self.restarted(provider)
            async with one_of(following, snapshot=stored) as again, talking(again) as talk:
                assert talk.agent == "none"
                assert await talk.command("read", path="deep/kept.bin") == b"kept \x00\xff"
            await following.forget(stored)
            await following.forget(stored)
            await _no_sandbox(following, spec, stored)
            await following.close()

    @story
    async def test_who_offers_no_snapshots_says_so(self, provider: SandboxProvider) -> None:
        """For each of the three that could be asked, by a typed error and never by something weaker."""
        if (await provider.probe()).snapshots:
            return
        snapshot = SandboxSnapshot(snapshot_id="sn-1", provider=provider.name, taken_at=now())
        async with one_of(provider) as sandbox:
            await refused(sandbox.snapshot(), SandboxFault, "unsupported")
            await refused(provider.forget(snapshot), SandboxFault, "unsupported")
            assert await sandbox.alive()
        with gateway() as spec:
            assert await _no_sandbox(provider, spec, snapshot) == "unsupported"


async def _ran(sandbox: Sandbox, code: str) -> str:
    """What a program printed that the agent ran."""
    async with talking(sandbox) as talk:
        await with_agent(talk)
        await talk.say(f"run {code}", "m-1")
        frame = await talk.until(said("m-1"))
        line = frame["line"]
        assert line["code"] == 0, line
        return str(line["out"])


async def _ran_or_died(sandbox: Sandbox, code: str) -> str:
    """The same, where it may have ended the program or all of the sandbox."""
    with suppress(AssertionError, SandboxFault):
        return await _ran(sandbox, code)
    return ""


async def _no_sandbox(provider: SandboxProvider, spec: SandboxSpec, snapshot: SandboxSnapshot) -> str:
    """Why there is no sandbox with the files of this snapshot."""
    try:
        sandbox = await provider.create(replace(spec, snapshot=snapshot))
    except SandboxFault as fault:
        return fault.code
    await sandbox.stop()
    raise AssertionError("a sandbox came up without the files that it was to begin with")


async def _objects() -> int:
    """How many objects this process holds, when what ended has had a moment for it."""
    await asyncio.sleep(_A_MOMENT_S)
    gc.collect()
    return len(gc.get_objects())
