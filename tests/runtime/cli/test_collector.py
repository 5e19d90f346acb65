"""What a served runtime has imported is not looked through again by the garbage collector."""

import gc

from agent_runtime.cli.serve import spare_the_collector


def test_what_is_there_when_serving_begins_is_spared_from_then_on() -> None:
    before = gc.get_threshold()
    try:
        spare_the_collector()
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < gc.get_freeze_count()
        assert gc.get_threshold() > before
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
