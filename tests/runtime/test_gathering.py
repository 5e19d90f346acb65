"""A busy loop reads a session later and more of it at once; a lone stream waits for nobody."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.gathering import Gathering


@dataclass
class Loop:
    """A loop's time, and what of it was spent."""

    now: float = 0.0
    spent: float = 0.0

    def gathering(self, most_s: float) -> Gathering:
        return Gathering(most_s, clock=lambda: self.now, spent=lambda: self.spent)

    def live(self, seconds: float, busy: float) -> None:
        self.now += seconds
        self.spent += seconds * busy


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.0, 0.74)), max_size=50))
def test_a_stream_on_a_loop_that_has_time_is_never_delayed(lived: list[tuple[float, float]]) -> None:
    loop = Loop()
    gathering = loop.gathering(0.05)
    for seconds, busy in lived:
        loop.live(seconds, busy)
        assert gathering.pause_s() == 0


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.0, 2.0)), max_size=50))
def test_a_pause_is_bounded_whatever_the_load(lived: list[tuple[float, float]]) -> None:
    loop = Loop()
    gathering = loop.gathering(0.05)
    for seconds, busy in lived:
        loop.live(seconds, busy)
        assert 0 <= gathering.pause_s() <= 0.05


def test_pauses_come_with_the_load_and_go_with_it() -> None:
    loop = Loop()
    gathering = loop.gathering(0.05)
    loop.live(0.3, 0.85)
    assert 0 < gathering.pause_s() < 0.05
    loop.live(0.3, 0.99)
    assert gathering.pause_s() == 0.05
    loop.live(0.3, 0.1)
    assert gathering.pause_s() == 0


def test_a_moment_in_which_much_comes_at_once_is_no_load() -> None:
    loop = Loop()
    gathering = loop.gathering(0.05)
    for _ in range(10):
        loop.live(0.06, 1.0)
        assert gathering.pause_s() == 0
        loop.live(0.19, 0.5)
        assert gathering.pause_s() == 0


def test_where_it_is_switched_off_nobody_waits() -> None:
    loop = Loop()
    gathering = loop.gathering(0)
    loop.live(0.3, 1.0)
    assert gathering.pause_s() == 0
