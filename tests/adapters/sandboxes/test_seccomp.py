"""The filter, judged by a small interpreter of its own: also for machines that are not at hand."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime_adapters.sandboxes import seccomp

MACHINES = ["x86_64", "aarch64"]
ALLOWED = "allowed"
KILLED = "killed"


def judge(machine: str, number: int, *arguments: int, architecture: int | None = None) -> str:
    """What the filter says to a call: `allowed`, `killed`, or the name of an error."""
    architecture = seccomp.AUDIT_ARCHITECTURE[machine] if architecture is None else architecture
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", seccomp.program(machine)))
    accumulator = place = 0
    while True:
        code, then, otherwise, value = program[place]
        place += 1
        match code:
            case seccomp.LOAD_WORD:
                accumulator = struct.unpack_from("<I", data, value)[0]
                continue
            case seccomp.RETURN:
                return _verdict(value)
            case seccomp.JUMP_IF_EQUAL:
                met = accumulator == value
            case seccomp.JUMP_IF_AT_LEAST:
                met = accumulator >= value
            case seccomp.JUMP_IF_BITS:
                met = bool(accumulator & value)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")
        place += then if met else otherwise


def _verdict(value: int) -> str:
    if value == seccomp.ALLOW:
        return ALLOWED
    return KILLED if value == seccomp.KILL_PROCESS else errno.errorcode[value - seccomp.FAIL]


def number_of(call: seccomp.Call, machine: str) -> int:
    number = getattr(call, machine)
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_table_names_is_refused_and_what_it_calls_absent_is_absent(machine: str) -> None:
    for calls, answer in ((seccomp.REFUSED, "EPERM"), (seccomp.ABSENT, "ENOSYS")):
        numbers = [number for call in calls.values() if (number := getattr(call, machine)) is not None]
        assert {judge(machine, number) for number in numbers} == {answer}


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_stands_for_two_calls(machine: str) -> None:
    special = [seccomp.CLONE, seccomp.IOCTL, seccomp.SOCKET, seccomp.SOCKETPAIR, seccomp.PRLIMIT]
    calls = [*seccomp.REFUSED.values(), *seccomp.ABSENT.values(), *special]
    numbers = [number for call in calls if (number := getattr(call, machine)) is not None]
    assert len(numbers) == len(set(numbers))


@given(
    machine=st.sampled_from(MACHINES),
    number=st.integers(0, 600),
    arguments=st.lists(st.integers(0, 2**64 - 1)),
)
def test_everything_else_is_allowed(machine: str, number: int, arguments: list[int]) -> None:
    special = [seccomp.CLONE, seccomp.IOCTL, seccomp.SOCKET, seccomp.SOCKETPAIR, seccomp.PRLIMIT]
    named = {getattr(c, machine) for c in (*seccomp.REFUSED.values(), *seccomp.ABSENT.values(), *special)}
    if number not in named:
        assert judge(machine, number, *arguments) == ALLOWED


@given(machine=st.sampled_from(MACHINES), flags=st.integers(0, 2**64 - 1))
def test_clone_makes_processes_and_threads_and_no_namespaces(machine: str, flags: int) -> None:
    expected = "EPERM" if flags & seccomp.NEW_NAMESPACE else ALLOWED
    assert judge(machine, number_of(seccomp.CLONE, machine), flags) == expected


@given(machine=st.sampled_from(MACHINES), high=st.integers(0, 2**32 - 1), low=st.integers(0, 2**32 - 1))
def test_high_bits_hide_no_terminal_request(machine: str, high: int, low: int) -> None:
    ioctl = number_of(seccomp.IOCTL, machine)
    for request in seccomp.TERMINAL_INJECTION:
        assert judge(machine, ioctl, 0, high << 32 | request) == "EPERM"
    if low not in seccomp.TERMINAL_INJECTION:
        assert judge(machine, ioctl, 0, high << 32 | low) == ALLOWED


@given(machine=st.sampled_from(MACHINES), family=st.integers(0, 2**32 - 1))
def test_only_confined_families_of_sockets_exist(machine: str, family: int) -> None:
    expected = ALLOWED if family in seccomp.SOCKET_FAMILIES else "EAFNOSUPPORT"
    for call in (seccomp.SOCKET, seccomp.SOCKETPAIR):
        assert judge(machine, number_of(call, machine), family) == expected


def test_a_foreign_architecture_ends_the_process() -> None:
    assert judge("x86_64", 0, architecture=0x40000003) == KILLED
    assert judge("aarch64", 0, architecture=0x40000028) == KILLED


def test_the_numbers_of_x32_do_not_exist() -> None:
    assert judge("x86_64", 0x40000000 | 272) == "ENOSYS"


def test_an_unknown_machine_has_no_filter() -> None:
    assert not seccomp.supported("riscv64")
    with pytest.raises(KeyError):
        seccomp.program("riscv64")


@pytest.mark.parametrize("machine", MACHINES)
def test_bounds_are_set_for_oneself_and_for_nobody_else(machine: str) -> None:
    number = number_of(seccomp.PRLIMIT, machine)
    assert judge(machine, number, 0, 7) == ALLOWED
    assert judge(machine, number, 1 << 32, 7) == ALLOWED  # the kernel reads 32 bits of it
    assert {judge(machine, number, pid, 7) for pid in (1, 2, 2**31)} == {"EPERM"}
