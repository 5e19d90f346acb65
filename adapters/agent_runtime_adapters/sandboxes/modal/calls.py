"""Every call to Modal's SDK goes through here: bounded in time, and translated when it fails.

Most of the SDK's calls have no deadline of their own; those that matter least to us (waiting for a
process) try for ever. What leaves is a `SandboxFault` with a sentence of ours: what Modal says may
hold paths and names of the host. It retries by itself what may be repeated, for a second to ten;
`repeated` adds one more try for calls that do no harm when done twice.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpclib.exceptions
from modal import exception as vendor

from agent_runtime.errors import SandboxFault

NO_ACCOUNT: Final = (
    "Modal knows no valid token here: run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET."
)
NOT_ANSWERING: Final = "Modal does not answer."
GONE: Final = "The sandbox is gone."

T = TypeVar("T")

_OVER: Final = (
    vendor.ConflictError,
    vendor.NotFoundError,
    vendor.SandboxTimeoutError,
    vendor.SandboxTerminatedError,
)
"""What is said of a sandbox that has ended. A conflict is an `InvalidError` for the SDK: look here first."""
_AWAY: Final = (
    vendor.ServiceError,
    vendor.InternalError,
    vendor.InternalFailure,
    vendor.ConnectionError,
    vendor.ClientClosed,
    ConnectionError,
    ssl.SSLError,
    grpclib.exceptions.StreamTerminatedError,
    grpclib.exceptions.ProtocolError,
)


async def call(work: Awaitable[T], within_s: float, *, missing: SandboxFault | None = None) -> T:
    """What Modal answers, within so many seconds. Raises `SandboxFault`.

    `missing`: what it means that something is not there; None: the sandbox is gone.
    """
    try:
        async with asyncio.timeout(within_s):
            return await work
    except SandboxFault:
        raise
    except Exception as error:
        raise translated(error, missing) from error


async def repeated(work: Callable[[], Awaitable[T]], within_s: float) -> T:
    """As `call`, once more where Modal was away or too slow; for what may be done twice."""
    try:
        return await call(work(), within_s)
    except SandboxFault as fault:
        if fault.code not in ("sandbox_unavailable", "sandbox_timeout") or not fault.retryable:
            raise
    return await call(work(), within_s)


def translated(error: BaseException, missing: SandboxFault | None = None) -> SandboxFault:
    """The fault that stands for an error of the SDK."""
    if isinstance(error, _OVER):
        return missing or SandboxFault(GONE, code="sandbox_lost")
    if isinstance(error, vendor.AuthError | vendor.PermissionDeniedError):
        return SandboxFault(NO_ACCOUNT, code="sandbox_unavailable", retryable=False)
    if isinstance(error, vendor.ResourceExhaustedError):
        return SandboxFault(
            "Modal has no room for another sandbox now, or the account's limit is reached.",
            code="sandbox_unavailable",
        )
    if isinstance(error, vendor.VersionError):
        detail = "Modal takes this version of its client no more: upgrade `modal`."
        return SandboxFault(detail, code="sandbox_unavailable", retryable=False)
    if isinstance(error, vendor.RemoteError):
        detail = "Modal could not build the sandbox's image."
        return SandboxFault(detail, code="sandbox_unavailable", retryable=False)
    if isinstance(error, vendor.TimeoutError | TimeoutError):
        return SandboxFault("Modal took too long to answer.", code="sandbox_timeout")
    if isinstance(error, _AWAY):
        return SandboxFault(NOT_ANSWERING, code="sandbox_unavailable")
    return SandboxFault(f"Modal refused what was asked ({type(error).__name__}).", retryable=False)
