"""`agent-runtime doctor`: what works on this machine, found by trying it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from agent_runtime.ports import Capabilities

from .composition import sandboxes
from .settings import Settings


async def doctor(settings: Settings) -> int:
    """Print one line for each finding; 0 when agents can run here, else 1."""
    console = Console()
    version = ".".join(map(str, sys.version_info[:3]))
    console.print(f"[green]ok[/]       Python {version}")
    with TemporaryDirectory(prefix="agent-runtime-doctor-") as folder:
        provider = sandboxes(settings.sandbox, Path(folder))
        found = await provider.probe()
        await provider.close()
    _tell(console, found)
    key = any(os.environ.get(name) for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"))
    told = "a key is in the environment" if key else "no key: set ANTHROPIC_API_KEY (the demo runs without)"
    console.print(f"{'[green]ok[/]      ' if key else '[yellow]missing[/] '} model: {told}")
    return 0 if found.available else 1


def _tell(console: Console, found: Capabilities) -> None:
    mark = "[green]ok[/]      " if found.available else "[red]missing[/] "
    console.print(f"{mark} sandbox '{found.provider}': {found.isolation}")
    for reason in found.reasons:
        console.print(f"           {reason}")
