"""Creation: what a new session begins with: its record, its first files, the id of its first message.

Nothing is stored here and nothing is started: that is for `manager`, which also knows profiles.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.blocks import Content
from agent_runtime.clock import now
from agent_runtime.ports import Agent, Principal
from agent_runtime.profile import AgentProfile
from agent_runtime.records import SessionRecord, WorkspaceFile
from agent_runtime.workspace import check_tree, file_of

_REPEATABLE: Final = uuid.UUID("6f6e9b0a-5d0e-4a51-9a0c-7d1f6c1c2d11")
"""Namespace of session ids made from an idempotency key: the same owner and key give the same id."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a client asks for. `workspace_files` are (path, bytes); `message` is sent at once."""

    agent_profile_ref: str
    architecture: str | None = None
    session_options: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    workspace_files: tuple[tuple[str, bytes], ...] = ()
    message: Content | None = None
    idempotency_key: str | None = None


def draft(
    principal: Principal, new: NewSession, profile: AgentProfile, agent: Agent
) -> tuple[SessionRecord, tuple[WorkspaceFile, ...]]:
    """The record and the files, the profile's below the client's. Raises `InvalidRequest`."""
    present = now()
    record = SessionRecord(
        session_id=_session_id(principal, new.idempotency_key),
        owner=principal.owner,
        name=new.name,
        architecture=agent.architecture,
        agent_profile_reference=profile.profile_id,
        session_options=agent.check_options(new.session_options),
        metadata=dict(new.metadata),
        created_at=present,
        last_activity=present,
    )
    given = [(path, text.encode()) for path, text in profile.files.items()]
    workspace = {
        path: file_of(path, content, modified_at=present) for path, content in (*given, *new.workspace_files)
    }
    check_tree(workspace, given=[path for path, _ in new.workspace_files])
    return record, tuple(workspace.values())


def first_message_id(session_id: str) -> str:
    """The id of the message that a session is created with: the same when the call is made again."""
    return str(uuid.uuid5(_REPEATABLE, session_id))


def _session_id(principal: Principal, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_REPEATABLE, f"{principal.owner}\0{idempotency_key}"))
