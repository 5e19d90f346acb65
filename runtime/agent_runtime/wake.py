"""Wake: from a stored session to a sandbox with its files back and its agent waiting.

The steps are in `wake`, in order; each says what it does before it does it. When one fails or the
wake is given up, nothing of the attempt is left. What happens afterwards is the business of
`session`; how to speak to the runner is in `runner_link`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from agent_runtime.ports import (
    Agent,
    ModelGateway,
    PersistenceAdapter,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
)
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import SessionRecord
from agent_runtime.runner_link import RunnerLink
from agent_runtime.workspace import content_of

_ENTRIES_AT_ONCE: Final = 200
"""Transcript entries in one command: a few hundred kB, far below a frame's bound."""

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
    max_file_bytes: int


async def wake(
    recorder: Recorder, profile: AgentProfile, around: Surroundings, *, say: Say, read: Reads
) -> tuple[RunnerLink, int]:
    """Return the link to a sandbox whose agent waits, and how many files were put back.

    Raises `RuntimeFault` of whatever step failed. On any failure, a cancellation too, the sandbox
    is stopped and the gateway closed before this returns.
    """
    record = recorder.record
    endpoint = await around.gateway.open(record.session_id)
    sandbox: Sandbox | None = None
    link: RunnerLink | None = None
    try:
        await say("Starting the sandbox")
        sandbox = await around.sandboxes.create(
            SandboxSpec(
                session_id=record.session_id,
                runtime_id=around.runtime_id,
                gateway_socket=endpoint.socket,
                orphan_timeout_s=around.orphan_timeout_s,
            )
        )
        link = await RunnerLink.connect(sandbox, max_file_bytes=around.max_file_bytes)
        read(link)
        restored = await _restore_files(record, around.persistence, link, say)
        await _restore_transcript(recorder, around.persistence, link)
        await say("Starting the agent")
        start = around.agent.start(
            profile,
            record.session_options,
            agent_session_id=record.agent_session_id,
            gateway_token=endpoint.token,
        )
        await link.command(
            "start", driver=start.driver, options=start.options, timeout_s=around.wake_timeout_s
        )
    except BaseException:
        await asyncio.shield(_leave_nothing(record.session_id, sandbox, link, around))
        raise
    return link, restored


async def _restore_files(
    record: SessionRecord, persistence: PersistenceAdapter, link: RunnerLink, say: Say
) -> int:
    manifest = await persistence.load_manifest(record.session_id)
    if manifest:
        await say(f"Writing {len(manifest)} files")
    for known in manifest:
        file = await persistence.load_file(record.session_id, known.path)
        if file is not None:
            await link.write_file(file.path, content_of(file))
    return len(manifest)


async def _restore_transcript(recorder: Recorder, persistence: PersistenceAdapter, link: RunnerLink) -> None:
    """Give the agent its memory back; without an agent session to resume it needs none."""
    transcript = await persistence.load_transcript(recorder.session_id)
    recorder.transcript_stored({key: len(entries) for key, entries in transcript.items()})
    if recorder.record.agent_session_id is None:
        return
    for key, entries in transcript.items():
        for at in range(0, len(entries), _ENTRIES_AT_ONCE):
            await link.command("transcript", key=key, entries=entries[at : at + _ENTRIES_AT_ONCE])


async def _leave_nothing(
    session_id: str, sandbox: Sandbox | None, link: RunnerLink | None, around: Surroundings
) -> None:
    try:
        if link is not None:
            await link.close()
        if sandbox is not None:
            await sandbox.stop()
    finally:
        await around.gateway.close(session_id)
