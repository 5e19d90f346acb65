"""The seccomp filter of a local sandbox, assembled here: no libseccomp is needed to run.

A deny-list for x86-64 and aarch64. It closes what the namespaces leave open: more namespaces and
mounts, kernel keys, io_uring (which would walk around the rules for `socket`), sockets of families
that no network namespace confines, keystrokes pushed into a terminal, bounds set for others: a tool
could take the runner's descriptors away. `ptrace` and `process_vm_writev` stay: debuggers need them, the
PID namespace bounds them, and runner and agent are shut to them (`execute_only`). bubblewrap loads the
result (`bubblewrap.arguments`).
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final, NamedTuple

LOAD_WORD: Final = 0x20  # A = the 32 bit word at this place of struct seccomp_data
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_BITS: Final = 0x45
AND: Final = 0x54
RETURN: Final = 0x06

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
FAIL: Final = 0x00050000
HAND_OVER: Final = 0x7FC00000

AT_NUMBER: Final = 0
AT_ARCHITECTURE: Final = 4
AT_FIRST_ARGUMENT: Final = 16
AT_SECOND_ARGUMENT: Final = 24

X32_NUMBERS: Final = 0x40000000
NEW_NAMESPACE: Final = 0x7E020000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
TERMINAL_INJECTION: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
SOCKET_FAMILIES: Final = (1, 2, 10, 16)  # UNIX, INET, INET6, NETLINK


class Call(NamedTuple):
    """A system call's number on each architecture; None where there is no such call."""

    x86_64: int | None
    aarch64: int | None


REFUSED: Final[dict[str, Call]] = {
    # mounts and roots
    "mount": Call(165, 40),
    "umount2": Call(166, 39),
    "pivot_root": Call(155, 41),
    "chroot": Call(161, 51),
    "open_tree": Call(428, 428),
    "move_mount": Call(429, 429),
    "fsopen": Call(430, 430),
    "fsconfig": Call(431, 431),
    "fsmount": Call(432, 432),
    "fspick": Call(433, 433),
    "mount_setattr": Call(442, 442),
    "open_tree_attr": Call(467, 467),
    # namespaces, and files past any mount
    "unshare": Call(272, 97),
    "setns": Call(308, 268),
    "name_to_handle_at": Call(303, 264),
    "open_by_handle_at": Call(304, 265),
    "fanotify_init": Call(300, 262),
    # kernel keys: shared by all who have the uid, in whatever namespace
    "add_key": Call(248, 217),
    "request_key": Call(249, 218),
    "keyctl": Call(250, 219),
    # kernel internals with a long record of escapes
    "bpf": Call(321, 280),
    "perf_event_open": Call(298, 241),
    "userfaultfd": Call(323, 282),
    "memfd_secret": Call(447, 447),
    "kcmp": Call(312, 272),
    "pidfd_getfd": Call(438, 438),
    "lookup_dcookie": Call(212, 18),
    "modify_ldt": Call(154, None),
    "migrate_pages": Call(256, 238),
    "move_pages": Call(279, 239),
    # the machine itself
    "init_module": Call(175, 105),
    "finit_module": Call(313, 273),
    "delete_module": Call(176, 106),
    "kexec_load": Call(246, 104),
    "kexec_file_load": Call(320, 294),
    "reboot": Call(169, 142),
    "swapon": Call(167, 224),
    "swapoff": Call(168, 225),
    "acct": Call(163, 89),
    "syslog": Call(103, 116),
    "quotactl": Call(179, 60),
    "quotactl_fd": Call(443, 443),
    "sethostname": Call(170, 161),
    "setdomainname": Call(171, 162),
    "settimeofday": Call(164, 170),
    "clock_settime": Call(227, 112),
    "iopl": Call(172, None),
    "ioperm": Call(173, None),
    "uselib": Call(134, None),
    "nfsservctl": Call(180, 42),
    "vhangup": Call(153, 58),
}
"""Answered with EPERM."""

ABSENT: Final[dict[str, Call]] = {
    "clone3": Call(435, 435),  # its flags lie in memory, where a filter cannot look
    "io_uring_setup": Call(425, 425),
    "io_uring_enter": Call(426, 426),
    "io_uring_register": Call(427, 427),
}
"""Answered with ENOSYS, so that libraries fall back to the older call."""

CLONE: Final = Call(56, 220)
IOCTL: Final = Call(16, 29)
SOCKET: Final = Call(41, 198)
PRLIMIT: Final = Call(302, 261)
SOCKETPAIR: Final = Call(53, 199)
AF_UNIX: Final = 1
KIND_OF_SOCKET: Final = 0xF
CONNECTED: Final = (1, 5)  # STREAM, SEQPACKET; of files, RAW is another word for datagrams

BROKERED: Final[dict[str, Call]] = {
    "connect": Call(42, 203),
    "chmod": Call(90, None),
    "fchmod": Call(91, 52),
    "fchmodat": Call(268, 53),
    "fchmodat2": Call(452, 452),
}
"""Without namespaces: done by the one who keeps the sandbox, for its own files (`landlock`)."""

SHARED: Final[dict[str, Call]] = {
    # what all processes of a user share, where there is no namespace between them
    "shmget": Call(29, 194),
    "shmat": Call(30, 196),
    "shmctl": Call(31, 195),
    "semget": Call(64, 190),
    "semop": Call(65, 193),
    "semctl": Call(66, 191),
    "semtimedop": Call(220, 192),
    "msgget": Call(68, 186),
    "msgsnd": Call(69, 189),
    "msgrcv": Call(70, 188),
    "msgctl": Call(71, 187),
    "mq_open": Call(240, 180),
    "mq_unlink": Call(241, 181),
    # what can be done to another process of the same user, or to any file that can be named
    "setpriority": Call(141, 140),
    "ioprio_set": Call(251, 30),
    "sched_setaffinity": Call(203, 122),
    "sched_setscheduler": Call(144, 119),
    "sched_setparam": Call(142, 118),
    "sched_setattr": Call(314, 274),
    "setxattr": Call(188, 5),
    "lsetxattr": Call(189, 6),
    "fsetxattr": Call(190, 7),
    "removexattr": Call(197, 14),
    "lremovexattr": Call(198, 15),
    "fremovexattr": Call(199, 16),
    "setxattrat": Call(463, 463),
    "removexattrat": Call(466, 466),
    "chown": Call(92, None),
    "fchown": Call(93, 55),
    "lchown": Call(94, None),
    "fchownat": Call(260, 54),
}
"""Answered with EPERM where there are no namespaces."""
AUDIT_ARCHITECTURE: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def supported(machine: str | None = None) -> bool:
    """Whether there is a filter for this machine (`platform.machine()`)."""
    return (machine or platform.machine()) in AUDIT_ARCHITECTURE


def program(machine: str | None = None, *, namespaces: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter`. Raises `KeyError` for an unknown machine.

    Without `namespaces` it is for a sandbox that `landlock` keeps: what they would confine is refused or
    handed over to the keeper.
    """
    machine = machine or platform.machine()
    code = _prologue(machine)
    for calls, error in ((REFUSED, errno.EPERM), (ABSENT, errno.ENOSYS)):
        for call in calls.values():
            code += _refuse(getattr(call, machine), error)
    code += _clone(getattr(CLONE, machine))
    code += _ioctl(getattr(IOCTL, machine))
    if namespaces:
        # A pair has to be asked for too: the kernel makes a socket before it finds that there are no pairs.
        for call in (SOCKET, SOCKETPAIR):
            code += _socket(getattr(call, machine), SOCKET_FAMILIES)
    else:
        code += _without_namespaces(machine)
    code += _prlimit(getattr(PRLIMIT, machine))
    code += _end(ALLOW)
    return b"".join(code)


def _do(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", code, then, otherwise, value)


def _end(verdict: int) -> list[bytes]:
    return [_do(RETURN, verdict)]


def _prologue(machine: str) -> list[bytes]:
    """A foreign architecture ends the process; the x32 numbers do not exist. Leaves A = number."""
    code = [_do(LOAD_WORD, AT_ARCHITECTURE), _do(JUMP_IF_EQUAL, AUDIT_ARCHITECTURE[machine], then=1)]
    code += _end(KILL_PROCESS)
    code.append(_do(LOAD_WORD, AT_NUMBER))
    if machine == "x86_64":
        code += [_do(JUMP_IF_AT_LEAST, X32_NUMBERS, otherwise=1), *_end(FAIL | errno.ENOSYS)]
    return code


def _refuse(number: int | None, error: int) -> list[bytes]:
    if number is None:
        return []
    return [_do(JUMP_IF_EQUAL, number, otherwise=1), *_end(FAIL | error)]


def _clone(number: int) -> list[bytes]:
    """Processes and threads, but no namespaces. The flags are the first argument on both machines."""
    body = [_do(LOAD_WORD, AT_FIRST_ARGUMENT), _do(JUMP_IF_BITS, NEW_NAMESPACE, otherwise=1)]
    return _only_for(number, body + _end(FAIL | errno.EPERM) + _end(ALLOW))


def _ioctl(number: int) -> list[bytes]:
    """The kernel reads 32 bits of the request, so 32 bits are compared: a high bit hides nothing."""
    first, second = TERMINAL_INJECTION
    body = [
        _do(LOAD_WORD, AT_SECOND_ARGUMENT),
        _do(JUMP_IF_EQUAL, first, then=1),
        _do(JUMP_IF_EQUAL, second, otherwise=1),
    ]
    return _only_for(number, body + _end(FAIL | errno.EPERM) + _end(ALLOW))


def _socket(number: int, families: tuple[int, ...]) -> list[bytes]:
    """Families that the network namespace confines; vsock, packet, alg and the rest are refused."""
    body = [_do(LOAD_WORD, AT_FIRST_ARGUMENT)]
    for place, family in enumerate(families):
        body.append(_do(JUMP_IF_EQUAL, family, then=len(families) - place))
    return _only_for(number, body + _end(FAIL | errno.EAFNOSUPPORT) + _end(ALLOW))


def _without_namespaces(machine: str) -> list[bytes]:
    """No sockets but those of files, and of these none that sends without connecting."""
    code = []
    for call in SHARED.values():
        code += _refuse(getattr(call, machine), errno.EPERM)
    for call in BROKERED.values():
        number = getattr(call, machine)
        if number is not None:
            code += [_do(JUMP_IF_EQUAL, number, otherwise=1), *_end(HAND_OVER)]
    for call in (SOCKET, SOCKETPAIR):
        first, second = CONNECTED
        body = [
            _do(LOAD_WORD, AT_FIRST_ARGUMENT),
            _do(JUMP_IF_EQUAL, AF_UNIX, otherwise=4),
            _do(LOAD_WORD, AT_SECOND_ARGUMENT),
            _do(AND, KIND_OF_SOCKET),
            _do(JUMP_IF_EQUAL, first, then=2),
            _do(JUMP_IF_EQUAL, second, then=1),
        ]
        code += _only_for(getattr(call, machine), body + _end(FAIL | errno.EAFNOSUPPORT) + _end(ALLOW))
    return code


def _prlimit(number: int) -> list[bytes]:
    """The pid is a 32 bit number; 0 means oneself, as glibc says it."""
    body = [_do(LOAD_WORD, AT_FIRST_ARGUMENT), _do(JUMP_IF_EQUAL, 0, then=1)]
    return _only_for(number, body + _end(FAIL | errno.EPERM) + _end(ALLOW))


def _only_for(number: int, body: list[bytes]) -> list[bytes]:
    return [_do(JUMP_IF_EQUAL, number, otherwise=len(body)), *body]
