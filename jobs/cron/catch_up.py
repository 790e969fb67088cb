"""Which of the ticks that have come run: those on time always, those that were missed as the operator wishes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.cron.models import CatchUp
from jobs.rendering import duration

# A beat that lives is never so late, and one that is started again at once need not be.
ON_TIME = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Decision:
    """The ticks to run, and those to skip, each with a note for people. Both in order."""

    run: dict[datetime, str]
    skip: dict[datetime, str]

    @property
    def last(self) -> datetime | None:
        """The last tick that is decided by it."""
        return max([*self.run, *self.skip], default=None)

    def without(self, known: set[datetime]) -> "Decision":
        """The same, but for some ticks."""
        return Decision(
            {moment: note for moment, note in self.run.items() if moment not in known},
            {moment: why for moment, why in self.skip.items() if moment not in known},
        )


def decide(moments: list[datetime], *, now: datetime, wishes: CatchUp, one_off: bool) -> Decision:
    """Decides about ticks, none of which is after now."""
    on_time = [moment for moment in moments if now - moment <= ON_TIME]
    missed = [moment for moment in moments if now - moment > ON_TIME]
    run = [*_caught_up(missed, now=now, wishes=wishes, is_followed=bool(on_time)), *on_time]
    if one_off:
        run = run[-1:]
    skip = [moment for moment in moments if moment not in run]
    return Decision(
        {moment: f"{duration(now - moment)} late" if moment in missed else "" for moment in run},
        {moment: _why_not(moment, run, now=now, wishes=wishes) for moment in skip},
    )


def _caught_up(missed: list[datetime], *, now: datetime, wishes: CatchUp, is_followed: bool) -> list[datetime]:
    recent = [moment for moment in missed if now - moment <= timedelta(minutes=wishes.within_minutes)]
    if wishes.policy == CatchUp.Policy.ALL:
        return recent[-wishes.most_count :]
    if wishes.policy == CatchUp.Policy.ONCE and not is_followed:
        return recent[-1:]
    return []


def _why_not(moment: datetime, run: list[datetime], *, now: datetime, wishes: CatchUp) -> str:
    if now - moment <= ON_TIME:
        return "a later one runs"
    if now - moment > timedelta(minutes=wishes.within_minutes):
        return f"missed, and more than {wishes.within_minutes} min ago"
    if wishes.policy == CatchUp.Policy.SKIP:
        return "missed"
    return "missed, and a later one runs" if run else "missed"
