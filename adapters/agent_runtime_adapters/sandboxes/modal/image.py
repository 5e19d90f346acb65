"""The image's description as images of Modal: one for each layer, built once, found again by name.

What is in an image is said by `agent_runtime_sandbox.image`; here is how Modal is told. Modal keeps
each layer by its definition, so what did not change is not built again; a whole image is published
under a name that holds its digest, so one that is there costs a single question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, assert_never

import modal
from modal.exception import (
    AuthError,
    ImageBuildError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes.packages import recipe_for
from agent_runtime_sandbox.image import (
    Apt,
    Base,
    Files,
    Layer,
    Recipe,
    Shell,
    Step,
    Variables,
)

__all__ = ["Images", "layered", "open_app", "recipe_for"]

LOOKUP_S: Final = 60.0
"""For the questions whether an app, or an image of a name, is there."""
LAYER_S: Final = 1800.0
"""For the building of one layer."""

NO_ACCOUNT: Final = (
    "No Modal account is set up here, or its token is not valid: run `modal token new`, "
    "or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET."
)

Told = Callable[[Layer, float | None], None]
"""Told a layer when it begins (None), and again with the seconds that it took."""


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
        with translated():
            named = modal.Image.from_name(wanted.name, environment_name=self._environment)
            try:
                async with asyncio.timeout(LOOKUP_S):
                    return await named.build.aio(self._app)
            except NotFoundError:
                return None

    async def _build(self, wanted: Recipe, told: Told | None) -> modal.Image:
        image: modal.Image | None = None
        for layer, image in layered(wanted):
            began = time.monotonic()
            if told is not None:
                told(layer, None)
            with translated(f"The layer '{layer.name}' of the image could not be built."):
                async with asyncio.timeout(LAYER_S):
                    await image.build.aio(self._app)
            if told is not None:
                told(layer, time.monotonic() - began)
        assert image is not None
        with translated():
            async with asyncio.timeout(LOOKUP_S):
                await image.publish.aio(wanted.name, environment_name=self._environment)
        return image


async def open_app(name: str, environment: str | None = None) -> modal.App:
    """The app of that name, made where there is none. Raises `SandboxFault` (`sandbox_unavailable`)."""
    with translated():
        async with asyncio.timeout(LOOKUP_S):
            return await modal.App.lookup.aio(name, environment_name=environment, create_if_missing=True)


@contextmanager
def translated(build_failed: str = "The image could not be built.") -> Iterator[None]:
    """What Modal says about images, as a `SandboxFault` without a word of its own."""
    try:
        yield
    except ImageBuildError as error:
        detail = f"{build_failed} Its log: modal image logs {error.image_id}"
        raise SandboxFault(detail, code="image_failed", retryable=False) from error
    except (AuthError, PermissionDeniedError) as error:
        raise SandboxFault(NO_ACCOUNT, code="sandbox_unavailable", retryable=False) from error
    except (InvalidError, NotFoundError) as error:
        detail = "Modal does not know the app or environment of that name, or takes no such name."
        raise SandboxFault(detail, code="sandbox_unavailable", retryable=False) from error
    except TimeoutError as error:
        raise SandboxFault("Modal took too long to answer.", code="sandbox_unavailable") from error
    except (modal.Error, ConnectionError) as error:
        raise SandboxFault("Modal does not answer.", code="sandbox_unavailable") from error


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
