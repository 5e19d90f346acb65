"""The step between the runtime and a sandbox: a program of its own.

    python -I -S launch.py SOCKET

It may be started before there is anything to do: it waits at the socket for descriptors. The first reads as
a plan (JSON, see `launching.Plan`), the next three are where to complain, where to report, and where the
word to go on comes from; all others are the program's. Then, in this order, it joins the sandbox's control
groups; mounts its disk and gathers the sources of its mounts where a plain uid can reach them; becomes that
uid; takes the limits; hands the process over to init, so that the sandbox belongs to nobody who may be
restarted; waits until the runtime has noted its pid; puts the descriptors in their places; and becomes
the wanted program. Whoever closes the other end before saying "go" ends it. Standard library only, few
imports: it is on the way to every first message.
"""

import _socket
import _thread
import ctypes
import errno
import fcntl
import json
import os
import resource
import struct
import sys
import time
from typing import Any, NoReturn

NOT_JOINED: list[str] = []
JOINING = _thread.allocate_lock()
LIBC = ctypes.CDLL(None, use_errno=True)


def join(groups: list[str]) -> None:
    """Begin to join control groups, in a thread, for that takes 10 ms of waiting; see `joined`."""
    JOINING.acquire()

    def work() -> None:
        NOT_JOINED.extend(group for group in groups if not write(f"{group}/cgroup.procs", b"0"))
        JOINING.release()

    _thread.start_new_thread(work, ())


def write(path: str, value: bytes) -> bool:
    """Write a setting of the kernel; whether it took it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, value)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


NO_MOUNT_NAMESPACE = 10
NO_STAGE = 11
NO_IDENTITY = 12
NO_CGROUP = 13
NO_DISK = 14

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_NOATIME = 0x2, 0x4, 0x400
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LO_FLAGS_AUTOCLEAR = 0x4C0A, 0x4C82, 4
LOOP_TRIES = 64
ABOVE_ALL_PLACES = 100
MOST_DESCRIPTORS = 64
DISK = "disk"
"""Where the sandbox's own file system is, below the stage."""
RATHER_THAN_OTHERS = b"500"
"""A machine that is out of memory ends sandboxes before it ends those who made them."""


def main() -> NoReturn:
    """Do what the plan says; see the module."""
    told, complaints, report, go, *others = received(int(sys.argv[1]))
    os.dup2(complaints, 2)
    os.close(complaints)
    with open(told, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        plan = json.load(file)
    if plan["cgroups"]:
        join(plan["cgroups"])
    write("/proc/self/oom_score_adj", RATHER_THAN_OTHERS)
    if plan["stage"]:
        stage(plan["stage"]["folder"], plan["stage"]["sources"], plan["stage"]["disk"])
    joined()
    if plan["uid"] is not None:
        become(plan["uid"])
    for name, bound in plan["limits"].items():
        limit(getattr(resource, f"RLIMIT_{name}"), bound)
    hand_over(report, go)
    os.chdir(plan["cwd"])
    place(dict(zip(plan["places"], others, strict=True)))
    run(plan["argv"], plan["env"])


def received(door: int) -> list[int]:
    """Wait for the descriptors; ends the process where none come, because the runtime has."""
    way = _socket.socket(fileno=door)
    size = _socket.CMSG_SPACE(MOST_DESCRIPTORS * struct.calcsize("i"))
    _, carried, _, _ = way.recvmsg(1, size, _socket.MSG_CMSG_CLOEXEC)
    way.close()
    numbers = b"".join(data for _, _, data in carried)
    if not numbers:
        os._exit(0)
    return list(struct.unpack(f"{len(numbers) // struct.calcsize('i')}i", numbers))


def joined() -> None:
    """Wait until the control groups are joined; what is forked from then on is in them."""
    with JOINING:
        if NOT_JOINED:
            give_up(NO_CGROUP)


def stage(folder: str, sources: list[str], disk: dict[str, Any] | None) -> None:
    """Bind each source to `folder/<its number>`, in a mount namespace that nobody else sees.

    A source that is no absolute path is a folder of the sandbox's own disk.
    """
    if LIBC.unshare(CLONE_NEWNS) != 0:
        give_up(NO_MOUNT_NAMESPACE)
    try:
        mount(None, "/", MS_REC | MS_PRIVATE)
        # Opened before the folder is covered: a source may lie below it.
        opened = {s: os.open(s, os.O_PATH | os.O_CLOEXEC) for s in sources if s.startswith("/")}
        image = os.open(disk["image"], os.O_RDWR | os.O_CLOEXEC) if disk else None
        mount("stage", folder, MS_NOSUID | MS_NODEV, kind="tmpfs", data="mode=0755,size=64k")
        if disk and image is not None:
            mount_disk(image, f"{folder}/{DISK}")
            for name in disk["folders"]:
                inside = f"{folder}/{DISK}/{name}"
                os.mkdir(inside, 0o700)  # noqa: PTH102
                os.chown(inside, disk["uid"], disk["uid"])
                opened[name] = os.open(inside, os.O_PATH | os.O_CLOEXEC)
        for number, descriptor in enumerate(opened[source] for source in sources):
            source, target = f"/proc/self/fd/{descriptor}", f"{folder}/{number}"
            if os.path.isdir(source):  # noqa: PTH112
                os.mkdir(target)  # noqa: PTH102
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            mount(source, target, MS_BIND | MS_REC)
            os.close(descriptor)
    except OSError:
        give_up(NO_STAGE)


def mount_disk(image: int, target: str) -> None:
    """Mount the file system in a file. Its loop device frees itself with the last user. Raises `OSError`."""
    # struct loop_config: descriptor, block size, struct loop_info64 (flags at 52 of 232 bytes), reserved
    settings = struct.pack("II52xI176x64x", image, 0, LO_FLAGS_AUTOCLEAR)
    os.mkdir(target, 0o700)  # noqa: PTH102
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        for _ in range(LOOP_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, settings)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
                continue  # somebody else was faster
            flags = MS_NOSUID | MS_NODEV | MS_NOATIME
            mount(path, target, flags, kind="ext4", data="noinit_itable,nobarrier")
            os.close(device)
            os.close(control)
            os.close(image)
            return
    except OSError:
        pass
    give_up(NO_DISK)


def mount(source: str | None, target: str, flags: int, *, kind: str = "", data: str = "") -> None:
    """Do one step of the mount table. Raises `OSError`."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    if LIBC.mount(*encoded, ctypes.c_ulong(flags), data.encode()) != 0:
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


def place(places: dict[int, int]) -> None:
    """Move descriptors to the numbers that the program expects, and leave no other copy of them."""
    lifted = {
        number: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL_PLACES)
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
