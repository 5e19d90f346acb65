"""The error tree: every fault has a code, a category, and a word on whether to try again."""

import pytest

from agent_runtime import errors
from agent_runtime.errors import (
    AgentFault,
    Category,
    Conflict,
    InvalidRequest,
    ModelFault,
    NotFound,
    PersistenceFault,
    RateLimited,
    RuntimeFault,
    SandboxFault,
    Unauthenticated,
)

TREE = {
    InvalidRequest: ("invalid_request", Category.VALIDATION, False),
    Unauthenticated: ("unauthenticated", Category.AUTH, False),
    NotFound: ("not_found", Category.NOT_FOUND, False),
    Conflict: ("conflict", Category.CONFLICT, False),
    RateLimited: ("rate_limited", Category.RATE_LIMIT, True),
    SandboxFault: ("sandbox_failed", Category.SANDBOX, True),
    AgentFault: ("agent_failed", Category.AGENT, False),
    ModelFault: ("model_error", Category.MODEL, False),
    PersistenceFault: ("persistence_unavailable", Category.PERSISTENCE, True),
}


@pytest.mark.parametrize("kind", TREE)
def test_a_fault_says_what_it_is(kind: type[RuntimeFault]) -> None:
    fault = kind("A sentence.")
    assert (fault.code, fault.category, fault.retryable) == TREE[kind]
    assert str(fault) == fault.detail == "A sentence."
    assert (fault.session_id, fault.retry_after_ms) == (None, None)


def test_a_fault_may_say_more() -> None:
    fault = SandboxFault("No.", code="sandbox_unavailable", retryable=False, session_id="s", retry_after_ms=5)
    assert (fault.code, fault.retryable, fault.session_id, fault.retry_after_ms) == (
        "sandbox_unavailable",
        False,
        "s",
        5,
    )


def test_the_tree_is_whole_and_its_page_names_everybody() -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RuntimeFault)
    }
    assert kinds - {RuntimeFault} == TREE.keys()
    assert errors.__doc__ is not None
    for kind in kinds:
        assert kind.__name__ in errors.__doc__


def test_a_missing_session_is_named() -> None:
    fault = NotFound.session("s-1")
    assert (fault.code, fault.session_id) == ("session_not_found", "s-1")
