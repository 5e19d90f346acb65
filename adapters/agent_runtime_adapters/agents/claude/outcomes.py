"""Outcomes: how a turn ended, what it used, and what went wrong, in the wire's terms.

Reads `result` lines and the agent's synthetic error messages. The one table from the vendor's
errors to our stable codes is here. Nothing here keeps state.
"""

from __future__ import annotations

from typing import Final

from agent_runtime.events import MetadataUpdate
from agent_runtime.ports import AgentTurnEnded
from agent_runtime.records import TurnError, TurnStatus, Usage
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
_BY_STATUS: Final = {
    400: ("model_request_rejected", False),
    401: ("model_authentication_failed", False),
    403: ("model_authentication_failed", False),
    413: ("model_request_rejected", False),
    429: ("model_rate_limited", True),
    529: ("model_overloaded", True),
}
_BY_KIND: Final = {
    "authentication_failed": ("model_authentication_failed", False),
    "billing_error": ("model_quota_exhausted", False),
    "rate_limit": ("model_rate_limited", True),
    "overloaded": ("model_overloaded", True),
    "overloaded_error": ("model_overloaded", True),
    "invalid_request": ("model_request_rejected", False),
    "max_output_tokens": ("model_output_limit", False),
}
_MAX_UUIDS: Final = 100


def model_error(line: Json, message: str, stop_reason: object) -> TurnError:
    """The error that an `assistant` line with `error`, or a failed `result` line, tells of."""
    status, kind = line.get("api_error_status"), line.get("error")
    wire_type = line.get("api_error_type")
    if stop_reason == "refusal":
        code, retryable = "model_refused", False
    elif wire_type == "overloaded_error":
        code, retryable = _BY_KIND["overloaded_error"]
    elif isinstance(status, int) and status in _BY_STATUS:
        code, retryable = _BY_STATUS[status]
    elif isinstance(kind, str) and kind in _BY_KIND:
        code, retryable = _BY_KIND[kind]
    else:
        code, retryable = "model_error", wire_type != "invalid_request_error"
    return TurnError(code=code, message=message or "The model's API failed.", retryable=retryable)


def turn_ended(line: Json, *, model: str | None, error: TurnError | None) -> AgentTurnEnded:
    """Read a `result` line. `error` is the last model error of this turn, which says more than the line."""
    status, reason, error = _judged(line, error)
    origin = mapping(line.get("origin")).get("kind")
    return AgentTurnEnded(
        status=status,
        stop_reason=reason,
        error=error,
        usage=_usage(line.get("model_usage_since_last_result")),
        total_cost_usd=amount(line.get("total_cost_usd")),
        model=model,
        message_ids=_answered(line),
        autonomous=origin == "task-notification",
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
