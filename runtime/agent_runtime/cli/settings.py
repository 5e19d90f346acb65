"""Settings: what the command line and a configuration file say, checked.

A file is YAML with the names below in camelCase; what is given on the command line wins over it.
Secrets are not settings: keys and the token come from the environment.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, ValidationError

from agent_runtime.errors import InvalidRequest
from agent_runtime.frozen import Strict
from agent_runtime.needs import DEFAULT_RESOURCES, Resources, VariableName
from agent_runtime.pool import PoolSettings
from agent_runtime.profile import FileRules
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions

_MIB: Final = 1024 * 1024
_LARGEST_FILE: Final = 1 * _MIB


class SandboxKind(StrEnum):
    """The providers that this command line can name."""

    LOCAL = "local"
    MODAL = "modal"
    MODAL_LOCAL = "modal-local"
    UNSAFE_SUBPROCESS = "unsafe-subprocess"


class Settings(Strict):
    """How `serve` runs. `profiles` is a folder; None: `<data>/profiles`. `modal` is for Modal alone."""

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    data: Path = Path("agent-runtime-data")
    sandbox: SandboxKind = SandboxKind.LOCAL
    profiles: Path | None = None
    open_access: bool = False
    cors_origins: tuple[str, ...] = ()
    preview_origin: str | None = Field(
        default=None, pattern=r"^https?://\*(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+(:\d{1,5})?$"
    )
    max_message_bytes: int = Field(default=_MIB, ge=1)
    max_file_bytes: int = Field(default=32 * _MIB, ge=1)
    file_rules: FileRules = FileRules()
    resources: Resources = DEFAULT_RESOURCES
    secrets: tuple[VariableName, ...] = Field(default=(), max_length=50)
    viewer_backlog_bytes: int = Field(default=8 * _MIB, ge=64 * 1024)
    coalesce_within_s: float = Field(default=0.05, ge=0, le=1)
    sync_interval_s: float = Field(default=1.0, gt=0)
    runner_silence_s: float = Field(default=45.0, gt=0)
    interrupt_grace_s: float = Field(default=10.0, gt=0)
    wake_timeout_s: float = Field(default=60.0, gt=0)
    orphan_timeout_s: float = Field(default=600.0, gt=0)
    agent_idle_timeout_s: float = Field(default=300.0, gt=0)
    sandbox_idle_timeout_s: float = Field(default=1200.0, gt=0)
    session_idle_timeout_s: float = Field(default=600.0, gt=0)
    pool: PoolSettings = PoolSettings()
    reap_interval_s: float = Field(default=60.0, gt=0)
    modal: ModalOptions = ModalOptions()


def read_settings(file: Path | None, given: dict[str, Any]) -> Settings:
    """The file's settings with what was `given` (not None) over them.

    Raises `InvalidRequest` with one sentence that names the file or the setting.
    """
    told: dict[str, Any] = {}
    if file is not None:
        told = _read(file)
    told.update({name: value for name, value in given.items() if value is not None})
    try:
        return Settings.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"setting '{name}': {first['msg']}", code="invalid_settings") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise InvalidRequest(f"{file.name} is too large for a configuration", code="invalid_settings")
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or "not YAML"
        raise InvalidRequest(f"cannot read {file.name}: {why}", code="invalid_settings") from error
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
        raise InvalidRequest(f"{file.name} is not a mapping of settings", code="invalid_settings")
    return {_snake(name): value for name, value in told.items()}


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
