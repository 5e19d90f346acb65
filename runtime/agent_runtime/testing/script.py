"""What a scripted model may do: the parts that a script is made of. Values only.

A script is a list of replies, one for each time that the agent asks during a turn; or a function
from the `Ask` to one reply. A reply is a list of parts, in order:

    scripts = {
        "greet": [[Think("Somebody is here."), Say("Good morning.")]],
        "list": [[Say("I look."), Call("Bash", {"command": "ls"})], [Say("That is all there is.")]],
        "echo": lambda ask: [Say(f"You said: {ask.prompt}")],
    }

How a request becomes an `Ask` is in `asking`, how parts become an answer is in `answering`, ready
scripts are in `scenarios`, and the server is `scripted_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Say:
    """Text, streamed in pieces of `chunk` characters with `delay_s` after each."""

    text: str
    delay_s: float = 0.0
    chunk: int = 24


@dataclass(frozen=True, slots=True)
class Think:
    """Reasoning, streamed as `Say` is."""

    text: str
    delay_s: float = 0.0
    chunk: int = 24


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; its input is streamed as JSON text. Several in one reply are parallel calls."""

    tool: str
    input: Mapping[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0
    chunk: int = 48


@dataclass(frozen=True, slots=True)
class Wait:
    """Silence. Before all else in a reply not even the head of the answer is sent."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with an HTTP error instead. After `times` requests it is left out; None: never."""

    status: int
    kind: str = "api_error"
    message: str = "A scripted error."
    retry_after_s: float | None = None
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Break:
    """Break off in the middle of the part before: by an error event, or by cutting the connection.

    An answer that is not streamed fails with status 529, or is cut. `times` as in `Fail`.
    """

    how: Literal["overloaded", "cut"]
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End with this stop reason (`max_tokens`, `refusal`) instead of the natural one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Claim this usage instead of an estimate."""

    input_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool call of this turn gave back, as far as it is text."""

    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the agent, as a script sees it.

    Attributes:
        script: the directive's name, or None where the prompt holds no directive.
        params: the directive's `key=value` pairs.
        step: how many replies this turn had already; 0 for the first.
        turn: how many prompts came before this one in the conversation.
        prompt: the latest text of the user, without the agent's own additions.
        results: what the tool calls of this turn gave back so far.
        cwd: the working directory that the agent states.
        tools: names of the tools that it offers.
    """

    script: str | None
    params: Mapping[str, str]
    step: int
    turn: int
    prompt: str
    results: tuple[Result, ...]
    cwd: str
    tools: frozenset[str]

    def number(self, name: str, default: float, most: float = 1e6) -> float:
        """A parameter as a number from 0 to `most`; the default where it is absent or no number."""
        try:
            value = float(self.params[name])
        except (KeyError, ValueError):
            return default
        return min(max(value, 0.0), most) if value == value else default  # noqa: PLR0124 - NaN is no number


Part = Say | Think | Call | Wait | Fail | Break | Stop | Tokens
Reply = Sequence[Part]
Script = Sequence[Reply] | Callable[[Ask], Reply]

AFTER_THE_END = "The script is over."


def reply_to(script: Script, ask: Ask) -> Reply:
    """The reply that is due; beyond the end of a list the model says that it is over."""
    if callable(script):
        return script(ask)
    return script[ask.step] if ask.step < len(script) else [Say(AFTER_THE_END)]
