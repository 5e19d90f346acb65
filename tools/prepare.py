"""Prepare: see that this machine has what a target needs; install it where we may, say how where not.

Run by the Makefile with the target's name: `python` (before there is an environment), `demo`, `test`
or `bench`. Standard library only. System packages are installed with apt when this runs as root on a
Debian or Ubuntu; everywhere else the missing ones are named, with the command that brings them, and
the exit code is 1.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
BUBBLEWRAP = ("bwrap", "bubblewrap", "the local sandbox")
NEEDS = {
    "python": (),
    "demo": (BUBBLEWRAP,),
    "test": (
        BUBBLEWRAP,
        ("chromium", "chromium", "the console's browser story"),
        ("node", "nodejs", "the stories with the official socket.io client"),
        ("npm", "npm", "installing that client"),
        ("curl", "curl", "the ways out of a sandbox"),
        ("git", "git", "the ways out of a sandbox"),
    ),
    "bench": (
        BUBBLEWRAP,
        ("node", "nodejs", "the peers in Node.js"),
        ("npm", "npm", "installing those peers"),
        ("git", "git", "the revision that bench-gate compares with"),
    ),
}
OF_ROOT = {"test": (("mkfs.ext4", "e2fsprogs", "disks of their own for the sandboxes of root"),)}
"""What is needed besides by whoever is root."""
ADMINISTRATORS = "/usr/sbin:/sbin"
"""Where programs may lie that are not on everybody's path."""
ROOT = Path(__file__).resolve().parent.parent
NODE_PACKAGES = {"test": ROOT / "tests" / "clients", "bench": ROOT / "bench" / "peers"}
"""Where a target's packages for Node.js are listed, and are installed to."""


def main() -> int:
    """Check, install, or say what is missing; the exit code tells which."""
    target = sys.argv[1] if len(sys.argv) == 2 else ""
    if target not in NEEDS:
        return fail(f"usage: prepare.py {'|'.join(NEEDS)}")
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        return fail(f"Python 3.11 or newer is needed; this is {found}. Try: make PYTHON=python3.11")
    if target == "python" and not has_venv():
        return fail("Python's venv module is missing: apt-get install python3-venv")
    needs = (*NEEDS[target], *(OF_ROOT.get(target, ()) if is_root() else ()))
    path = f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATORS}"
    missing = [need for need in needs if shutil.which(need[0], path=path) is None]
    if missing and not install([package for _, package, _ in missing]):
        for command, package, purpose in missing:
            print(f"missing: {command} (for {purpose}): apt-get install {package}", file=sys.stderr)
        return 1
    packages = NODE_PACKAGES.get(target)
    if packages is not None and not (packages / "node_modules" / ".package-lock.json").exists():
        return subprocess.call(
            ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(packages)]
        )
    return 0


def has_venv() -> bool:
    """Debian ships Python without it."""
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def is_root() -> bool:
    """Whether the system's packages are ours to install."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def install(packages: list[str]) -> bool:
    """Install with apt where that is ours to do; False where it is not, or did not work."""
    if shutil.which("apt-get") is None or not is_root():
        return False
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    steps = (["apt-get", "update", "--quiet"], command)
    return all(subprocess.call(step, env=quiet, stdout=subprocess.DEVNULL) == 0 for step in steps)


def fail(sentence: str) -> int:
    """One clear line, and the exit code for it."""
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
