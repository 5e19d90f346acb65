"""ClaudeAgent: the agent kind `claude-agent-sdk`, as the runtime sees it.

Here is what a session may choose and what the driver inside the sandbox is told. The driver of the
same name (`agent_runtime_sandbox.drivers.claude`) reads exactly these options. What the agent then
says is read by `translate`, and what it kept for resuming by `transcript`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agent_runtime.blocks import MAIN, Block
from agent_runtime.errors import InvalidRequest
from agent_runtime.ports import AgentStart
from agent_runtime.profile import AgentProfile, SubagentProfile
from agent_runtime_adapters.agents.claude.transcript import read_transcript
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator

ARCHITECTURE: Final = "claude-agent-sdk"
DRIVER: Final = "claude"
PERMISSION_MODES: Final = ("bypassPermissions", "acceptEdits", "dontAsk")
"""The modes in which the agent never waits for a person: what it may not do, it is refused."""
_MAX_TURNS: Final = 1000
_MAX_BUDGET_USD: Final = 10_000.0
_MAX_MODEL_NAME: Final = 200


class ClaudeAgent:
    """Implements `ports.Agent`.

    Session options: `model` (a name), `permissionMode` (one of `PERMISSION_MODES`), `maxTurns`
    (1 to 1000 model requests in a turn), `maxBudgetUsd` (over 0, for the whole conversation).
    """

    @property
    def architecture(self) -> str:
        """`claude-agent-sdk`."""
        return ARCHITECTURE

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options as they are to be kept. Raises `InvalidRequest` that names the bad one."""
        for name, value in options.items():
            check = _CHECKS.get(name)
            if check is None:
                known = ", ".join(sorted(_CHECKS))
                raise InvalidRequest(f"Unknown session option '{name[:100]}'; known are: {known}.")
            if complaint := check(value):
                raise InvalidRequest(f"Session option '{name}' {complaint}.")
        return dict(options)

    def start(
        self,
        profile: AgentProfile,
        options: Mapping[str, Any],
        *,
        agent_session_id: str | None,
        gateway_token: str,
    ) -> AgentStart:
        """What the runner is told: the session's options over the profile's; absent means not set.

        Raises `InvalidRequest` where the profile's options are wrong.
        """
        chosen = {"model": profile.model, "permissionMode": PERMISSION_MODES[0]}
        chosen |= self.check_options(profile.options) | self.check_options(options)
        told: dict[str, Any] = {
            **chosen,
            "instructions": profile.instructions,
            "tools": None if profile.tools is None else list(profile.tools),
            "subagents": {name: _child(child) for name, child in profile.subagents.items()} or None,
            "resume": agent_session_id,
            "gatewayToken": gateway_token,
        }
        return AgentStart(DRIVER, {name: value for name, value in told.items() if value is not None})

    @property
    def steers(self) -> bool:
        """True: a message that comes while a tool runs is read before the next request to the model."""
        return True

    def translator(self, memory: Mapping[str, Any] | None = None) -> ClaudeTranslator:
        """A translator for a new agent process, or with its `memory` for one that is attached to again."""
        return ClaudeTranslator(memory)

    def read_transcript(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Block, ...]:
        """The blocks of a stored transcript, in order; see `transcript`."""
        return read_transcript(transcript)

    def remembers(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
        """Whether anything was said: the binary refuses to resume a conversation of bookkeeping alone."""
        return any(entry.get("type") in {"user", "assistant"} for entry in transcript.get(MAIN, ()))


def _child(profile: SubagentProfile) -> dict[str, Any]:
    told: dict[str, Any] = {
        "description": profile.description,
        "prompt": profile.prompt,
        "tools": None if profile.tools is None else list(profile.tools),
        "model": profile.model,
    }
    return {name: value for name, value in told.items() if value is not None}


def _bad_model(value: object) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= _MAX_MODEL_NAME and value.isprintable()
    if not isinstance(value, str) or not fits or value.startswith("-"):
        return "must be the name of a model"
    return None


def _bad_mode(value: object) -> str | None:
    return None if value in PERMISSION_MODES else f"must be one of: {', '.join(PERMISSION_MODES)}"


def _bad_turns(value: object) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_TURNS
    return None if whole else f"must be a whole number from 1 to {_MAX_TURNS}"


def _bad_budget(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_BUDGET_USD:
        return f"must be a number over 0 and at most {_MAX_BUDGET_USD:.0f}"
    return None


_CHECKS: Final[dict[str, Callable[[object], str | None]]] = {
    "model": _bad_model,
    "permissionMode": _bad_mode,
    "maxTurns": _bad_turns,
    "maxBudgetUsd": _bad_budget,
}
"""Option to its check, which returns what is wrong with a value, or None."""
