"""What the Claude agent is started with: the runtime's options as fields of the SDK's, and its environment.

Without the SDK, and without asyncio: an agent may be started before either is imported (`claude_early`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agent_runtime_sandbox.drivers import DriverError, Places
from agent_runtime_sandbox.drivers.fresh import FreshFolders

MAX_NATIVE_LINE_BYTES: Final = 64 * 1024 * 1024

MODEL_RETRIES: Final = 10
"""How often the agent asks again when its model does not answer, or the runtime is away with the gateway.

Growing pauses of 0.5 to some 38 s: in all, two to three minutes until the turn fails.
"""

_FOREIGN_SETTINGS: Final = ("ANTHROPIC_", "CLAUDE_", "CLAUDECODE", "OTEL_", "NODE_OPTIONS")
"""Names that would steer the agent past the gateway or load foreign code; never inherited."""

_SETTINGS: Final = json.dumps({"crossSessionInbound": "refuse"})
"""The binary listens on a socket, which it names to its tools, for prompts of other sessions: none are
taken, or whatever a tool left running could begin turns that nobody asked for."""


_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "model": str,
    "permissionMode": str,
    "instructions": str,
    "tools": list,
    "subagents": dict,
    "maxTurns": int,
    "maxBudgetUsd": (int, float),
    "resume": str,
    "gatewayToken": str,
}


def check(options: Mapping[str, Any]) -> None:
    """Raises `DriverError` for what is no option, or of the wrong type."""
    for name, value in options.items():
        if name not in _OPTIONS:
            raise DriverError("invalid_options", f"unknown option {name!r}")
        if value is not None and not isinstance(value, _OPTIONS[name]):
            raise DriverError("invalid_options", f"option {name!r} has the wrong type")


def leave_foreign_settings() -> None:
    """Clear this process's environment, which the agent inherits."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN_SETTINGS)]:
        del os.environ[name]
    # It asks the binary for its version, in a process without the agent's user and environment.
    os.environ["CLAUDE_AGENT_SDK_SKIP_VERSION_CHECK"] = "1"


def sdk_fields(
    options: Mapping[str, Any],
    places: Places,
    folders: FreshFolders,
    *,
    resume: str | None,
    store: object,
    stderr: Callable[[str], None],
) -> dict[str, Any]:
    """The fields of `ClaudeAgentOptions`, but for subagents; camelCase names as in `_OPTIONS`.

    `options` are checked. `store` is where the SDK mirrors the transcript to, and where it finds what is
    resumed. Raises `DriverError`.
    """
    prompt = {"type": "preset", "preset": "claude_code"}
    if instructions := options.get("instructions"):
        prompt["append"] = instructions
    return {
        "cwd": places.workspace,
        "env": _environment(places, folders, options.get("gatewayToken") or ""),
        "cli_path": _binary(places),
        "user": places.user,
        "system_prompt": prompt,
        "model": options.get("model"),
        "permission_mode": options.get("permissionMode") or "bypassPermissions",
        "tools": options.get("tools"),
        "max_turns": options.get("maxTurns"),
        "max_budget_usd": options.get("maxBudgetUsd"),
        "resume": resume,
        "session_store": store,
        "session_store_flush": "eager",
        # Nothing that lies in the workspace may configure the agent: its hooks would run here.
        "setting_sources": [],
        "settings": _SETTINGS,
        "strict_mcp_config": True,
        "include_partial_messages": True,
        "forward_subagent_text": True,
        "max_buffer_size": MAX_NATIVE_LINE_BYTES,
        # Without it the permission mode could never be changed to bypassing later on.
        "extra_args": {"allow-dangerously-skip-permissions": None},
        "stderr": stderr,
    }


def _binary(places: Places) -> Path | None:
    """What to start; None: what the SDK comes with. Raises `DriverError`."""
    chosen = places.binaries.get("claude")
    if chosen is not None and os.access(chosen, os.R_OK):
        # Then its process would be open to every tool, which could speak for it.
        raise DriverError("agent_exposed", "the agent's program can be read: somebody changed it")
    return chosen


def _environment(places: Places, folders: FreshFolders, token: str) -> dict[str, str]:
    # Where the SDK unpacks a transcript that is resumed; otherwise it would be the shared /tmp.
    tempfile.tempdir = str(folders.scratch)
    environment = {
        **places.env,
        "HOME": os.environ.get("HOME") or str(places.home),
        "CLAUDE_CONFIG_DIR": str(folders.config),
        "CLAUDE_CODE_TMPDIR": str(folders.scratch),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": str(MODEL_RETRIES),
        # A file in the workspace would begin turns that nobody asked for, at the start and every minute.
        "CLAUDE_CODE_DISABLE_CRON": "1",
        "IS_SANDBOX": "1",
        "ANTHROPIC_API_KEY": token,
    }
    if places.gateway is not None:
        # The binary needs both: without the address it tries the network before the socket.
        environment |= {
            "ANTHROPIC_UNIX_SOCKET": str(places.gateway),
            "ANTHROPIC_BASE_URL": "http://localhost",
        }
    return environment
