"""The step between the runtime and a sandbox: a program of its own.

    python -I -S launch.py PLAN_FD

Reads a plan (JSON, see `launching.Plan`), and then, in this order: gathers the sources of the
sandbox's mounts where a plain uid can reach them; becomes that uid; takes the limits; hands the
process over to init, so that the sandbox belongs to nobody who may be restarted; waits until the
runtime has noted its pid; puts the descriptors in their places; and becomes the wanted program.
Whoever closes the other end before saying "go" ends it. Standard library only, few imports: it is
on the way to every first message.
"""

import ctypes
import fcntl
import json
import os
import resource
import sys
import time
from typing import Any, NoReturn

NO_MOUNT_NAMESPACE = 10
NO_STAGE = 11
NO_IDENTITY = 12

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
ABOVE_ALL_PLACES = 100


def main() -> NoReturn:
    """Do what the plan says; see the module."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        plan = json.load(file)
    if plan["stage"]:
        stage(plan["stage"]["folder"], plan["stage"]["sources"])
    if plan["uid"] is not None:
        become(plan["uid"])
    for name, bound in plan["limits"].items():
        limit(getattr(resource, f"RLIMIT_{name}"), bound)
    hand_over(plan["report_fd"], plan["go_fd"])
    os.chdir(plan["cwd"])
    place(plan["places"])
    run(plan["argv"], plan["env"])


def stage(folder: str, sources: list[str]) -> None:
    """Bind each source to `folder/<its number>`, in a mount namespace that nobody else sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        give_up(NO_MOUNT_NAMESPACE)
    try:
        mount(libc, None, "/", MS_REC | MS_PRIVATE)
        # Opened before the folder is covered: a source may lie below it.
        opened = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source in sources]
        mount(libc, "stage", folder, MS_NOSUID | MS_NODEV, kind="tmpfs", data="mode=0755,size=64k")
        for number, descriptor in enumerate(opened):
            source, target = f"/proc/self/fd/{descriptor}", f"{folder}/{number}"
            if os.path.isdir(source):  # noqa: PTH112
                os.mkdir(target)  # noqa: PTH102
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            mount(libc, source, target, MS_BIND | MS_REC)
            os.close(descriptor)
    except OSError:
        give_up(NO_STAGE)


def mount(libc: Any, source: str | None, target: str, flags: int, *, kind: str = "", data: str = "") -> None:
    """Do one step of the mount table. Raises `OSError`."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    if libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def become(uid: int) -> None:
    """Give up root for good."""
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError:
        give_up(NO_IDENTITY)


def limit(kind: int, bound: int) -> None:
    """Bound a resource; a bound that is tighter already stays."""
    hard = resource.getrlimit(kind)[1]
    value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(kind, (value, value))


def hand_over(report: int, go: int) -> None:
    """Fork; the parent reports the child's pid and ends. The child returns when init has it.

    It must be init's before bubblewrap binds its inner half to its parent: otherwise the sandbox
    would end with whoever started it.
    """
    starter = os.getpid()
    child = os.fork()
    if child:
        os.write(report, b"%d\n" % child)
        os._exit(0)
    os.close(report)
    if os.read(go, 1) != b"g":
        os._exit(1)
    os.close(go)
    while os.getppid() == starter:
        time.sleep(0.0005)
    os.setsid()


def place(places: dict[str, int]) -> None:
    """Move descriptors to the numbers that the program expects, and leave no other copy of them."""
    lifted = {
        int(number): fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL_PLACES)
        for number, descriptor in places.items()
    }
    for descriptor in places.values():
        os.close(descriptor)
    for number, descriptor in lifted.items():
        os.dup2(descriptor, number, inheritable=True)


def run(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Become the program."""
    try:
        os.execve(argv[0], argv, env)  # noqa: S606 - no shell is the point
    except OSError:
        os.write(2, b"launch: the program cannot be run\n")
        os._exit(1)


def give_up(code: int) -> NoReturn:
    """End with a code that `launching` reads as a sentence."""
    os._exit(code)


if __name__ == "__main__":
    main()
