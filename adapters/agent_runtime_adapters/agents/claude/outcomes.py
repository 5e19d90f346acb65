"""Outcomes: how a turn ended, what it used, and what went wrong, in the wire's terms.

Reads `result` lines and the agent's synthetic error messages. The one table from the vendor's
errors to our stable codes is here. Nothing here keeps state.
"""

from __future__ import annotations

from typing import Final

from agent_runtime.events import MetadataUpdate
from agent_runtime.records import TurnError, TurnStatus, Usage
from agent_runtime.reports import AgentTurnEnded
from agent_runtime_adapters.agents.claude.lines import Json, amount, count, ident, mapping, text

_USAGE_FIELDS: Final = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheReadInputTokens": "cache_read_tokens",
    "cacheCreationInputTokens": "cache_write_tokens",
}
_LIMITS: Final = {
    "error_max_turns": ("max_turns", "turn_limit_reached"),
    "error_max_budget_usd": ("budget", "budget_exceeded"),
}
_REJECTED: Final = ("model_request_rejected", False)
_UNAUTHENTICATED: Final = ("model_authentication_failed", False)
_RATE_LIMITED: Final = ("model_rate_limited", True)
_OVERLOADED: Final = ("model_overloaded", True)
_QUOTA: Final = ("model_quota_exhausted", False)

_CODES: Final[dict[object, tuple[str, bool]]] = {
    "invalid_request_error": _REJECTED,
    "request_too_large": _REJECTED,
    "not_found_error": _REJECTED,
    "authentication_error": _UNAUTHENTICATED,
    "permission_error": _UNAUTHENTICATED,
    "billing_error": _QUOTA,
    "rate_limit_error": _RATE_LIMITED,
    "overloaded_error": _OVERLOADED,
    400: _REJECTED,
    401: _UNAUTHENTICATED,
    403: _UNAUTHENTICATED,
    413: _REJECTED,
    429: _RATE_LIMITED,
    529: _OVERLOADED,
    "authentication_failed": _UNAUTHENTICATED,
    "rate_limit": _RATE_LIMITED,
    "invalid_request": _REJECTED,
    "max_output_tokens": ("model_output_limit", False),
}
"""What the API called it, its HTTP status, or the agent's own word: our code, and whether to try again."""
_MAX_UUIDS: Final = 100


def model_error(line: Json, message: str, stop_reason: object) -> TurnError:
    """The error that an `assistant` line with `error`, or a failed `result` line, tells of."""
    told = [line.get(name) for name in ("api_error_type", "api_error_status", "error", "api_error")]
    known = (_CODES[word] for word in told if isinstance(word, str | int) and word in _CODES)
    code, retryable = next(known, ("model_error", True))
    if stop_reason == "refusal":
        code, retryable = "model_refused", False
    return TurnError(code=code, message=message or "The model's API failed.", retryable=retryable)


def turn_ended(line: Json, *, model: str | None, error: TurnError | None) -> AgentTurnEnded:
    """Read a `result` line. `error` is the last model error of this turn, which says more than the line."""
    status, reason, error = _judged(line, error)
    origin, answered = mapping(line.get("origin")).get("kind"), _answered(line)
    return AgentTurnEnded(
        status=status,
        stop_reason=reason,
        error=error,
        usage=_usage(line.get("model_usage_since_last_result")),
        total_cost_usd=amount(line.get("total_cost_usd")),
        model=model,
        message_ids=answered,
        # What the agent began by itself and took a message into is that message's turn.
        autonomous=origin == "task-notification" and not answered,
    )


def totals(line: Json, *, model: str | None, context_tokens: int | None) -> MetadataUpdate:
    """The session's running totals as of a `result` line, subagents and compactions included."""
    return MetadataUpdate(
        usage=_usage(line.get("modelUsage")),
        cost_usd=amount(line.get("total_cost_usd")),
        model=model,
        context_tokens=context_tokens,
    )


def _judged(line: Json, error: TurnError | None) -> tuple[TurnStatus, str | None, TurnError | None]:
    subtype, terminal = line.get("subtype"), line.get("terminal_reason")
    reason = ident(line.get("stop_reason"))
    if isinstance(terminal, str) and terminal.startswith("aborted"):
        return TurnStatus.CANCELLED, "interrupted", None
    if subtype == "success" and line.get("is_error") is not True:
        return TurnStatus.COMPLETED, reason, None
    if isinstance(subtype, str) and subtype in _LIMITS:
        reason, code = _LIMITS[subtype]
        return TurnStatus.FAILED, reason, TurnError(code=code, message=_complaint(line))
    if subtype == "success":
        return TurnStatus.FAILED, reason, error or model_error(line, text(line.get("result")), reason)
    return TurnStatus.FAILED, reason, TurnError(code="agent_failed", message=_complaint(line))


def _complaint(line: Json) -> str:
    errors = line.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else line.get("result")
    return text(first)[:1000] or "The agent gave no reason."


def _answered(line: Json) -> tuple[str, ...]:
    several = line.get("user_message_uuids")
    listed = several[:_MAX_UUIDS] if isinstance(several, list) else [line.get("user_message_uuid")]
    return tuple(uuid for item in listed if (uuid := ident(item)) is not None)


def _usage(by_model: object) -> Usage | None:
    """The sum over all models; None where no model was asked."""
    models = [mapping(entry) for entry in mapping(by_model).values()]
    sums: dict[str, int] = {}
    for native, name in _USAGE_FIELDS.items():
        told = [number for entry in models if (number := count(entry.get(native))) is not None]
        if told:
            sums[name] = sum(told)
    return Usage(**sums) if sums else None
