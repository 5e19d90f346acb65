"""What the Claude agent is started with: the runtime's options as the SDK's, its environment, its folders.

And what the SDK would start for them: it is asked, so that an agent can be started before there is
anybody to speak to it (`early`). That is why this imports no more of the SDK than makes up the command
line, and no asyncio: 65 ms instead of 190.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio

from agent_runtime_sandbox.drivers import DriverError, Places
from agent_runtime_sandbox.drivers.absent import absent, body_later
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent
from agent_runtime_sandbox.drivers.fresh import FreshFolders, fresh_folders

with body_later("claude_agent_sdk"), absent("importlib.metadata"):
    # The latter tells the name of an app, which an SDK of this version never asks for; 13 ms.
    from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
    from claude_agent_sdk.types import AgentDefinition, ClaudeAgentOptions, SystemPromptPreset

_log = logging.getLogger(__name__)

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


def sdk_options(
    options: Mapping[str, Any],
    places: Places,
    folders: FreshFolders,
    *,
    resume: str | None,
    store: Any,
    stderr: Callable[[str], None],
) -> ClaudeAgentOptions:
    """Read the runtime's options, which are checked; camelCase names as in `_OPTIONS`. Raises `DriverError`.

    `store` is where the SDK mirrors the transcript to, and where it finds what is resumed.
    """
    prompt = SystemPromptPreset(type="preset", preset="claude_code")
    if instructions := options.get("instructions"):
        prompt["append"] = instructions
    return ClaudeAgentOptions(
        cwd=places.workspace,
        env=_environment(places, folders, options.get("gatewayToken") or ""),
        cli_path=_binary(places),
        user=places.user,
        system_prompt=prompt,
        model=options.get("model"),
        permission_mode=options.get("permissionMode") or "bypassPermissions",
        tools=options.get("tools"),
        agents=_subagents(options.get("subagents") or {}),
        max_turns=options.get("maxTurns"),
        max_budget_usd=options.get("maxBudgetUsd"),
        resume=resume,
        session_store=store,
        session_store_flush="eager",
        # Nothing that lies in the workspace may configure the agent: its hooks would run here.
        setting_sources=[],
        settings=_SETTINGS,
        strict_mcp_config=True,
        include_partial_messages=True,
        forward_subagent_text=True,
        max_buffer_size=MAX_NATIVE_LINE_BYTES,
        # Without it the permission mode could never be changed to bypassing later on.
        extra_args={"allow-dangerously-skip-permissions": None},
        stderr=stderr,
    )


def begin_early(options: Mapping[str, Any], places: Places) -> EarlyAgent | None:
    """Start the agent before its driver is there, where that can be done; the driver asks for it again.

    None where a conversation is resumed, which the SDK first lays out, and where anything goes wrong:
    then the driver starts it itself, and tells what is wrong.
    """
    if options.get("resume") is not None:
        return None
    try:
        check(options)
        leave_foreign_settings()
        folders = fresh_folders(places.home)
        # Where its transcript goes to is the driver's business; that there is such a place is not.
        told = sdk_options(options, places, folders, resume=None, store=_Absent(), stderr=_unheard)
        asked = _what_the_sdk_starts(told)
        return EarlyAgent(asked, folders) if asked is not None else None
    except (DriverError, OSError, ValueError):
        return None


@contextmanager
def opening(instead: Callable[..., Awaitable[Any]]) -> Iterator[None]:
    """Have the SDK call this where it would open a process (`anyio.open_process`)."""
    before = anyio.open_process
    setattr(anyio, "open_process", instead)  # noqa: B010 - a type checker knows it as a function
    try:
        yield
    finally:
        setattr(anyio, "open_process", before)  # noqa: B010


class _Asked(BaseException):
    """Ends what the SDK was doing when it came to open a process. It must not take it for a failure."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked


def _what_the_sdk_starts(options: ClaudeAgentOptions) -> Asked | None:
    """Have it come to the point. None where it has to wait for something before, which needs a loop."""

    async def tell(command: list[str], **how: Any) -> Any:
        raise _Asked(Asked(command, how))

    transport = SubprocessCLITransport(prompt=cast("Any", _Absent()), options=options)
    try:
        # Before it comes to the point it would look for this in a thread.
        transport._cli_path = transport._cli_path or transport._find_cli()  # noqa: SLF001
        with opening(tell), absent("opentelemetry"), closing(transport.connect()) as connecting:
            connecting.send(None)
    except _Asked as asked:
        return asked.asked
    except Exception:
        _log.debug("not started early", exc_info=True)
    return None


class _Absent:
    """Stands for the messages to come and for the session store: the SDK asks whether there are any."""


def _unheard(_: str) -> None:
    """Stands for who is told of the agent's complaints: it makes the SDK ask for them."""


def _binary(places: Places) -> Path | None:
    """What to start; None: what the SDK comes with. Raises `DriverError`."""
    chosen = places.binaries.get("claude")
    if chosen is not None and os.access(chosen, os.R_OK):
        # Then its process would be open to every tool, which could speak for it.
        raise DriverError("agent_exposed", "the agent's program can be read: somebody changed it")
    return chosen


def _subagents(given: Mapping[str, Any]) -> dict[str, AgentDefinition] | None:
    try:
        return {
            name: AgentDefinition(
                description=spec["description"],
                prompt=spec["prompt"],
                tools=spec.get("tools"),
                model=spec.get("model"),
            )
            for name, spec in given.items()
        } or None
    except (KeyError, TypeError, AttributeError) as error:
        raise DriverError("invalid_options", "a subagent needs `description` and `prompt`") from error


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
