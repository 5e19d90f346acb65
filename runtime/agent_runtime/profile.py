"""AgentProfile: what an agent is made of, as the host gives it; and the session options beside it.

A profile names an architecture (the agent kind) and says with what instructions, tools and files
it works. It holds no secrets. Which of the options an agent kind accepts is the business of
`ports.Agent`; where profiles come from (files, the host's store) is wired by the composition root.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from agent_runtime.frozen import Frozen

DEFAULT_PROFILE_ID: Final = "default"
"""The profile that always exists: the Claude agent, its standard tools, no questions asked."""


class ProfileFields(Frozen):
    """Profiles are written by people: an unknown field is a typing error, so it is refused."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid", ser_json_bytes="base64"
    )


class SubagentProfile(ProfileFields):
    """A named child agent that the main one may call. `tools` None means all of the parent's."""

    description: str
    prompt: str
    tools: tuple[str, ...] | None = None
    model: str | None = None


class AgentProfile(ProfileFields):
    """The recipe of an agent.

    `instructions` is added to the agent's own system prompt; `tools` None means the agent's
    standard tools and otherwise really restricts them; `files` are written into a new session's
    workspace (relative path to text); `options` are the architecture's defaults, which a session's
    own options override.
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


def default_profile() -> AgentProfile:
    """The profile `default` (`wire.md` section 3); a host or a file may replace it."""
    return AgentProfile(
        profile_id=DEFAULT_PROFILE_ID,
        name="Claude",
        description="The Claude agent with its standard tools, in a sandbox; it asks no questions.",
    )
