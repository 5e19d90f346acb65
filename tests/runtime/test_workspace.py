"""Paths between a sandbox, where names are bytes, and everybody else, for whom they are text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.errors import InvalidRequest
from agent_runtime.workspace import raw_path, read_report, safe_path, shown_path

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
