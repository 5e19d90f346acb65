"""The data path: what the SDK asks of a sandbox's worker (`TaskCommandRouter`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as tcr

from agent_runtime_modal_local.accounts import Account
from agent_runtime_modal_local.faults import Faults
from agent_runtime_modal_local.processes import Process
from agent_runtime_modal_local.rpc import Metadata, Replies, Service, serves
from agent_runtime_modal_local.sandbox import Sandbox
from agent_runtime_modal_local.sandboxes import Sandboxes, Start
from agent_runtime_modal_local.terminal import TerminalSize
from agent_runtime_modal_local.tokens import Tokens

S = TypeVar("S", tcr.TaskExecPollResponse, tcr.TaskExecWaitResponse)


class AtDeath(StrEnum):
    """What streams that are open see when their sandbox ends. Modal does not document it."""

    NOT_FOUND = "not_found"
    EOF = "eof"


class Router(Service):
    """Runs things in sandboxes, for whoever has a token for the task."""

    descriptor: ServiceDescriptor = tcr.DESCRIPTOR.services_by_name["TaskCommandRouter"]

    def __init__(
        self, faults: Faults, replies: Replies, account: Account, tokens: Tokens, sandboxes: Sandboxes
    ) -> None:
        super().__init__(faults, replies)
        self._account = account
        self._tokens = tokens
        self._sandboxes = sandboxes
        self.at_death = AtDeath.NOT_FOUND

    def authorise(self, metadata: Metadata) -> None:
        """Only with a token that we gave out and that has not expired."""
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        if self._tokens.subject(token) is None:
            raise GRPCError(Status.UNAUTHENTICATED, "invalid or expired task token")

    def key(self, request: Message, metadata: Metadata) -> str | None:
        """A process is started once, and a snapshot taken once, however often the call arrives."""
        match request:
            case tcr.TaskExecStartRequest():
                return f"exec {request.task_id} {request.exec_id}"
            case tcr.TaskSnapshotFilesystemRequest() | tcr.TaskSnapshotDirectoryRequest():
                return f"snapshot {request.task_id} {request.snapshot_id}" if request.snapshot_id else None
        return super().key(request, metadata)

    @serves("TaskExecStart")
    async def start(self, request: tcr.TaskExecStartRequest) -> tcr.TaskExecStartResponse:
        """Start a process under an id of the client's choice."""
        sandbox = self._sandboxes.of_task(request.task_id)
        if request.exec_id in sandbox.execs:
            return tcr.TaskExecStartResponse()
        env = self._account.environment_of(request.secret_ids) | dict(request.env)
        env |= self._account.environment(request.secret_sources)
        pty = request.pty_info
        start = Start(
            argv=tuple(request.command_args),
            env=env | ({"TERM": pty.env_term} if pty.env_term else {}),
            workdir=request.workdir,
            terminal=TerminalSize(pty.winsz_rows or 24, pty.winsz_cols or 80) if pty.enabled else None,
            keep_out=request.stdout_config == tcr.TASK_EXEC_STDOUT_CONFIG_PIPE,
            keep_err=request.stderr_config == tcr.TASK_EXEC_STDERR_CONFIG_PIPE,
            err_to_out=request.stderr_config == tcr.TASK_EXEC_STDERR_CONFIG_STDOUT,
        )
        process = await self._sandboxes.start(sandbox, start)
        sandbox.add(request.exec_id, process)
        self._sandboxes.follow(sandbox, process, request.timeout_secs or None)
        return tcr.TaskExecStartResponse()

    @serves("TaskExecStdioRead")
    async def read(
        self, request: tcr.TaskExecStdioReadRequest
    ) -> AsyncIterator[tcr.TaskExecStdioReadResponse]:
        """What a process prints, from an offset on."""
        sandbox, process = self._find(request.task_id, request.exec_id)
        errors = request.file_descriptor == tcr.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        offset, output = request.offset, process.err if errors else process.out
        while data := await output.read(offset):
            yield tcr.TaskExecStdioReadResponse(data=data)
            offset += len(data)
        self._check_alive(sandbox)

    @serves("TaskExecStdinWrite")
    async def write(self, request: tcr.TaskExecStdinWriteRequest) -> tcr.TaskExecStdinWriteResponse:
        """Input for a process, at an offset."""
        _, process = self._find(request.task_id, request.exec_id)
        await process.write(request.offset, request.data, eof=request.eof)
        return tcr.TaskExecStdinWriteResponse()

    @serves("TaskExecStdinWriteStream")
    async def write_stream(
        self, messages: AsyncIterator[tcr.TaskExecStdinWriteStreamRequest]
    ) -> tcr.TaskExecStdinWriteStreamResponse:
        """Much input for a process: where it begins, the bytes, the end."""
        process, offset = None, 0
        async for message in messages:
            match message.WhichOneof("payload"):
                case "start":
                    _, process = self._find(message.start.task_id, message.start.exec_id)
                    offset = message.start.offset
                case "data" if process is not None:
                    await process.write(offset, message.data, eof=False)
                    offset += len(message.data)
                case "end" if process is not None:
                    await process.write(offset, b"", eof=True)
                    break
                case _:
                    raise GRPCError(Status.INVALID_ARGUMENT, "a stream of input begins with its start")
        return tcr.TaskExecStdinWriteStreamResponse()

    @serves("TaskExecStdinStatus")
    async def input_status(self, request: tcr.TaskExecStdinStatusRequest) -> tcr.TaskExecStdinStatusResponse:
        """How much of its input has arrived."""
        _, process = self._find(request.task_id, request.exec_id)
        return tcr.TaskExecStdinStatusResponse(num_bytes_written=process.taken, closed=process.input_closed)

    @serves("TaskExecPoll")
    async def poll(self, request: tcr.TaskExecPollRequest) -> tcr.TaskExecPollResponse:
        """Whether a process has exited, and how."""
        _, process = self._find(request.task_id, request.exec_id)
        _check_in_time(process)
        return _exit(tcr.TaskExecPollResponse, process.exit)

    @serves("TaskExecWait")
    async def wait(self, request: tcr.TaskExecWaitRequest) -> tcr.TaskExecWaitResponse:
        """How a process exits."""
        sandbox, process = self._find(request.task_id, request.exec_id)
        await process.exited.wait()
        self._check_alive(sandbox)
        _check_in_time(process)
        return _exit(tcr.TaskExecWaitResponse, process.exit)

    @serves("SandboxStdioReadV2")
    async def read_main(
        self, request: tcr.SandboxStdioReadV2Request
    ) -> AsyncIterator[tcr.SandboxStdioReadV2Response]:
        """What the entrypoint of a V2 sandbox prints, also after its end."""
        sandbox = self._sandboxes.of_task(request.task_id, living=False)
        if sandbox.main is None:
            await sandbox.ended.wait()
            return
        errors = request.file_descriptor == tcr.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        offset, output = request.offset, sandbox.main.err if errors else sandbox.main.out
        while data := await output.read(offset):
            yield tcr.SandboxStdioReadV2Response(data=data, starting_offset=offset)
            offset += len(data)

    @serves("SandboxStdinWriteV2")
    async def write_main(self, request: tcr.SandboxStdinWriteV2Request) -> tcr.SandboxStdinWriteV2Response:
        """Input for the entrypoint of a V2 sandbox."""
        main = self._sandboxes.of_task(request.task_id).main
        if main is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "the Sandbox has no entrypoint")
        await main.write(request.offset, request.data, eof=request.eof)
        return tcr.SandboxStdinWriteV2Response()

    @serves("TaskSnapshotFilesystem")
    async def snapshot(
        self, request: tcr.TaskSnapshotFilesystemRequest
    ) -> tcr.TaskSnapshotFilesystemResponse:
        """The files of a sandbox as an image. It goes on meanwhile."""
        sandbox = self._sandboxes.of_task(request.task_id)
        image = await self._sandboxes.snapshot(sandbox)
        return tcr.TaskSnapshotFilesystemResponse(image_id=image.image_id)

    def _find(self, task_id: str, exec_id: str) -> tuple[Sandbox, Process]:
        sandbox = self._sandboxes.of_task(task_id)
        return sandbox, sandbox.exec_of(exec_id)

    def _check_alive(self, sandbox: Sandbox) -> None:
        """An end that was not the process's own. Raises `GRPCError` (NOT_FOUND)."""
        if sandbox.result is not None and self.at_death == AtDeath.NOT_FOUND:
            raise GRPCError(Status.NOT_FOUND, f"task {sandbox.task_id} not found")


def _check_in_time(process: Process) -> None:
    """A process that had no time left. Raises `GRPCError` (DEADLINE_EXCEEDED).

    A client asks again until the deadline of its own, which begins when it heard of the start, and then
    takes the code -1. It would see the signal instead whenever its clock is the later of the two.
    """
    if process.timed_out:
        raise GRPCError(Status.DEADLINE_EXCEEDED, "the process was ended, its time was up")


def _exit(reply: type[S], code: int | None) -> S:
    """How the protocol says it: an exit code, a signal, or nothing yet."""
    if code is None:
        return reply()
    return reply(signal=-code) if code < 0 else reply(code=code)
