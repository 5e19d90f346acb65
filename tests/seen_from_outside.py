"""What a test sees of the sandboxes of this machine from outside: their files, processes, devices and groups.

A sandbox with a disk of its own has its files in a file system that is mounted in no place but inside; its
processes are then known by the device that it is mounted from.
"""

import json
import os
from contextlib import suppress
from pathlib import Path


def files_of(folder: Path, name: str = "workspace") -> Path:
    """Where the `workspace` or the `home` of the sandbox with this folder can be looked at."""
    if not (folder / "disk").exists():
        return folder / name
    first = json.loads((folder / "record.json").read_text())["inner"]["pid"]
    return Path(f"/proc/{first}/root") / {"workspace": "workspace", "home": "home/agent"}[name]


def processes_of(root: Path) -> list[int]:
    """All processes that have to do with a folder: by a mount, or by their environment."""
    signs = [str(root).encode(), *(f" {device} ".encode() for device in devices_of(root))]
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _knows(pid, signs)]


def devices_of(root: Path) -> list[str]:
    """The loop devices over files that lie below a folder, or lay there."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if entry.read_text().startswith(f"{root}/"):
                found.append(f"/dev/{entry.parents[1].name}")
    return found


def groups() -> set[Path]:
    """The control groups of sandboxes, of whatever runtime. They come and go while this looks."""
    walk = os.walk("/sys/fs/cgroup")
    return {Path(at, name) for at, names, _ in walk for name in names if name.startswith("agent-runtime-sb-")}


def is_empty(group: Path) -> bool:
    """Whether a control group is there and has no process."""
    with suppress(OSError):
        return (group / "cgroup.procs").read_text() == ""
    return False


def _knows(pid: int, signs: list[bytes]) -> bool:
    for name in ("mountinfo", "environ"):
        with suppress(OSError):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            if any(sign in content for sign in signs):
                return True
    return False
