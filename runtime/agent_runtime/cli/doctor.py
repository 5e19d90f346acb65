"""`agent-runtime doctor`: what works on this machine, found by trying it."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from agent_runtime.ports import Capabilities
from agent_runtime_sandbox.image import agent_versions

from .composition import sandboxes, surroundings
from .settings import Settings


async def doctor(settings: Settings) -> int:
    """Print one line for each finding; 0 when agents can run here, else 1."""
    console = Console()
    version = ".".join(map(str, sys.version_info[:3]))
    console.print(f"[green]ok[/]       Python {version}")
    with TemporaryDirectory(prefix="agent-runtime-doctor-") as folder:
        async with surroundings(settings):
            provider = sandboxes(settings, Path(folder))
            found = await provider.probe()
            await provider.close()
    _tell(console, found)
    _tell_agents(console)
    _tell_installers(console)
    key = any(os.environ.get(name) for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"))
    told = "a key is in the environment" if key else "no key: set ANTHROPIC_API_KEY (the demo runs without)"
    console.print(f"{'[green]ok[/]      ' if key else '[yellow]missing[/] '} model: {told}")
    return 0 if found.available else 1


def _tell(console: Console, found: Capabilities) -> None:
    mark = "[green]ok[/]      " if found.available else "[red]missing[/] "
    console.print(f"{mark} sandbox '{found.provider}': {found.isolation}")
    if found.available:
        bounded = ", ".join(name.removesuffix("_bytes") for name in found.enforces) or "nothing"
        console.print(f"           bounded in a sandbox: {bounded}", highlight=False)
    for reason in found.reasons:
        console.print(f"           {reason}", highlight=False, markup=False)


def _tell_agents(console: Console) -> None:
    """Local sandboxes have what is installed here, images what this distribution pins."""
    for agent, pinned in agent_versions().items():
        try:
            here = metadata.version(agent)
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here == pinned:
            console.print(f"[green]ok[/]       agent {agent} {pinned}", highlight=False)
        else:
            console.print(f"[yellow]differs[/]  agent {agent}: {here}; images have {pinned}", highlight=False)


def _tell_installers(console: Console) -> None:
    """What brings the packages that a profile asks for; nobody needs them otherwise."""
    there = {
        "pip": util.find_spec("pip") is not None,
        "npm": shutil.which("npm") is not None and shutil.which("node") is not None,
        "apt": shutil.which("dpkg-query") is not None,
    }
    missing = [name for name, found in there.items() if not found]
    if missing:
        told = f"profiles cannot ask for packages of {', '.join(missing)} in local sandboxes"
        console.print(f"[yellow]missing[/]  {told}")
    else:
        console.print("[green]ok[/]       profiles can ask for packages of pip, npm and apt")
