"""`agent-runtime deploy-image`: build the sandbox's image in the user's Modal account, and publish it.

Standard output gets the published names, one a line; what is going on goes to standard error. An
image whose content is published already is not built again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Self

from rich.console import Console
from rich.markup import escape

from agent_runtime.errors import InvalidRequest
from agent_runtime.profile import DEFAULT_PROFILE_ID, AgentProfile
from agent_runtime_sandbox.image import Layer, Recipe

from .composition import image_for, known_profiles, modal_images
from .settings import Settings


async def deploy_image(
    settings: Settings, profile_ids: Sequence[str], *, app: str | None, environment: str | None
) -> None:
    """Publish the images of these profiles; without any, that of the profile `default`.

    Raises `InvalidRequest` for a profile that is not known, `SandboxFault` where Modal cannot be used
    or a layer cannot be built.
    """
    wanted = _by_recipe(_chosen(known_profiles(settings), profile_ids or (DEFAULT_PROFILE_ID,)))
    images = await modal_images(app or settings.modal.app, environment or settings.modal.environment)
    console = Console(stderr=True)
    for recipe, names in wanted:
        told = f"[bold]{recipe.name}[/] for {escape(', '.join(names))}"
        console.print(told, highlight=False, soft_wrap=True)
        with _Progress(console) as progress:
            await images.of(recipe, progress.told)
        if not progress.built:
            console.print("  is published already: nothing to build")
        sys.stdout.write(f"{recipe.name}\n")
        sys.stdout.flush()


class _Progress:
    """Layers as lines: the one that is being built with a sign of life where somebody watches."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self.built = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def told(self, layer: Layer, seconds: float | None) -> None:
        """As `Images.of` tells it."""
        if seconds is None:
            self._stack.enter_context(self._console.status(f"  building {layer.name}"))
            return
        self._stack.close()
        self.built += 1
        self._console.print(
            f"  [green]ok[/] {layer.name:<8} {layer.digest[:12]} {seconds:6.1f} s", highlight=False
        )


def _chosen(known: Iterable[AgentProfile], profile_ids: Sequence[str]) -> list[AgentProfile]:
    profiles = {profile.profile_id: profile for profile in known}
    for profile_id in profile_ids:
        if profile_id not in profiles:
            raise InvalidRequest(f"there is no profile called '{profile_id}'", code="profile_not_found")
        if profiles[profile_id].sandbox.image is not None:
            detail = f"the profile '{profile_id}' names an image of its own: there is nothing to build"
            raise InvalidRequest(detail, code="image_named")
    return [profiles[profile_id] for profile_id in dict.fromkeys(profile_ids)]


def _by_recipe(profiles: Iterable[AgentProfile]) -> list[tuple[Recipe, list[str]]]:
    """Profiles that need the same share an image."""
    wanted: dict[str, tuple[Recipe, list[str]]] = {}
    for profile in profiles:
        recipe = image_for(profile)
        wanted.setdefault(recipe.digest, (recipe, []))[1].append(profile.profile_id)
    return list(wanted.values())
