"""Frames are read fast, and to the letter as the standard library reads them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.incoming import loads, loads_for, storable
from agent_runtime_sandbox.frames import FrameReader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


def written(value: Any) -> str:
    """So that 1, 1.0 and True differ, and NaN is like NaN."""
    return repr(value)


@given(VALUES)
def test_any_value_is_what_the_standard_library_makes_of_it(value: Any) -> None:
    line = json.dumps(value).encode()
    assert written(loads(line)) == written(json.loads(line))


@pytest.mark.parametrize(
    "line",
    [
        b'{"n": 123456789012345678901234567890}',
        b'{"n": -9223372036854775809}',
        b'{"n": 18446744073709551615}',
        b'{"text": "\\ud800"}',
        b'{"n": NaN, "m": -Infinity, "z": -0.0}',
        b'{"a": 1, "a": 2}',
        b'{"n": 1e400}',
    ],
)
def test_what_few_readers_agree_on_is_as_the_standard_library_has_it(line: bytes) -> None:
    assert written(loads(line)) == written(json.loads(line))


@given(st.lists(VALUES, max_size=5), st.integers(1, 60))
def test_what_comes_in_one_read_or_in_many_is_what_the_standard_library_makes_of_it(
    values: list[Any], at_once: int
) -> None:
    said = [{"k": "agent", "line": value} for value in [*values, 1 << 70]]
    data = b"".join(json.dumps(each).encode() + b"\n" for each in said)
    whole, pieces = FrameReader(loads_for), FrameReader(loads_for)
    expected = [written(json.loads(line)) for line in data.splitlines()]
    assert [written(frame) for frame in whole.feed(data)] == expected
    reads = [data[at : at + at_once] for at in range(0, len(data), at_once)]
    assert [written(frame) for read in reads for frame in pieces.feed(read)] == expected


@pytest.mark.parametrize("line", [b"", b"{", b'{"a": 01}', b'"\xff"', b"[1,]", b"nope"])
def test_what_is_no_json_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        loads(line)


@pytest.mark.parametrize("odd", ["\ud800", 1 << 70])
def test_what_waits_for_a_store_counts_whole_however_odd_it_is(odd: Any) -> None:
    entry = {"text": "a" * 100_000, "odd": odd}
    kept, size_bytes = storable([entry], {"k": "transcript"})
    assert kept == [entry]
    assert size_bytes >= 100_000  # a store that is away would have no bound else
