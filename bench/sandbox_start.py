"""Start of a sandbox: until a program runs in it, and until its runner greets; and what one weighs.

Beside it in the same rounds: a plain process, and a bare bubblewrap line as the manual would have it
(no seccomp filter, no uid of its own, no limits, nothing that outlives whoever started it). What an
agent adds to a start is `start`'s business.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from agent_runtime.ports import SandboxProvider, SandboxSpec
from agent_runtime.testing.runner_talk import gateway, greeted
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.provider import ModalSandboxes
from agent_runtime_adapters.sandboxes.registry import Registry
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from agent_runtime_modal_local import LocalModal
from figures import ratio, save, summary, table
from memory import mib
from picture import Bar, Panel
from processes import memory
from rounds import rounds

MS = 1000.0
PLAIN, BARE = "plain process, first line", "bare bubblewrap, first line"
SAY_READY = ("/bin/sh", "-c", "echo ready")
NOBODY = 65534
IDLE_SANDBOXES = 10
SETTLE_S = 2.0

Once = Callable[[], Awaitable[float]]
"""Does it once and returns the seconds that are counted."""


async def process(*argv: str) -> float:
    """Start a command that says a line and ends; until the line."""
    began = time.perf_counter()
    start = partial(asyncio.create_subprocess_exec, *argv, stdout=asyncio.subprocess.PIPE)
    is_root = os.geteuid() == 0
    started = await (start(user=NOBODY, group=NOBODY, extra_groups=[]) if is_root else start())
    assert started.stdout is not None
    assert await started.stdout.readline() == b"ready\n"
    took = time.perf_counter() - began
    await started.wait()
    return took


def bare_bubblewrap() -> tuple[str, ...]:
    """The shortest line that isolates something."""
    program = shutil.which("bwrap")
    assert program is not None, "bubblewrap is not installed"
    links = [Path(name) for name in ("/bin", "/lib", "/lib64") if Path(name).is_symlink()]
    return (
        *(program, "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"),
        *(part for link in links for part in ("--symlink", str(link.readlink()), str(link))),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"),  # noqa: S108 - inside
        *SAY_READY,
    )


def creation(provider: SandboxProvider, spec: SandboxSpec, *, until_greeted: bool) -> Once:
    """Make a sandbox and end it; until it is there, or until its runner has greeted."""

    async def once() -> float:
        began = time.perf_counter()
        sandbox = await provider.create(spec)
        if until_greeted:
            await greeted(sandbox)
        took = time.perf_counter() - began
        await sandbox.stop()
        return took

    return once


@asynccontextmanager
async def contestants(root: Path) -> AsyncIterator[dict[str, Once]]:
    """Everything that is started, by name."""
    async with AsyncExitStack() as stack:
        spec = stack.enter_context(gateway())
        local, unsafe = LocalSandboxes(root / "local"), UnsafeSubprocess(root / "unsafe")
        server = await stack.enter_async_context(LocalModal(root / "modal"))
        stack.enter_context(server.in_environment())
        modal = ModalSandboxes(ModalOptions())
        yield {
            PLAIN: lambda: process(*SAY_READY),
            BARE: lambda: process(*bare_bubblewrap()),
            "unsafe-subprocess: it runs": creation(unsafe, spec, until_greeted=False),
            "local: it runs": creation(local, spec, until_greeted=False),
            "unsafe-subprocess: the runner greets": creation(unsafe, spec, until_greeted=True),
            "local: the runner greets": creation(local, spec, until_greeted=True),
            "modal, on a local server: the runner greets": creation(modal, spec, until_greeted=True),
        }
        await modal.close()
        await local.close()
        await unsafe.close()


async def starts(root: Path, count: int) -> dict[str, list[float]]:
    """The seconds of each by round."""
    async with contestants(root) as named:
        return await rounds(named, count)


async def weight(root: Path, count: int) -> dict[str, float]:
    """What one sandbox with its idle runner adds: memory of its own processes, mean of so many."""
    provider = LocalSandboxes(root / "weighed")
    with gateway() as spec:
        made = [await provider.create(spec) for _ in range(count)]
        try:
            for sandbox in made:
                await greeted(sandbox)
            await asyncio.sleep(SETTLE_S)
            runners = bubblewraps = 0
            for record in Registry(root / "weighed").all():
                assert record.keeper is not None
                assert record.inner is not None
                for mark in (record.keeper, record.inner):
                    bubblewraps += memory(mark.pid).pss
                runners += sum(memory(mark.pid).pss for mark in record.inner.children())
        finally:
            for sandbox in made:
                with contextlib.suppress(Exception):
                    await sandbox.stop()
    return {
        "runner": mib(runners / count, 0)["pss_mib"],
        "bubblewrap": mib(bubblewraps / count, 0)["pss_mib"],
    }


async def measure(count: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="agent-runtime-bench-") as folder:
        root = Path(folder)
        return await starts(root, count), await weight(root, IDLE_SANDBOXES)


def tell(started: dict[str, list[float]], weights: dict[str, float]) -> tuple[dict[str, Any], Panel]:
    """Print it; return what is kept and drawn."""
    figures = {name: summary(samples, MS) for name, samples in started.items()}
    ratios = {name: ratio(samples, started[PLAIN]) for name, samples in started.items()}
    table(
        "Start, ms",
        ["what", "median", "min", "max", "x plain"],
        [
            [name, *(row[key] for key in ("median", "min", "max")), ratios[name]["of_medians"]]
            for name, row in figures.items()
        ],
    )
    table("Memory of a sandbox with an idle runner, PSS in MiB", ["what", "PSS"], weights.items())
    bars = [Bar.of(name, row, ours=name not in {PLAIN, BARE}) for name, row in figures.items()]
    told = {"unit": "ms", "starts": figures, "ratio_to_plain": ratios, "sandbox_pss_mib": weights}
    return told, Panel("Start, ms", bars)


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="sandbox_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="of each (default: 30)")
    options = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    told, panel = tell(*asyncio.run(measure(options.rounds)))
    save("sandbox_start", told, panel)


if __name__ == "__main__":
    main()
