"""Which models a session may use: read from bodies that come in pieces, by whoever would hide one."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.gateway.model_guard import MAX_DEPTH, MAX_STEPS, ModelGuard, admitted
from agent_runtime.gateway.vendor import Refused

ALLOWED = ("small-1", "large-*")


def guarded(*pieces: bytes, models: tuple[str, ...] = ALLOWED) -> int:
    """200 where a body in these pieces may pass, else the status of its refusal."""
    guard = ModelGuard(models)
    try:
        for piece in pieces:
            guard.feed(piece)
        guard.finish()
    except Refused as refused:
        return refused.status
    return 200


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("model", "may"),
    [
        ("small-1", True),
        ("large-", True),
        ("large-2-latest", True),
        ("small-10", False),
        ("Small-1", False),
        ("", False),
        ("small-1 ", False),
        ("x/large-2", False),
    ],
)
def test_a_model_is_named_exactly_or_by_how_it_begins(model: str, may: bool):
    assert admitted(ALLOWED, model) is may
    assert guarded(json.dumps({"model": model}).encode()) == (200 if may else 403)
    assert admitted(None, model)
    assert not admitted((), model)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda deeper: (
        st.lists(deeper, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.just("model"), deeper, max_size=5)
    ),
    max_leaves=30,
)
NAMES = st.text(max_size=8).filter(lambda name: name.casefold() not in {"model", "models", "fallbacks"})


@given(
    st.tuples(st.dictionaries(NAMES, VALUES, max_size=5), st.dictionaries(NAMES, VALUES, max_size=5)),
    st.sampled_from(["small-1", "large-9", "other"]),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.lists(st.integers(0, 400)),
)
def test_a_model_is_found_wherever_it_stands_and_however_the_body_is_cut(
    around: tuple[dict[str, object], dict[str, object]],
    model: str,
    escaped: bool,
    indent: int | None,
    cuts: list[int],
):
    before, after = around
    told = {**before, "model": model, **{k: v for k, v in after.items() if k not in before}}
    body = json.dumps(told, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    if escaped or not any("\ud800" <= c <= "\udfff" for c in str(told)):
        assert guarded(*cut(body, cuts)) == (403 if model == "other" else 200)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_what_passes_is_json_that_names_an_allowed_model_once(data: bytes, cuts: list[int]):
    """Whatever the bytes are: the guard never lets pass what a strict parser reads otherwise."""
    for body in (data, b'{"model":"small-1",' + data + b"}", b'{"x":[' + data + b'],"model":"small-1"}'):
        if guarded(*cut(body, cuts)) == 200:
            try:
                pairs = json.loads(body, object_pairs_hook=list, strict=False)
            except (ValueError, RecursionError):
                continue  # the vendor refuses it
            assert [value for name, value in pairs if name.casefold() == "model"] == ["small-1"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"small-1","model":"forbidden"}',
        b'{"model":"small-1","mod\\u0065l":"small-1"}',
        b'{"model":"small-1","MODEL":"forbidden"}',
        b'{"model":"small-1","models":["forbidden"]}',
        b'{"fallbacks":["forbidden"],"model":"small-1"}',
        b'{"model":"small-1"}{"model":"forbidden"}',
        b'{"model":"small-1"} x',
        b'{"x":[/* " */],"model":"small-1","y":"*/"}',
        b"{'model':'forbidden','x':\"\",\"model\":\"small-1\"}",
        b'{"model":["small-1"]}',
        b'{"model":null}',
        b'{"model":1}',
        b'{"x":{"model":"small-1"}}',
        b'[{"model":"small-1"}]',
        b'"model"',
        b'{"model":"small-1"',
        b'{"model":"small-1",}',
        b'{"model" "small-1"}',
        b'{"":,"model":"small-1"}',
        b'{"model":"small\xff"}',
        b"\xef\xbb\xbf" + b'{"model":"small-1"}',
        '{"model":"small-1"}'.encode("utf-16"),
        b"{}",
        b"",
        b"null",
        b'{"x":' + b"[" * (MAX_DEPTH + 1),
    ],
)
def test_a_body_that_could_be_read_otherwise_does_not_pass(body: bytes):
    assert guarded(body) == 400
    assert guarded(*(body[i : i + 1] for i in range(len(body)))) == 400


def test_a_body_of_brackets_without_end_is_not_followed_to_its_end():
    assert guarded(b'{"x":[' + b"[]," * MAX_STEPS) == 413


def test_long_strings_are_passed_over():
    body = json.dumps({"input": 'y\\"' * 500_000, "model": "small-1", "z": ["\\" * 9999]}).encode()
    assert guarded(body) == 200
    assert guarded(*(body[i : i + 65537] for i in range(0, len(body), 65537))) == 200
