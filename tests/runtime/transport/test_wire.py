"""The wire's spelling of times, which is written with what the one before had in common."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import example, given
from hypothesis import strategies as st

from agent_runtime.transport import wire

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-8))])
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


EARLIEST, LATEST = datetime(1, 1, 3), datetime(9999, 12, 29)  # noqa: DTZ001 - the zone is chosen apart


@given(st.lists(st.datetimes(EARLIEST, LATEST, timezones=ZONES)))
@example([NOON, NOON + timedelta(microseconds=999_999), NOON + timedelta(seconds=1), NOON])
@example([NOON + timedelta(milliseconds=step) for step in range(0, 3000, 7)])
def test_a_time_is_in_utc_with_milliseconds_whatever_was_written_before(moments: list[datetime]) -> None:
    for moment in moments:
        expected = moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        assert wire.timestamp(moment) == expected
