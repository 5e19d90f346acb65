"""The control plane's calls about sandboxes. Both backends of the SDK ask the same under two names."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

from google.protobuf import empty_pb2
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.control_plane import ControlPlane
from agent_runtime_modal_local.rpc import serves
from agent_runtime_modal_local.sandbox import Sandbox, ended
from agent_runtime_modal_local.sandboxes import Sandboxes

PAGE: Final = 100


class SandboxCalls(ControlPlane):
    """All of `ModalClient` that is served.

    Attributes:
        sandboxes: set once, before the first call.
        router_url: where the data path is.
    """

    sandboxes: Sandboxes
    router_url: Callable[[], str]

    @serves("SandboxCreateV2")
    async def create(self, request: api.SandboxCreateV2Request) -> api.SandboxCreateV2Response:
        """Make one; the reply has all that is needed to run something in it."""
        self.account.check_app(request.app_id)
        env = self.account.environment(request.secret_sources)
        sandbox = await self.sandboxes.create(request.app_id, request.definition, request.tags, env, v2=True)
        return api.SandboxCreateV2Response(
            sandbox_id=sandbox.sandbox_id,
            task_id=sandbox.task_id,
            metadata=sandbox.handle(),
            command_router_access=self._access(sandbox),
        )

    @serves("SandboxCreate")
    async def create_v1(self, request: api.SandboxCreateRequest) -> api.SandboxCreateResponse:
        """Make one; the client asks for its task next."""
        self.account.check_app(request.app_id)
        env = self.account.environment_of(request.definition.secret_ids)
        sandbox = await self.sandboxes.create(request.app_id, request.definition, request.tags, env, v2=False)
        return api.SandboxCreateResponse(sandbox_id=sandbox.sandbox_id, metadata=sandbox.handle())

    @serves("SandboxGetTaskId", "SandboxGetTaskIdV2")
    async def task_id(self, request: api.SandboxGetTaskIdRequest) -> api.SandboxGetTaskIdResponse:
        """The task of a sandbox, or how it ended."""
        sandbox = self.sandboxes.get(request.sandbox_id)
        if sandbox.result is not None:
            return api.SandboxGetTaskIdResponse(task_result=sandbox.result)
        return api.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    @serves("SandboxGetCommandRouterAccess")
    async def access(
        self, request: api.SandboxGetCommandRouterAccessRequest
    ) -> api.SandboxGetCommandRouterAccessResponse:
        """A fresh token for the data path of a living sandbox."""
        by_id = bool(request.sandbox_id)
        sandbox = self.sandboxes.get(request.sandbox_id) if by_id else self.sandboxes.of_task(request.task_id)
        if sandbox.result is not None:
            raise GRPCError(Status.FAILED_PRECONDITION, "the Sandbox has already shut down")
        access = self._access(sandbox)
        return api.SandboxGetCommandRouterAccessResponse(url=access.url, jwt=access.jwt)

    @serves("TaskGetCommandRouterAccess")
    async def access_v1(
        self, request: api.TaskGetCommandRouterAccessRequest
    ) -> api.TaskGetCommandRouterAccessResponse:
        """The same, by task."""
        access = self._access(self.sandboxes.of_task(request.task_id))
        return api.TaskGetCommandRouterAccessResponse(url=access.url, jwt=access.jwt)

    @serves("SandboxWait", "SandboxWaitV2")
    async def wait(self, request: api.SandboxWaitRequest) -> api.SandboxWaitResponse:
        """How it ended, after at most so many seconds; nothing where it lives on."""
        sandbox = self.sandboxes.get(request.sandbox_id)
        if sandbox.result is None and request.timeout > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(request.timeout):
                    await sandbox.ended.wait()
        return api.SandboxWaitResponse(result=sandbox.result, metadata=sandbox.handle())

    @serves("SandboxList", "SandboxListV2")
    async def list(self, request: api.SandboxListRequest) -> api.SandboxListResponse:
        """A page of sandboxes, the newest first."""
        wanted = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = [
            sandbox.info()
            for sandbox in reversed(self.sandboxes.all())
            if (not request.app_id or sandbox.app_id == request.app_id)
            and (request.include_finished or sandbox.result is None)
            and (not request.before_timestamp or sandbox.created_at < request.before_timestamp)
            and all(sandbox.tags.get(name) == value for name, value in wanted.items())
        ]
        return api.SandboxListResponse(sandboxes=found[:PAGE])

    @serves("SandboxTagsGet", "SandboxTagsGetV2")
    async def tags(self, request: api.SandboxTagsGetRequest) -> api.SandboxTagsGetResponse:
        """Its tags."""
        return api.SandboxTagsGetResponse(tags=self.sandboxes.get(request.sandbox_id).tag_messages())

    @serves("SandboxTagsSet", "SandboxTagsSetV2")
    async def set_tags(self, request: api.SandboxTagsSetRequest) -> empty_pb2.Empty:
        """All of its tags anew."""
        sandbox = self.sandboxes.get(request.sandbox_id)
        sandbox.tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        return empty_pb2.Empty()

    @serves("SandboxGetFromName", "SandboxGetFromNameV2")
    async def by_name(self, request: api.SandboxGetFromNameRequest) -> api.SandboxGetFromNameResponse:
        """The newest of an app that has a name."""
        app_id = self.account.app(request.environment_name, request.app_name, create=False)
        for sandbox in reversed(self.sandboxes.all()):
            fits = sandbox.app_id == app_id and sandbox.asked.name == request.sandbox_name
            if fits and (sandbox.result is None or request.include_terminated):
                return api.SandboxGetFromNameResponse(
                    sandbox_id=sandbox.sandbox_id, metadata=sandbox.handle()
                )
        raise GRPCError(Status.NOT_FOUND, f"Sandbox '{request.sandbox_name}' not found")

    @serves("SandboxTerminate", "SandboxTerminateV2")
    async def terminate(self, request: api.SandboxTerminateRequest) -> api.SandboxTerminateResponse:
        """End it. Nothing happens to one that has ended."""
        sandbox = self.sandboxes.get(request.sandbox_id)
        before = sandbox.result
        await self.sandboxes.end(sandbox, ended("terminated"))
        return api.SandboxTerminateResponse(existing_result=before)

    @serves("SandboxGetLogs")
    async def logs(self, request: api.SandboxGetLogsRequest) -> AsyncIterator[api.TaskLogsBatch]:
        """What the entrypoint of a V1 sandbox printed, from an entry on."""
        main = self.sandboxes.get(request.sandbox_id).main
        offset = int(request.last_entry_id or 0)
        if main is not None:
            errors = request.file_descriptor == api.FILE_DESCRIPTOR_STDERR
            output = main.err if errors else main.out
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            while data := await output.read(offset):
                offset += len(data)
                text = decoder.decode(data)
                log = api.TaskLogs(data=text, file_descriptor=request.file_descriptor)
                yield api.TaskLogsBatch(entry_id=str(offset), items=[log])
        yield api.TaskLogsBatch(entry_id=str(offset), eof=True)

    @serves("SandboxStdinWrite")
    async def write(self, request: api.SandboxStdinWriteRequest) -> api.SandboxStdinWriteResponse:
        """Input for the entrypoint of a V1 sandbox."""
        main = self.sandboxes.get(request.sandbox_id).main
        if main is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "the Sandbox has no entrypoint")
        await main.write(main.taken, request.input, eof=request.eof)
        return api.SandboxStdinWriteResponse()

    def _access(self, sandbox: Sandbox) -> api.CommandRouterAccess:
        return api.CommandRouterAccess(url=self.router_url(), jwt=self.tokens.issue(sandbox.task_id))
