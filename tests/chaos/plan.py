"""A seed's plan: all that will be done to a story, before any of it is. Pure.

Each seam draws from a stream of its own, so that a change to one leaves the others as they were. What
is decided while the story runs (which call to the store fails) is drawn from streams named after the seed
too. Two runs of a seed make the same decisions; how processes are scheduled between them is the
machine's business.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from tests.chaos.orders import Order, order

SEAMS = ("socket", "log", "store", "channel", "sandbox", "agent", "runtime", "idle", "pool", "client")


@dataclass(frozen=True)
class Said:
    """A message and when it is sent; `when_busy` as on the wire; `viewer` is who sends."""

    at: float
    session: int
    viewer: int
    when_busy: str
    order: Order


@dataclass(frozen=True)
class Strike:
    """Something that happens at a moment. `session` is for those that concern one."""

    at: float
    what: Literal[
        "interrupt", "kill-sandbox", "stop", "prewarm", "cut-all", "withdraw", "look-away", "options"
    ]
    session: int = 0


@dataclass(frozen=True)
class Doomed:
    """A session of its own that is made, told something, and deleted so long after."""

    at: float
    order: Order
    deleted_after: float


@dataclass(frozen=True)
class Blow:
    """What ends (or halts) a life of the runtime, and so long after it was born or ready."""

    how: Literal["kill", "term", "pause"]
    after_s: float
    counts_from: Literal["birth", "ready"]
    away_s: float


@dataclass(frozen=True)
class Plan:
    """A story. `rates` are the dice of the seams inside of the process; `lasts` the time of trouble."""

    seed: int
    lasts: float
    provider: Literal["unsafe", "local"]
    sessions: int
    viewers: int
    said: tuple[Said, ...]
    strikes: tuple[Strike, ...]
    blows: tuple[Blow, ...]
    rates: dict[str, float]
    socket_rate: float
    log_bytes: int
    idle: dict[str, float]
    pool: int
    doomed: tuple[Doomed, ...]

    def told(self) -> str:
        """For whoever reads of a failure."""
        shape = f"{self.provider}, {self.sessions} sessions x {self.viewers} viewers, {self.lasts:.1f} s"
        rates = f"socket {self.socket_rate:.2f}, log of {self.log_bytes} bytes, rates {self.rates}"
        lines = [f"seed {self.seed}: {shape}, {rates}, idle {self.idle}, pool of {self.pool}"]
        lines += [
            f"  {each.at:5.2f} a session that is deleted {each.deleted_after:.2f} s later"
            for each in self.doomed
        ]
        lines += [
            f"  {said.at:5.2f} session {said.session}: {said.order.message_id} by viewer {said.viewer}, "
            f"{said.when_busy}, {said.order.fate}"
            for said in self.said
        ]
        lines += [f"  {strike.at:5.2f} session {strike.session}: {strike.what}" for strike in self.strikes]
        lines += [
            f"  then {blow.how} {blow.after_s:.3f} s after {blow.counts_from}, away {blow.away_s:.2f} s"
            for blow in self.blows
        ]
        return "\n".join(lines)

    def without(self, *seams: str) -> "Plan":
        """The same story with some seams left in peace; to find out which one matters."""
        rates = {seam: 0.0 if seam in seams else rate for seam, rate in self.rates.items()}
        gone = {"sandbox": {"kill-sandbox"}, "socket": {"cut-all"}, "client": {"withdraw", "options"}}
        kept = {what for seam in seams for what in gone.get(seam, ())}
        return replace(
            self,
            rates=rates,
            socket_rate=0.0 if "socket" in seams else self.socket_rate,
            strikes=tuple(strike for strike in self.strikes if strike.what not in kept),
            blows=() if "runtime" in seams else self.blows,
            idle={} if "idle" in seams else self.idle,
            pool=0 if "pool" in seams else self.pool,
            doomed=() if "client" in seams else self.doomed,
        )


def plan(seed: int, *, lasts: float = 2.5, provider: Literal["unsafe", "local"] = "unsafe") -> Plan:
    """Draw it."""
    dice = {seam: random.Random(f"{seed}/{seam}") for seam in ("shape", "orders", *SEAMS)}
    shape = dice["shape"]
    sessions, viewers = shape.randrange(1, 4), shape.randrange(1, 4)
    return Plan(
        seed=seed,
        lasts=lasts,
        provider=provider,
        sessions=sessions,
        viewers=viewers,
        said=_said(seed, dice["orders"], dice["agent"], sessions=sessions, viewers=viewers, lasts=lasts),
        strikes=_strikes(dice["sandbox"], dice["socket"], sessions, lasts)
        + _wishes(dice["client"], sessions, lasts),
        blows=_blows(dice["runtime"], lasts),
        rates={
            "store": _rate(dice["store"], 0.1),
            "log": _rate(dice["log"], 0.2),
            "channel": _rate(dice["channel"], 0.15),
        },
        socket_rate=_rate(dice["socket"], 0.9),
        log_bytes=dice["log"].choice([10_000, 60_000, 8 * 1024 * 1024]),
        idle=_idle(dice["idle"]),
        pool=dice["pool"].choice([0, 0, 0, 1, 2]),
        doomed=_doomed(seed, dice["client"], lasts),
    )


def _rate(dice: random.Random, most: float) -> float:
    """Often none at all: a failure is easier to understand when only one thing went wrong."""
    return 0.0 if dice.random() < 0.4 else round(dice.random() * most, 3)


def _said(
    seed: int, dice: random.Random, agent: random.Random, *, sessions: int, viewers: int, lasts: float
) -> tuple[Said, ...]:
    said = []
    for session in range(sessions):
        for number in range(dice.randrange(2, 6)):
            fate = agent.choices(["rests", "exits", "hangs"], [0.9, 0.06, 0.04])[0]
            message = order(
                f"m{seed}-{session}-{number}",
                dice,
                parts=dice.randrange(1, 6),
                pause_s=dice.choice([0.0, 0.005, 0.02, 0.02]),
                fate=fate,
            )
            when_busy = dice.choices(["queue", "reject", "interrupt", "steer"], [0.5, 0.1, 0.15, 0.25])[0]
            at = dice.random() * lasts
            if number and when_busy in {"interrupt", "steer"}:  # so that there is something under way
                at = min(lasts, said[-1].at + dice.random() * 0.4)
            said.append(Said(at, session, dice.randrange(viewers), when_busy, message))
    return tuple(sorted(said, key=lambda one: one.at))


def _strikes(
    sandbox: random.Random, socket: random.Random, sessions: int, lasts: float
) -> tuple[Strike, ...]:
    strikes = []
    for session in range(sessions):
        for what, chance in (("interrupt", 0.3), ("kill-sandbox", 0.3), ("stop", 0.15), ("prewarm", 0.2)):
            if sandbox.random() < chance:
                strikes.append(Strike(sandbox.random() * lasts, what, session))
    strikes += [Strike(socket.random() * lasts, "cut-all") for _ in range(socket.randrange(3))]
    return tuple(sorted(strikes, key=lambda one: one.at))


def _wishes(dice: random.Random, sessions: int, lasts: float) -> tuple[Strike, ...]:
    """What clients think of besides sending."""
    strikes = []
    for session in range(sessions):
        for what, most in (("withdraw", 3), ("look-away", 2), ("options", 4)):
            strikes += [Strike(dice.random() * lasts, what, session) for _ in range(dice.randrange(most))]
    return tuple(strikes)


def _idle(dice: random.Random) -> dict[str, float]:
    """Bounds of idleness as short as the pauses between messages; in half of the stories none is met."""
    kind = dice.choice(["none", "none", "agents", "sandboxes", "sessions"])
    bounds = {"agent_idle_timeout_s": dice.choice([0.03, 0.1, 0.3])}
    if kind in {"sandboxes", "sessions"}:
        bounds["sandbox_idle_timeout_s"] = dice.choice([0.02, 0.2, 0.5])
    if kind == "sessions":
        bounds["session_idle_timeout_s"] = dice.choice([0.02, 0.1])
    return {} if kind == "none" else bounds


def _doomed(seed: int, dice: random.Random, lasts: float) -> tuple[Doomed, ...]:
    if dice.random() < 0.6:
        return ()
    message = order(f"m{seed}-doomed", dice, parts=4, pause_s=0.01)
    return (Doomed(dice.random() * lasts / 2, message, dice.random() * lasts / 2),)


def _blows(dice: random.Random, lasts: float) -> tuple[Blow, ...]:
    """As many as fit: lives are short, and some do not even begin."""
    if dice.random() < 0.1:
        return ()
    blows: list[Blow] = []
    left = lasts
    hurry = dice.choice([0.1, 0.4, 1.0])
    while left > 0:
        how = dice.choices(["kill", "term", "pause"], [0.75, 0.15, 0.1])[0]
        during_start = dice.random() < 0.2
        after_s = dice.random() * (0.03 if during_start else hurry)
        away_s = dice.random() * 0.2
        blows.append(Blow(how, after_s, "birth" if during_start else "ready", away_s))
        left -= after_s + away_s
    return tuple(blows)
