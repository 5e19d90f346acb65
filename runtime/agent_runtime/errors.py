"""The one error tree. Foreign exceptions become one of these at the adapter, once.

    RuntimeFault                 code, category, retryable; every error that a client may see
    ├── InvalidRequest           validation      malformed or out of bounds
    ├── Unauthenticated          auth            no or wrong credentials
    ├── NotFound                 not_found       session_not_found, block_not_found, file_not_found, ...
    ├── Conflict                 conflict        session_busy, already_exists, stale_file, ...
    ├── RateLimited              rate_limit      too many sessions, messages, bytes
    ├── SandboxFault             sandbox         sandbox_failed, sandbox_lost, sandbox_unavailable, ...
    ├── AgentFault               agent           agent_failed, agent_timeout, unsupported_architecture
    ├── ModelFault               model           model_error, model_overloaded, ...
    └── PersistenceFault         persistence     persistence_unavailable

HTTP statuses are not here: `transport.wire` maps codes and categories outward.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Category(StrEnum):
    """Whose business an error is; the coarse half of the wire's error object."""

    AUTH = "auth"
    VALIDATION = "validation"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    RATE_LIMIT = "rate_limit"
    BUDGET = "budget"
    TIMEOUT = "timeout"
    SANDBOX = "sandbox"
    AGENT = "agent"
    MODEL = "model"
    PERSISTENCE = "persistence"
    INTERNAL = "internal"


class RuntimeFault(Exception):
    """An error with a stable code. `detail` is for people and holds no secret and no host path.

    Args:
        detail: one sentence for a person.
        code: stable and machine-readable; the class gives a default.
        retryable: whether the same call may succeed later without being changed.
        session_id: the session it happened to, where there is one.
        retry_after_ms: how long to wait before trying again, where that is known.
    """

    category: ClassVar[Category] = Category.INTERNAL
    default_code: ClassVar[str] = "internal"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        session_id: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.retryable = self.default_retryable if retryable is None else retryable
        self.session_id = session_id
        self.retry_after_ms = retry_after_ms


class InvalidRequest(RuntimeFault):
    """What a client sent is malformed or over a bound; nothing was done."""

    category = Category.VALIDATION
    default_code = "invalid_request"


class Unauthenticated(RuntimeFault):
    """No credentials, or wrong ones."""

    category = Category.AUTH
    default_code = "unauthenticated"


class NotFound(RuntimeFault):
    """The named thing does not exist, or belongs to somebody else."""

    category = Category.NOT_FOUND
    default_code = "not_found"

    @classmethod
    def session(cls, session_id: str) -> NotFound:
        """The session is unknown to this caller."""
        return cls("There is no such session.", code="session_not_found", session_id=session_id)


class Conflict(RuntimeFault):
    """The call does not fit the present state."""

    category = Category.CONFLICT
    default_code = "conflict"


class RateLimited(RuntimeFault):
    """A limit was reached; the same call may succeed later."""

    category = Category.RATE_LIMIT
    default_code = "rate_limited"
    default_retryable = True


class SandboxFault(RuntimeFault):
    """A sandbox could not be made, reached or kept."""

    category = Category.SANDBOX
    default_code = "sandbox_failed"
    default_retryable = True


class AgentFault(RuntimeFault):
    """The agent's process failed or did what it must not."""

    category = Category.AGENT
    default_code = "agent_failed"


class ModelFault(RuntimeFault):
    """The model's API answered with an error."""

    category = Category.MODEL
    default_code = "model_error"


class PersistenceFault(RuntimeFault):
    """The store does not answer; what was to be written is kept and tried again."""

    category = Category.PERSISTENCE
    default_code = "persistence_unavailable"
    default_retryable = True
