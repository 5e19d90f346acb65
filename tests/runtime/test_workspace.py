"""Paths between a sandbox, where names are bytes, and everybody else, for whom they are text."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.errors import InvalidRequest
from agent_runtime.workspace import (
    INLINE_TEXT_BYTES,
    check_tree,
    content_of,
    file_of,
    raw_path,
    read_report,
    safe_path,
    shown,
    shown_path,
)

NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.lists(st.sampled_from([b"\\", b"x", b"5", b"c", b"f", b"\xff", b"\xc3", b"\xbc"]), min_size=1).map(
        b"".join
    ),
).filter(lambda name: not {b"", b".", b".."} & set(name.split(b"/")) and b"\0" not in name)


def as_in_a_frame(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@given(NAMES)
def test_every_name_has_one_path_that_is_text_and_leads_back(name: bytes) -> None:
    path = shown_path(as_in_a_frame(name))

    path.encode("utf-8")
    assert raw_path(path) == as_in_a_frame(name)
    assert safe_path(path) == path


@given(NAMES, NAMES)
def test_two_names_never_have_the_same_path(one: bytes, other: bytes) -> None:
    same = shown_path(as_in_a_frame(one)) == shown_path(as_in_a_frame(other))
    assert same == (one == other)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"plain.txt", "plain.txt"),
        ("grüße/😀".encode(), "grüße/😀"),
        (b"100%.txt", "100%.txt"),
        (b"back\\slash", "back\\slash"),
        (b"bad\xff\xfe", r"bad\xff\xfe"),
        (rb"bad\xff", r"bad\x5cxff"),
        (rb"\x5c", r"\x5cx5c"),
    ],
)
def test_ordinary_names_are_shown_as_they_are_and_odd_bytes_as_escapes(name: bytes, path: str) -> None:
    assert shown_path(as_in_a_frame(name)) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "./a",
        "nul\0",
        "half \ud800 an emoji",
        "bytes \udcff that are written as they are in frames",
        r"the \xc3\xbc that has a plain spelling",
        r"a backslash \x5c that needs no escape",
        "n" * 256,
        "/".join(["d"] * 129),
        "/".join(["0123456789" * 20] * 21),
    ],
)
def test_a_path_that_no_workspace_has_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        safe_path(path)


@pytest.mark.parametrize("path", ["n" * 255, "/".join(["d"] * 128), "new\nline", "...", "\u202egnp.exe"])
def test_odd_but_possible_paths_are_taken(path: str) -> None:
    assert safe_path(path) == path


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a\0b", "x/\udcff/../y", "\ud800", 7, None]
)
def test_a_report_of_an_unsafe_path_is_dropped(path: object) -> None:
    assert read_report({"path": path, "change": "created", "size": 0, "mtime": 0}) is None


def test_a_report_of_a_name_that_is_no_text_becomes_a_file_with_a_path_that_is() -> None:
    report = read_report(
        {"path": "bad\udcff", "change": "created", "size": 1, "mtime": 0, "encoding": "utf-8", "content": "x"}
    )
    assert report is not None
    assert report.file.path == r"bad\xff"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.text("./\\\0x", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.dictionaries(
    st.sampled_from(["path", "change", "size", "mtime", "encoding", "content", "sha256", "omitted", "o"]),
    JSON
    | st.sampled_from(
        [
            "created",
            "modified",
            "deleted",
            "utf-8",
            "base64",
            "a/b.txt",
            "data:text/html,x",
            "QQ==",
            "unreadable",
            "ab" * 32,
        ]
    )
    | st.sampled_from([0, 1, 2**63, 10**400, -1, float("nan"), float("inf"), True]),
)


@given(FRAMES)
@settings(suppress_health_check=[HealthCheck.too_slow])  # the first run makes a table of all characters
def test_no_report_out_of_a_sandbox_does_harm(frame: dict[str, Any]) -> None:
    report = read_report(frame)
    if report is None:
        return
    assert safe_path(report.file.path) == report.file.path
    assert 0 <= report.file.size_bytes < 2**53
    assert re.fullmatch("([0-9a-f]{64})?", report.file.sha256)
    assert not (report.file.omitted and (report.content or report.file.sha256))
    assert type(report.file).model_validate_json(report.file.model_dump_json()) == report.file
    if report.content is not None:
        assert content_of(report.file) == report.content
    assert shown(report).content is None or report.file.size_bytes <= INLINE_TEXT_BYTES


@given(st.binary(max_size=300))
def test_a_file_gives_its_bytes_back(content: bytes) -> None:
    file = file_of("a.bin", content, modified_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert content_of(file) == content
    assert file.size_bytes == len(content)
    assert content_of(type(file).model_validate(file.to_json())) == content


def test_what_is_shown_inline_is_short_text() -> None:
    base = {"path": "f", "change": "created", "mtime": 0}
    for content, inline in [
        ("short", True),
        ("x" * INLINE_TEXT_BYTES, True),
        ("x" * (INLINE_TEXT_BYTES + 1), False),
    ]:
        report = read_report({**base, "size": 1, "encoding": "utf-8", "content": content})
        assert report is not None
        assert (shown(report).content is not None) == inline
    binary = read_report({**base, "size": 2, "encoding": "base64", "content": "/w=="})
    assert binary is not None
    assert binary.content == b"\xff"
    assert shown(binary).content is None


@pytest.mark.parametrize(
    ("paths", "given"),
    [
        (["a", "a/b"], ["a", "a/b"]),
        (["a/b/c/d", "x", "a/b"], ["x", "a/b"]),
        (["a"], ["a", "a"]),
    ],
)
def test_files_that_cannot_all_be_are_refused(paths: list[str], given: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_tree(paths, given=given)
    assert refused.value.code == "conflicting_paths"


def test_files_beside_each_other_are_fine_and_one_may_stand_for_that_of_a_profile() -> None:
    check_tree(["a", "ab", "b/a", "b/ab/c", "a b"], given=["a", "b/a"])


def test_a_file_without_its_content_says_why() -> None:
    base = {"path": "f", "change": "modified", "mtime": 0, "size": 2**40, "sha256": None, "o": 7}
    for said, omitted in [("too_large", "too_large"), ("unreadable", "unreadable"), ("else", "too_large")]:
        report = read_report({**base, "omitted": said})
        assert report is not None
        assert (report.file.omitted, report.file.sha256, report.offset) == (omitted, "", 7)
        assert (report.file.size_bytes, shown(report)) == (2**40, report.file)
    gone = read_report({"path": "f", "change": "deleted", "omitted": "too_large"})
    assert gone is not None
    assert gone.file.omitted is None
