"""Images: a chain of layers, each recorded; what a layer copies is really there, what it runs is not run.

An image is a tree of files on top of what every sandbox here has (`enclosure`), and the environment
and the folder that its layers name. A snapshot is an image too. Installing packages, or anything
else that a layer would run, is written down and believed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
import shutil
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.enclosure import ENVIRONMENT, Enclosures

ID_LETTERS: Final = string.ascii_letters + string.digits
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        tree: the files that it adds, or None.
        commands: all lines of all its layers, the first one first.
        env: what its layers set.
        workdir: what its layers name, or empty.
    """

    image_id: str
    tree: Path | None = None
    commands: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""


class Images:
    """All images, their names, and the files that were sent to be put into them."""

    def __init__(self, folder: Path, enclosures: Enclosures) -> None:
        self._folder = folder
        self._enclosures = enclosures
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._mounts: dict[str, Path] = {}
        self.build_failure: str | None = None
        """While this is a text, no layer can be built, and this is why."""

    def get(self, image_id: str) -> Image:
        """Raises `GRPCError` (NOT_FOUND)."""
        if image_id not in self._images:
            raise GRPCError(Status.NOT_FOUND, f"Image {image_id} not found")
        return self._images[image_id]

    def known(self) -> tuple[Image, ...]:
        """All that are kept, snapshots too."""
        return tuple(self._images.values())

    async def build(self, layer: api.Image, *, again: bool) -> tuple[Image, bool]:
        """The image of a layer, and whether it was there already. Raises `GRPCError` (NOT_FOUND)."""
        digest = hashlib.sha256(layer.SerializeToString(deterministic=True)).hexdigest()
        image_id = new_id("im-") if again else f"im-{digest[:22]}"
        if image_id in self._images:
            return self._images[image_id], True
        base = self.get(layer.base_images[0].image_id) if layer.base_images else Image("")
        built = _described(image_id, base, layer.dockerfile_commands)
        added = self._scratch(image_id)
        if self._copied(layer, base, added):
            tree = self._tree(image_id)
            if base.tree is not None:
                await self._enclosures.copy(base.tree, tree)
            await self._enclosures.copy(added, tree)
            shutil.rmtree(added)
            built = Image(image_id, tree, built.commands, built.env, built.workdir)
        self._images[image_id] = built
        return built, False

    async def keep(self, source: Path, of: Image) -> Image:
        """A snapshot: the files of a folder, and what else the image said that they began with."""
        image_id = new_id("im-")
        tree = self._tree(image_id)
        await self._enclosures.copy(source, tree)
        self._images[image_id] = Image(image_id, tree, of.commands, of.env, of.workdir)
        return self._images[image_id]

    async def unpack(self, image: Image, mounts: Iterable[str], root: Path) -> None:
        """Put the files of an image, and of mounts over it, into a folder."""
        if image.tree is not None:
            await self._enclosures.copy(image.tree, root)
        for mount_id in mounts:
            await self._enclosures.copy(self._mount(mount_id), root)

    def delete(self, image_id: str) -> None:
        """Forget an image and its files. Raises `GRPCError` (NOT_FOUND)."""
        image = self.get(image_id)
        del self._images[image_id]
        self._names = {name: named for name, named in self._names.items() if named != image_id}
        if image.tree is not None and all(other.tree != image.tree for other in self._images.values()):
            shutil.rmtree(image.tree, ignore_errors=True)

    def publish(self, name: str, image_id: str) -> None:
        """Give an image a name, which another one may have had before. Raises `GRPCError`."""
        self._names[name] = self.get(image_id).image_id

    def published(self, name: str) -> Image:
        """Raises `GRPCError` (NOT_FOUND)."""
        if name not in self._names:
            raise GRPCError(Status.NOT_FOUND, f"Image '{name}' not found")
        return self.get(self._names[name])

    def has_file(self, sha256: str) -> bool:
        """Whether a file with this content was sent before."""
        return self._blob(sha256).exists()

    def put_file(self, sha256: str, data: bytes) -> None:
        """Keep a file. Raises `GRPCError` (INVALID_ARGUMENT) where the sum is another one."""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise GRPCError(Status.INVALID_ARGUMENT, "the content is not what its sum says")
        path = self._blob(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def mount(self, files: Iterable[api.MountFile]) -> str:
        """Lay files out as they shall lie in a sandbox; the id of that. Raises `GRPCError`."""
        files = tuple(files)
        said = json.dumps([(file.filename, file.sha256_hex, file.mode) for file in files])
        mount_id = f"mo-{hashlib.sha256(said.encode()).hexdigest()[:22]}"
        if mount_id in self._mounts:
            return mount_id
        tree = self._folder / "mounts" / mount_id
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        for file in files:
            place = _below(tree, file.filename)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._blob(file.sha256_hex), place)
            place.chmod(file.mode & 0o777 or 0o644)
        self._mounts[mount_id] = tree
        return mount_id

    def _mount(self, mount_id: str) -> Path:
        if mount_id not in self._mounts:
            raise GRPCError(Status.NOT_FOUND, f"Mount {mount_id} not found")
        return self._mounts[mount_id]

    def _copied(self, layer: api.Image, base: Image, added: Path) -> bool:
        """Carry out the COPY lines of a layer; whether there were any that copied something."""
        context = self._context(layer)
        workdir = base.workdir or "/"
        for line in layer.dockerfile_commands:
            word, _, rest = line.partition(" ")
            if word == "WORKDIR":
                workdir = str(PurePosixPath(workdir, shlex.split(rest)[0]))
            elif word == "COPY" and "--" not in rest:
                *sources, target = shlex.split(rest)
                for source in sources:
                    _copy(
                        _below(context, source),
                        source,
                        _below(added, str(PurePosixPath(workdir, target))),
                        target,
                    )
        shutil.rmtree(context, ignore_errors=True)
        return added.exists()

    def _context(self, layer: api.Image) -> Path:
        """The files that a layer may copy from, in a folder of their own."""
        context = self._scratch(new_id("context-"))
        if layer.context_mount_id:
            shutil.copytree(self._mount(layer.context_mount_id), context)
        for file in layer.context_files:
            place = _below(context, file.filename)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.data)
        return context

    def _blob(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise GRPCError(Status.INVALID_ARGUMENT, "not a sum")
        return self._folder / "files" / sha256

    def _tree(self, image_id: str) -> Path:
        return self._folder / "images" / image_id

    def _scratch(self, name: str) -> Path:
        return self._folder / "scratch" / name


def new_id(prefix: str, length: int = 22) -> str:
    """An id as Modal makes them."""
    return prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(length))


def _described(image_id: str, base: Image, lines: Iterable[str]) -> Image:
    """What the lines of a layer say, on top of what its base says."""
    env, workdir, lines = dict(base.env), base.workdir, tuple(lines)
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "ENV":
            for setting in shlex.split(rest):
                name, _, value = setting.partition("=")
                env[name] = string.Template(value).safe_substitute({**ENVIRONMENT, **env})
        elif word == "WORKDIR":
            workdir = str(PurePosixPath(workdir or "/", shlex.split(rest)[0]))
    return Image(image_id, base.tree, (*base.commands, *lines), env, workdir)


def _copy(source: Path, said: str, target: Path, target_said: str) -> None:
    """One COPY, from our own copy of the context into an empty layer: nothing here is anybody's link."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        if target_said.endswith("/"):
            target = target / PurePosixPath(said).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _below(folder: Path, path: str) -> Path:
    """A place in a folder, whatever the path says. Raises `GRPCError` (INVALID_ARGUMENT)."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    if ".." in parts:
        raise GRPCError(Status.INVALID_ARGUMENT, "a path leads out of its folder")
    return folder.joinpath(*parts)
