"""One sandbox: what was asked for, what runs in it, and when and how it ends. The verdict is pure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.cgroup import Group
from agent_runtime_modal_local.enclosure import Enclosure
from agent_runtime_modal_local.images import Image
from agent_runtime_modal_local.processes import Process

Result = api.GenericResult
HOME: Final = "/root"
USUAL_LIFETIME_S: Final = 300
EXECS_KEPT: Final = 64
"""How many processes that have exited are remembered with what they printed, in each sandbox."""

ENDS: Final = {
    "success": Result.GENERIC_STATUS_SUCCESS,
    "failure": Result.GENERIC_STATUS_FAILURE,
    "terminated": Result.GENERIC_STATUS_TERMINATED,
    "lifetime": Result.GENERIC_STATUS_TIMEOUT,
    "idle": Result.GENERIC_STATUS_IDLE_TIMEOUT,
    "init_failure": Result.GENERIC_STATUS_INIT_FAILURE,
    "internal_failure": Result.GENERIC_STATUS_INTERNAL_FAILURE,
    "memory_eviction": Result.GENERIC_STATUS_MEMORY_MANAGER_EVICTION,
    "out_of_memory": Result.GENERIC_STATUS_KERNEL_OOM_KILL,
}
EXIT_CODES: Final = {"success": 0, "idle": 0, "failure": 1, "lifetime": 124}
KILLED: Final = 137


NOT_OFFERED: Final = (
    "cloud_bucket_mounts",
    "custom_domain",
    "enable_snapshot",
    "include_oidc_identity_token",
    "inbound_cidr_allowlist",
    "nfs_mounts",
    "proxy_id",
    "readiness_probe",
    "s3_mounts",
    "volume_mounts",
)
"""What a sandbox may be asked to have at Modal, and not here: asking is an error, never less in silence."""


def not_offered(asked: api.Sandbox) -> list[str]:
    """What of a request cannot be had here."""
    given = {descriptor.name for descriptor, _ in asked.ListFields()}
    lacking: list[str] = [name for name in NOT_OFFERED if name in given]
    lacking += ["open_ports"] if asked.open_ports.ports else []
    return lacking + (["gpu"] if asked.resources.gpu_config.ByteSize() else [])


def ended(how: str, exit_code: int | None = None) -> Result:
    """The result of a sandbox that ended in one of the ways of `ENDS`."""
    code = EXIT_CODES.get(how, KILLED) if exit_code is None else exit_code
    return Result(status=ENDS[how], exitcode=code)


@dataclass
class Sandbox:
    """A sandbox, living or ended.

    Attributes:
        began: by the clock that can be moved.
        result: how it ended; None while it lives.
    """

    sandbox_id: str
    task_id: str
    app_id: str
    asked: api.Sandbox
    image: Image
    folder: Path
    env: Mapping[str, str]
    tags: dict[str, str]
    began: float
    enclosure: Enclosure
    group: Group | None
    main: Process | None = None
    result: Result | None = None
    created_at: float = field(default_factory=time.time)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    active_at: float = 0.0
    execs: dict[str, Process] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Its files, as they lie on this machine."""
        return self.folder / "root"

    @property
    def workdir(self) -> str:
        """Where its processes begin."""
        return self.asked.workdir or self.image.workdir or HOME

    def exec_of(self, exec_id: str) -> Process:
        """Raises `GRPCError` (NOT_FOUND)."""
        if exec_id not in self.execs:
            raise GRPCError(Status.NOT_FOUND, f"exec {exec_id} not found")
        return self.execs[exec_id]

    def add(self, exec_id: str, process: Process) -> None:
        """Remember a process, and forget the oldest of many that have exited."""
        self.execs[exec_id] = process
        exited = [key for key, each in self.execs.items() if each.exit is not None]
        for key in exited[:-EXECS_KEPT]:
            self.execs.pop(key).forget()

    @property
    def running(self) -> Iterator[Process]:
        """The processes that have not exited."""
        return (process for process in self.execs.values() if process.exit is None)

    def verdict(self, now: float) -> Result | None:
        """How it ends by itself, if it does now."""
        if self.group is not None and self.group.killed_for_memory():
            return ended("out_of_memory")
        if self.main is not None and self.main.exit is not None:
            code = self.main.exit if self.main.exit >= 0 else 128 - self.main.exit
            return ended("failure" if code else "success", code)
        if self.enclosure.outer.returncode is not None:
            return ended("internal_failure")
        if now >= self.began + self.lifetime_s:
            return ended("lifetime")
        if any(self.running):
            self.active_at = now
        elif self.idle_s is not None and now >= self.active_at + self.idle_s:
            return ended("idle")
        return None

    def next_look(self, now: float) -> float:
        """In how many seconds time alone can change the verdict."""
        ends = [self.began + self.lifetime_s]
        if self.idle_s is not None:
            ends.append(self.active_at + self.idle_s)
        return max(0.01, min(ends) - now)

    @property
    def lifetime_s(self) -> float:
        """How long it may live."""
        return self.asked.timeout_secs or USUAL_LIFETIME_S

    @property
    def idle_s(self) -> float | None:
        """How long it may do nothing, if that has an end."""
        return self.asked.idle_timeout_secs if self.asked.HasField("idle_timeout_secs") else None

    def tag_messages(self) -> list[api.SandboxTag]:
        """Its tags, as the protocol has them."""
        return [api.SandboxTag(tag_name=name, tag_value=value) for name, value in self.tags.items()]

    def handle(self) -> api.SandboxHandleMetadata:
        """What a handle of the SDK begins with."""
        return api.SandboxHandleMetadata(app_id=self.app_id, result=self.result)

    def info(self) -> api.SandboxInfo:
        """Its line in a list."""
        return api.SandboxInfo(
            id=self.sandbox_id,
            created_at=self.created_at,
            app_id=self.app_id,
            name=self.asked.name,
            tags=self.tag_messages(),
            image_id=self.image.image_id,
            timeout_secs=self.asked.timeout_secs,
            task_info=api.TaskInfo(id=self.task_id, result=self.result),
            metadata=self.handle(),
        )

    def report(self) -> dict[str, Any]:
        """All that a test may want to see of it from outside, as JSON. No environment, no secret."""
        status = self.result.status if self.result else None
        return {
            "sandboxId": self.sandbox_id,
            "appId": self.app_id,
            "tags": dict(self.tags),
            "ended": next((how for how, each in ENDS.items() if each == status), None),
            "exitCode": self.result.exitcode if self.result else None,
            "pid": self.enclosure.pid if self.result is None else None,
            "execs": len(self.execs),
            "memoryIsBounded": self.group is not None,
            "asked": MessageToDict(self.asked),
        }
