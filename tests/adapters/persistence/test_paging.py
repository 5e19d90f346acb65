"""Cursors: whatever comes back from a client, it is one of ours or it is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.errors import InvalidRequest
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.paging import bounded, from_cursor, session_key, to_cursor

MICROSECONDS = st.integers(-(10**17), 10**17)


@given(MICROSECONDS, st.text(st.characters(), min_size=1, max_size=200))
def test_a_cursor_leads_back_to_its_place(at: int, session_id: str) -> None:
    assert from_cursor(to_cursor((at, session_id))) == (at, session_id)


@given(st.text(st.characters()) | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_other_text_is_refused_or_means_itself(text: str) -> None:
    check_refused_or_itself(text)


@given(MICROSECONDS, st.integers(0, 30), st.characters())
def test_a_cursor_that_was_tampered_with_is_refused_or_means_itself(at: int, place: int, odd: str) -> None:
    cursor = to_cursor((at, "session-1"))
    check_refused_or_itself(cursor[:place] + odd + cursor[place + 1 :])


def check_refused_or_itself(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert to_cursor(from_cursor(text)) == text


def test_a_time_without_zone_is_taken_as_utc() -> None:
    record = samples.session()
    naive = samples.session(created_at=record.created_at.replace(tzinfo=None))
    assert session_key(naive) == session_key(record)


@pytest.mark.parametrize(("given_number", "used"), [(-1, 0), (0, 0), (7, 7), (10**30, 1 << 62)])
def test_numbers_of_clients_are_cut_to_what_stores_can_take(given_number: int, used: int) -> None:
    assert bounded(given_number) == used
