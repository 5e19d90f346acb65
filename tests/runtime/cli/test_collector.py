"""What a served runtime has imported is not looked through again by the garbage collector."""

import gc

from agent_runtime.cli.serve import keep_for_good


def test_what_is_there_when_serving_begins_is_spared_from_then_on() -> None:
    try:
        keep_for_good()
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < gc.get_freeze_count()
    finally:
        gc.unfreeze()
