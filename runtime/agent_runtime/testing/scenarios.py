"""Ready scripts for the scripted model: one for each thing that an agent can meet.

`SCENARIOS` is all of them by name; a prompt picks one by `[[script:NAME key=value]]`. Parameters
stand in each one's docstring. The long one that shows everything is `demo`.
"""

from __future__ import annotations

from typing import Final

from agent_runtime.testing.demo import demo, inspect
from agent_runtime.testing.script import (
    Ask,
    Break,
    Call,
    Fail,
    Reply,
    Say,
    Script,
    Stop,
    Think,
    Tokens,
    Wait,
)

_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def bash(command: str, description: str, **more: object) -> Call:
    """A call of the Bash tool."""
    return Call("Bash", {"command": command, "description": description, **more})


def agent(description: str, prompt: str, *, background: bool = False) -> Call:
    """A call of the tool that runs a child agent. Background is its own default, so it is said."""
    return Call(
        "Agent",
        {
            "description": description,
            "prompt": prompt,
            "subagent_type": "general-purpose",
            "run_in_background": background,
        },
    )


def hello(ask: Ask) -> Reply:
    """Say what this is and what can be asked of it."""
    said = " ".join(ask.prompt.split())[:200]
    names = ", ".join(f"`{name}`" for name in sorted(SCENARIOS))
    return [
        Say(
            "I am a scripted model: no real model reads what you write, while the agent, its tools and "
            f"its files are real. You wrote: “{said}”.\n\nWrite `[[script:NAME]]` to make me play one of "
            f"these: {names}. For example `[[script:bash]]` or `[[script:slow n=100]]`.",
            delay_s=0.01,
        )
    ]


def files(ask: Ask) -> Reply:
    """Write, read and edit a file, then tell how it went."""
    path = f"{ask.cwd}/notes.txt"
    steps: list[Reply] = [
        [Say("I write a file."), Call("Write", {"file_path": path, "content": "first line\nsecond line\n"})],
        [Call("Read", {"file_path": path})],
        [Call("Edit", {"file_path": path, "old_string": "second line", "new_string": "line two"})],
    ]
    return steps[ask.step] if ask.step < len(steps) else [Say("The file is written, read and edited.")]


def slow(ask: Ask) -> Reply:
    """Many words, slowly. `n`: how many; `delay`: seconds after each."""
    count = int(ask.number("n", 100, 100_000))
    words = " ".join(f"word{at:05d}" for at in range(count))
    return [Say(words, delay_s=ask.number("delay", 0.05, 60), chunk=len("word00000 "))]


def hang(ask: Ask) -> Reply:
    """Say nothing for a long time. `s`: seconds."""
    return [Wait(ask.number("s", 600, 86_400)), Say("That took long.")]


def stall(ask: Ask) -> Reply:
    """Begin to speak and stop in the middle. `s`: seconds of silence."""
    return [Say("I begin and then "), Wait(ask.number("s", 600, 86_400)), Say("I go on.")]


def slow_bash(ask: Ask) -> Reply:
    """A command that runs for `s` seconds."""
    seconds = int(ask.number("s", 30, 3600))
    loop = f"for i in $(seq {seconds}); do echo tick $i; sleep 1; done"
    return [bash(loop, f"Tick for {seconds} seconds")] if ask.step == 0 else [Say("The clock has run down.")]


def error(ask: Ask) -> Reply:
    """Fail with `status`, `times` times (for ever without it), then recover. `retry_after`: seconds."""
    status = int(ask.number("status", 500, 599))
    return [
        Fail(
            status if status >= min(_KINDS) else 500,
            _KINDS.get(status, "api_error"),
            retry_after_s=ask.number("retry_after", 0) if "retry_after" in ask.params else None,
            times=_times(ask),
        ),
        Say("Recovered."),
    ]


def overloaded(ask: Ask) -> Reply:
    """Break off by an error event in the middle of a text, `times` times (1 without it)."""
    return [Say(_LOST, chunk=12), Break("overloaded", times=_times(ask) or 1)]


def cut(ask: Ask) -> Reply:
    """Cut the connection in the middle of a text, `times` times (1 without it)."""
    return [Say(_LOST, chunk=12), Break("cut", times=_times(ask) or 1)]


def refusal(_: Ask) -> Reply:
    """Refuse, however often it is asked."""
    return [Say("No."), Stop("refusal")]


def max_tokens(ask: Ask) -> Reply:
    """Hit the bound on output `times` times (for ever without it), then finish."""
    times = _times(ask)
    over = times is not None and ask.step >= times
    return [Say("The end.")] if over else [Say("This is cut off by the limit and"), Stop("max_tokens")]


def big(ask: Ask) -> Reply:
    """One long text of `n` characters."""
    return [Say("abcdefghi\n" * (int(ask.number("n", 1_000_000, 50_000_000)) // 10), chunk=65_536)]


def big_bash(ask: Ask) -> Reply:
    """A command that prints `n` lines."""
    count = int(ask.number("n", 20_000, 10_000_000))
    return (
        [bash(f"seq 1 {count}", "Print many lines")] if ask.step == 0 else [Say("Many lines were printed.")]
    )


def full(ask: Ask) -> Reply:
    """Call a tool and claim a context of `tokens`, so that the agent compacts before it goes on."""
    claim = Tokens(int(ask.number("tokens", 190_000, 10_000_000)))
    return [claim, bash("echo one step", "A step")] if ask.step == 0 else [Say("I went on after that.")]


def _times(ask: Ask) -> int | None:
    return int(ask.number("times", 1, 1000)) if "times" in ask.params else None


_LOST: Final = "This sentence is told up to here and may be told again from its beginning. " * 2

_CHILD: Final[Script] = [
    [
        Think("A small thing to do."),
        Say("I am the child and run a command."),
        bash("echo from the child", "Speak"),
    ],
    [Say("The child's report: the command printed `from the child`.")],
]

SCENARIOS: Final[dict[str, Script]] = {
    "hello": hello,
    "demo": demo,
    "inspect": inspect,
    "text": [[Say("This is plain text from the scripted model, in several pieces.")]],
    "thinking": [[Think("First this, then that, and so it follows."), Say("I thought about it: 42.")]],
    "bash": [
        [Say("I run a command."), bash("echo hello > hello.txt && cat hello.txt", "Write and show")],
        [Say("It printed hello.")],
    ],
    "bash_fail": [
        [bash("echo out; echo err >&2; exit 3", "Fail on purpose")],
        [Say("It failed with 3, as it should.")],
    ],
    "files": files,
    "parallel": [
        [
            Say("Three at once."),
            bash("sleep 0.3; echo one", "First"),
            bash("echo two", "Second"),
            bash("echo three", "Third"),
        ],
        [Say("All three came back.")],
    ],
    "subagent": [
        [Say("I ask a child."), agent("A small thing", "Do the small thing. [[script:child]]")],
        [Say("The child came back.")],
    ],
    "subagents": [
        [
            agent("Left", "The left half. [[script:child]]"),
            agent("Right", "The right half. [[script:child]]"),
        ],
        [Say("Both children came back.")],
    ],
    "background": [
        [agent("A longer thing", "Do the longer thing. [[script:child]]", background=True)],
        [Say("The child works in the background.")],
        [Say("The child in the background came back.")],
    ],
    "background_bash": [
        [bash("sleep 1; echo done", "Work in the background", run_in_background=True)],
        [Say("The command runs in the background.")],
        [Say("The command in the background came back.")],
    ],
    "child": _CHILD,
    "slow": slow,
    "hang": hang,
    "stall": stall,
    "slow_bash": slow_bash,
    "error": error,
    "overloaded": overloaded,
    "cut": cut,
    "refusal": refusal,
    "max_tokens": max_tokens,
    "big": big,
    "big_bash": big_bash,
    "full": full,
}
"""All ready scripts by the name that a directive uses."""
