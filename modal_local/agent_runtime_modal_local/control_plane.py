"""The control plane: what the SDK asks of `ModalClient`, for apps, images, files and secrets.

The calls about sandboxes are next door, in `sandbox_calls`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf import empty_pb2
from google.protobuf.descriptor import ServiceDescriptor
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.accounts import CREATING, Account
from agent_runtime_modal_local.faults import Faults
from agent_runtime_modal_local.images import Images
from agent_runtime_modal_local.rpc import Metadata, Replies, Service, serves
from agent_runtime_modal_local.sandbox import Result
from agent_runtime_modal_local.tokens import Tokens

BUILDER: Final = "2025.06"
"""The image builder that we say we are; the SDK shapes its layers by it."""


class ControlPlane(Service):
    """Apps, images, mounts, secrets. `SandboxCalls` adds the rest."""

    descriptor: ServiceDescriptor = api.DESCRIPTOR.services_by_name["ModalClient"]

    def __init__(
        self, faults: Faults, replies: Replies, account: Account, images: Images, tokens: Tokens
    ) -> None:
        super().__init__(faults, replies)
        self.account = account
        self.tokens = tokens
        self._images = images

    def authorise(self, metadata: Metadata) -> None:
        """Only with the credentials of the account."""
        if not self.account.admits(metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")):
            detail = "Token validation failed: invalid token id or secret"
            raise GRPCError(Status.UNAUTHENTICATED, detail)

    @serves("ClientHello")
    async def hello(self, request: empty_pb2.Empty) -> api.ClientHelloResponse:
        """A client greets."""
        del request
        return api.ClientHelloResponse(image_builder_version=BUILDER)

    @serves("AuthTokenGet")
    async def auth_token(self, request: api.AuthTokenGetRequest) -> api.AuthTokenGetResponse:
        """The token that V2 calls carry beside the credentials."""
        del request
        return api.AuthTokenGetResponse(token=self.tokens.issue("account"))

    @serves("EnvironmentGetOrCreate")
    async def environment(
        self, request: api.EnvironmentGetOrCreateRequest
    ) -> api.EnvironmentGetOrCreateResponse:
        """Every environment is there."""
        settings = api.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = api.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api.EnvironmentGetOrCreateResponse(environment_id="en-local", metadata=metadata)

    @serves("AppGetOrCreate")
    async def app(self, request: api.AppGetOrCreateRequest) -> api.AppGetOrCreateResponse:
        """Look an app up, or make it."""
        create = request.object_creation_type in CREATING
        app_id = self.account.app(request.environment_name, request.app_name, create=create)
        handle = api.AppHandleMetadata(
            app_id=app_id, description=request.app_name, environment_name=request.environment_name
        )
        return api.AppGetOrCreateResponse(app_id=app_id, handle_metadata=handle)

    @serves("ImageGetOrCreate")
    async def image(self, request: api.ImageGetOrCreateRequest) -> api.ImageGetOrCreateResponse:
        """A layer: at once if it is known; otherwise the client has to follow the building of it."""
        image, known = await self._images.build(
            request.image, again=request.force_build or request.ignore_cache
        )
        result = Result(status=Result.GENERIC_STATUS_SUCCESS) if known else None
        return api.ImageGetOrCreateResponse(
            image_id=image.image_id, result=result, metadata=_image_metadata()
        )

    @serves("ImageJoinStreaming")
    async def follow_build(
        self, request: api.ImageJoinStreamingRequest
    ) -> AsyncIterator[api.ImageJoinStreamingResponse]:
        """The log of a build, then how it ended."""
        image = self._images.get(request.image_id)
        for number, line in enumerate(image.commands):
            log = api.TaskLogs(data=f"=> {line}\n", file_descriptor=api.FILE_DESCRIPTOR_STDOUT)
            yield api.ImageJoinStreamingResponse(entry_id=str(number + 1), task_logs=[log])
        if self._images.build_failure is not None:
            self._images.delete(request.image_id)
            result = Result(status=Result.GENERIC_STATUS_FAILURE, exception=self._images.build_failure)
        else:
            result = Result(status=Result.GENERIC_STATUS_SUCCESS)
        yield api.ImageJoinStreamingResponse(result=result, eof=True, metadata=_image_metadata())

    @serves("ImageFromId")
    async def image_by_id(self, request: api.ImageFromIdRequest) -> api.ImageFromIdResponse:
        """Any image, a snapshot too."""
        image = self._images.get(request.image_id)
        return api.ImageFromIdResponse(image_id=image.image_id, metadata=_image_metadata())

    @serves("ImagePublish")
    async def publish(self, request: api.ImagePublishRequest) -> api.ImagePublishResponse:
        """Give an image a name."""
        self._images.publish(request.tag, request.image_id)
        return api.ImagePublishResponse(image_id=request.image_id, revision_id=request.image_id)

    @serves("ImageGetByTag")
    async def image_by_name(self, request: api.ImageGetByTagRequest) -> api.ImageGetByTagResponse:
        """The image that has a name."""
        return api.ImageGetByTagResponse(image_id=self._images.published(request.tag).image_id)

    @serves("ImageDelete")
    async def delete_image(self, request: api.ImageDeleteRequest) -> empty_pb2.Empty:
        """Forget one."""
        self._images.delete(request.image_id)
        return empty_pb2.Empty()

    @serves("MountBatchedCheckExistence")
    async def missing_files(
        self, request: api.MountBatchedCheckExistenceRequest
    ) -> api.MountBatchedCheckExistenceResponse:
        """Which files have to be sent."""
        missing = [sha256 for sha256 in request.sha256_hex_hashes if not self._images.has_file(sha256)]
        return api.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    @serves("MountPutFile")
    async def put_file(self, request: api.MountPutFileRequest) -> api.MountPutFileResponse:
        """Take a file of less than 4 MiB."""
        match request.WhichOneof("data_oneof"):
            case "data":
                self._images.put_file(request.sha256_hex, request.data)
            case "data_blob_id":
                detail = "the local Modal takes no files of 4 MiB and more"
                raise GRPCError(Status.UNIMPLEMENTED, detail)
        return api.MountPutFileResponse(exists=self._images.has_file(request.sha256_hex))

    @serves("MountGetOrCreate")
    async def mount(self, request: api.MountGetOrCreateRequest) -> api.MountGetOrCreateResponse:
        """Files at their places. One that is only named (Modal's own Pythons) is empty here."""
        mount_id = self._images.mount(request.files)
        return api.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=api.MountHandleMetadata())

    @serves("SecretGetOrCreate")
    async def secret(self, request: api.SecretGetOrCreateRequest) -> api.SecretGetOrCreateResponse:
        """Look a secret up, or make it."""
        secret_id, variables = self.account.secret(request)
        metadata = api.SecretMetadata(name=request.deployment_name, keys=list(variables))
        return api.SecretGetOrCreateResponse(secret_id=secret_id, metadata=metadata)

    @serves("SecretDelete")
    async def delete_secret(self, request: api.SecretDeleteRequest) -> empty_pb2.Empty:
        """Forget one."""
        self.account.delete_secret(request.secret_id)
        return empty_pb2.Empty()


def _image_metadata() -> api.ImageMetadata:
    return api.ImageMetadata(image_builder_version=BUILDER)
