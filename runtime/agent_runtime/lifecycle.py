"""Lifecycle: every move that a session can make. Pure: no loop, clock, chance or I/O.

The law: `step(state, input)` is the only thing that changes a session's state. It returns the new
state and the effects that the shell (`session`) performs in order; what comes of them returns as
inputs; both are named in `moves`. `TRANSITIONS` is the whole table (drawn in `docs/lifecycle.md`): a
pair that is not in it raises `InvalidTransition` and changes nothing. What a state is, and what must hold
of it after every step, is in `state`.

    dormant     no sandbox              waking    an agent is on its way
    ready       the agent rests         running   a turn is under way
    hibernated  a sandbox, no agent     stopping  the sandbox is ending
    failed      the last wake failed; the next message tries again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

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
from agent_runtime.records import Phase, TurnStatus
from agent_runtime.reports import AgentTurnEnded
from agent_runtime.state import State

Step: TypeAlias = tuple[State, tuple[Effect, ...]]


class InvalidTransition(Exception):
    """An input that the present phase does not know. Nothing was changed."""

    def __init__(self, state: State, given: Input) -> None:
        super().__init__(f"{type(given).__name__} in phase {state.phase}")
        self.state = state
        self.given = given


def step(state: State, given: Input) -> Step:
    """Make one move. Raises `InvalidTransition`."""
    move = TRANSITIONS.get((state.phase, type(given)))
    if move is None:
        raise InvalidTransition(state, given)
    after, effects = move(state, given)
    if after.handed:
        after = replace(after, handed=tuple(turn for turn in after.handed if turn in after.queue))
    return after, effects


# The moves. Each takes the state and the input that the table below pairs it with.


def _stay(state: State, _: Input) -> Step:
    return state, ()


def _enqueue(state: State, given: MessageAccepted) -> Step:
    """Wait; a message that may end what runs waits in front, and ends what is to run again."""
    if given.manner != "interrupt":
        return replace(state, queue=(*state.queue, given.turn_id)), (AnnounceQueue(),)
    ends: tuple[Effect, ...] = ()
    if state.again is not None and state.again in state.queue:
        state, ends = _withdraw(state, InterruptWanted(state.again))
    return replace(state, queue=(given.turn_id, *state.queue)), (*ends, AnnounceQueue())


def _join(state: State, given: MessageAccepted) -> Step:
    """A message in mid-turn."""
    queued, effects = _enqueue(state, given)
    if given.manner == "steer" and not state.interrupting:
        return replace(queued, handed=(*state.handed, given.turn_id)), (*effects, Steer(given.turn_id))
    if given.manner == "interrupt":
        interrupted, more = _interrupt(queued, InterruptWanted())
        return interrupted, (*effects, *more)
    return queued, effects


def _not_steered(state: State, given: NotSteered) -> Step:
    return replace(state, handed=tuple(turn for turn in state.handed if turn != given.turn_id)), ()


def _steered(state: State, given: Steered) -> Step:
    return _taken_in(state, (given.turn_id,))


_STEERED: Final = AgentTurnEnded(status=TurnStatus.COMPLETED, stop_reason="steered")


def _taken_in(state: State, turns: tuple[str, ...], report: AgentTurnEnded = _STEERED) -> Step:
    """Those of these turns that wait are over: the turn under way answers them, or nobody will."""
    taken = tuple(turn for turn in state.queue if turn in turns)
    if not taken:
        return state, ()
    state = replace(state, queue=tuple(turn for turn in state.queue if turn not in taken))
    return state, (AnnounceQueue(), *_unbegun(state, taken, report))


def _attached(state: State, given: Attached) -> Step:
    """Go on in a sandbox of an earlier process. A message handed over twice is taken once."""
    state = replace(state, queue=given.queue)
    if given.turn_id is not None:
        state = replace(state, phase=Phase.RUNNING, turn=given.turn_id, autonomous=given.autonomous)
        deliver = () if given.autonomous else (Deliver(given.turn_id),)
        return state, (AnnounceStatus(), *deliver)
    if given.agent:
        return _next(state)
    if state.queue:
        return _wake(state, given)
    return replace(state, phase=Phase.HIBERNATED), (AnnounceStatus(),)


def _wake_for_message(state: State, given: MessageAccepted) -> Step:
    state, effects = _wake(replace(state, queue=(*state.queue, given.turn_id)), given)
    return state, (AnnounceQueue(), *effects)


def _wake(state: State, _: Input) -> Step:
    attempt = state.attempt + 1
    return replace(state, phase=Phase.WAKING, attempt=attempt), (AnnounceStatus(), Wake(attempt))


def _run(state: State, given: MessageAccepted) -> Step:
    return _next(replace(state, queue=(given.turn_id,)), announce_queue=False)


def _next(state: State, *, announce_queue: bool = True) -> Step:
    """With a living agent and no turn under way: begin the next one, or rest; or leave an old sandbox.

    Who waits then goes on waiting: the next sandbox is woken for them. What the agent has already comes
    first, whatever else waits and however old the sandbox is: the agent does not wait, and what it may have
    begun must not be asked of another one. An interrupt ends that, too.
    """
    turn = next(iter(state.handed), None)
    if state.leaving and turn is None:
        return _stopping(state), (AnnounceStatus(), StopSandbox(keep=True))
    if not state.queue:
        return replace(state, phase=Phase.READY, turn=None, interrupting=False), (AnnounceStatus(),)
    ends = state.interrupting and turn is not None
    turn = turn or state.queue[0]
    rest = tuple(each for each in state.queue if each != turn)
    state = replace(state, phase=Phase.RUNNING, turn=turn, queue=rest, interrupting=ends)
    told: tuple[Effect, ...] = (AnnounceQueue(),) if announce_queue else ()
    begin: tuple[Effect, ...] = () if turn == state.again else (BeginTurn(turn),)
    end: tuple[Effect, ...] = (Interrupt(turn),) if ends else ()
    return state, (*told, AnnounceStatus(), *begin, Deliver(turn), *end)


def _woken(state: State, given: Woken) -> Step:
    return _next(state) if given.attempt == state.attempt else (state, ())


def _wake_failed(state: State, given: WakeFailed) -> Step:
    if given.attempt != state.attempt:
        return state, ()
    failed = AgentTurnEnded(status=TurnStatus.FAILED, error=given.error)
    ends = _let_go(state, failed)
    return replace(state, phase=Phase.FAILED, queue=()), (*ends, AnnounceStatus())


def _unbegun(state: State, turns: tuple[str, ...], report: AgentTurnEnded) -> tuple[Effect, ...]:
    """A turn that never ran still begins and ends once, so that its message is not lost to view."""
    return tuple(EndTurn(turn, report) if turn == state.again else EndUnbegun(turn, report) for turn in turns)


def _agent_began(state: State, given: AgentBegan) -> Step:
    """The agent began by itself: a background task came back to it."""
    state = replace(state, phase=Phase.RUNNING, turn=given.turn_id, autonomous=True)
    return state, (AnnounceStatus(), BeginTurn(given.turn_id))


def _agent_rested(state: State, given: AgentRested) -> Step:
    assert state.turn is not None
    report = given.report
    of_another = report.autonomous or (report.message_ids and state.turn not in report.message_ids)
    if of_another and not state.autonomous:
        # Our message is still to be answered. One that was handed over behind it may have been taken back.
        return _taken_in(state, report.message_ids, report)
    if state.interrupting and report.status is TurnStatus.FAILED:
        report = replace(report, status=TurnStatus.CANCELLED, error=None)
    ended, (state, taken) = state.turn, _taken_in(state, report.message_ids)
    after, effects = _next(replace(state, turn=None, autonomous=False))
    return after, (*taken, EndTurn(ended, report), *effects)


def _interrupt(state: State, given: InterruptWanted) -> Step:
    if given.turn_id in state.queue:
        return _withdraw(state, given)
    if state.turn is None or given.turn_id not in {None, state.turn} or state.interrupting:
        return state, ()
    return replace(state, interrupting=True), (Interrupt(state.turn),)


def _hush(state: State, given: InterruptWanted) -> Step:
    """The agent rests; what it left working in the background is to end."""
    return state, (Interrupt(None),) if given.turn_id is None else ()


def _withdraw(state: State, given: InterruptWanted) -> Step:
    """End a turn that has not begun; without a name, the first that waits."""
    turn = given.turn_id if given.turn_id is not None else next(iter(state.queue), None)
    if turn not in state.queue or turn is None:
        return state, ()
    state = replace(state, queue=tuple(each for each in state.queue if each != turn))
    report = AgentTurnEnded(status=TurnStatus.CANCELLED)
    return state, (AnnounceQueue(), *_unbegun(state, (turn,), report))


def _interrupt_expired(state: State, given: InterruptExpired) -> Step:
    """The agent does not listen: its sandbox ends, and the turn with it."""
    if state.turn != given.turn_id:
        return state, ()
    report = AgentTurnEnded(status=TurnStatus.CANCELLED, stop_reason="interrupt_expired")
    state = _stopping(state)
    return state, (EndTurn(given.turn_id, report), AnnounceStatus(), StopSandbox())


def _stop(state: State, given: StopWanted) -> Step:
    report = _stop_report(given)
    ends: tuple[Effect, ...] = (EndTurn(state.turn, report),) if state.turn else ()
    ends += _let_go(state, report)
    if state.phase is Phase.WAKING:
        return replace(state, phase=Phase.DORMANT, queue=()), (CancelWake(), *ends, AnnounceStatus())
    return replace(_stopping(state), queue=()), (*ends, AnnounceStatus(), StopSandbox())


def _stopping(state: State) -> State:
    return replace(
        state,
        phase=Phase.STOPPING,
        turn=None,
        handed=(),
        interrupting=False,
        autonomous=False,
        leaving=False,
    )


def _stop_more(state: State, given: StopWanted) -> Step:
    """Already stopping: those who joined the queue meanwhile are let go as well."""
    return replace(state, queue=()), _let_go(state, _stop_report(given))


def _stop_report(given: StopWanted) -> AgentTurnEnded:
    if given.error is None:
        return AgentTurnEnded(status=TurnStatus.CANCELLED, stop_reason="stopped")
    return AgentTurnEnded(status=TurnStatus.FAILED, error=given.error)


def _let_go(state: State, report: AgentTurnEnded) -> tuple[Effect, ...]:
    """Those who wait will not be served."""
    return (AnnounceQueue(), *_unbegun(state, state.queue, report)) if state.queue else ()


def _stopped(state: State, _: Stopped) -> Step:
    if state.queue:
        return _wake(state, PrewarmWanted())
    return replace(state, phase=Phase.DORMANT), (AnnounceStatus(),)


def _lost(state: State, given: SandboxLost) -> Step:
    if given.untouched and _may_try_again(state):
        retried = replace(_stopping(state), again=state.turn, queue=(*_under_way(state), *state.queue))
        return retried, (AnnounceStatus(), StopSandbox())
    ends: tuple[Effect, ...] = ()
    if state.turn is not None:
        report = AgentTurnEnded(status=TurnStatus.FAILED, error=given.error)
        if state.interrupting:
            report = AgentTurnEnded(status=TurnStatus.CANCELLED)
        ends = (EndTurn(state.turn, report),)
    state = _stopping(state)
    return state, (*ends, AnnounceStatus(), StopSandbox())


def _may_try_again(state: State) -> bool:
    """Once, and only what a user asked for and still wants."""
    return not (state.interrupting or state.autonomous or state.turn == state.again)


def _under_way(state: State) -> tuple[str, ...]:
    return (state.turn,) if state.turn is not None else ()


def _hibernate(state: State, _: Input) -> Step:
    return replace(state, phase=Phase.HIBERNATED), (EndAgent(), AnnounceStatus())


def _put_away(state: State, _: Input) -> Step:
    return replace(state, phase=Phase.STOPPING), (AnnounceStatus(), StopSandbox(keep=True))


def _leave_after_turn(state: State, _: Input) -> Step:
    """Nothing is cut off: there is time until the sandbox ends by itself."""
    return replace(state, leaving=True), ()


_Move: TypeAlias = Callable[[State, Any], Step]

_EVERYWHERE: Final[dict[type, _Move]] = {
    AgentBegan: _stay,
    AgentIdle: _stay,
    AgentRested: _stay,
    InterruptWanted: _withdraw,
    InterruptExpired: _stay,
    NotSteered: _stay,
    PrewarmWanted: _stay,
    SandboxAging: _stay,
    SandboxIdle: _stay,
    SandboxLost: _stay,
    Steered: _stay,
    StopWanted: _stay,
    WakeFailed: _stay,
    Woken: _stay,
}
"""What no phase minds: it comes too late, or finds nothing to do."""

_TABLE: Final[dict[Phase, dict[type, _Move]]] = {
    Phase.DORMANT: {MessageAccepted: _wake_for_message, PrewarmWanted: _wake, Attached: _attached},
    Phase.FAILED: {MessageAccepted: _wake_for_message, PrewarmWanted: _wake},
    Phase.WAKING: {
        MessageAccepted: _enqueue,
        Woken: _woken,
        WakeFailed: _wake_failed,
        StopWanted: _stop,  # a sandbox that dies on its way is told by WakeFailed
    },
    Phase.READY: {
        MessageAccepted: _run,
        AgentBegan: _agent_began,
        InterruptWanted: _hush,
        AgentIdle: _hibernate,
        SandboxAging: _put_away,
        SandboxIdle: _put_away,
        StopWanted: _stop,
        SandboxLost: _lost,
    },
    Phase.HIBERNATED: {
        MessageAccepted: _wake_for_message,
        PrewarmWanted: _wake,
        SandboxAging: _put_away,
        SandboxIdle: _put_away,
        StopWanted: _stop,
        SandboxLost: _lost,
    },
    Phase.RUNNING: {
        MessageAccepted: _join,
        Steered: _steered,
        NotSteered: _not_steered,
        AgentRested: _agent_rested,
        SandboxAging: _leave_after_turn,
        InterruptWanted: _interrupt,
        InterruptExpired: _interrupt_expired,
        StopWanted: _stop,
        SandboxLost: _lost,
    },
    Phase.STOPPING: {
        MessageAccepted: _enqueue,
        StopWanted: _stop_more,
        Stopped: _stopped,
    },
}

TRANSITIONS: Final[dict[tuple[Phase, type], _Move]] = {
    (phase, given): move for phase, own in _TABLE.items() for given, move in (_EVERYWHERE | own).items()
}
"""The whole table: (phase, input) to the move."""
