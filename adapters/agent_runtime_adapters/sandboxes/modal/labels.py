"""What a sandbox on Modal carries from birth: tags, from which all that we know of it is read again.

Tags are seen by everybody in the account and hold nothing secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime.records import SandboxRef

RUNTIME: Final = "agent-runtime"
SESSION: Final = "session"
CREATION: Final = "creation"
_CREATED: Final = "created"
_EXPIRES: Final = "expires"
_ISOLATION: Final = "isolation"
_LANE: Final = "lane"
_EXPIRY: Final = "expiresAt"
_MOST_CHARS: Final = 200
_SANDBOX_ID: Final = re.compile(r"sb-[A-Za-z0-9]{1,60}")


def written(
    spec: SandboxSpec, *, creation: str, isolation: str, created: datetime, expires: datetime
) -> dict[str, str]:
    """The tags of a new sandbox; the spec's own labels give way to ours."""
    tags = {name[:_MOST_CHARS]: value[:_MOST_CHARS] for name, value in spec.labels.items()}
    tags |= {
        RUNTIME: spec.runtime_id,
        SESSION: spec.session_id,
        CREATION: creation,
        _CREATED: created.isoformat(timespec="milliseconds"),
        _EXPIRES: expires.isoformat(timespec="milliseconds"),
        _ISOLATION: isolation,
    }
    return tags if spec.lane is None else {**tags, _LANE: spec.lane}


def read(sandbox_id: str, tags: Mapping[str, str], provider: str) -> SandboxRef | None:
    """The reference of a sandbox; None of one that is not ours."""
    try:
        return SandboxRef(
            sandbox_id=sandbox_id,
            provider=provider,
            isolation=tags[_ISOLATION],
            started_at=datetime.fromisoformat(tags[_CREATED]),
            lane=tags.get(_LANE),
            data={_EXPIRY: datetime.fromisoformat(tags[_EXPIRES]).isoformat(timespec="milliseconds")},
        )
    except (KeyError, ValueError):
        return None


def expiry(ref: SandboxRef) -> datetime | None:
    """When Modal ends it. References come out of stores that others write to."""
    try:
        return datetime.fromisoformat(ref.data[_EXPIRY])
    except (KeyError, TypeError, ValueError):
        return None


def checked_id(ref: SandboxRef) -> str:
    """Its id, where it may be one of Modal's. Raises `SandboxFault` (`sandbox_lost`)."""
    if not _SANDBOX_ID.fullmatch(ref.sandbox_id):
        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
    return ref.sandbox_id
