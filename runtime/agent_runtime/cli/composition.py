"""Composition: where adapters meet the runtime. The only module of this package that names them.

<data>/lock              held while a runtime serves from here (`folder`)
<data>/runtime-id        labels this runtime's sandboxes, the same after every restart
<data>/agent-runtime.db  sessions, blocks, turns, transcripts, files
<data>/sandboxes/        one folder per living sandbox; `dependencies`: the packages of profiles
<data>/gateway/          one socket per session
<data>/profiles/         agent profiles as files, unless another folder is set
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import InvalidRequest
from agent_runtime.gateway.broker import Gateway
from agent_runtime.ports import Authenticator, ModelGateway, SandboxProvider
from agent_runtime.profile import AgentProfile, default_profile
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.profiles.files import FileProfiles
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.packages import recipe_for
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from agent_runtime_sandbox.image import USER, Recipe

from .settings import SandboxKind, Settings

if TYPE_CHECKING:
    from agent_runtime_adapters.sandboxes.modal.image import Images

_NO_SDK: Final = "Modal's SDK is not installed: pip install 'agent-runtime[modal]'"
_NO_USERS: Final = (
    "A local Modal has a user of its own for the agent only where root runs it; choose another sandbox, or "
    "run this as root."
)

_log = structlog.get_logger(__name__)


def compose(
    settings: Settings, *, authenticator: Authenticator | None, gateway: ModelGateway | None = None
) -> RuntimeConfig:
    """Build the configuration of a served runtime; `gateway` None: to the environment's own model.

    Raises ValueError where the environment names an unusable model address or credential, or
    the settings a folder of profiles that is not there.
    """
    data = settings.data.resolve()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    profiles = _profiles(settings.profiles, data / "profiles")

    return RuntimeConfig(
        persistence=SqlitePersistence(data / "agent-runtime.db"),
        log=MemoryEventLog(),
        sandboxes=sandboxes(settings, data / "sandboxes", ahead=True),
        agents=(ClaudeAgent(),),
        gateway=gateway or Gateway.from_environment(data / "gateway"),
        authenticator=authenticator,
        open_access=settings.open_access,
        profiles=profiles,
        runtime_id=_runtime_id(data / "runtime-id"),
        cors_origins=settings.cors_origins,
        preview_origin=settings.preview_origin,
        max_message_bytes=settings.max_message_bytes,
        max_file_bytes=settings.max_file_bytes,
        file_rules=settings.file_rules,
        resources=settings.resources,
        secrets=_secrets(settings.secrets),
        viewer_backlog_bytes=settings.viewer_backlog_bytes,
        coalesce_within_s=settings.coalesce_within_s,
        sync_interval_s=settings.sync_interval_s,
        runner_silence_s=settings.runner_silence_s,
        interrupt_grace_s=settings.interrupt_grace_s,
        wake_timeout_s=settings.wake_timeout_s,
        orphan_timeout_s=settings.orphan_timeout_s,
        agent_idle_timeout_s=settings.agent_idle_timeout_s,
        sandbox_idle_timeout_s=settings.sandbox_idle_timeout_s,
        session_idle_timeout_s=settings.session_idle_timeout_s,
        pool=settings.pool,
        reap_interval_s=settings.reap_interval_s,
    )


def known_profiles(settings: Settings) -> tuple[AgentProfile, ...]:
    """The built-in profile and those of the folder, which may replace it. Raises `InvalidRequest`."""
    if settings.profiles is not None and not settings.profiles.is_dir():
        detail = f"there is no folder of profiles called '{settings.profiles.name}'"
        raise InvalidRequest(detail, code="invalid_settings")
    folder = settings.profiles or settings.data / "profiles"
    if not folder.is_dir():
        return (default_profile(),)
    files = FileProfiles(folder)
    for problem in files.problems():
        _log.warning("profile_refused", problem=problem)
    return (default_profile(), *files.profiles())


def image_for(profile: AgentProfile) -> Recipe:
    """The image that its sandboxes need. Raises `SandboxFault` for what is no package."""
    return recipe_for(profile.sandbox.dependencies)


async def modal_images(app: str, environment: str | None) -> Images:
    """The images of the user's Modal account. Raises `InvalidRequest` where Modal's SDK is missing."""
    try:
        from agent_runtime_adapters.sandboxes.modal.image import Images, open_app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidRequest(_NO_SDK, code="modal_not_installed") from error
    return Images(await open_app(app, environment), environment=environment)


def _profiles(chosen: Path | None, own: Path) -> Callable[[], Awaitable[tuple[AgentProfile, ...]]]:
    """Profiles from a folder, read again when it changes; what is wrong with them is logged once."""
    if chosen is None:
        own.mkdir(exist_ok=True)
    elif not chosen.is_dir():
        raise ValueError(f"there is no folder of profiles called '{chosen.name}'")
    files = FileProfiles(chosen or own)
    told: set[str] = set()

    async def profiles() -> tuple[AgentProfile, ...]:
        found = files.profiles()
        for problem in set(files.problems()) - told:
            told.add(problem)
            _log.warning("profile_refused", problem=problem)
        return found

    return profiles


def sandboxes(settings: Settings, root: Path, *, ahead: bool = False) -> SandboxProvider:
    """The provider that the settings name, keeping its sandboxes below `root` where they are of this machine.

    `ahead` as `LocalSandboxes` has it: for who is going to make some.
    Raises `InvalidRequest` where Modal's SDK is missing.
    """
    match settings.sandbox:
        case SandboxKind.LOCAL:
            return LocalSandboxes(root, ahead=ahead)
        case SandboxKind.UNSAFE_SUBPROCESS:
            return UnsafeSubprocess(root)
        case SandboxKind.MODAL:
            return _modal(settings.modal)
        case SandboxKind.MODAL_LOCAL:
            return _modal(settings.modal, name=settings.sandbox.value, isolation="namespaces")


@asynccontextmanager
async def surroundings(settings: Settings) -> AsyncIterator[None]:
    """What the sandboxes need besides this process: for `modal-local` a local Modal, while the block runs.

    Raises `InvalidRequest` where there can be none.
    """
    if settings.sandbox is not SandboxKind.MODAL_LOCAL:
        yield
        return
    try:
        from agent_runtime_modal_local import LocalModal, LocalModalError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidRequest("The local Modal is not installed.", code="modal_not_installed") from error
    local = LocalModal()
    try:
        await asyncio.to_thread(local.start)
    except LocalModalError as error:
        raise InvalidRequest(str(error), code="modal_local_unavailable") from error
    try:
        if USER not in local.users:
            raise InvalidRequest(_NO_USERS, code="modal_local_unavailable")
        with local.in_environment():
            yield
            await _close_modals_client()
    finally:
        await asyncio.to_thread(local.stop)


def _modal(options: ModalOptions, **names: str) -> SandboxProvider:
    """Imported by whoever asks for it: Modal's SDK takes half a second."""
    try:
        from agent_runtime_adapters.sandboxes.modal.provider import ModalSandboxes  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidRequest(_NO_SDK, code="modal_not_installed") from error
    return ModalSandboxes(options, **names)


async def _close_modals_client() -> None:
    from agent_runtime_adapters.sandboxes.modal.account import close_client  # noqa: PLC0415

    await close_client()


def _secrets(names: tuple[str, ...]) -> dict[str, str]:
    """Their values in the environment. Raises ValueError for one that is not set."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f"the setting 'secrets' names {', '.join(missing)}, which the environment does not hold"
        )
    return {name: os.environ[name] for name in names}


def _runtime_id(file: Path) -> str:
    """Made once per data folder: two runtimes on one machine never end each other's sandboxes."""
    if not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="ascii")
    return file.read_text(encoding="ascii").strip()
