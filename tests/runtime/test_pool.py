"""Sandboxes that wait for a session: each is given to one, and none is forgotten."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent_runtime.creation import NewSession
from agent_runtime.errors import SandboxFault
from agent_runtime.needs import SandboxNeeds
from agent_runtime.pool import PoolSettings
from agent_runtime.ports import SandboxSpec
from agent_runtime.profile import AgentProfile
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentIdentity
from agent_runtime.testing.scripted_runner import Stage, echo
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.fast_time import told_fast
from tests.runtime.world import ANNA, PROFILE, World, killed, runtime, world

OTHER = PROFILE.model_copy(update={"profile_id": "other", "sandbox": SandboxNeeds(env={"GREETING": "hello"})})
NEVER_IDLE: dict[str, Any] = {
    "agent_idle_timeout_s": 1e6,
    "sandbox_idle_timeout_s": 1e6,
    "session_idle_timeout_s": 1e6,
    "profiles": [PROFILE, OTHER],
}


def pool_of(size: int, **more: Any) -> dict[str, Any]:
    return NEVER_IDLE | {"pool": PoolSettings(size=size, profiles=("scripted",), **more)}


@asynccontextmanager
async def pooled(size: int, *, more: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[World]:
    async with world(echo, **pool_of(size, **(more or {})) | options) as it:
        await asyncio.sleep(2)
        yield it


def waiting(it: World) -> list[ScriptedSandbox]:
    return [each for each in it.sandboxes.living() if each.spec.session_id.startswith("pool-")]


async def served(it: World, *, profile: str = "scripted") -> str:
    """A session whose first message was answered; its sandbox's id."""
    session, _ = await it.manager.create_session(ANNA, NewSession(profile, message="hello"))
    (turn,) = await it.ended(session.session_id, 1)
    assert turn.status is TurnStatus.COMPLETED
    sandbox = (await it.manager.session(ANNA, session.session_id)).runtime.sandbox
    assert sandbox is not None
    return sandbox.sandbox_id


def test_a_sandbox_that_waits_is_the_sessions_from_its_first_message_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with pooled(2) as it:
            first, second = waiting(it)
            assert first.spec.labels == {"profile": "scripted", "pooled": "yes"}
            assert first.ref.lane == first.spec.session_id != second.spec.session_id
            session_id = await it.new(message="hello")
            await it.ended(session_id, 1)
            assert first.spec.session_id == session_id
            assert it.gateway.opened == {session_id, *(each.spec.session_id for each in waiting(it))}
            stored = await it.store.load_session(session_id)
            assert stored is not None
            assert stored.sandbox is not None
            assert stored.sandbox.lane == first.ref.lane
            await asyncio.sleep(2)
            assert len(waiting(it)) == 2
            assert second in waiting(it)

    told_fast(story(), monkeypatch)


def test_none_is_given_twice_however_many_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(3) as it:
            ids = await asyncio.gather(*(served(it) for _ in range(20)))
            assert len(set(ids)) == 20
            for sandbox in it.sandboxes.made:
                messages = [frame for frame in sandbox.runner.commands if frame["k"] == "message"]
                starts = [frame for frame in sandbox.runner.commands if frame["k"] == "start"]
                assert len(messages) == len(starts) <= 1

    told_fast(story(), monkeypatch)


def test_who_needs_something_else_gets_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(1) as it:
            (kept,) = waiting(it)
            await served(it, profile="other")
            assert waiting(it) == [kept]
            assert it.sandboxes.made[-1].spec.needs.env == {"GREETING": "hello"}

    told_fast(story(), monkeypatch)


def test_where_none_waits_a_session_gets_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(1) as it:
            go_on = asyncio.Event()

            async def pool_waits(spec: SandboxSpec) -> None:
                if spec.lane is not None:
                    await go_on.wait()

            it.sandboxes.before_create = pool_waits
            one, two = await served(it), await served(it)
            assert one != two
            assert [each.ref.lane is None for each in it.sandboxes.made] == [False, True]

    told_fast(story(), monkeypatch)


async def breaks(_: ScriptedSandbox) -> None:
    raise SandboxFault("There is nobody.", code="sandbox_lost")


async def hangs(_: object) -> None:
    await asyncio.sleep(1e6)


@pytest.mark.parametrize("trouble", [breaks, hangs])
def test_one_that_does_not_answer_is_ended_and_the_next_one_taken(
    trouble: Callable[[ScriptedSandbox], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with pooled(2, wake_timeout_s=60.0) as it:
            ill, healthy = waiting(it)

            async def is_ill(sandbox: ScriptedSandbox) -> None:
                if sandbox is ill:
                    await trouble(sandbox)

            it.sandboxes.before_connect = is_ill
            assert await served(it) == healthy.ref.sandbox_id
            assert ill not in it.sandboxes.living()

    told_fast(story(), monkeypatch)


def test_where_none_answers_a_session_gets_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(2, wake_timeout_s=60.0) as it:
            ill = waiting(it)

            async def are_ill(sandbox: ScriptedSandbox) -> None:
                if sandbox in ill:
                    raise SandboxFault("There is nobody.", code="sandbox_lost")

            it.sandboxes.before_connect = are_ill
            assert await served(it) not in {each.ref.sandbox_id for each in ill}
            assert not set(ill) & set(it.sandboxes.living())

    told_fast(story(), monkeypatch)


def test_what_waited_for_long_or_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(2, more={"max_age_s": 100.0}) as it:
            first = waiting(it)
            first[0].die()
            await asyncio.sleep(40)
            assert first[1] in waiting(it)
            assert len(waiting(it)) == 2
            await asyncio.sleep(150)
            assert not set(first) & set(waiting(it))
            assert len(waiting(it)) == 2
        async with pooled(1, orphan_timeout_s=60.0) as it:
            (one,) = waiting(it)
            await asyncio.sleep(50)
            assert one.stopped == 1, "it would have ended by itself soon"
            assert len(waiting(it)) == 1

    told_fast(story(), monkeypatch)


def test_a_changed_profile_has_its_sandboxes_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        shown: list[AgentProfile] = [PROFILE]

        async def profiles() -> list[AgentProfile]:
            return shown

        async with pooled(1, profiles=profiles) as it:
            (old,) = waiting(it)
            shown[0] = PROFILE.model_copy(update={"sandbox": SandboxNeeds(env={"A": "b"})})
            assert await served(it) != old.ref.sandbox_id
            await asyncio.sleep(40)
            assert [each.spec.needs.env for each in waiting(it)] == [{"A": "b"}]
            assert old not in it.sandboxes.living()

    told_fast(story(), monkeypatch)


def test_a_provider_with_a_bad_day_is_asked_again_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        tried: list[float] = []

        async def bad_day(spec: SandboxSpec) -> None:
            if spec.lane is not None and len(tried) < 5:
                tried.append(asyncio.get_running_loop().time())
                raise SandboxFault("Not today.")

        async with ScriptedSandboxes(echo) as sandboxes:
            sandboxes.before_create = bad_day
            async with runtime(sandboxes, MemoryPersistence(), **pool_of(1)) as it:
                await served(it)
                await asyncio.sleep(100)
                assert [round(after - before) for before, after in itertools.pairwise(tried)] == [
                    2,
                    4,
                    8,
                    16,
                ]
                assert len(waiting(it)) == 1

    told_fast(story(), monkeypatch)


def test_at_a_shutdown_those_that_wait_are_ended_and_those_of_sessions_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        store = MemoryPersistence()
        async with ScriptedSandboxes(echo) as sandboxes:
            async with runtime(sandboxes, store, leaves=True, **pool_of(3)) as it:
                await asyncio.sleep(2)
                used = await served(it)
            assert [each.ref.sandbox_id for each in sandboxes.living()] == [used]
            async with runtime(sandboxes, store, **NEVER_IDLE) as it:
                await asyncio.sleep(2)
                assert [each.ref.sandbox_id for each in sandboxes.living()] == [used]

    told_fast(story(), monkeypatch)


def test_a_shutdown_while_one_is_being_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with ScriptedSandboxes(echo) as sandboxes:
            sandboxes.before_create = hangs
            async with runtime(sandboxes, MemoryPersistence(), leaves=True, **pool_of(3)) as it:
                await asyncio.sleep(2)
            assert sandboxes.made == []
            assert it.gateway.opened == set()

    told_fast(story(), monkeypatch)


def test_a_provider_that_ends_nothing_holds_no_shutdown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with ScriptedSandboxes(echo) as sandboxes:
            async with runtime(sandboxes, MemoryPersistence(), leaves=True, **pool_of(3)):
                await asyncio.sleep(2)
                good, sandboxes.before_stop = sandboxes.before_stop, hangs
                began = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - began < 10
            sandboxes.before_stop = good

    told_fast(story(), monkeypatch)


def test_after_a_kill_the_next_runtime_ends_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        store = MemoryPersistence()
        async with ScriptedSandboxes(echo) as sandboxes:
            async with runtime(sandboxes, store, leaves=True, **pool_of(2)) as it:
                await asyncio.sleep(2)
                used = await served(it)
                it.manager._pool._waiting.clear()  # as a kill leaves them: nobody ends them
                await killed(it)
            assert len(sandboxes.living()) >= 2
            async with runtime(sandboxes, store, **NEVER_IDLE) as it:
                await asyncio.sleep(2)
                assert [each.ref.sandbox_id for each in sandboxes.living()] == [used]

    told_fast(story(), monkeypatch)


def test_a_wake_that_is_given_up_in_mid_claim_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(1, wake_timeout_s=60.0) as it:
            (one,) = waiting(it)
            it.sandboxes.before_connect = hangs
            session_id = await it.new()
            await it.manager.prewarm_session(ANNA, session_id)
            await asyncio.sleep(2)
            await it.manager.stop_session(ANNA, session_id)
            await asyncio.sleep(2)
            assert await it.phase(session_id) is Phase.DORMANT
            assert one not in it.sandboxes.living()

    told_fast(story(), monkeypatch)


def test_those_that_wait_are_shown_and_spared_as_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(2, more={"max_age_s": 1e6}, orphan_timeout_s=1e6, reap_interval_s=10.0) as it:
            first = waiting(it)
            await asyncio.sleep(1000)
            assert waiting(it) == first
            ready = await it.manager.readiness()
            assert ready.ok
            assert ready.parts["pool"] == {"ok": True, "size": 2, "waiting": 2}

    told_fast(story(), monkeypatch)


def commands(sandbox: ScriptedSandbox) -> list[str]:
    return [frame["k"] for frame in sandbox.runner.commands if frame["k"] in {"start", "close", "message"}]


def test_an_agent_that_waits_answers_the_first_message_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(1, more={"agents": True}) as it:
            (one,) = waiting(it)
            assert commands(one) == ["start"]
            assert await served(it) == one.ref.sandbox_id
            assert commands(one) == ["start", "message"]
            await asyncio.sleep(0.5)
            assert not waiting(it), "the agent that was claimed has the processors for itself at first"
            await asyncio.sleep(1.5)
            (next_one,) = waiting(it)
            assert next_one.runner.started is not None

    told_fast(story(), monkeypatch)


def test_a_session_with_choices_of_its_own_gets_its_agent_in_the_sandbox_that_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with pooled(1, more={"agents": True}) as it:
            (one,) = waiting(it)
            session_id = await it.new(message="hello", session_options={"model": "small"})
            (turn,) = await it.ended(session_id, 1)
            assert turn.status is TurnStatus.COMPLETED
            assert one.spec.session_id == session_id
            assert commands(one) == ["start", "close", "start", "message"]
            assert one.runner.started is not None
            assert one.runner.started["options"] == {"model": "small"}

    told_fast(story(), monkeypatch)


def test_a_session_that_remembers_is_not_given_an_agent_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def remembers(stage: Stage) -> None:
        stage.tell(AgentIdentity(agent_session_id="conversation-1"))
        stage.remember({"type": "user", "text": str(stage.message)})
        await echo(stage)

    async def story() -> None:
        async with world(remembers, **pool_of(1, agents=True)) as it:
            await asyncio.sleep(2)
            session_id = await it.new(message="hello")
            await it.ended(session_id, 1)
            await it.manager.stop_session(ANNA, session_id)
            await asyncio.sleep(2)
            (one,) = waiting(it)
            await it.send(session_id, "again")
            await it.ended(session_id, 2)
            assert commands(one) == ["start", "close", "start", "message"]
            assert one.runner.started is not None
            assert one.runner.started["resume"] == "conversation-1"
            assert one.runner.recalled["main"] == [{"type": "user", "text": "hello"}]

    told_fast(story(), monkeypatch)


def test_one_whose_agent_ended_while_it_waited_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with pooled(2, more={"agents": True}) as it:
            ill, healthy = waiting(it)
            ill.runner.end_agent("died", 1)
            assert await served(it) == healthy.ref.sandbox_id
            assert ill not in it.sandboxes.living()

    told_fast(story(), monkeypatch)


def test_a_sandbox_whose_agent_does_not_start_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async def no_start(frame: Frame) -> bool:
            return frame["k"] != "start"

        async def cannot(sandbox: ScriptedSandbox) -> None:
            if sandbox is it.sandboxes.made[0]:
                sandbox.runner.before = no_start

        async with ScriptedSandboxes(echo) as sandboxes:
            sandboxes.before_connect = cannot
            pool = pool_of(1, agents=True) | {"wake_timeout_s": 5.0}
            async with runtime(sandboxes, MemoryPersistence(), **pool) as it:
                await asyncio.sleep(20)
                assert sandboxes.made[0] not in sandboxes.living()
                (one,) = waiting(it)
                assert commands(one) == ["start"]
                assert it.gateway.opened == {one.ref.lane}

    told_fast(story(), monkeypatch)
