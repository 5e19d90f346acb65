"""The garbage collector looks at everything when the loop has time for it, or when there is need."""

import asyncio
import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.cli.collecting import CALM, FEWEST, is_due, sparing_the_loop

COUNTS = st.integers(0, 50_000_000)
SHARES = st.floats(0.0, 2.0)


class Node:
    """Something that only the collector can free, because it keeps itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_what_was_imported_is_never_looked_at_and_all_is_as_before_at_the_end() -> None:
    before = gc.get_threshold()
    try:
        async with sparing_the_loop():
            assert gc.get_freeze_count() > 0
            assert len(gc.get_objects()) < gc.get_freeze_count()
        assert gc.get_threshold() == before
    finally:
        gc.unfreeze()


async def test_what_only_the_collector_frees_is_freed_while_the_loop_has_time() -> None:
    try:
        async with sparing_the_loop():
            left = Node()
            gone = asyncio.Event()
            weakref.finalize(left, gone.set)
            gc.collect(1)  # it is no young object any more
            del left
            kept = [[number] for number in range(2 * FEWEST)]  # noqa: F841  as sessions at work would
            async with asyncio.timeout(10):
                await gone.wait()
    finally:
        gc.unfreeze()


@given(made=COUNTS, there=COUNTS, busy=SHARES)
def test_a_busy_loop_is_stopped_less_often_than_one_that_has_time(made: int, there: int, busy: float) -> None:
    if is_due(made=made, there=there, busy=busy):
        assert is_due(made=made, there=there, busy=0.0)


@given(there=COUNTS, busy=SHARES)
def test_garbage_is_bounded_by_what_is_there_however_busy_the_loop_is(there: int, busy: float) -> None:
    assert is_due(made=max(FEWEST, there), there=there, busy=busy)


@given(there=st.integers(FEWEST, 50_000_000), busy=st.floats(CALM, 2.0))
def test_a_busy_loop_is_not_stopped_before_as_much_again_is_there(there: int, busy: float) -> None:
    assert not is_due(made=there - 1, there=there, busy=busy)
