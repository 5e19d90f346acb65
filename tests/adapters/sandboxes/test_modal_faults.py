"""Whatever goes wrong with Modal is a typed error within a bounded time, and nothing is left of it."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import grpclib.exceptions
import pytest
from modal import exception as vendor

from agent_runtime.errors import SandboxFault
from agent_runtime.testing.runner_talk import RUNTIME_ID, gateway, greeted, one_of, said, talking, with_agent
from agent_runtime_adapters.sandboxes.modal import endings
from agent_runtime_adapters.sandboxes.modal.calls import call, translated
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_modal_local import Do, Fault
from tests.adapters.sandboxes.modal_world import QUICK, ModalWorld, modal_world, needs_users

pytestmark = needs_users


async def creations(it: ModalWorld) -> int:
    """How often a sandbox was asked for."""
    return sum(count for rpc, count in (await it.local.calls()).items() if rpc.startswith("SandboxCreate"))


async def refused(work, *codes: str) -> SandboxFault:
    with pytest.raises(SandboxFault) as caught:
        await work
    assert caught.value.code in codes, caught.value
    assert "/" not in caught.value.detail
    return caught.value


async def test_a_modal_that_is_away_for_a_moment_is_asked_again() -> None:
    async with modal_world() as it:
        await it.local.set_fault(Fault("*", status="UNAVAILABLE", times=2))
        async with one_of(it.provider()) as sandbox:
            assert (await greeted(sandbox))["k"] == "hello"


async def test_a_modal_that_stays_away_is_told() -> None:
    async with modal_world() as it, asyncio.timeout(40):
        await it.local.set_fault(Fault("SandboxCreate*", status="UNAVAILABLE", times=None))
        with gateway() as spec:
            fault = await refused(it.provider().create(spec), "sandbox_unavailable")
        assert fault.retryable
        assert await it.living() == []


async def test_a_lost_reply_makes_no_second_sandbox() -> None:
    async with modal_world() as it:
        await it.local.set_fault(Fault("SandboxCreate*", do=Do.LOSE_REPLY))
        async with one_of(it.provider()) as sandbox:
            assert [told["sandboxId"] for told in await it.living()] == [sandbox.ref.sandbox_id]


async def test_a_sandbox_whose_replies_are_all_lost_is_found_by_its_tags_and_ended() -> None:
    async with modal_world() as it:
        await it.local.set_fault(Fault("SandboxCreate*", do=Do.LOSE_REPLY, times=None))
        with gateway() as spec:
            await refused(it.provider().create(spec), "sandbox_unavailable")
        assert await it.living() == []
        assert len(await it.local.sandboxes()) >= 1


@pytest.mark.parametrize("rpc", ["AppGetOrCreate", "SandboxCreate*", "TaskExecStart"])
async def test_a_modal_that_hangs_is_given_up(rpc: str) -> None:
    async with modal_world() as it, asyncio.timeout(40):
        await it.local.set_fault(Fault(rpc, do=Do.HANG, times=None))
        options = ModalOptions(start_within_s=2, call_within_s=2)
        with gateway() as spec:
            await refused(it.provider(options).create(spec), "sandbox_timeout")
        assert await it.living() == []


async def test_a_creation_that_is_given_up_while_modal_hangs_leaves_nothing() -> None:
    async with modal_world() as it, asyncio.timeout(40):
        provider = it.provider()
        with gateway() as spec:
            await (await provider.create(spec)).stop()
            await it.local.set_fault(Fault("SandboxCreate*", do=Do.SLOW, delay_s=2.0))
            asked = await creations(it)
            async with asyncio.TaskGroup() as tasks:
                creating = tasks.create_task(provider.create(spec))
                while await creations(it) == asked:
                    await asyncio.sleep(0.01)
                creating.cancel()
        assert creating.cancelled()
        assert len(await it.local.sandboxes()) == 2
        assert await it.living() == []


async def test_a_full_modal_says_so() -> None:
    async with modal_world() as it:
        await it.local.set_fault(Fault("SandboxCreate*", status="RESOURCE_EXHAUSTED", times=None))
        with gateway() as spec:
            fault = await refused(it.provider().create(spec), "sandbox_unavailable")
        assert "no room" in fault.detail
        assert fault.retryable


async def test_a_wrong_token_is_told_at_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async with modal_world() as it:
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-somebody-else")
        found = await it.provider().probe()
        assert not found.available
        assert "modal token new" in found.reasons[0]
        with gateway() as spec:
            fault = await refused(it.provider().create(spec), "sandbox_unavailable")
        assert not fault.retryable
        monkeypatch.undo()


async def test_a_published_image_that_is_not_there_says_how_to_get_it() -> None:
    async with modal_world() as it:
        provider = it.provider(QUICK.model_copy(update={"image": "nobody:published"}))
        with gateway() as spec:
            fault = await refused(provider.create(spec), "sandbox_unavailable")
            assert "deploy-image" in fault.detail
            own = replace(spec, needs=spec.needs.model_copy(update={"image": "profiles:own"}))
            fault = await refused(provider.create(own), "sandbox_unavailable")
        assert "'profiles:own'" in fault.detail, "a profile's own image goes before the one for all"


async def test_a_runner_that_does_not_start_is_told_with_its_exit_code() -> None:
    async with modal_world() as it:
        with gateway() as spec:
            broken = replace(spec, file_rules=spec.file_rules.model_copy(update={"max_files": "no number"}))
            fault = await refused(it.provider().create(broken), "sandbox_failed")
        assert "exit code 2" in fault.detail
        assert await it.living() == []


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("lifetime", "sandbox_expired"),
        ("idle", "sandbox_expired"),
        ("out_of_memory", "sandbox_out_of_memory"),
        ("internal_failure", "sandbox_lost"),
    ],
)
@pytest.mark.parametrize("v2", [True, False])
async def test_why_a_sandbox_ended_is_told(how: str, code: str, v2: bool) -> None:
    async with modal_world(v2=v2) as it, one_of(it.provider()) as sandbox:
        await it.local.end(sandbox.ref.sandbox_id, how)
        assert not await sandbox.alive()
        mishap = await sandbox.mishap()
        assert mishap is not None
        assert mishap.code == code
        await refused(it.provider().attach(sandbox.ref), code)


@pytest.mark.parametrize("seen", ["not_found", "eof"])
async def test_a_channel_ends_when_its_sandbox_is_killed_however_modal_shows_it(seen: str) -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        await it.local.at_death(seen)
        async with talking(sandbox) as talk:
            await with_agent(talk)
            await it.local.end(sandbox.ref.sandbox_id, "internal_failure")
            async with asyncio.timeout(15):
                with suppress(SandboxFault):
                    await talk.until_it_ends()
        assert not await sandbox.alive()
        await refused(sandbox.connect(), "sandbox_lost")


async def test_a_router_that_is_away_breaks_connections_and_nothing_is_lost() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        async with talking(sandbox) as talk:
            await with_agent(talk)
            await talk.say("lines 20 100", "m-1")
            await talk.until(said("m-1"))
            heard = len(talk.kept)
        await it.local.data_path(up=False)
        await it.local.data_path(up=True)
        async with talking(sandbox, after=heard // 2) as talk:
            await talk.until(said("m-1"))
            assert talk.kept[0]["o"] == heard // 2 + 1


async def test_tokens_that_are_refused_are_asked_for_anew() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        await it.local.refuse_tokens()
        assert (await greeted(sandbox))["k"] == "hello"
        assert (await greeted(await it.provider().attach(sandbox.ref)))["k"] == "hello"


async def test_a_stop_that_modal_hears_at_the_second_time_is_a_stop() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        await it.local.set_fault(Fault("SandboxTerminate*", do=Do.HANG))
        await sandbox.stop()
        assert await it.living() == []


async def test_a_stop_that_modal_does_not_hear_is_told_and_may_be_tried_again() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        await it.local.set_fault(Fault("SandboxTerminate*", status="UNAVAILABLE", times=None))
        await refused(sandbox.stop(), "sandbox_unavailable")
        assert await sandbox.alive()
        await it.local.clear_faults()
        await sandbox.stop()
        assert await it.living() == []


async def test_somebody_elses_sandbox_is_not_taken() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        handle = await sandbox.handle()
        await handle.set_tags.aio({"somebody": "else"})
        await refused(it.provider().attach(sandbox.ref), "sandbox_lost")
        assert await it.provider().list(RUNTIME_ID) == ()


async def test_the_sdks_private_word_for_an_end_is_still_there() -> None:
    """What `endings` looks at behind the public names."""
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        handle = await sandbox.handle()
        await it.local.end(sandbox.ref.sandbox_id, "idle")
        assert await handle.poll.aio() is not None
        assert endings.status(handle) == "GENERIC_STATUS_IDLE_TIMEOUT"


async def test_no_error_of_the_sdk_leaves_whatever_it_is() -> None:
    """Each class that the SDK has, and those of what it stands on."""
    told = [kind for kind in vars(vendor).values() if isinstance(kind, type)]
    classes = [kind for kind in told if issubclass(kind, Exception) and not issubclass(kind, Warning)]
    classes += [ConnectionResetError, BrokenPipeError, TimeoutError, ValueError, BufferError, RuntimeError]
    classes += [grpclib.exceptions.StreamTerminatedError]
    assert len(classes) > 25
    for kind in classes:

        async def fails(kind: type[Exception] = kind) -> None:
            raise kind.__new__(kind)

        with pytest.raises(SandboxFault):
            await call(fails(), 1.0)
    conflict = translated(vendor.ConflictError("Sandbox already finished"))
    assert conflict.code == "sandbox_lost", "although it is an InvalidError"
