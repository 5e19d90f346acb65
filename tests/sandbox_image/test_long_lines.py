"""Long lines say what `json.loads` says, however their bytes arrive, within bounds."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime_sandbox import long_lines
from agent_runtime_sandbox.frames import FrameError, FrameReader, LongFrame, decode, encode
from agent_runtime_sandbox.long_lines import LONG_BYTES, MAX_DEPTH, MAX_VALUES, LongLine, is_readable

SNIPPETS = (
    "a",
    '"',
    "\\",
    '\\"',
    "\n",
    "\\u",
    "ü",
    "😀",
    "\ud83d",
    "\ude00",
    ",",
    "[",
    "{",
    "}",
    ":",
    "-0.0E-0",
)
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=60).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)


def read(line: bytes, cuts: list[int]) -> Any:
    reader = LongLine()
    for begin, end in pairwise([0, *sorted(cut % (len(line) + 1) for cut in cuts), len(line)]):
        reader.feed(line[begin:end])
    return reader.value()


@settings(max_examples=300)
@given(
    value=VALUES, cuts=st.lists(st.integers(min_value=0, max_value=10_000), max_size=30), raw=st.booleans()
)
def test_a_line_in_any_pieces_says_what_it_says_in_one(value: Any, cuts: list[int], raw: bool) -> None:
    line = json.dumps(value, ensure_ascii=not raw, separators=(",", ":")).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(long_lines, "_LONG_STRING", 8)
        patched.setattr(long_lines, "_PIECE_BYTES", 50)
        assert read(line, cuts) == json.loads(line)
        assert is_readable(line)


@settings(max_examples=200)
@given(
    line=st.lists(st.sampled_from([*SNIPPETS, "1", "null"]), max_size=40), cuts=st.lists(st.integers(0, 200))
)
def test_what_is_no_json_is_refused_in_any_pieces(line: list[str], cuts: list[int]) -> None:
    data = "".join(line).encode("utf-8", "surrogatepass")
    try:
        expected: Any = json.loads(data)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  any of them: `frames` makes one of all
            read(data, cuts)
    else:
        assert read(data, cuts) == expected


@pytest.mark.parametrize(
    "text", ["x" * 3 * LONG_BYTES, 'a "quoted" \\ line\n' * LONG_BYTES, "grüße 😀" * LONG_BYTES]
)
def test_a_long_text_comes_out_as_it_went_in(text: str) -> None:
    frame = {"k": "agent", "o": 1, "line": {"text": text, text[:100_000]: [text[:70_000], 1.5, "short"]}}
    line = encode(frame)
    reader, found = FrameReader(), []
    for at in range(0, len(line), 100_000):
        found += reader.feed(line[at : at + 100_000])
    assert found == [frame]
    assert isinstance(found[0], LongFrame)
    assert found[0].size == len(line) - 1
    assert decode(line[:-1]) == frame


def test_lines_before_and_after_a_long_one_are_read_in_their_order() -> None:
    frames: list[dict[str, Any]] = [
        {"k": "agent", "o": 1},
        {"k": "agent", "o": 2, "text": "y" * 2 * LONG_BYTES},
        {"k": "agent", "o": 3, "text": "z" * LONG_BYTES},
        {"k": "agent", "o": 4},
    ]
    stream = b"".join(encode(frame) for frame in frames)
    reader = FrameReader()
    assert [
        frame for at in range(0, len(stream), 65_536) for frame in reader.feed(stream[at : at + 65_536])
    ] == frames


def refused(line: bytes) -> bool:
    with pytest.raises(FrameError):
        decode(line)
    return not is_readable(line)


def test_more_values_or_depth_than_is_bounded_are_refused_by_both_sides() -> None:
    padding = b'"' + b"x" * LONG_BYTES + b'"'
    assert refused(b'{"k":"agent","v":[' + b"1," * MAX_VALUES + padding + b"]}")
    deep = MAX_DEPTH + 1
    assert refused(b'{"k":"agent","v":' + b"[" * deep + padding + b"]" * deep + b"}")


def test_commas_and_brackets_in_texts_do_not_count() -> None:
    rows = ["a,b,[{" * 30_000] * 20
    line = encode({"k": "agent", "rows": rows})[:-1]
    assert is_readable(line)
    assert decode(line)["rows"] == rows


def test_a_long_text_is_in_a_line_no_more_often_than_it_was_sent() -> None:
    text = "a" * LONG_BYTES
    forged = ",".join(["-0.0E-0"] * 100_000)
    value = read(f'{{"text":"{text}","more":[{forged}]}}'.encode(), [])
    assert value["text"] == text
    assert text not in value["more"]  # else it is as much as a hundred gigabytes when it is written down


def test_a_text_without_an_end_is_refused() -> None:
    with pytest.raises(FrameError):
        decode(b'{"k":"agent","text":"' + b"x" * 2 * LONG_BYTES)
