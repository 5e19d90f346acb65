"""The journal against a list: whatever is appended, acknowledged and read, they say the same."""

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime_sandbox.journal import Journal

LINES = st.lists(st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"") + b"\n"), max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), LINES),
        st.tuples(st.just("ack"), st.integers(-1, 60)),
        st.tuples(st.just("read"), st.tuples(st.integers(0, 60), st.integers(1, 200))),
    ),
    max_size=60,
)


@contextmanager
def small_journal(stride: int = 64, compact: int = 100) -> Iterator[tuple[Journal, int]]:
    with tempfile.TemporaryFile() as file:
        yield Journal(file.fileno(), stride=stride, compact=compact), file.fileno()


@given(STEPS)
def test_it_holds_what_a_list_would_hold(steps: list[tuple[str, object]]) -> None:
    with small_journal() as (journal, _):
        lines: list[bytes] = []
        acked = 0
        for step, given_value in steps:
            match step, given_value:
                case "append", list() as more:
                    journal.append(more)
                    lines += more
                case "ack", int() as offset:
                    journal.ack(offset)
                    acked = max(acked, min(offset, len(lines)))
                case "read", (int() as after, int() as limit):
                    data, last = journal.read(after, limit)
                    first = max(after, acked)
                    assert data == b"".join(lines[first:last])
                    assert bool(data) == (first < len(lines))
                    assert len(data) <= max(limit, 2 * len(lines[first]) if data else 0)
            assert (journal.head, journal.oldest) == (len(lines), acked + 1)


@given(STEPS)
def test_a_follower_sees_every_line_once(steps: list[tuple[str, object]]) -> None:
    with small_journal() as (journal, _):
        lines: list[bytes] = []
        seen, cursor = b"", 0
        for _, given_value in steps:
            if isinstance(given_value, list):
                journal.append(given_value)
                lines += given_value
            data, cursor = journal.read(cursor, 100)
            seen += data
            journal.ack(cursor - 1)
        while cursor < journal.head:
            data, cursor = journal.read(cursor, 100)
            seen += data
        assert seen == b"".join(lines)


def test_the_index_is_sparse_and_the_file_is_trimmed() -> None:
    with small_journal(stride=10_000, compact=50_000) as (journal, fd):
        for _ in range(100):
            journal.append([b"x" * 99 + b"\n"] * 100)
        assert os.fstat(fd).st_size == 1_000_000
        assert journal.marks <= 101
        journal.ack(9_000)
        assert os.fstat(fd).st_size < 120_000
        assert journal.live_bytes < 120_000
        assert journal.read(9_999, 10) == (b"x" * 99 + b"\n", 10_000)
        journal.ack(10_000)
        assert os.fstat(fd).st_size == journal.live_bytes == journal.marks == 0


def test_a_line_over_the_limit_is_read_whole() -> None:
    with small_journal() as (journal, _):
        journal.append([b"a\n", b"b" * 10_000 + b"\n", b"c\n"])
        data, last = journal.read(1, 16)
        assert (data[:1], data.count(b"\n"), last) == (b"b", data.count(b"\n"), 1 + data.count(b"\n"))


def test_what_cannot_be_written_is_not_half_written() -> None:
    with small_journal() as (journal, fd):
        journal.append([b"one\n"])
        with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
            journal.append([b"t" * 2000 + b"wo\n"])
        assert os.fstat(fd).st_size == 4
        journal.append([b"three\n"])
        assert journal.read(0, 100) == (b"one\nthree\n", 2)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
