"""Why a sandbox on Modal ended, as far as Modal says.

The one place that looks behind the SDK's public names. The reason: to the public, an idle end, an
eviction and a kernel that ran out of memory look like a normal exit; the result's status, which the
SDK has in hand, tells them apart. Where it cannot be had, nothing is known.
"""

from __future__ import annotations

from typing import Any, Final, cast

import modal
from modal._utils.async_utils import synchronizer
from modal_proto import api_pb2

from agent_runtime.errors import SandboxFault

_MEMORY: Final = "The sandbox's memory was used up; Modal ended it."
_LIFETIME: Final = "The sandbox reached the end of its lifetime."
_IDLE: Final = "Modal ended the sandbox because nobody was attached to it."
_FAILURE: Final = "Modal lost the machine that the sandbox was on."
_CAUSES: Final = {
    "GENERIC_STATUS_TIMEOUT": (_LIFETIME, "sandbox_expired", True),
    "GENERIC_STATUS_IDLE_TIMEOUT": (_IDLE, "sandbox_expired", True),
    "GENERIC_STATUS_INTERNAL_FAILURE": (_FAILURE, "sandbox_lost", True),
    "GENERIC_STATUS_KERNEL_OOM_KILL": (_MEMORY, "sandbox_out_of_memory", False),
}


def cause(handle: modal.Sandbox) -> SandboxFault | None:
    """What explains the end of a sandbox that was found to have ended; None where nothing does."""
    told = _CAUSES.get(name := status(handle))
    if told is None and name.startswith("GENERIC_STATUS_MEMORY"):
        told = (_MEMORY, "sandbox_out_of_memory", False)
    if told is None:
        return None
    detail, code, retryable = told
    return SandboxFault(detail, code=code, retryable=retryable)


def status(handle: modal.Sandbox) -> str:
    """The name of the status that the SDK has seen; empty where it has none."""
    try:
        behind = cast("Any", synchronizer)._translate_in(handle)  # noqa: SLF001
        result = behind._impl.result  # noqa: SLF001
        return "" if result is None else api_pb2.GenericResult.GenericStatus.Name(result.status)
    except (AttributeError, ValueError):
        return ""
