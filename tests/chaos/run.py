"""Tell a story by its seed and judge it."""

import asyncio
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import checks
from tests.chaos.deeds import Figures
from tests.chaos.plan import Plan
from tests.chaos.processes import Forks
from tests.chaos.progress import Unwell
from tests.chaos.proxy import proxy
from tests.chaos.standing import standing
from tests.chaos.story import PATIENCE_S, Story

HANGS_AFTER_S = 120.0
"""Whatever progress it makes: several times what a story takes on a busy machine."""

_LOOK = ("method=GET path=/api/", "status=200")


@dataclass(frozen=True)
class Verdict:
    """`wrong` is empty where all is well; `log` is what the runtime wrote in its lives."""

    plan: Plan
    wrong: tuple[str, ...]
    figures: Figures
    log: str

    def told(self) -> str:
        """For whoever reads of a failure, with its log: the same seed again may well end well."""
        return "\n  ! ".join((self.plan.told(), *self.wrong)) + f"\n--- log ---\n{self.log}"


async def tell(plan: Plan, forks: Forks, *, patience_s: float = PATIENCE_S) -> Verdict:
    """Nothing is left of it, however it ends; one that does not end is judged for that."""
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-chaos-"))
    try:
        async with proxy() as network:
            story = Story(plan, forks, network, folder / "data", patience_s=patience_s)
            story.data.mkdir()
            try:
                async with asyncio.timeout(HANGS_AFTER_S):
                    await story.run()
                    wrong = await checks.wrong(story)
            except (Unwell, TimeoutError, ExceptionGroup) as error:
                wrong = [*story.defects, *_said(error), *await standing(story)]
            finally:
                await story.kill_everything()
            log = _tail(story.data / "runtime.log")
        return Verdict(plan, tuple(wrong), story.figures, log)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _said(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for each in error.exceptions for line in _said(each)]
    here = [frame for frame in traceback.extract_tb(error.__traceback__) if "chaos" in frame.filename]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(here))
    return [f"{type(error).__name__}: {error} ({where})"]


def _tail(file: Path, most: int = 20_000) -> str:
    """Without the looks of the story itself, which are most of it."""
    lines = file.read_text(errors="replace").splitlines(keepends=True) if file.exists() else []
    return "".join(line for line in lines if not all(word in line for word in _LOOK))[-most:]
