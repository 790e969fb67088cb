"""The states of a job and every way from one to another. Pure data: no database, no Django."""

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """Where a job is. The values are the database's, the dashboard's and `/health`'s words."""

    DELAYED = "delayed"
    WAITING = "waiting"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cause(StrEnum):
    """Why a job changes its state."""

    DUE = "due"
    PROMOTED = "promoted"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    STALLED = "stalled"
    HANDED_BACK = "handed back"
    RATE_LIMITED = "rate limited"
    REPLACED = "replaced"
    RENEWED = "renewed"
    POSTPONED = "postponed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    RUN_AGAIN = "run again"
    HELD = "held"
    RELEASED = "released"
    MEMBER_FAILED = "member failed"
    REOPENED = "reopened"
    SET_ASIDE = "set aside"


class Transition(NamedTuple):
    """One arrow of the diagram in `docs/state_machine.md`."""

    source: State
    cause: Cause
    target: State


TRANSITIONS = (
    Transition(State.DELAYED, Cause.DUE, State.WAITING),
    Transition(State.DELAYED, Cause.PROMOTED, State.WAITING),
    Transition(State.DELAYED, Cause.RENEWED, State.WAITING),
    Transition(State.WAITING, Cause.RENEWED, State.WAITING),
    Transition(State.DELAYED, Cause.POSTPONED, State.DELAYED),
    Transition(State.WAITING, Cause.POSTPONED, State.DELAYED),
    Transition(State.WAITING, Cause.CLAIMED, State.ACTIVE),
    Transition(State.ACTIVE, Cause.COMPLETED, State.COMPLETED),
    Transition(State.ACTIVE, Cause.FAILED, State.FAILED),
    Transition(State.ACTIVE, Cause.RETRIED, State.DELAYED),
    Transition(State.ACTIVE, Cause.STALLED, State.WAITING),
    Transition(State.ACTIVE, Cause.HANDED_BACK, State.WAITING),
    Transition(State.ACTIVE, Cause.RATE_LIMITED, State.WAITING),
    Transition(State.ACTIVE, Cause.REPLACED, State.WAITING),
    Transition(State.DELAYED, Cause.EXPIRED, State.CANCELLED),
    Transition(State.WAITING, Cause.EXPIRED, State.CANCELLED),
    Transition(State.DELAYED, Cause.CANCELLED, State.CANCELLED),
    Transition(State.WAITING, Cause.CANCELLED, State.CANCELLED),
    Transition(State.ACTIVE, Cause.CANCELLED, State.CANCELLED),
    Transition(State.COMPLETED, Cause.RUN_AGAIN, State.WAITING),
    Transition(State.FAILED, Cause.RUN_AGAIN, State.WAITING),
    Transition(State.CANCELLED, Cause.RUN_AGAIN, State.WAITING),
    Transition(State.ACTIVE, Cause.HELD, State.DELAYED),
    Transition(State.DELAYED, Cause.RELEASED, State.WAITING),
    Transition(State.DELAYED, Cause.MEMBER_FAILED, State.FAILED),
    Transition(State.DELAYED, Cause.SET_ASIDE, State.FAILED),
    Transition(State.WAITING, Cause.SET_ASIDE, State.FAILED),
    Transition(State.ACTIVE, Cause.SET_ASIDE, State.FAILED),
    Transition(State.FAILED, Cause.REOPENED, State.DELAYED),
    Transition(State.CANCELLED, Cause.REOPENED, State.DELAYED),
)

LIVE_STATES = (State.DELAYED, State.WAITING, State.ACTIVE)
END_STATES = (State.COMPLETED, State.FAILED, State.CANCELLED)


def sources(cause: Cause) -> tuple[State, ...]:
    """The states that a cause applies to."""
    return tuple(transition.source for transition in TRANSITIONS if transition.cause is cause)


def target(cause: Cause) -> State:
    """The state that a cause leads to: the same one from every source."""
    return next(transition.target for transition in TRANSITIONS if transition.cause is cause)
