"""The lifecycle, move by move: each story is a list of inputs with the effects that must follow."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime import moves
from agent_runtime.lifecycle import TRANSITIONS, InvalidTransition, step
from agent_runtime.moves import (
    AgentBegan,
    AgentIdle,
    AgentRested,
    AnnounceQueue,
    AnnounceStatus,
    Attached,
    BeginTurn,
    CancelWake,
    Deliver,
    Effect,
    EndAgent,
    EndTurn,
    EndUnbegun,
    Input,
    Interrupt,
    InterruptExpired,
    InterruptWanted,
    MessageAccepted,
    NotSteered,
    PrewarmWanted,
    SandboxAging,
    SandboxIdle,
    SandboxLost,
    Steer,
    Steered,
    Stopped,
    StopSandbox,
    StopWanted,
    Wake,
    WakeFailed,
    Woken,
)
from agent_runtime.records import Phase, TurnError, TurnStatus
from agent_runtime.reports import AgentTurnEnded
from agent_runtime.state import State, check

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
    "what the agent was handed and cannot give back it answers first, and is asked to end that as well": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("w"), [QUEUE]),
        (MessageAccepted("b", "steer"), [QUEUE, Steer("b")]),
        (MessageAccepted("c", "interrupt"), [QUEUE, Interrupt("a")]),
        (
            AgentRested(CANCELLED),
            [EndTurn("a", CANCELLED), QUEUE, STATUS, BeginTurn("b"), Deliver("b"), Interrupt("b")],
        ),
        (AgentRested(CANCELLED), [EndTurn("b", CANCELLED), QUEUE, STATUS, BeginTurn("c"), Deliver("c")]),
        (AgentRested(COMPLETED), [EndTurn("c", COMPLETED), QUEUE, STATUS, BeginTurn("w"), Deliver("w")]),
    ],
    "what the agent was not handed after all waits where it was": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("w"), [QUEUE]),
        (MessageAccepted("b", "steer"), [QUEUE, Steer("b")]),
        (NotSteered("b"), []),
        (AgentRested(COMPLETED), [EndTurn("a", COMPLETED), QUEUE, STATUS, BeginTurn("w"), Deliver("w")]),
    ],
    "what the agent may have begun is not asked of another one": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (MessageAccepted("b", "steer"), [QUEUE, Steer("b")]),
        (MessageAccepted("c", "interrupt"), [QUEUE, Interrupt("a")]),
        (
            AgentRested(CANCELLED),
            [EndTurn("a", CANCELLED), QUEUE, STATUS, BeginTurn("b"), Deliver("b"), Interrupt("b")],
        ),
        (SandboxLost(LOST), [EndTurn("b", CANCELLED), STATUS, StopSandbox()]),
        (Stopped(), [STATUS, Wake(2)]),
        (Woken(2), [QUEUE, STATUS, BeginTurn("c"), Deliver("c")]),
    ],
    "an old sandbox is left when the agent is done with all that it was handed": [
        (MessageAccepted("a"), [QUEUE, STATUS, Wake(1)]),
        (Woken(1), [QUEUE, STATUS, BeginTurn("a"), Deliver("a")]),
        (SandboxAging(), []),
        (MessageAccepted("b", "steer"), [QUEUE, Steer("b")]),
        (MessageAccepted("w"), [QUEUE]),
        (AgentRested(COMPLETED), [EndTurn("a", COMPLETED), QUEUE, STATUS, BeginTurn("b"), Deliver("b")]),
        (AgentRested(COMPLETED), [EndTurn("b", COMPLETED), STATUS, StopSandbox(keep=True)]),
        (Stopped(), [STATUS, Wake(2)]),
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


# Going on where an earlier process ended.


def test_a_turn_under_way_goes_on_and_its_message_is_handed_over_again() -> None:
    state, effects = step(State(), Attached("t", ("u",), autonomous=False, agent=True))
    assert state == State(phase=Phase.RUNNING, turn="t", queue=("u",))
    assert effects == (AnnounceStatus(), Deliver("t"))


def test_a_turn_that_the_agent_began_by_itself_has_no_message_to_hand_over() -> None:
    state, effects = step(State(), Attached("t", (), autonomous=True, agent=True))
    assert state == State(phase=Phase.RUNNING, turn="t", autonomous=True)
    assert effects == (AnnounceStatus(),)


def test_who_waits_comes_next_in_a_sandbox_whose_agent_rests() -> None:
    state, effects = step(State(), Attached(None, ("u",), autonomous=False, agent=True))
    assert state == State(phase=Phase.RUNNING, turn="u")
    assert effects[-2:] == (BeginTurn("u"), Deliver("u"))


def test_a_sandbox_without_an_agent_hibernates_until_somebody_waits() -> None:
    assert step(State(), Attached(None, (), autonomous=False, agent=False))[0].phase is Phase.HIBERNATED
    state, effects = step(State(), Attached(None, ("u",), autonomous=False, agent=False))
    assert (state.phase, state.queue) == (Phase.WAKING, ("u",))
    assert Wake(1) in effects


# A sandbox that dies before anything was done in it.


def test_an_untouched_turn_is_tried_once_more_and_does_not_begin_twice() -> None:
    running = State(phase=Phase.RUNNING, turn="t", queue=("u",))
    state, effects = step(running, SandboxLost(LOST, untouched=True))
    assert (state.phase, state.queue, state.again) == (Phase.STOPPING, ("t", "u"), "t")
    assert effects == (AnnounceStatus(), StopSandbox())
    state, _ = step(state, Stopped())
    state, effects = step(state, Woken(state.attempt))
    assert (state.phase, state.turn, state.queue) == (Phase.RUNNING, "t", ("u",))
    assert BeginTurn("t") not in effects
    assert effects[-1] == Deliver("t")
    state, effects = step(state, SandboxLost(LOST, untouched=True))
    assert effects[0] == EndTurn("t", AgentTurnEnded(TurnStatus.FAILED, error=LOST))


def test_what_the_user_no_longer_wants_is_not_tried_again() -> None:
    running = State(phase=Phase.RUNNING, turn="t", interrupting=True)
    _, effects = step(running, SandboxLost(LOST, untouched=True))
    assert effects[0] == EndTurn("t", AgentTurnEnded(TurnStatus.CANCELLED))


def test_a_turn_that_is_to_run_again_is_ended_as_one_that_has_begun() -> None:
    waits = State(phase=Phase.WAKING, queue=("t", "u"), again="t", attempt=1)
    for ends in (InterruptWanted("t"), MessageAccepted("v", "interrupt")):
        state, effects = step(waits, ends)
        assert EndTurn("t", AgentTurnEnded(TurnStatus.CANCELLED)) in effects
        assert "t" not in state.queue


# Messages in mid-turn.


def test_a_message_that_the_agent_takes_in_is_over_with_it() -> None:
    running = State(phase=Phase.RUNNING, turn="t")
    state, effects = step(running, MessageAccepted("u", "steer"))
    assert effects == (AnnounceQueue(), Steer("u"))
    over = EndUnbegun("u", AgentTurnEnded(TurnStatus.COMPLETED, stop_reason="steered"))
    assert step(state, Steered("u"))[1] == (AnnounceQueue(), over)
    both = replace(COMPLETED, message_ids=("t", "u"))
    ended, effects = step(state, AgentRested(both))
    assert ended == State(phase=Phase.READY)
    assert effects[:3] == (AnnounceQueue(), over, EndTurn("t", both))


def test_a_message_that_came_too_late_for_the_turn_is_the_next_one() -> None:
    state, _ = step(State(phase=Phase.RUNNING, turn="t"), MessageAccepted("u", "steer"))
    state, effects = step(state, AgentRested(replace(COMPLETED, message_ids=("t",))))
    assert (state.turn, state.queue) == ("u", ())
    assert effects[-2:] == (BeginTurn("u"), Deliver("u"))


def test_a_message_that_was_taken_back_with_the_turn_ends_as_cancelled() -> None:
    running = State(phase=Phase.RUNNING, turn="t", queue=("u",), interrupting=True)
    taken_back = AgentTurnEnded(TurnStatus.CANCELLED, message_ids=("u",))
    state, effects = step(running, AgentRested(taken_back))
    assert (state.turn, state.queue) == ("t", ())
    assert effects == (AnnounceQueue(), EndUnbegun("u", taken_back))


def test_at_rest_an_interrupt_reaches_what_works_in_the_background() -> None:
    ready = State(phase=Phase.READY)
    assert step(ready, InterruptWanted()) == (ready, (Interrupt(None),))
    assert step(ready, InterruptWanted("t")) == (ready, ())


# Idle.


def test_an_idle_agent_ends_and_its_sandbox_stays_until_that_is_idle_too() -> None:
    state, effects = step(State(phase=Phase.READY), AgentIdle())
    assert (state.phase, effects) == (Phase.HIBERNATED, (EndAgent(), AnnounceStatus()))
    assert step(state, SandboxIdle())[1] == (AnnounceStatus(), StopSandbox(keep=True))
    state, effects = step(state, MessageAccepted("t"))
    assert (state.phase, state.queue) == (Phase.WAKING, ("t",))
    assert Wake(1) in effects


# Sandboxes that will not live for long any more.


@pytest.mark.parametrize("phase", [Phase.READY, Phase.HIBERNATED])
def test_an_old_sandbox_in_which_nothing_happens_is_left_at_once(phase: Phase) -> None:
    state, effects = step(State(phase=phase), SandboxAging())
    assert (state.phase, effects) == (Phase.STOPPING, (AnnounceStatus(), StopSandbox(keep=True)))
    assert step(state, Stopped()) == (State(), (AnnounceStatus(),))


def test_a_turn_under_way_ends_before_its_sandbox_is_left_and_who_waits_comes_next() -> None:
    state, effects = step(State(phase=Phase.RUNNING, turn="a", queue=("b",), attempt=1), SandboxAging())
    assert (state.turn, state.queue, effects) == ("a", ("b",), ())
    assert step(state, SandboxAging()) == (state, ())
    state, effects = step(state, MessageAccepted("c"))
    assert effects == (QUEUE,)
    state, effects = step(state, AgentRested(COMPLETED))
    assert effects == (EndTurn("a", COMPLETED), STATUS, StopSandbox(keep=True))
    assert (state.phase, state.queue) == (Phase.STOPPING, ("b", "c"))
    state, effects = step(state, Stopped())
    assert effects == (STATUS, Wake(2))
    assert step(state, Woken(2))[1] == (QUEUE, STATUS, BeginTurn("b"), Deliver("b"))


def test_a_turn_that_outlives_its_sandbox_fails_as_with_any_that_is_lost() -> None:
    state, _ = step(State(phase=Phase.RUNNING, turn="a"), SandboxAging())
    state, effects = step(state, SandboxLost(LOST))
    assert effects == (EndTurn("a", failed(LOST)), STATUS, StopSandbox())
    assert not state.leaving


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
        self.agent = False
        self.to_tell: set[str] = set()
        self.turn: str | None = None
        self.given: dict[str, str | None] = {}
        """What this agent was handed, in order, and in which turn."""

    def feed(self, given: Input) -> None:
        self.state, effects = step(self.state, given)
        check(self.state)
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case BeginTurn() | Deliver() | Steer() | Interrupt() | EndTurn() | EndUnbegun():
                self.perform_turn(effect)
            case _:
                self.perform_sandbox(effect)

    def perform_turn(self, effect: Effect) -> None:
        match effect:
            case BeginTurn():
                assert self.agent
                assert self.open_turn() is None
                self.begun.append(effect.turn_id)
                self.to_tell.add(effect.turn_id)
            case Deliver():
                assert self.agent
                assert effect.turn_id == self.open_turn()
                self.to_tell.discard(effect.turn_id)
                self.turn = self.given[effect.turn_id] = effect.turn_id
                waits = [turn for turn in self.given if turn in (effect.turn_id, *self.state.queue)]
                assert waits[0] == effect.turn_id, "the agent was handed another one before"
            case Steer():
                assert self.agent
                assert effect.turn_id not in self.begun
                self.given[effect.turn_id] = self.turn
            case Interrupt():
                assert self.agent
                assert effect.turn_id == self.open_turn()
            case EndTurn():
                assert effect.turn_id == self.open_turn()
                self.ended.append(effect.turn_id)
            case EndUnbegun():
                assert effect.turn_id not in self.begun
                self.begun.append(effect.turn_id)
                self.ended.append(effect.turn_id)

    def perform_sandbox(self, effect: Effect) -> None:
        match effect:
            case Wake():
                assert not self.wakes, "two wakes at once"
                assert not self.agent, "a wake beside an agent"
                self.wakes.append(effect.attempt)
            case CancelWake():
                assert self.wakes
                self.wakes.clear()
                self.sandbox = False
            case EndAgent():
                assert self.agent
                assert self.open_turn() is None
                self.agent = False
            case StopSandbox():
                assert self.sandbox, "nothing to stop"
                assert self.open_turn() in {None, self.state.again}
                for turn in set(self.state.queue) & set(self.given) - {self.state.again}:
                    assert self.given[turn] == self.turn, "asked again, and it may have been begun"
                self.given.clear()
                self.sandbox = self.agent = False
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
            1: MessageAccepted(f"t{len(self.accepted) - 1}", "steer" if well else "interrupt"),
            2: StopWanted(RUNTIME_STOPPED if well else None),
            3: InterruptWanted(known if well else None),
            4: InterruptExpired(known),
            5: AgentBegan(f"own{number}-{len(self.begun)}"),
            6: PrewarmWanted(),
            7: AgentRested(BY_ITSELF),
            8: Steered(known),
            9: AgentRested(replace(COMPLETED, message_ids=(self.state.turn or "", known))),
            10: AgentRested(AgentTurnEnded(TurnStatus.CANCELLED, message_ids=(known,))),
            11: AgentIdle(),
            12: SandboxIdle(),
            13: SandboxAging(),
        }
        if choice == len(inputs) and self.sandbox:
            return SandboxLost(LOST, untouched=well)
        if choice == len(inputs) + 1 and known in self.given and known in self.state.queue:
            del self.given[known]  # the runner refused it
            return NotSteered(known)
        return inputs.get(choice)

    def answer(self, *, well: bool) -> bool:
        """Answer what waits for an answer; whether anything did."""
        if self.wakes:
            attempt = self.wakes.pop()
            self.sandbox = self.agent = well
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
@given(st.lists(st.tuples(st.integers(0, 17), st.booleans(), st.integers(0, 30)), max_size=60))
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
    assert not shell.to_tell & set(shell.accepted)
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
