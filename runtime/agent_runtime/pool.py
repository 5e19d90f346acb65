"""Pool: sandboxes that are made before anybody asks for them, each for one session.

    order_for    what a profile's sandbox is made with, whoever's it will be
    SandboxPool  keeps some waiting, gives each away once, replaces those that are old

A sandbox that waits has a way out of its own (`SandboxRef.lane`), which is its session's from the
moment of the claim. It is given only where all that it was made with is what is wanted now; one that
does not answer is ended, and the next is tried. Where that is wanted (`PoolSettings.agents`) an agent
waits in it too, for a session without choices of its own and without a past. What is done with a sandbox
then is in `wake`; who ends those that a killed runtime left is `takeover`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import structlog
from prometheus_client import Counter, Gauge
from pydantic import Field

from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.frozen import Strict
from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.ports import Agent, AgentStart, ModelGateway, Sandbox, SandboxProvider, SandboxSpec
from agent_runtime.profile import AgentProfile, FileRules
from agent_runtime.runner_link import RunnerLink
from agent_runtime.tasks import Tasks, unhindered

_log = structlog.get_logger(__name__)

_ANSWERS_WITHIN_S: Final = 3.0
"""For one that waits to say hello; a healthy one needs milliseconds, a new one is quicker than this."""
_ENDS_WITHIN_S: Final = 30.0
_CLOSES_WITHIN_S: Final = 8.0
"""For all that wait to end with the runtime; what takes longer is a leftover for the next one."""
_CALM_S: Final = 1.0
"""After a claim, before another is made: the agent that was claimed needs the processors first. On two cores
its first block came in 0.22 of a cold start's time, and in 0.55 to 0.6 without the pause."""
_LOOK_S: Final = 30.0
_MOST_PAUSE_S: Final = 120.0
_OF_ITS_PATIENCE: Final = 0.5
"""A sandbox ends itself when it is alone for too long: it is replaced well before."""
_SPARED_S: Final = 30.0
"""Beyond the time for a wake: until then one that was claimed may be on its way to a record."""

_WAITING: Final = Gauge("agent_runtime_pool_sandboxes", "Sandboxes that wait for a session.")
_CLAIMS: Final = Counter(
    "agent_runtime_pool_claims",
    "Sandboxes wanted: pooled, cold where none waited, unhealthy where one that waited did not answer.",
    ["outcome"],
)


class PoolSettings(Strict):
    """`size` sandboxes wait for each of `profiles`, none of them for longer than `max_age_s`.

    `agents`: each with an agent that waits in it, which spares most of a first message's time and takes
    some 100 MB.
    """

    size: int = Field(default=0, ge=0, le=100)
    agents: bool = False
    max_age_s: float = Field(default=300.0, gt=0)
    profiles: tuple[str, ...] = Field(default=("default",), min_length=1, max_length=20)


class Terms(Protocol):
    """What a runtime adds to a profile (`config`, `wake.Surroundings`)."""

    @property
    def runtime_id(self) -> str:
        """The label of this runtime's sandboxes."""
        ...

    @property
    def orphan_timeout_s(self) -> float:
        """As in `SandboxSpec`."""
        ...

    @property
    def file_rules(self) -> FileRules:
        """Where the profile does not say."""
        ...

    @property
    def resources(self) -> Resources:
        """The most that a profile can have."""
        ...

    @property
    def secrets(self) -> Mapping[str, str]:
        """Name to value of what profiles may ask for."""
        ...


class PoolTerms(Terms, Protocol):
    """What a pool needs besides."""

    @property
    def sandboxes(self) -> SandboxProvider:
        """Where they are made."""
        ...

    @property
    def gateway(self) -> ModelGateway:
        """Their way out."""
        ...

    @property
    def agents(self) -> Sequence[Agent]:
        """What may wait in them."""
        ...

    @property
    def wake_timeout_s(self) -> float:
        """For one to come up."""
        ...

    @property
    def pool(self) -> PoolSettings:
        """How many, for whom, for how long."""
        ...


def order_for(profile: AgentProfile, terms: Terms) -> SandboxSpec:
    """What a sandbox for this profile is made with; session and gateway are still to be filled in.

    Raises `SandboxFault` (`secret_unavailable`, `reserved_variable`).
    """
    needs = profile.sandbox.within(terms.resources)
    return SandboxSpec(
        session_id="",
        runtime_id=terms.runtime_id,
        gateway_socket=Path(),
        orphan_timeout_s=terms.orphan_timeout_s,
        file_rules=profile.rules(terms.file_rules),
        needs=needs,
        secrets=_secrets(needs, terms.secrets),
        labels={"profile": profile.profile_id},
    )


def _secrets(needs: SandboxNeeds, known: Mapping[str, str]) -> dict[str, str]:
    """The values of what a profile names. Raises `SandboxFault` where one is not to be had."""
    if needs.reserved:
        detail = f"The profile sets {', '.join(needs.reserved)}, which only the runtime sets in a sandbox."
        raise SandboxFault(detail, code="reserved_variable", retryable=False)
    missing = [name for name in needs.secrets if name not in known]
    if missing:
        detail = f"The profile asks for {', '.join(missing)}, which this runtime gives to no sandbox."
        raise SandboxFault(detail, code="secret_unavailable", retryable=False)
    return {name: known[name] for name in needs.secrets}


@dataclass(frozen=True, slots=True)
class Pooled:
    """A sandbox that was claimed, and with what the agent was started that waits in it; None: none does."""

    sandbox: Sandbox
    start: AgentStart | None = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One that waits. `lane` is its way out, and stands for the session that it has not yet."""

    order: SandboxSpec
    sandbox: Sandbox
    lane: str
    start: AgentStart | None
    since: float


class SandboxPool:
    """See the module. With a size of 0 nothing waits and every claim is in vain.

    Args:
        terms: a `RuntimeConfig`.
        profile: finds a profile anew at each look; raises `RuntimeFault`.
    """

    def __init__(self, terms: PoolTerms, *, profile: Callable[[str], Awaitable[AgentProfile]]) -> None:
        self._terms = terms
        self._profile = profile
        self._waiting: list[_Waiting] = []
        self._ending: list[_Waiting] = []
        self._claimed: dict[str, float] = {}
        self._wanted = asyncio.Event()
        self._closed = False
        self._tasks = Tasks()

    async def open(self) -> None:
        """Begin to fill it, in the background."""
        await self._tasks.open()
        if self._terms.pool.size:
            self._tasks.spawn(self._keep())

    async def close(self) -> None:
        """End all that wait. Idempotent."""
        self._closed = True
        await self._tasks.close()
        left = [*self._waiting, *self._ending]
        for each in tuple(self._waiting):
            self._remove(each)
        await asyncio.gather(*(self._end(each, _CLOSES_WITHIN_S) for each in left))

    @property
    def size(self) -> int:
        """How many are to wait, for all profiles together."""
        return self._terms.pool.size * len(self._terms.pool.profiles)

    @property
    def waiting(self) -> int:
        """How many do."""
        return len(self._waiting)

    def holds(self, sandbox_id: str) -> bool:
        """Whether a sandbox waits here, is just being ended, or was claimed and is not in a record yet."""
        present = asyncio.get_running_loop().time()
        self._claimed = {each: until for each, until in self._claimed.items() if until > present}
        kept = (each.sandbox.ref.sandbox_id for each in (*self._waiting, *self._ending))
        return sandbox_id in self._claimed or sandbox_id in kept

    async def claim(self, order: SandboxSpec, session_id: str) -> Pooled | None:
        """A sandbox that was made to this order, this session's alone from now on; None where none is.

        Its gateway serves the session then. Whoever is given one ends it.
        """
        while (found := self._take(order)) is not None:
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN_S):
                    await self._hand_over(found, session_id)
            except (RuntimeFault, TimeoutError) as fault:
                _log.warning("pooled_sandbox_of_no_use", session_id=session_id, reason=type(fault).__name__)
                _CLAIMS.labels("unhealthy").inc()
                self._discard(found)
            except BaseException:
                self._discard(found)
                raise
            else:
                _CLAIMS.labels("pooled").inc()
                return Pooled(found.sandbox, found.start)
        if self._terms.pool.size:
            _CLAIMS.labels("cold").inc()
        return None

    def _take(self, order: SandboxSpec) -> _Waiting | None:
        """Without an await between the look and the taking, nobody else is given the same."""
        found = next((each for each in self._waiting if each.order == order), None)
        if found is None or self._closed:
            return None
        self._remove(found)
        spared_s = self._terms.wake_timeout_s + _SPARED_S
        self._claimed[found.sandbox.ref.sandbox_id] = asyncio.get_running_loop().time() + spared_s
        self._wanted.set()
        return found

    async def _hand_over(self, found: _Waiting, session_id: str) -> None:
        link = await RunnerLink.resume(found.sandbox, after=0, max_file_bytes=0)
        await link.close()
        if found.start is not None and link.greeting.agent != "running":
            raise SandboxFault("The agent that waited is gone.", code="sandbox_lost")
        egress = found.order.needs.egress
        await self._terms.gateway.open(session_id, egress=egress, lane=found.lane)
        await found.sandbox.assign(session_id)

    # Keeping some.

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._wanted.clear()
            try:
                await self._tend()
                failures = 0
            except (RuntimeFault, TimeoutError) as fault:
                failures += 1
                _log.warning("pool_not_filled", reason=type(fault).__name__, code=_code(fault))
                await asyncio.sleep(min(2.0**failures, _MOST_PAUSE_S))
                continue
            await self._until_wanted()

    async def _until_wanted(self) -> None:
        """Until one was claimed, and a little longer; or somebody may have become too old or have died."""
        try:
            async with asyncio.timeout(min(_LOOK_S, self._oldest_s() / 4)):
                await self._wanted.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_CALM_S)

    async def _tend(self) -> None:
        """End those that are of no use any more, make those that are missing. Raises `RuntimeFault`."""
        profiles = [await self._profile(name) for name in self._terms.pool.profiles]
        orders = [order_for(profile, self._terms) for profile in profiles]
        for each in tuple(self._waiting):
            if each.order not in orders or self._is_old(each) or not await each.sandbox.alive():
                self._discard(each)
        for profile, order in zip(profiles, orders, strict=True):
            while sum(each.order == order for each in self._waiting) < self._terms.pool.size:
                await self._make(order, profile)

    def _oldest_s(self) -> float:
        return min(self._terms.pool.max_age_s, self._terms.orphan_timeout_s * _OF_ITS_PATIENCE)

    def _is_old(self, waiting: _Waiting) -> bool:
        return asyncio.get_running_loop().time() - waiting.since >= self._oldest_s()

    async def _make(self, order: SandboxSpec, profile: AgentProfile) -> None:
        lane = f"pool-{uuid.uuid4().hex}"
        sandbox: Sandbox | None = None
        try:
            async with asyncio.timeout(self._terms.wake_timeout_s):
                endpoint = await self._terms.gateway.open(lane, egress=order.needs.egress, lane=lane)
                labels = {**order.labels, "pooled": "yes"}
                spec = replace(
                    order, session_id=lane, gateway_socket=endpoint.socket, lane=lane, labels=labels
                )
                sandbox = await self._terms.sandboxes.create(spec)
                start = await self._start_agent(sandbox, profile, endpoint.token)
        except BaseException:
            await unhindered(self._leave_nothing(lane, sandbox))
            raise
        self._waiting.append(_Waiting(order, sandbox, lane, start, asyncio.get_running_loop().time()))
        _WAITING.inc()

    async def _start_agent(self, sandbox: Sandbox, profile: AgentProfile, token: str) -> AgentStart | None:
        """Have an agent wait inside, where that is wanted; with what it was started.

        Its token is the lane's, and stays so for the session that the lane is given to. Nothing is asked
        of it before. Raises `RuntimeFault`.
        """
        agent = next((each for each in self._terms.agents if each.architecture == profile.architecture), None)
        if agent is None or not self._terms.pool.agents:
            return None
        start = agent.start(profile, {}, agent_session_id=None, gateway_token=token)
        link = await RunnerLink.connect(sandbox, max_file_bytes=0)
        reading = self._tasks.spawn(_read_on(link))
        try:
            patience_s = self._terms.wake_timeout_s
            await link.command("start", driver=start.driver, options=start.options, timeout_s=patience_s)
        finally:
            reading.cancel()
            await unhindered(link.close())
        return start

    async def _leave_nothing(self, lane: str, sandbox: Sandbox | None) -> None:
        """What is still there then, the next runtime's start finds by its label."""
        try:
            if sandbox is not None:
                await sandbox.stop()
        except RuntimeFault as fault:
            assert sandbox is not None
            _log.warning("sandbox_not_ended", sandbox_id=sandbox.ref.sandbox_id, code=fault.code)
        finally:
            await self._terms.gateway.close(lane)

    def _remove(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            _WAITING.dec()

    def _discard(self, waiting: _Waiting) -> None:
        """End one in the background; it is given to nobody."""
        self._remove(waiting)
        self._ending.append(waiting)
        if not self._closed:
            self._tasks.spawn(self._end(waiting))

    async def _end(self, waiting: _Waiting, within_s: float = _ENDS_WITHIN_S) -> None:
        """What does not end is no longer held here: whoever looks for leftovers finds it."""
        try:
            async with asyncio.timeout(within_s):
                await waiting.sandbox.stop()
        except (RuntimeFault, TimeoutError) as fault:
            ref = waiting.sandbox.ref
            _log.warning("sandbox_not_ended", sandbox_id=ref.sandbox_id, code=_code(fault))
        await self._terms.gateway.close(waiting.lane)
        if waiting in self._ending:
            self._ending.remove(waiting)
        self._claimed.pop(waiting.sandbox.ref.sandbox_id, None)


async def _read_on(link: RunnerLink) -> None:
    """Let replies arrive; what is kept is read once more by whoever claims the sandbox."""
    with suppress(SandboxFault):  # whoever waits for a reply is told
        while True:
            await link.next_batch()


def _code(fault: Exception) -> str:
    return fault.code if isinstance(fault, RuntimeFault) else "sandbox_timeout"
