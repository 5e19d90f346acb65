"""What a profile depends on, as the image's description has it: for every provider the same."""

from __future__ import annotations

from functools import lru_cache

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Dependencies
from agent_runtime_sandbox.image import BadRequirement, Packages, Recipe, recipe


def packages_of(dependencies: Dependencies) -> Packages:
    """The packages, checked and in their one spelling. Raises `SandboxFault` (`invalid_dependency`)."""
    try:
        return Packages.of(pip=dependencies.pip, npm=dependencies.npm, apt=dependencies.apt)
    except BadRequirement as error:
        raise SandboxFault(f"{error}.", code="invalid_dependency", retryable=False) from error


@lru_cache(maxsize=256)
def recipe_for(dependencies: Dependencies) -> Recipe:
    """The image with these packages. Raises `SandboxFault` (`invalid_dependency`)."""
    return recipe(packages_of(dependencies))
