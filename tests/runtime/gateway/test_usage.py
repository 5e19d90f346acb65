import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.usage import MAX_BODY_BYTES, MAX_LINE_BYTES, Meter, add
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import sse

STREAM = sse(
    {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
    {
        "type": "content_block_delta",
        "delta": {"type": "text_delta", "text": 'data: {"usage": {"output_tokens": 9}}'},
    },
    {"type": "ping"},
    {"type": "message_delta", "usage": {"output_tokens": 20, "cache_creation_input_tokens": 5}},
    {"type": "message_stop"},
)
USED = Usage(input_tokens=10, output_tokens=20, cache_write_tokens=5)


def metered(content_type: str, *pieces: bytes) -> Usage | None:
    meter = Meter(Anthropic())
    meter.begin(content_type)
    for piece in pieces:
        meter.feed(piece)
    return meter.usage()


@given(st.lists(st.integers(0, len(STREAM))))
def test_usage_is_the_same_however_a_stream_is_cut_into_pieces(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert metered("text/event-stream", *pieces) == USED


def test_lines_may_end_as_windows_ends_them():
    assert metered("text/event-stream", STREAM.replace(b"\n", b"\r\n")) == USED


@given(st.binary(), st.sampled_from(["text/event-stream", "application/json", "text/html"]))
def test_garbage_counts_as_nothing(data: bytes, content_type: str):
    assert metered(content_type, data, b"\ndata: " + data + b'"usage"\n') is None


SCALARS = st.none() | st.booleans() | st.integers() | st.text()
NAMES = st.sampled_from(["usage", "message", "type", "input_tokens"])


@given(st.recursive(SCALARS, lambda deeper: st.lists(deeper) | st.dictionaries(NAMES, deeper)))
def test_strange_json_counts_as_nothing_or_as_a_sane_figure(value: object):
    for event in (
        {"type": "message_start", "message": value},
        {"type": "message_delta", "usage": value},
        value,
    ):
        used = metered("text/event-stream", b"data: " + json.dumps(event).encode() + b"\n")
        assert used is None or 0 <= (used.input_tokens or 0) <= 10**9


def test_a_line_over_the_bound_is_skipped_and_the_next_is_read():
    flood = b"data: " + b"x" * (MAX_LINE_BYTES * 2) + b'"usage"'
    assert metered("text/event-stream", flood, b"\n", STREAM) == USED


def test_a_whole_answer_is_read_and_one_over_the_bound_is_not():
    body = json.dumps(
        {"content": [{"input": {"usage": {"output_tokens": 9}}}], "usage": {"output_tokens": 2}}
    ).encode()
    assert metered("application/json", body[:7], body[7:]) == Usage(output_tokens=2)
    assert metered("application/json", body + b" " * MAX_BODY_BYTES) is None
    assert metered("application/json", b" " * MAX_BODY_BYTES, b" ", body) is None


def test_what_nobody_told_stays_untold_in_a_sum():
    assert add(Usage(), Usage(output_tokens=2)) == Usage(output_tokens=2)
    assert add(Usage(output_tokens=1), Usage(output_tokens=2, input_tokens=0)) == Usage(
        output_tokens=3, input_tokens=0
    )
