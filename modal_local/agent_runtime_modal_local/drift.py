"""What we rely on in Modal's protocol, written down, and a look at whether it is still so.

The messages come with the SDK, so another SDK brings other messages. Where something that we use is
gone, or where a message that says what a sandbox shall be has a field that nobody here has thought
about, the server does not start: better no local Modal than one that is silently another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from google.protobuf.descriptor import Descriptor, FileDescriptor
from modal_proto import api_pb2 as api
from modal_proto import task_command_router_pb2 as tcr

CONTROL: Final = "modal.client.ModalClient"
DATA: Final = "modal.task_command_router.TaskCommandRouter"


class Drifted(Exception):
    """The installed SDK is another one than this was written for; the text says in what."""


@dataclass(frozen=True, slots=True)
class Relied:
    """Expectations of a protocol.

    Attributes:
        release: the release of the SDK, up to its second number.
        rpcs: by service, those that are served.
        used: by message, fields that are read or filled; there may be others.
        whole: by message, all of its fields.
        statuses: how a sandbox may end.
    """

    release: str = "1.6"
    rpcs: Mapping[str, str] = field(default_factory=lambda: RPCS)
    used: Mapping[str, str] = field(default_factory=lambda: USED)
    whole: Mapping[str, str] = field(default_factory=lambda: WHOLE)
    statuses: str = (
        "UNSPECIFIED SUCCESS FAILURE TERMINATED TIMEOUT INIT_FAILURE INTERNAL_FAILURE IDLE_TIMEOUT"
        " MEMORY_MANAGER_EVICTION MEMORY_THRASHING_EVICTION KERNEL_OOM_KILL"
    )


RPCS: Final[Mapping[str, str]] = {
    CONTROL: """
        ClientHello AuthTokenGet EnvironmentGetOrCreate AppGetOrCreate
        ImageGetOrCreate ImageJoinStreaming ImageFromId ImagePublish ImageGetByTag ImageDelete
        MountBatchedCheckExistence MountPutFile MountGetOrCreate SecretGetOrCreate SecretDelete
        SandboxCreate SandboxCreateV2 SandboxGetTaskId SandboxGetTaskIdV2 SandboxWait SandboxWaitV2
        SandboxGetCommandRouterAccess TaskGetCommandRouterAccess SandboxList SandboxListV2
        SandboxTagsGet SandboxTagsGetV2 SandboxTagsSet SandboxTagsSetV2
        SandboxGetFromName SandboxGetFromNameV2 SandboxTerminate SandboxTerminateV2
        SandboxGetLogs SandboxStdinWrite
    """,
    DATA: """
        TaskExecStart TaskExecStdioRead TaskExecStdinWrite TaskExecStdinWriteStream TaskExecStdinStatus
        TaskExecPoll TaskExecWait SandboxStdioReadV2 SandboxStdinWriteV2 TaskSnapshotFilesystem
    """,
}

USED: Final[Mapping[str, str]] = {
    "AppGetOrCreateRequest": "app_name environment_name object_creation_type",
    "AppGetOrCreateResponse": "app_id handle_metadata",
    "AuthTokenGetResponse": "token",
    "BaseImage": "image_id docker_tag",
    "CommandRouterAccess": "jwt url",
    "EnvironmentSettings": "image_builder_version",
    "GenericResult": "status exitcode exception",
    "ImageContextFile": "filename data",
    "ImageGetByTagRequest": "tag",
    "ImageGetOrCreateRequest": "image force_build ignore_cache",
    "ImageGetOrCreateResponse": "image_id result metadata",
    "ImageJoinStreamingRequest": "image_id",
    "ImageJoinStreamingResponse": "result task_logs entry_id eof metadata",
    "ImagePublishRequest": "image_id tag",
    "MountBatchedCheckExistenceResponse": "missing_sha256_hex_hashes",
    "MountFile": "filename sha256_hex mode",
    "MountGetOrCreateRequest": "files",
    "MountPutFileRequest": "sha256_hex data data_blob_id",
    "PTYInfo": "enabled winsz_rows winsz_cols env_term",
    "RPCRetryPolicy": "retry_after_secs",
    "RPCStatus": "code message details",
    "SandboxCreateV2Response": "sandbox_id task_id metadata command_router_access",
    "SandboxGetCommandRouterAccessRequest": "sandbox_id task_id",
    "SandboxGetFromNameRequest": "sandbox_name environment_name app_name include_terminated",
    "SandboxGetLogsRequest": "sandbox_id file_descriptor last_entry_id",
    "SandboxGetTaskIdResponse": "task_id task_result",
    "SandboxHandleMetadata": "result app_id",
    "SandboxInfo": "id created_at app_id name tags image_id timeout_secs task_info metadata",
    "SandboxListRequest": "app_id tags before_timestamp include_finished",
    "SandboxStdinWriteRequest": "sandbox_id input eof",
    "SandboxStdinWriteV2Request": "task_id offset data eof",
    "SandboxStdioReadV2Request": "task_id offset file_descriptor",
    "SandboxStdioReadV2Response": "data starting_offset",
    "SandboxTag": "tag_name tag_value",
    "SandboxTagsSetRequest": "sandbox_id tags",
    "SandboxWaitRequest": "sandbox_id timeout",
    "SandboxWaitResponse": "result metadata",
    "SecretGetOrCreateRequest": "deployment_name env_dict object_creation_type required_keys",
    "SecretSource": "secret_id env",
    "TaskExecPollResponse": "code signal",
    "TaskExecStdinStatusResponse": "num_bytes_written closed",
    "TaskExecStdinWriteRequest": "task_id exec_id offset data eof",
    "TaskExecStdinWriteStreamRequest": "start data end",
    "TaskExecStdinWriteStreamStart": "task_id exec_id offset",
    "TaskExecStdioReadRequest": "task_id exec_id offset file_descriptor",
    "TaskExecStdioReadResponse": "data",
    "TaskExecWaitResponse": "code signal",
    "TaskLogs": "data file_descriptor",
    "TaskLogsBatch": "entry_id items eof",
    "TaskSnapshotFilesystemRequest": "task_id snapshot_id",
    "TaskSnapshotFilesystemResponse": "image_id",
}

WHOLE: Final[Mapping[str, str]] = {
    "Image": """
        arch base_images build_args build_function build_function_def build_function_globals context_files
        context_mount_id dockerfile_commands gpu_config image_registry_config runtime runtime_debug
        secret_ids version volume_mounts
    """,
    "NetworkAccess": "allowed_cidrs allowed_domains network_access_type",
    "Resources": """
        ephemeral_disk_mb gpu_config memory_mb memory_mb_max milli_cpu milli_cpu_max rdma
        skip_num_threads_env_vars
    """,
    "Sandbox": """
        _restore_instance_type block_network cloud_bucket_mounts cloud_provider cloud_provider_str
        custom_domain direct_sandbox_commands_enabled enable_snapshot entrypoint_args
        environment_variables experimental_options experimental_options_v2
        experimental_outbound_policy i6pn_enabled idle_timeout_secs image_id inbound_cidr_allowlist
        include_oidc_identity_token include_x509_svid mount_ids name network_access nfs_mounts
        open_ports outbound_policy preload_path_prefixes proxy_id pty_info readiness_probe resources
        runsc_runtime_version runtime runtime_debug s3_mounts scheduler_placement secret_ids
        snapshot_version timeout_secs verbose volume_mounts workdir worker_id
    """,
    "SandboxCreateRequest": "app_id definition environment_name tags",
    "SandboxCreateV2Request": """
        app_id cloud_bucket_mount_credentials definition ephemeral_secrets secret_sources tags
    """,
    "TaskExecStartRequest": """
        command_args container_id env exec_id pty_info runtime_debug secret_ids secret_sources
        stderr_config stdout_config task_id timeout_secs workdir
    """,
}
"""Messages that say what a sandbox or an image shall be."""


def drift(relied: Relied | None = None) -> list[str]:
    """Everything in which the installed SDK is another one, in one sentence each."""
    relied = relied or Relied()
    installed, found = version("modal"), list[str]()
    if installed.split(".")[:2] != relied.release.split("."):
        found.append(f"modal {installed} is installed, and not {relied.release}")
    for service, rpcs in relied.rpcs.items():
        found += [f"{service} has no {rpc}" for rpc in _lacking(rpcs, _rpcs(service))]
    for message, fields in {**relied.used, **relied.whole}.items():
        found += [f"{message} has no {name}" for name in _lacking(fields, _fields(message))]
    for message, fields in relied.whole.items():
        news = _lacking(" ".join(_fields(message)), fields.split())
        found += [f"{message} has {name}, which nobody has thought about" for name in news]
    values = api.GenericResult.DESCRIPTOR.enum_types_by_name["GenericStatus"].values
    statuses = [value.name.removeprefix("GENERIC_STATUS_") for value in values]
    found += [f"a sandbox cannot end as {name}" for name in _lacking(relied.statuses, statuses)]
    found += [
        f"a sandbox may end as {name}" for name in _lacking(" ".join(statuses), relied.statuses.split())
    ]
    return found


def insist() -> None:
    """Raises `Drifted` where there is any drift."""
    if found := drift():
        raise Drifted("; ".join(found))


_FILES: Final[tuple[FileDescriptor, ...]] = (api.DESCRIPTOR, tcr.DESCRIPTOR)


def _rpcs(service: str) -> list[str]:
    services = (each for file in _FILES for each in file.services_by_name.values())
    return [rpc.name for each in services if each.full_name == service for rpc in each.methods]


def _fields(message: str) -> list[str]:
    for file in _FILES:
        descriptor: Descriptor | None = file.message_types_by_name.get(message)
        if descriptor is not None:
            return [each.name for each in descriptor.fields]
    return []


def _lacking(wanted: str, there: Iterable[str]) -> list[str]:
    known = set(there)
    return [name for name in wanted.split() if name not in known]
