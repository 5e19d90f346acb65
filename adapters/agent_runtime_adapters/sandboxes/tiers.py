"""Tiers: which isolation can be had on this machine, found by running a real sandbox in each manner.

From the best to the least; what a better one lacked here is told together with how to get it. Nothing
below the least is ever taken instead: then there are no sandboxes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import Capabilities
from agent_runtime_adapters.sandboxes import disk
from agent_runtime_adapters.sandboxes.bounds import Bounds
from agent_runtime_adapters.sandboxes.cgroups import NOT_OURS, find_cgroups
from agent_runtime_adapters.sandboxes.launch import NO_CGROUP, NO_DISK
from agent_runtime_adapters.sandboxes.launching import StartFailed
from agent_runtime_adapters.sandboxes.probe import explain, namespaces_are_refused, unmet

KERNEL: Final = "The kernel is shared with the host."


class Tier(StrEnum):
    """What holds a sandbox, as it is shown to people; the best first."""

    CGROUP = "bubblewrap+seccomp+netns+cgroup"
    BUBBLEWRAP = "bubblewrap+seccomp+netns"
    LANDLOCK_CGROUP = "landlock+seccomp+cgroup"
    LANDLOCK = "landlock+seccomp"


_NAMESPACES: Final = (Tier.CGROUP, Tier.BUBBLEWRAP)
WITHOUT_NAMESPACES: Final = (Tier.LANDLOCK_CGROUP, Tier.LANDLOCK)
"""Only where namespaces cannot be had: with control groups, and without."""
_WITH_GROUPS: Final = frozenset({Tier.CGROUP, Tier.LANDLOCK_CGROUP})
_LANDLOCK_LACKS: Final = (
    "Without namespaces a sandbox sees which processes and files this machine has, though it can touch none.",
    "Without namespaces there is no private /tmp or /dev/shm, and no terminal.",
    "Without namespaces there is no network inside: hosts that a profile allows cannot be reached.",
    "Without namespaces tools can reach into the agent's process.",
)

Attempt = Callable[[Tier, Bounds], Awaitable[None]]
"""Runs a sandbox in this manner. Raises `SandboxFault` where it does not work."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best that can be had; `tier` None: nothing, for these `reasons`."""

    tier: Tier | None
    bounds: Bounds = field(default_factory=Bounds)
    reasons: tuple[str, ...] = ()

    def capabilities(self, provider: str) -> Capabilities:
        """As the port says it."""
        if self.tier is None:
            return Capabilities(provider, available=False, isolation="none", reasons=self.reasons)
        reasons = (*self.reasons, *self.bounds.reasons, KERNEL)
        return Capabilities(
            provider,
            available=True,
            isolation=self.tier.value,
            reasons=reasons,
            enforces=self.bounds.enforces,
        )


async def find_best(tiers: tuple[Tier, ...], attempt: Attempt) -> Found:
    """Try the tiers; those that are not among `tiers` are left out."""
    namespaces = [tier for tier in _NAMESPACES if tier in tiers]
    missing = unmet(bubblewrap=bool(namespaces))
    if missing is not None:
        return Found(None, reasons=(missing,))
    bounds = _what_could_bound(use_cgroups=bool(_WITH_GROUPS & set(tiers)))
    refused: tuple[str, ...] = ()
    if namespaces:
        found = await _best_of(namespaces, bounds, attempt)
        if isinstance(found, Found):
            return found
        refused = (explain(found),)
        if not namespaces_are_refused(found):
            return Found(None, reasons=refused)
    least = [tier for tier in WITHOUT_NAMESPACES if tier in tiers]
    if not least:
        return Found(None, reasons=refused)
    lacks = (*bounds.lacks, *([f"For a disk of its own: {disk.NO_NAMESPACES}"] if bounds.disks else []))
    found = await _best_of(least, replace(bounds, disks=None, lacks=lacks), attempt)
    if isinstance(found, Found):
        return replace(found, reasons=(*refused, *_LANDLOCK_LACKS))
    return Found(None, reasons=(*refused, explain(found)))


async def _best_of(tiers: Sequence[Tier], bounds: Bounds, attempt: Attempt) -> Found | SandboxFault:
    """The best of these tiers with as many of the bounds as can be had, or why there is none."""
    while True:
        fits = [tier for tier in tiers if (tier in _WITH_GROUPS) == (bounds.cgroups is not None)]
        if not fits:
            return SandboxFault(" ".join(bounds.lacks))
        try:
            await attempt(fits[0], bounds)
        except SandboxFault as fault:
            weaker = _without(bounds, fault)
            if weaker is None:
                return fault
            bounds = weaker
        else:
            return Found(fits[0], bounds)


def _what_could_bound(*, use_cgroups: bool) -> Bounds:
    """What seems to be there; whether it works is for a sandbox to show."""
    root, mkfs = os.geteuid() == 0, disk.find_mkfs()
    found = find_cgroups() if use_cgroups else "Control groups are not to be used."
    lacks = [found] if isinstance(found, str) else []
    if not root:
        lacks.append(f"For a disk of its own: {disk.NOT_ROOT}")
    elif mkfs is None:
        lacks.append(f"For a disk of its own: {disk.NO_MKFS}")
    return Bounds(
        cgroups=None if isinstance(found, str) else found,
        disks=disk.DiskImages(mkfs) if root and mkfs is not None else None,
        own_uid=root,
        lacks=tuple(lacks),
    )


def _without(bounds: Bounds, fault: SandboxFault) -> Bounds | None:
    """The same without what a sandbox could not have; None where that is not what was wrong."""
    missing = fault.missing if isinstance(fault, StartFailed) else NO_CGROUP  # not even begun
    if missing == NO_CGROUP and bounds.cgroups is not None:
        return replace(bounds, cgroups=None, lacks=(*bounds.lacks, NOT_OURS))
    if missing == NO_DISK and bounds.disks is not None:
        return replace(bounds, disks=None, lacks=(*bounds.lacks, f"For a disk of its own: {disk.NO_LOOP}"))
    return None
