"""Catalogue: the agent profiles of a runtime: the one that always exists, the store's, the host's.

Looked up anew each time, so that a changed profile counts from the next sandbox on.
"""

from __future__ import annotations

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import NotFound
from agent_runtime.profile import AgentProfile, default_profile


class Catalogue:
    """Profiles by id; the configuration's win over the store's, and those over `default`."""

    def __init__(self, config: RuntimeConfig) -> None:
        self._configured = config.profiles
        self._persistence = config.persistence

    async def all(self) -> tuple[AgentProfile, ...]:
        """All profiles, sorted by id."""
        given = await self._configured() if callable(self._configured) else self._configured
        stored = await self._persistence.list_profiles()
        known = {profile.profile_id: profile for profile in (default_profile(), *stored, *given)}
        return tuple(profile for _, profile in sorted(known.items()))

    async def one(self, profile_id: str) -> AgentProfile:
        """One profile. Raises `NotFound` (`profile_not_found`)."""
        for profile in await self.all():
            if profile.profile_id == profile_id:
                return profile
        raise NotFound("There is no such profile.", code="profile_not_found")
