"""How things stand in a story that did not come to its end, for whoever has to find out why."""

import asyncio
from contextlib import suppress

from tests.chaos.awaits import END, TELL
from tests.chaos.story import Story

TOLD_WITHIN_S = 5.0


async def standing(story: Story) -> list[str]:
    """What the story waits for, and where each session is; what its tasks await is in the log then."""
    lines = [story.progress.stand(), *(_session(story, number) for number in range(len(story.viewers)))]
    unsent = [s.said.order.message_id for s in story.sent if s.turn_id is None and s.refused is None]
    if unsent:
        lines.append(f"not acknowledged: {unsent}")
    lines.append(await _runtime(story))
    return lines


def _session(story: Story, session: int) -> str:
    viewers = [(each.name, each.state.position, each.state.phase) for each in story.viewers[session]]
    turns = story.open[session] if session < len(story.open) else []
    still_open = [(turn.get("messageId"), turn["turnId"], turn["status"]) for turn in turns]
    how = "at rest" if session < len(story.fresh) else f"open turns {still_open}"
    return f"session {session} ({story.sessions[session]}): {how}, viewers {viewers}"


async def _runtime(story: Story) -> str:
    life = story.life
    if life is None or life.over.done():
        return "the runtime is over"
    log = story.data / "runtime.log"
    life.send(TELL)
    with suppress(TimeoutError):
        async with asyncio.timeout(TOLD_WITHIN_S):
            while not (log.exists() and END in log.read_text(errors="replace")):
                await asyncio.sleep(0.05)
            return "what the runtime's tasks await is at the end of its log"
    return f"the runtime did not say within {TOLD_WITHIN_S:g} s what its tasks await"
