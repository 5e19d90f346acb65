"""The image's description as images of Modal: one for each layer, built once, found again by name.

What is in an image is said by `agent_runtime_sandbox.image`; here is how Modal is told. Modal keeps
each layer by its definition, so what did not change is not built again; a whole image is published
under a name that holds its digest, so one that is there costs a single question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, assert_never

import modal
import structlog
from modal.exception import ImageBuildError, NotFoundError

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes.modal.calls import call
from agent_runtime_sandbox.image import Apt, Base, Files, Layer, Recipe, Shell, Step, Variables

LOOKUP_S: Final = 60.0
"""For the questions whether an app, or an image of a name, is there."""
LAYER_S: Final = 1800.0
"""For the building of one layer."""

NOT_THERE: Final = "Modal has no environment of that name, or takes no such name."

Told = Callable[[Layer, float | None], None]
"""Told a layer when it begins (None), and again with the seconds that it took."""

_log = structlog.get_logger(__name__)


def layered(wanted: Recipe) -> Iterator[tuple[Layer, modal.Image]]:
    """Each layer as an image on top of the one before. Nothing is asked of Modal yet."""
    image: modal.Image | None = None
    for layer in wanted.layers:
        image = _on_top(image, layer.step)
        yield layer, image


class Images:
    """The images of one app, each looked up or built once by this process.

    Args:
        app: as `modal.App.lookup` gives it.
        environment: Modal's environment of that app; None: the account's own choice.
    """

    def __init__(self, app: modal.App, *, environment: str | None = None) -> None:
        self._app = app
        self._environment = environment
        self._ready: dict[str, modal.Image] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def of(self, wanted: Recipe, told: Told | None = None) -> modal.Image:
        """The image, ready for `Sandbox.create`: found by its name, else built and published.

        Raises `SandboxFault`: `image_failed` where a layer could not be built, `sandbox_unavailable`
        where there is no account or Modal does not answer.
        """
        async with self._making.setdefault(wanted.digest, asyncio.Lock()):
            ready = self._ready.get(wanted.digest) or await self.published(wanted)
            if ready is None:
                ready = await self._build(wanted, told)
            self._ready[wanted.digest] = ready
        self._making.pop(wanted.digest, None)
        return ready

    async def published(self, wanted: Recipe) -> modal.Image | None:
        """The image of that name, None where there is none. Raises `SandboxFault`."""

        async def looked_up() -> modal.Image | None:
            named = modal.Image.from_name(wanted.name, environment_name=self._environment)
            try:
                return await named.build.aio(self._app)
            except NotFoundError:
                return None

        return await call(looked_up(), LOOKUP_S)

    async def _build(self, wanted: Recipe, told: Told | None) -> modal.Image:
        _log.info("image_building", image=wanted.name)
        image: modal.Image | None = None
        for layer, image in layered(wanted):
            began = time.monotonic()
            if told is not None:
                told(layer, None)
            await call(self._built(layer, image), LAYER_S)
            if told is not None:
                told(layer, time.monotonic() - began)
        assert image is not None
        published = image.publish.aio(wanted.name, environment_name=self._environment)
        await call(published, LOOKUP_S, missing=_not_had())
        _log.info("image_published", image=wanted.name)
        return image

    async def _built(self, layer: Layer, image: modal.Image) -> None:
        try:
            await image.build.aio(self._app)
        except ImageBuildError as error:
            detail = (
                f"The layer '{layer.name}' of the image could not be built. "
                f"Its log: modal image logs {error.image_id}"
            )
            raise SandboxFault(detail, code="image_failed", retryable=False) from error


async def open_app(name: str, environment: str | None = None) -> modal.App:
    """The app of that name, made where there is none. Raises `SandboxFault` (`sandbox_unavailable`)."""
    found = modal.App.lookup.aio(name, environment_name=environment, create_if_missing=True)
    return await call(found, LOOKUP_S, missing=_not_had())


def _not_had() -> SandboxFault:
    return SandboxFault(NOT_THERE, code="sandbox_unavailable", retryable=False)


def _on_top(below: modal.Image | None, step: Step) -> modal.Image:
    if isinstance(step, Base):
        return modal.Image.debian_slim(python_version=step.python)
    assert below is not None, "a recipe begins with its base"
    match step:
        case Apt(packages):
            return below.apt_install(*packages)
        case Shell(commands):
            return below.run_commands(*commands)
        case Variables(env):
            return below.env(dict(env))
        case Files(folder, target, digests):
            return below.add_local_dir(folder, target, copy=True, ignore=_all_but(frozenset(digests)))
    assert_never(step)


def _all_but(names: frozenset[str]) -> Callable[[Path], bool]:
    return lambda path: str(path) not in names
