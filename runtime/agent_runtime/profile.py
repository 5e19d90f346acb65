"""AgentProfile: what an agent is made of, as the host gives it; and the session options beside it.

A profile names an architecture (the agent kind) and says with what instructions, tools and files
it works. It holds no secrets. Which of the options an agent kind accepts is the business of
`ports.Agent`; where profiles come from (files, the host's store) is wired by the composition root.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from agent_runtime.frozen import Strict
from agent_runtime.needs import SandboxNeeds

DEFAULT_PROFILE_ID: Final = "default"
"""The profile that always exists: the Claude agent, its standard tools, no questions asked."""


_MIB: Final = 1024 * 1024
_Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\x00]+$")]


class FileRules(Strict):
    """Which files of a workspace are kept.

    `ignore`: directories of these names are left alone, wherever they are in the tree (`*`, `?` and
    `[...]` as in a shell). Files over `max_file_bytes` are kept without their content; beyond
    `max_files` further files are not kept at all. A client is shown the rules with the manifest.
    """

    ignore: tuple[_Name, ...] = Field(
        default=(".git", "node_modules", ".venv", "__pycache__", "target", "dist", ".cache"), max_length=1000
    )
    max_file_bytes: int = Field(default=32 * _MIB, ge=0, le=256 * _MIB)
    max_files: int = Field(default=100_000, ge=1, le=1_000_000)

    def within(self, bounds: FileRules) -> FileRules:
        """These rules, with no cap above that of the others."""
        return self.model_copy(
            update={
                "max_file_bytes": min(self.max_file_bytes, bounds.max_file_bytes),
                "max_files": min(self.max_files, bounds.max_files),
            }
        )


class SubagentProfile(Strict):
    """A named child agent that the main one may call. `tools` None means all of the parent's."""

    description: str
    prompt: str
    tools: tuple[str, ...] | None = None
    model: str | None = None


class AgentProfile(Strict):
    """The recipe of an agent.

    `instructions` is added to the agent's own system prompt; `tools` None means the agent's
    standard tools and otherwise really restricts them; `files` are written into a new session's
    workspace (relative path to text); `options` are the architecture's defaults, which a session's
    own options override. `file_rules` take the place of the runtime's, but for their caps, which a
    profile can only lower. `sandbox` is what it asks of the place where it works (`needs`).
    """

    profile_id: str = Field(min_length=1, max_length=200)
    name: str
    description: str = ""
    architecture: str = "claude-agent-sdk"
    instructions: str | None = None
    model: str | None = None
    tools: tuple[str, ...] | None = None
    subagents: dict[str, SubagentProfile] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    file_rules: FileRules | None = None
    sandbox: SandboxNeeds = Field(default_factory=SandboxNeeds)

    def rules(self, general: FileRules) -> FileRules:
        """The rules that hold for this agent's workspaces, where those of the runtime are these."""
        return general if self.file_rules is None else self.file_rules.within(general)


def default_profile() -> AgentProfile:
    """The profile `default` (`wire.md` section 3); a host or a file may replace it."""
    return AgentProfile(
        profile_id=DEFAULT_PROFILE_ID,
        name="Claude",
        description="The Claude agent with its standard tools, in a sandbox; it asks no questions.",
    )
