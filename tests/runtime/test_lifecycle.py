"""The lifecycle, move by move: each story is a list of inputs with the effects that must follow."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime import moves
from agent_runtime.lifecycle import TRANSITIONS, InvalidTransition, State, check, step
from agent_runtime.moves import (
    AgentBegan,
    AgentRested,
    AnnounceQueue,
    AnnounceStatus,
    BeginTurn,
    CancelWake,
    Deliver,
    Effect,
    EndTurn,
    EndUnbegun,
    Input,
    Interrupt,
    InterruptExpired,
    InterruptWanted,
    MessageAccepted,
    PrewarmWanted,
    SandboxLost,
    Stopped,
    StopSandbox,
    StopWanted,
    Wake,
    WakeFailed,
    Woken,
)
from agent_runtime.ports import AgentTurnEnded
from agent_runtime.records import Phase, TurnError, TurnStatus

LOST = TurnError(code="sandbox_lost", message="gone")
NO_ROOM = TurnError(code="sandbox_unavailable", message="no room")
RUNTIME_STOPPED = TurnError(code="runtime_stopped", message="stopped")

COMPLETED = AgentTurnEnded(status=TurnStatus.COMPLETED)
CANCELLED = AgentTurnEnded(status=TurnStatus.CANCELLED)
BROKEN = AgentTurnEnded(status=TurnStatus.FAILED, error=TurnError(code="model_error", message="x"))
BY_ITSELF = AgentTurnEnded(status=TurnStatus.COMPLETED, autonomous=True)
WAS_STOPPED = AgentTurnEnded(status=TurnStatus.CANCELLED, stop_reason="stopped")
DID_NOT_LISTEN = AgentTurnEnded(status=TurnStatus.CANCELLED, stop_reason="interrupt_expired")

QUEUE, STATUS = AnnounceQueue(), AnnounceStatus()


def failed(error: TurnError) -> AgentTurnEnded:
    return AgentTurnEnded(status=TurnStatus.FAILED, error=error)


Game = list[tuple[Input, list[Effect]]]


def answer_to(turn_id: str) -> AgentTurnEnded:
    return AgentTurnEnded(status=TurnStatus.COMPLETED, message_ids=(turn_id,))


GAMES: dict[str, Game] = {
    "two messages at once wake one sandbox and are answered in order": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (MessageAccepted("b"), [QUEUE]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (AgentRested(COMPLETED), [EndTurn("a", COMPLETED), QUEUE, STATUS, BeginTurn("b"), Deliver("b")]),
        (AgentRested(COMPLETED), [EndTurn("b", COMPLETED), STATUS]),
    ],
    "a sandbox is ready before the first message": [
        (PrewarmWanted(), [STATUS, Wake(1)]),
        (PrewarmWanted(), []),
        (Woken(1), [STATUS]),
        (PrewarmWanted(), []),
        (MessageAccepted("a"), [STATUS, BeginTurn("a"), Deliver("a")]),
    ],
    "a wake that fails fails all who wait, and the next message tries again": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (MessageAccepted("b"), [QUEUE]),
        (MessageAccepted("c"), [QUEUE]),
        (
            WakeFailed(1, NO_ROOM),
            [QUEUE, *(EndUnbegun(turn, failed(NO_ROOM)) for turn in ("a", "b", "c")), STATUS],
        ),
        (MessageAccepted("d"), [QUEUE, STATUS, Wake(2)]),
        (Woken(2), [QUEUE, STATUS, BeginTurn("d"), Deliver("d")]),
    ],
    "an interrupt ends the active turn, whatever the agent calls it": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (InterruptWanted(), [Interrupt("a")]),
        (InterruptWanted("a"), []),
        (AgentRested(BROKEN), [EndTurn("a", CANCELLED), STATUS]),
        (InterruptExpired("a"), []),
    ],
    "an interrupt of a queued turn touches nothing else": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("b"), [QUEUE]),
        (MessageAccepted("c"), [QUEUE]),
        (InterruptWanted("b"), [QUEUE, EndUnbegun("b", CANCELLED)]),
        (InterruptWanted("unknown"), []),
        (AgentRested(COMPLETED), [EndTurn("a", COMPLETED), QUEUE, STATUS, BeginTurn("c"), Deliver("c")]),
    ],
    "an interrupt while waking withdraws the first who waits": [
        (InterruptWanted(), []),
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (MessageAccepted("b"), [QUEUE]),
        (InterruptWanted(), [QUEUE, EndUnbegun("a", CANCELLED)]),
        (InterruptWanted("b"), [QUEUE, EndUnbegun("b", CANCELLED)]),
        (Woken(1), [STATUS]),
    ],
    "an agent that does not listen loses its sandbox, and the queue goes on": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("b"), [QUEUE]),
        (InterruptWanted(), [Interrupt("a")]),
        (InterruptExpired("a"), [EndTurn("a", DID_NOT_LISTEN), STATUS, StopSandbox()]),
        (AgentRested(CANCELLED), []),
        (SandboxLost(LOST), []),
        (Stopped(), [STATUS, Wake(2)]),
        (Woken(2), [QUEUE, STATUS, BeginTurn("b"), Deliver("b")]),
    ],
    "a sandbox that is lost in mid-turn fails the turn only": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("b"), [QUEUE]),
        (SandboxLost(LOST), [EndTurn("a", failed(LOST)), STATUS, StopSandbox()]),
        (MessageAccepted("c"), [QUEUE]),
        (Stopped(), [STATUS, Wake(2)]),
        (Woken(2), [QUEUE, STATUS, BeginTurn("b"), Deliver("b")]),
        (AgentRested(COMPLETED), [EndTurn("b", COMPLETED), QUEUE, STATUS, BeginTurn("c"), Deliver("c")]),
    ],
    "a sandbox that is lost while the agent was asked to stop has stopped": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (InterruptWanted(), [Interrupt("a")]),
        (SandboxLost(LOST), [EndTurn("a", CANCELLED), STATUS, StopSandbox()]),
        (Stopped(), [STATUS]),
    ],
    "a sandbox that is lost at rest is ended, and nobody minds": [
        (PrewarmWanted(), [STATUS, Wake(1)]),
        (Woken(1), [STATUS]),
        (SandboxLost(LOST), [STATUS, StopSandbox()]),
        (Stopped(), [STATUS]),
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(2)]),
    ],
    "a stop while waking gives the attempt up; its late answers are nothing": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (StopWanted(), [CancelWake(), QUEUE, EndUnbegun("a", WAS_STOPPED), STATUS]),
        (Woken(1), []),
        (MessageAccepted("b"), [QUEUE, STATUS, Wake(2)]),
        (Woken(1), []),
        (WakeFailed(1, NO_ROOM), []),
        (Woken(2), [QUEUE, STATUS, BeginTurn("b"), Deliver("b")]),
    ],
    "a stop in mid-turn cancels it and all who wait": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("b"), [QUEUE]),
        (
            StopWanted(),
            [EndTurn("a", WAS_STOPPED), QUEUE, EndUnbegun("b", WAS_STOPPED), STATUS, StopSandbox()],
        ),
        (Stopped(), [STATUS]),
    ],
    "a stop with a reason fails the turn": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (StopWanted(RUNTIME_STOPPED), [EndTurn("a", failed(RUNTIME_STOPPED)), STATUS, StopSandbox()]),
    ],
    "a message while stopping wakes again, unless the next stop comes first": [
        (PrewarmWanted(), [STATUS, Wake(1)]),
        (Woken(1), [STATUS]),
        (StopWanted(), [STATUS, StopSandbox()]),
        (StopWanted(), []),
        (MessageAccepted("a"), [QUEUE]),
        (StopWanted(), [QUEUE, EndUnbegun("a", WAS_STOPPED)]),
        (MessageAccepted("b"), [QUEUE]),
        (Stopped(), [STATUS, Wake(2)]),
    ],
    "a stop of what sleeps is nothing": [
        (StopWanted(), []),
        (SandboxLost(LOST), []),
        (AgentRested(COMPLETED), []),
    ],
    "an agent may begin by itself, and a message waits for it": [
        (PrewarmWanted(), [STATUS, Wake(1)]),
        (Woken(1), [STATUS]),
        (AgentBegan("own"), [STATUS, BeginTurn("own")]),
        (AgentBegan("again"), []),
        (MessageAccepted("a"), [QUEUE]),
        (AgentRested(BY_ITSELF), [EndTurn("own", BY_ITSELF), QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
    ],
    "what an agent did by itself does not answer our message": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (AgentBegan("own"), []),
        (AgentRested(BY_ITSELF), []),
        (AgentRested(COMPLETED), [EndTurn("a", COMPLETED), STATUS]),
    ],
    "a late or forged answer to another message ends nothing": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (AgentRested(answer_to("before")), []),
        (AgentRested(answer_to("a")), [EndTurn("a", answer_to("a")), STATUS]),
    ],
}


@pytest.mark.parametrize("title", GAMES)
def test_it_is_told(title: str) -> None:
    state = State()
    for number, (happens, expected) in enumerate(GAMES[title]):
        state, effects = step(state, happens)
        check(state)
        assert list(effects) == expected, f"move {number}: {happens}"


def test_a_pair_that_cannot_be_raises_and_changes_nothing() -> None:
    state = State()
    with pytest.raises(InvalidTransition):
        step(state, Stopped())
    assert state == State()


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    assert table() in page


def table() -> str:
    phases = list(Phase)
    inputs = sorted({given.__name__ for _, given in TRANSITIONS})
    lines = [
        "| | " + " | ".join(phase.value for phase in phases) + " |",
        "|---" * (len(phases) + 1) + "|",
    ]
    for name in inputs:
        cells = [_cell(phase, getattr(moves, name)) for phase in phases]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(phase: Phase, given: type) -> str:
    move = TRANSITIONS.get((phase, given))
    if move is None:
        return "!"
    name = move.__name__.strip("_").replace("_", " ")
    return "·" if name == "stay" else name


class Shell:
    """What a session does with effects, without doing anything: it keeps count and answers legally."""

    def __init__(self) -> None:
        self.state = State()
        self.accepted: list[str] = []
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.wakes: list[int] = []
        self.stopping = 0
        self.sandbox = False

    def feed(self, given: Input) -> None:
        self.state, effects = step(self.state, given)
        check(self.state)
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case Wake():
                assert not self.wakes, "two wakes at once"
                assert not self.sandbox, "a wake beside a sandbox"
                self.wakes.append(effect.attempt)
            case CancelWake():
                assert self.wakes
                self.wakes.clear()
            case BeginTurn():
                assert self.sandbox
                assert self.open_turn() is None
                self.begun.append(effect.turn_id)
            case Deliver() | Interrupt():
                assert effect.turn_id == self.open_turn()
            case EndTurn():
                assert effect.turn_id == self.open_turn()
                self.ended.append(effect.turn_id)
            case EndUnbegun():
                assert effect.turn_id not in self.begun
                self.begun.append(effect.turn_id)
                self.ended.append(effect.turn_id)
            case StopSandbox():
                assert self.sandbox, "nothing to stop"
                assert self.open_turn() is None
                self.sandbox = False
                self.stopping += 1
                assert self.stopping == 1

    def open_turn(self) -> str | None:
        running = [turn for turn in self.begun if turn not in self.ended]
        assert len(running) <= 1
        return running[0] if running else None

    def what_may_happen(self, choice: int, *, well: bool, number: int) -> Input | None:
        """Some input that is possible now; None: what waits for an answer gets one."""
        known = self.accepted[number % len(self.accepted)] if self.accepted else "none"
        if choice in {0, 1}:
            self.accepted.append(f"t{len(self.accepted)}")
        inputs: dict[int, Input] = {
            0: MessageAccepted(f"t{len(self.accepted) - 1}"),
            1: MessageAccepted(f"t{len(self.accepted) - 1}"),
            2: StopWanted(RUNTIME_STOPPED if well else None),
            3: InterruptWanted(known if well else None),
            4: InterruptExpired(known),
            5: AgentBegan(f"own{number}-{len(self.begun)}"),
            6: PrewarmWanted(),
            7: AgentRested(BY_ITSELF),
        }
        if choice == len(inputs) and self.sandbox:
            return SandboxLost(LOST)
        return inputs.get(choice)

    def answer(self, *, well: bool) -> bool:
        """Answer what waits for an answer; whether anything did."""
        if self.wakes:
            attempt = self.wakes.pop()
            self.sandbox = well
            self.feed(Woken(attempt) if well else WakeFailed(attempt, NO_ROOM))
        elif self.stopping:
            self.stopping -= 1
            self.feed(Stopped())
        elif self.open_turn() is not None:
            self.feed(AgentRested(COMPLETED if well else BROKEN))
        else:
            return False
        return True


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans(), st.integers(0, 30)), max_size=60))
def test_whatever_happens_every_message_is_answered_once(walk: list[tuple[int, bool, int]]) -> None:
    shell = Shell()
    for choice, well, number in walk:
        happens = shell.what_may_happen(choice, well=well, number=number)
        if happens is None:
            shell.answer(well=well)
        else:
            shell.feed(happens)
        # Late answers of attempts that were given up change nothing.
        before = shell.state
        for late in (Woken(before.attempt - 1), WakeFailed(before.attempt - 1, NO_ROOM)):
            assert step(before, late) == (before, ())
    while shell.answer(well=True):
        pass
    assert len(shell.begun) == len(set(shell.begun))
    assert sorted(shell.begun) == sorted(shell.ended)
    assert set(shell.accepted) <= set(shell.ended)


@settings(deadline=None)
@given(
    st.builds(
        State, phase=st.sampled_from(Phase), queue=st.lists(st.sampled_from("abc"), unique=True).map(tuple)
    ),
    st.sampled_from([Stopped(), MessageAccepted("z"), Woken(0), StopWanted(), SandboxLost(LOST)]),
)
def test_a_step_changes_no_state_it_was_given(state: State, given: Input) -> None:
    if state.phase is Phase.RUNNING:
        state = State(phase=Phase.RUNNING, turn="t", queue=state.queue)
    copy = replace(state)
    if (state.phase, type(given)) in TRANSITIONS:
        step(state, given)
    else:
        with pytest.raises(InvalidTransition):
            step(state, given)
    assert state == copy
