"""Values out of a sandbox become JSON that every encoder takes, whatever their strings hold."""

import orjson

from agent_runtime.blocks import ToolUse
from agent_runtime.clock import now
from agent_runtime.frozen import text_of


def test_a_key_that_is_no_text_does_not_keep_a_value_from_its_json() -> None:
    odd = {"outer": {"k\ud800": ["v\udfff", {"deep\udc00": 1}]}, "fine": "grün"}
    block = ToolUse(id="t", tool_use_id="t", tool_name="Any", timestamp=now(), input=odd)

    shown = block.to_json()

    assert shown["input"] == {"outer": {"k\ufffd": ["v\ufffd", {"deep\ufffd": 1}]}, "fine": "grün"}
    assert shown["toolUseId"] == "t"
    orjson.dumps(shown)


def test_what_is_text_already_stays_as_it_is() -> None:
    assert text_of("grün 😀 \0 \x1b[31m") == "grün 😀 \0 \x1b[31m"
    assert text_of("\ud83d\ude00 \ud800!") == "😀 \ufffd!"
