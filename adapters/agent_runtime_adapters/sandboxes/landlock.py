"""The step between the launcher and a runner where there are no namespaces: a program of its own.

    python -I -S landlock.py RULES_FD

Reads rules (JSON, see `landlocked`) and forks. The child takes rules of the Landlock LSM and a seccomp
filter that it can never lose again, and becomes the runner. The parent stays outside, where nothing of the
sandbox can signal or trace it, and does three things: it answers the calls that the filter hands to it,
it adopts what the sandbox leaves behind, and when the runner ends it ends all of that.

Landlock knows nothing of two things that can be done with a path: connecting to a unix socket and changing
a mode. So these are done here, on behalf of the sandbox and for its own files only; the one socket besides
is the gateway's. Standard library only: nothing of the runtime can be imported where this runs.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
from typing import Any, NoReturn

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
SECCOMP = {"x86_64": 317, "aarch64": 277}
OPENAT2, PIDFD_GETFD = 437, 438
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36
SET_MODE_FILTER, NEW_LISTENER = 1, 8
NOTIF_RECV, NOTIF_SEND, NOTIF_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # within the file system, no magic links, no symlinks, beneath
LEAST_ABI = 6

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_BLOCK, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
ALL_FILES = (1 << 16) - 1
OF_ONE_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = ALL_FILES & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
DEVICE = READ_FILE | WRITE_FILE
ALL_OF_TCP = 3
SIGNALS_AND_ABSTRACT_SOCKETS = 3

TOO_OLD = "landlock: this kernel has not what is needed"
NO_FILTER = "landlock: the filter was refused"
NO_FOLDER = "landlock: a folder cannot be reached"
"""What is complained, for `probe` to read."""
AT_FDCWD = -100
PATH_BYTES, ADDRESS_BYTES = 4096, 110
CONNECT_WITHIN_S = 1

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Do what the rules say; see the module."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        rules = json.load(file)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    here, there = socket.socketpair()
    runner = os.fork()
    if runner == 0:
        here.close()
        become_runner(rules, there)
    there.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = received(here)
    keep_only({0, 1, 2, listener, rules["gateway_folder"]})
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    serve(runner, listener, Broker(rules["gateway"], rules["gateway_folder"], rules["own"]))


# What the child does.


def become_runner(rules: dict[str, Any], parent: socket.socket) -> NoReturn:
    """Take the rules and become the runner; on failure end with a code that tells what was refused."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        os.makedirs(rules["make"], mode=0o700, exist_ok=True)  # noqa: PTH103
    except OSError:
        give_up(NO_FOLDER)
    restrict(rules)
    listener = filtered(bytes.fromhex(rules["filter"]), rules["machine"])
    socket.send_fds(parent, [b"f"], [listener])
    for descriptor in (listener, rules["gateway_folder"]):
        os.close(descriptor)
    parent.close()
    os.chdir(rules["cwd"])
    os.execve(rules["argv"][0], rules["argv"], rules["env"])  # noqa: S606 - no shell is the point


def give_up(complaint: str) -> NoReturn:
    """Say why, and end."""
    os.write(2, f"{complaint}\n".encode())
    os._exit(1)


def restrict(rules: dict[str, Any]) -> None:
    """No file but these, no TCP, no signal to others. What is not there needs no rule."""
    if libc.syscall(CREATE_RULESET, None, 0, 1) < LEAST_ABI:
        give_up(TOO_OLD)
    handled = struct.pack("QQQ", ALL_FILES, ALL_OF_TCP, SIGNALS_AND_ABSTRACT_SOCKETS)
    ruleset = libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        give_up(TOO_OLD)
    for paths, access in ((rules["read"], READ), (rules["own"], WRITE), (rules["devices"], DEVICE)):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                allow(ruleset, path, access)
    if libc.syscall(RESTRICT_SELF, ruleset, 0) != 0:
        give_up(TOO_OLD)
    os.close(ruleset)


def allow(ruleset: int, path: str, access: int) -> None:
    """Allow this beneath a path. Raises `FileNotFoundError`."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        give_up(NO_FOLDER)
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= OF_ONE_FILE
    rule = struct.pack("=Qi", access, descriptor)
    if libc.syscall(ADD_RULE, ruleset, 1, rule, 0) != 0:
        give_up(TOO_OLD)
    os.close(descriptor)


def filtered(program: bytes, machine: str) -> int:
    """Load the filter; the descriptor on which calls are handed over."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    listener = int(libc.syscall(SECCOMP[machine], SET_MODE_FILTER, NEW_LISTENER, header))
    if listener < 0:
        give_up(NO_FILTER)
    return listener


# What the parent does.


def received(child: socket.socket) -> int:
    """The child's descriptor; ends as the child ended where it could not get so far."""
    _, descriptors, _, _ = socket.recv_fds(child, 1, 1)
    if not descriptors:
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]) & 0xFF)
    return descriptors[0]


def keep_only(kept: set[int]) -> None:
    """Close all other descriptors: the runner's journal and listener are not ours."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def serve(runner: int, listener: int, broker: "Broker") -> NoReturn:
    """Answer until the runner ends; then leave nothing of the sandbox."""
    ended = os.pidfd_open(runner)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(listener, select.POLLIN)
    while True:
        events = dict(poll.poll(1000))
        if events.get(listener, 0) & select.POLLIN:
            answer(listener, broker)
        elif listener in events:
            poll.unregister(listener)
        if ended in events:
            break
        reap(runner)
    while children := offspring():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap(None)
    os._exit(0)


def offspring() -> list[int]:
    """The pids of our children, adopted ones too, zombies included."""
    with open("/proc/self/task/%d/children" % os.getpid(), "rb") as file:  # noqa: PTH123, UP031
        return [int(pid) for pid in file.read().split()]


def reap(keep: int | None) -> None:
    """Take away the ended children, but not the runner while it is followed."""
    for pid in offspring():
        if pid != keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def answer(listener: int, broker: "Broker") -> None:
    """Take one call and say what came of it."""
    notice = array.array("B", bytes(80))
    try:
        fcntl.ioctl(listener, NOTIF_RECV, notice)
    except OSError:
        return  # who asked has ended meanwhile
    call, thread = struct.unpack_from("QI", notice)
    (number,) = struct.unpack_from("i", notice, 16)
    arguments = struct.unpack_from("6Q", notice, 32)

    def is_still_asking() -> bool:
        try:
            fcntl.ioctl(listener, NOTIF_ID_VALID, struct.pack("Q", call))
        except OSError:
            return False
        return True

    try:
        broker.perform(Caller(thread, is_still_asking), number, arguments)
        failure = 0
    except OSError as error:
        failure = -(error.errno or errno.EPERM)
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, NOTIF_SEND, struct.pack("QqiI", call, 0, failure, 0))


class Caller:
    """The thread that waits for us to do its call."""

    def __init__(self, thread: int, is_still_asking: Any) -> None:
        self.thread = thread
        self._is_still_asking = is_still_asking
        with open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            self.process = next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))

    def check(self) -> None:
        """What was read belongs to whom it was meant for. Raises `OSError`."""
        if not self._is_still_asking():
            raise OSError(errno.ESRCH, "gone")

    def memory(self, address: int, most: int) -> bytes:
        """Bytes of its memory, fewer where no more are there. Raises `OSError`."""
        with open(f"/proc/{self.thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            # A page at a time: what lies behind may not be there.
            first = min(most, 4096 - address % 4096)
            found = os.pread(memory.fileno(), first, address)
            if len(found) == first < most:
                with contextlib.suppress(OSError):
                    found += os.pread(memory.fileno(), most - first, address + first)
        self.check()
        return found

    def path(self, address: int) -> bytes:
        """A path in its memory."""
        path, end, _ = self.memory(address, PATH_BYTES).partition(b"\0")
        if not end:
            raise OSError(errno.ENAMETOOLONG, "path")
        return path

    def absolute(self, folder: int, path: bytes) -> bytes:
        """The same path from the root."""
        if path.startswith(b"/"):
            return path
        here = "cwd" if folder == AT_FDCWD else f"fd/{folder}"
        base = os.readlink(os.fsencode(f"/proc/{self.thread}/{here}"))  # noqa: PTH115
        self.check()
        return base + b"/" + path

    def descriptor(self, number: int) -> int:
        """A descriptor of its, as ours."""
        pidfd = os.pidfd_open(self.process)
        try:
            self.check()
            taken = int(libc.syscall(PIDFD_GETFD, pidfd, number, 0))
            if taken < 0:
                raise OSError(ctypes.get_errno(), "descriptor")
            return taken
        finally:
            os.close(pidfd)


class Broker:
    """Does for the sandbox what its rules cannot tell apart: with its own files, and with the gateway."""

    CONNECT = frozenset({42, 203})
    CHMOD = frozenset({90})
    FCHMOD = frozenset({91, 52})
    FCHMODAT = frozenset({268, 53, 452})

    def __init__(self, gateway: str, folder: int, own: list[str]) -> None:
        self._gateway = os.fsencode(gateway)
        self._gateway_here = f"/proc/self/fd/{folder}/{os.path.basename(gateway)}"  # noqa: PTH119
        self._own = {os.fsencode(path): os.open(path, os.O_PATH | os.O_CLOEXEC) for path in own}

    def perform(self, caller: Caller, number: int, arguments: tuple[int, ...]) -> None:
        """Do a call. Raises `OSError` with what the caller is to be told."""
        if number in self.CONNECT:
            self._connect(
                caller, signed(arguments[0]), caller.memory(arguments[1], min(arguments[2], ADDRESS_BYTES))
            )
        elif number in self.CHMOD:
            self._chmod(caller.absolute(AT_FDCWD, caller.path(arguments[0])), arguments[1])
        elif number in self.FCHMOD:
            self._fchmod(caller.descriptor(signed(arguments[0])), arguments[1])
        elif number in self.FCHMODAT:
            path = caller.absolute(signed(arguments[0]), caller.path(arguments[1]))
            self._chmod(path, arguments[2])
        else:
            raise OSError(errno.ENOSYS, "call")

    def _connect(self, caller: Caller, number: int, address: bytes) -> None:
        family, name = address[:2], address[2:].partition(b"\0")[0]
        if family != struct.pack("H", socket.AF_UNIX) or not name:  # one without a name, or an abstract one
            raise OSError(errno.EACCES, "address")
        path = caller.absolute(AT_FDCWD, name)
        opened = None if path == self._gateway else self._beneath(path)
        target = self._gateway_here if opened is None else f"/proc/self/fd/{opened}"
        try:
            with socket.socket(fileno=caller.descriptor(number)) as taken:
                if taken.family != socket.AF_UNIX:
                    raise OSError(errno.EACCES, "family")
                connect(taken, target)
        finally:
            if opened is not None:
                os.close(opened)

    def _chmod(self, path: bytes, mode: int) -> None:
        opened = self._beneath(path)
        try:
            os.chmod(f"/proc/self/fd/{opened}", mode & 0o1777)  # noqa: PTH101
        finally:
            os.close(opened)

    def _fchmod(self, taken: int, mode: int) -> None:
        """By a descriptor, which may be of any file that can be read. One without a name is nobody else's."""
        try:
            path = os.readlink(os.fsencode(f"/proc/self/fd/{taken}"))  # noqa: PTH115
            found = os.fstat(taken)
            if found.st_nlink or not path.endswith(b" (deleted)"):
                opened = self._beneath(path)
                is_own = os.path.samestat(found, os.fstat(opened))
                os.close(opened)
                if not is_own:
                    raise OSError(errno.EACCES, "path")
            os.fchmod(taken, mode & 0o1777)
        finally:
            os.close(taken)

    def _beneath(self, path: bytes) -> int:
        """A descriptor of one of its own files, no link followed. Raises `OSError`."""
        path = os.path.normpath(path)
        for root, folder in self._own.items():
            if path == root or path.startswith(root + b"/"):
                return beneath(folder, path[len(root) + 1 :] or b".")
        raise OSError(errno.EACCES, "path")


def connect(taken: socket.socket, target: str) -> None:
    """Connect somebody's socket, and wait for a full queue no longer than others can."""
    # Not by the object's own timeout: that would change the socket for who owns it.
    option = (socket.SOL_SOCKET, socket.SO_SNDTIMEO)
    before = taken.getsockopt(*option, 16)
    taken.setsockopt(*option, struct.pack("qq", CONNECT_WITHIN_S, 0))
    try:
        address = struct.pack("H", socket.AF_UNIX) + os.fsencode(target) + b"\0"
        if libc.connect(taken.fileno(), address, len(address)) != 0:
            raise OSError(ctypes.get_errno(), "connect")
    finally:
        taken.setsockopt(*option, before)


def beneath(folder: int, path: bytes) -> int:
    """Open a path as a path, with the kernel seeing to it that it stays there. Raises `OSError`."""
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE)
    opened = int(libc.syscall(OPENAT2, folder, path, how, ctypes.c_size_t(len(how))))
    if opened < 0:
        raise OSError(ctypes.get_errno(), "path")
    return opened


def signed(argument: int) -> int:
    """A number of 32 bits as the kernel reads it."""
    value = argument & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


if __name__ == "__main__":
    main()
