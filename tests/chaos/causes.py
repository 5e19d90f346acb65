"""Which deed of a story excuses which turn that did not complete."""

from datetime import datetime, timedelta
from typing import Any

from tests.chaos.deeds import Deed
from tests.chaos.story import Story

Told = dict[str, Any]

TOGETHER = timedelta(seconds=1)
"""What waits for a sandbox fails with it: ends so near to each other may have one cause."""


class Causes:
    """The deeds of a session, each of which excuses one turn; a stop all those that it met.

    Turns are to be asked for in the order of their ends: then taking any deed is never a mistake.
    """

    def __init__(self, story: Story, session: int) -> None:
        self._deeds = [deed for deed in story.deeds if deed.session == session]
        here = [sent for sent in story.sent if sent.said.session == session]
        exits = [sent for sent in here if sent.said.order.fate == "exits"]
        self._exits = {sent.said.order.message_id for sent in exits}
        self._strays = [sent.turn_id for sent in exits if sent.when_busy == "steer"]
        self._failed_with: datetime | None = None

    def excuse(self, turn: Told) -> bool:
        ended = datetime.fromisoformat(turn["endedAt"]) + timedelta(milliseconds=2)  # it is cut to whole ones
        past = [deed for deed in self._deeds if deed.at <= ended]
        if any(d.what == "stop" and (d.until is None or ended <= d.until + TOGETHER) for d in past):
            return True
        if turn["status"] == "cancelled":
            mine = [deed for deed in past if deed.turn_id == turn["turnId"]]
            return self._use(mine, past, {"interrupt", "withdraw"})
        if turn["messageId"] in self._exits:
            return True
        if self._failed_with is not None and ended <= self._failed_with + TOGETHER:
            return True
        if self._use([], past, {"kill-sandbox"}):
            self._failed_with = ended
            return True
        return bool(self._strays and self._strays.pop())

    def left(self) -> str:
        """What is there to excuse others."""
        return f"left are {[(deed.what, deed.at.isoformat(), deed.turn_id) for deed in self._deeds]}"

    def _use(self, mine: list[Deed], past: list[Deed], kinds: set[str]) -> bool:
        """Use up the deed that was meant for a turn, else one that was meant for whichever."""
        for deed in (*mine, *(deed for deed in past if deed.turn_id is None)):
            if deed.what in kinds:
                self._deeds.remove(deed)
                return True
        return False
