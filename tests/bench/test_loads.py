"""The loads of `pipeline`, `coalescing` and `fanout`, small: what they start has to work with what is there.

They are programs that only benchmarks start, beside the real server. They count every line and delivery: what
is missing, doubled or out of its place ends a run.
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coalescing
import fanout
import fanout_load
from pipeline_carriers import MOST_PROCESSES, OURS, carrier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are weighed through /proc")
ROOM = "of 10"


@pytest.fixture(autouse=True)
def as_many_files_as_before() -> Iterator[None]:
    """A load for many sessions lets itself open more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def test_lines_of_many_sessions_go_through_runners_in_one_process() -> None:
    sessions = MOST_PROCESSES + 1
    async with carrier(OURS, sessions) as ours:
        [runners] = ours.runners
        assert "many_runners.py" in command(runners)

        steady = await ours.turn(lines_per_second=500, seconds=0.2)
        assert (steady.written, len(steady.late_us)) == (100, 100)
        assert steady.server_us > 0
        assert steady.runners_us > 0
        assert steady.load_us > 0

        caught_up = await ours.turn(lines_per_second=0, seconds=0.1, from_journals=True)
        assert caught_up.written == len(caught_up.late_us) > sessions


async def test_ready_frames_of_several_sessions_are_told_to_their_viewers() -> None:
    async with coalescing.streaming(within_s=0.05, sessions=3) as carried:
        for _ in range(2):
            sample = await carried.turn(lines_per_second=150, seconds=0.4)
            assert (sample.written, len(sample.late_us)) == (60, 60)
            assert 0 < sample.frames <= sample.written + 3 * 20  # beside tokens, each turn's begin and end


@pytest.mark.parametrize("name", ["ours", "stock", "aiohttp", "picows"])
async def test_no_more_events_are_on_their_way_than_the_window_lets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fanout.started(name) as server:
        for _ in range(3):
            await server.join(ROOM)
        on_their_way: list[int] = []
        ask = server.ask

        def asked(room: str) -> None:
            ask(room)
            on_their_way.append(3 * (len(on_their_way) + 1) - len(server.arrivals[ROOM].ages))

        monkeypatch.setattr(server, "ask", asked)
        for window in (1, 8):
            on_their_way.clear()
            assert len(await server.rushed(ROOM, events=100, window=window)) == 3 * 100
            assert max(on_their_way) == 3 * window


async def test_a_delivery_that_does_not_come_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fanout.started("ours") as server:
        for _ in range(2):
            await server.join(ROOM)
        leaving, _ = await server.join(ROOM)
        leaving.disconnect()
        await leaving.wait_disconnected()
        monkeypatch.setattr(fanout_load, "WITHIN_S", 0.5)
        with pytest.raises(SystemExit, match="of 60 deliveries came"):
            await server.rushed(ROOM, events=20, window=64)
