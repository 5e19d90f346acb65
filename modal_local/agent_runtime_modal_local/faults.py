"""What goes wrong on purpose: one fault strikes the calls of an RPC whose name fits, so many times.

A fault is plain data and can be set from another process (`admin`). How it is carried out on a
stream is in `rpc`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from grpclib.const import Status


class Do(StrEnum):
    """The ways to go wrong."""

    FAIL = "fail"
    """Answer with `status`; nothing was done."""
    LOSE_REPLY = "lose_reply"
    """Do the work, and answer with `status` in place of the reply."""
    HANG = "hang"
    """Never answer."""
    RESET = "reset"
    """Drop the connection; nothing was done."""
    SLOW = "slow"
    """Wait `delay_s`, then answer as ever."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        rpc: the name of the RPC; `*` and `?` fit as in file names (`SandboxCreate*` is both backends).
        do: what happens.
        status: the gRPC status of `fail` and `lose_reply`.
        message: its text.
        times: how many calls it strikes; None is all of them.
        skip: how many calls pass before.
        after_messages: of a streamed answer, strike only when so many messages were sent.
        delay_s: for `slow`.
        retry_after_s: tells the client to come back after so many seconds (with `RESOURCE_EXHAUSTED`).
    """

    rpc: str
    do: Do = Do.FAIL
    status: str = "UNAVAILABLE"
    message: str = "a fault that was asked for"
    times: int | None = 1
    skip: int = 0
    after_messages: int = 0
    delay_s: float = 0.0
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.status not in Status.__members__:
            raise ValueError(f"no gRPC status is called {self.status!r}")

    def to_json(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Fault:
        """The reverse. Raises `ValueError` for what is no fault."""
        unknown = set(value) - {field.name for field in fields(Fault)}
        if unknown or "rpc" not in value:
            raise ValueError(f"not a fault: {sorted(unknown) or 'no rpc'}")
        return Fault(**{**value, "do": Do(value.get("do", Do.FAIL))})


@dataclass
class _Armed:
    fault: Fault
    passed: int = 0
    struck: int = 0


class Faults:
    """The faults that are set, in their order, and the calls that were made."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._calls: dict[str, int] = {}

    def set(self, fault: Fault) -> None:
        """Arm one more."""
        self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Disarm all; calls are counted from zero again. Calls that hang go on hanging."""
        self._armed.clear()
        self._calls.clear()

    def take(self, rpc: str) -> Fault | None:
        """Count a call; the first fault that strikes it."""
        self._calls[rpc] = self._calls.get(rpc, 0) + 1
        for armed in self._armed:
            if not fnmatchcase(rpc, armed.fault.rpc):
                continue
            if armed.passed < armed.fault.skip:
                armed.passed += 1
            elif armed.fault.times is None or armed.struck < armed.fault.times:
                armed.struck += 1
                return armed.fault
        return None

    @property
    def calls(self) -> dict[str, int]:
        """How often each RPC was called."""
        return dict(self._calls)
