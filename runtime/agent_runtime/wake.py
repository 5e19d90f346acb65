"""Wake: from a stored session to a sandbox with its files back and its agent waiting.

    wake    a new sandbox: files and transcript written back, the agent started
    rouse   a sandbox whose agent hibernates: the agent started again
    find    a sandbox of an earlier process of this runtime: attached to again

The steps are in order; each says what it does before it does it. When a step of `wake` fails or the
wake is given up, nothing of the attempt is left. What happens afterwards is the business of
`performer`; how to speak to the runner is in `runner_link`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import structlog

from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.events import FileChanged
from agent_runtime.gathering import Gathering
from agent_runtime.needs import Egress, Resources
from agent_runtime.pool import SandboxPool, order_for
from agent_runtime.ports import (
    Agent,
    AgentStart,
    ModelGateway,
    PersistenceAdapter,
    Sandbox,
    SandboxProvider,
)
from agent_runtime.profile import AgentProfile, FileRules
from agent_runtime.recorder import Recorder
from agent_runtime.records import SandboxRef, SandboxSnapshot, SessionRecord, TurnError, WorkspaceFile
from agent_runtime.runner_link import REFUSED, RunnerLink
from agent_runtime.tasks import unhindered
from agent_runtime.workspace import content_of, shown_path
from agent_runtime_sandbox.frames import encode

_log = structlog.get_logger(__name__)

_CUTS: Final = 3
"""Connections to a living sandbox that may break before its runner has greeted; its agent is at work."""
_END_S: Final = 30.0
"""For the end of a sandbox that nobody has in hand; who waits for it has others to end."""
_GONE: Final = frozenset({"sandbox_lost", "sandbox_expired", "sandbox_out_of_memory"})
_FOR_A_SNAPSHOT: Final = 0.5
"""The part of a wake's time after which one that does not come back is given up, and the store serves."""
_PATHS_TOLD: Final = 20
_ENTRIES_AT_ONCE: Final = 200
_ENTRY_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""Transcript entries in one command: far below a frame's bound."""

Say: TypeAlias = Callable[[str], Awaitable[None]]


class Reads(Protocol):
    """Starts to consume a link's batches, so that replies arrive while we wake."""

    def __call__(self, link: RunnerLink) -> None:
        """Called once, right after connecting."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session lives among: the host's adapters and the numbers that concern waking."""

    persistence: PersistenceAdapter
    sandboxes: SandboxProvider
    gateway: ModelGateway
    agent: Agent
    runtime_id: str
    orphan_timeout_s: float
    wake_timeout_s: float
    file_rules: FileRules
    resources: Resources
    secrets: Mapping[str, str] = field(repr=False)
    pool: SandboxPool
    gathering: Gathering
    runner_silence_s: float
    interrupt_grace_s: float
    agent_idle_s: float
    sandbox_idle_s: float


@dataclass(frozen=True, slots=True)
class Awake:
    """What a wake leads to: files put back and lost, folders that are not kept, the agent's options.

    `whole`: the sandbox began with all files of the one before, also those in such folders.
    """

    link: RunnerLink
    restored: int
    lost: tuple[str, ...]
    ignored: tuple[str, ...]
    options: dict[str, Any]
    whole: bool = False


async def wake(
    recorder: Recorder, profile: AgentProfile, around: Surroundings, *, say: Say, read: Reads
) -> Awake:
    """Return the link to a sandbox whose agent waits.

    Raises `RuntimeFault` of whatever step failed. On any failure, a cancellation too, the sandbox
    is stopped and the gateway closed before this returns.
    """
    session_id = recorder.session_id
    sandbox: Sandbox | None = None
    link: RunnerLink | None = None
    try:
        await recorder.flush()  # what an earlier sandbox told is part of what is restored
        await say("Starting the sandbox" + (" with its packages" if profile.sandbox.dependencies else ""))
        sandbox, whole, waits = await _sandbox(recorder, profile, around)
        link = await RunnerLink.connect(sandbox, max_file_bytes=around.file_rules.max_file_bytes)
        recorder.restoring = frozenset(recorder.files if whole else ())
        read(link)
        there = await _files_inside(link) if whole else {}
        restored, lost = await _restore_files(recorder, around, link, say, there)
        recorder.restoring = frozenset()
        options = await _start_agent(recorder, profile, around, link, say=say, waits=waits)
    except BaseException:
        recorder.restoring = frozenset()
        await unhindered(_leave_nothing(session_id, sandbox, link, around))
        raise
    ignored = profile.rules(around.file_rules).ignore
    return Awake(link, restored, lost, ignored, options, whole=whole)


async def _sandbox(
    recorder: Recorder, profile: AgentProfile, around: Surroundings
) -> tuple[Sandbox, bool, AgentStart | None]:
    """A sandbox that nobody else has; whether it began with the files of the session's last one.

    And with what an agent was started that waits in it, if one does.
    """
    order, snapshot = order_for(profile, around), recorder.record.snapshot
    if snapshot is None:
        pooled = await around.pool.claim(order, recorder.session_id)
        if pooled is not None:
            return pooled.sandbox, False, pooled.start
    endpoint = await around.gateway.open(recorder.session_id, egress=order.needs.egress)
    spec = replace(order, session_id=recorder.session_id, gateway_socket=endpoint.socket)
    if snapshot is not None:
        try:
            async with asyncio.timeout(around.wake_timeout_s * _FOR_A_SNAPSHOT):
                return await around.sandboxes.create(replace(spec, snapshot=snapshot)), True, None
        except (SandboxFault, TimeoutError) as fault:  # the store has what must not be lost
            code = fault.code if isinstance(fault, SandboxFault) else "sandbox_timeout"
            _log.warning("snapshot_not_restored", session_id=recorder.session_id, code=code)
    return await around.sandboxes.create(spec), False, None


async def rouse(
    recorder: Recorder, profile: AgentProfile, around: Surroundings, link: RunnerLink, *, say: Say
) -> Awake:
    """Start the agent of a sandbox that has none at present, where it left off.

    Raises `RuntimeFault`; the sandbox is left as it is.
    """
    await recorder.flush()
    return Awake(link, 0, (), (), await _start_agent(recorder, profile, around, link, say=say))


async def find(record: SessionRecord, around: Surroundings, *, egress: Egress | None) -> RunnerLink:
    """Attach again to the sandbox that a record names, after its checkpoint.

    `egress` None, where its profile is not known any more: nothing but the model's API.
    Raises `SandboxFault`; the sandbox, if there is one, is left as it is.
    """
    if record.sandbox is None or record.checkpoint is None:
        raise SandboxFault("There is no sandbox to go on in.", code="sandbox_lost")
    endpoint = await around.gateway.open(record.session_id, egress=egress, lane=record.sandbox.lane)
    sandbox = await around.sandboxes.attach(record.sandbox, gateway_socket=endpoint.socket)
    after, most = record.checkpoint.offset, around.file_rules.max_file_bytes
    for _ in range(_CUTS):
        try:
            return await RunnerLink.resume(sandbox, after=after, max_file_bytes=most)
        except SandboxFault as fault:
            if fault.code != "sandbox_lost" or not await sandbox.alive():
                raise
    return await RunnerLink.resume(sandbox, after=after, max_file_bytes=most)


async def give_up(record: SessionRecord, around: Surroundings) -> None:
    """Leave nothing of a sandbox that could not be attached to again: nobody will know of it."""
    try:
        if record.sandbox is not None:
            await end_sandbox(around.sandboxes, record.sandbox)
    finally:
        await around.gateway.close(record.session_id)


async def end_sandbox(sandboxes: SandboxProvider, ref: SandboxRef) -> bool:
    """End a sandbox that no session has in hand; whether it is gone. Raises no `RuntimeFault`."""
    try:
        async with asyncio.timeout(_END_S):
            sandbox = await sandboxes.attach(ref)
            await sandbox.stop()
    except (RuntimeFault, TimeoutError) as fault:
        code = fault.code if isinstance(fault, RuntimeFault) else "sandbox_timeout"
        if code not in _GONE:
            _log.warning("sandbox_not_ended", sandbox_id=ref.sandbox_id, code=code)
            return False
    return True


async def forget_snapshot(sandboxes: SandboxProvider, snapshot: SandboxSnapshot) -> None:
    """Have a snapshot removed that nobody needs any more. Raises no `RuntimeFault`."""
    try:
        await sandboxes.forget(snapshot)
    except RuntimeFault as fault:
        _log.warning("snapshot_not_forgotten", snapshot_id=snapshot.snapshot_id, code=fault.code)


async def _start_agent(
    recorder: Recorder,
    profile: AgentProfile,
    around: Surroundings,
    link: RunnerLink,
    *,
    say: Say,
    waits: AgentStart | None = None,
) -> dict[str, Any]:
    """Start the agent with what it remembers; returns the options that it was started with.

    One that `waits` is this session's if it was started with all that is wanted now, else it is ended.
    """
    egress, lane = profile.sandbox.egress, link.sandbox.ref.lane
    endpoint = await around.gateway.open(recorder.session_id, egress=egress, lane=lane)
    resumed = await _restore_transcript(recorder, around, link)
    await say("Starting the agent")
    options = recorder.record.session_options
    start = around.agent.start(profile, options, agent_session_id=resumed, gateway_token=endpoint.token)
    if start == waits:
        return options
    try:
        if waits is not None:
            await link.command("close", timeout_s=around.wake_timeout_s)
        await link.command(
            "start", driver=start.driver, options=start.options, timeout_s=around.wake_timeout_s
        )
    except SandboxFault as fault:
        raise await link.mishap() or fault from None
    return options


def what_was_lost(awake: Awake, untold: str | None, mishap: TurnError | None = None) -> str:
    """What an agent has to know whose sandbox is another one than before.

    `untold` is what it was to be told of an earlier one and has not heard: that holds as well.
    `mishap` is what ended the last one, where that is known.
    """
    if untold is not None and not awake.lost and mishap is None:
        return untold
    lost = [f"- {path}" for path in awake.lost[:_PATHS_TOLD]]
    if len(awake.lost) > _PATHS_TOLD:
        lost.append(f"- and {len(awake.lost) - _PATHS_TOLD} more")
    told = [
        *([untold] if untold is not None else []),
        "<system-reminder>",
        "Your sandbox was replaced by a new one since the last message.",
        *([f"This is why the last one ended: {mishap.message}"] if mishap is not None else []),
        *_what_is_there(awake),
        *(["These files could not be put back:", *lost] if lost else []),
        "</system-reminder>",
    ]
    return "\n".join(told)


def _what_is_there(awake: Awake) -> tuple[str, ...]:
    if awake.whole:
        return ("Its files are as they were, but running processes are gone.",)
    return (
        f"{awake.restored} files of the workspace were put back as they were last saved.",
        "Running processes are gone, and so is whatever was outside of the workspace, or in folders of it",
        f"that are not saved ({', '.join(awake.ignored)}). Make again what you need.",
    )


async def _files_inside(link: RunnerLink) -> dict[str, str | None]:
    """The SHA-256 of each file that is there, by path; None where it is not known."""
    await link.command("sync")
    told = await link.command("list")
    files = told.get("files") if isinstance(told, dict) else None
    found: dict[str, str | None] = {}
    for each in files if isinstance(files, list) else ():
        if isinstance(each, dict) and isinstance(path := each.get("path"), str):
            sha256 = each.get("sha256")
            found[shown_path(path)] = sha256 if isinstance(sha256, str) else None
    return found


async def _restore_files(
    recorder: Recorder, around: Surroundings, link: RunnerLink, say: Say, there: Mapping[str, str | None]
) -> tuple[int, tuple[str, ...]]:
    """Put those files back that are not `there` as they were; how many are, and which could not be put back.

    What was kept without its content is gone with the old sandbox, so it leaves the manifest too.
    """
    session_id, store, patience_s = recorder.session_id, around.persistence, around.wake_timeout_s / 2
    manifest = await recorder.calls.read(lambda: store.load_manifest(session_id), patience_s)
    missing = [known for known in manifest if not _is_there(known, there)]
    if missing:
        await say(f"Writing {len(missing)} files")
    lost: list[str] = []
    for known in missing:
        file = await recorder.calls.read(partial(store.load_file, session_id, known.path), patience_s)
        if file is None:
            continue
        if file.omitted is not None:
            lost.append(file.path)
            recorder.file_changed(known, deleted=True)
            await recorder.publish([FileChanged(change="deleted", file=known)])
            continue
        try:
            await link.write_file(file.path, content_of(file))
        except SandboxFault as fault:
            if fault.code != REFUSED:
                raise
            _log.warning("file_not_restored", session_id=session_id, detail=fault.detail)
            lost.append(file.path)
    return len(manifest) - len(lost), tuple(lost)


def _is_there(known: WorkspaceFile, there: Mapping[str, str | None]) -> bool:
    """What is kept without its content is there as well as can be told, where it is there at all."""
    return known.path in there and (known.omitted is not None or there[known.path] == known.sha256)


async def _restore_transcript(recorder: Recorder, around: Surroundings, link: RunnerLink) -> str | None:
    """Give the agent its memory back; the conversation to resume, None where there is none to be had.

    An agent may have said who it is and died before anything that was said was kept.
    """
    transcript = await recorder.calls.read(
        lambda: around.persistence.load_transcript(recorder.session_id), around.wake_timeout_s / 2
    )
    recorder.transcript_stored({key: len(entries) for key, entries in transcript.items()})
    conversation = recorder.record.agent_session_id
    if conversation is None or not around.agent.remembers(transcript):
        return None
    for key, entries in transcript.items():
        for some in _portions(entries):
            await link.command("transcript", key=key, entries=some)
    return conversation


def _portions(entries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    portion: list[dict[str, Any]] = []
    size = 0
    for entry in entries:
        length = len(encode(entry))
        if portion and (len(portion) == _ENTRIES_AT_ONCE or size + length > _ENTRY_BYTES_AT_ONCE):
            yield portion
            portion, size = [], 0
        portion.append(entry)
        size += length
    if portion:
        yield portion


async def _leave_nothing(
    session_id: str, sandbox: Sandbox | None, link: RunnerLink | None, around: Surroundings
) -> None:
    try:
        if link is not None:
            await link.close()
        if sandbox is not None:
            await sandbox.stop()
    except RuntimeFault as fault:  # why the wake failed is what is told; leftovers are found by label
        _log.warning("sandbox_not_stopped", session_id=session_id, code=fault.code)
    finally:
        await around.gateway.close(session_id)
