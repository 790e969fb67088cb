"""Decides the ticks of a schedule: their rows, their jobs and the note how far it is decided are one transaction."""

import logging
from datetime import datetime

from django.db import OperationalError
from django.db.models import F, Func, QuerySet, TextField, Value
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs import settle
from jobs.cron import catch_up
from jobs.cron.calls import Overlaps
from jobs.cron.catch_up import Decision
from jobs.cron.models import ScheduleState, Tick
from jobs.cron.plans import Plan
from jobs.cron.rows import Row
from jobs.patience import LOCKED, code_of

logger = logging.getLogger(__name__)


def _set_locally(name: str, value: str) -> Func:
    """Sets a parameter of the session for the current transaction."""
    return Func(Value(name), Value(value), Value(True), function="set_config", output_field=TextField())


# Of each schedule, the last ticks stay for people to see. Nothing is decided by them.
KEPT_COUNT = 100
# A beat that hangs, or whose machine is gone, in the middle of a transaction would hold its locks until the end of its
# connection, which PostgreSQL may notice after hours. So the transaction that takes one is given 10 s of silence.
LET_GO_IN_TIME = _set_locally("idle_in_transaction_session_timeout", "10s")
# A job's key may have been used by a transaction that is open for hours: beat has other schedules.
_WAIT_FOR_NOBODY = _set_locally("lock_timeout", "100ms")


def decide(plan: Plan) -> bool:
    """Decides all ticks of a schedule that have come; returns whether that is done, by whomever.

    False where somebody else has the schedule locked: another beat that decides the same ticks, an operator in the
    middle of an edit, or an open transaction that has used its key. Nobody is waited for; the next look sees what
    became of it. Two at once: one has the lock, and the other finds the schedule decided further than it knew. Killed
    before the commit, nothing was decided; killed after it, all was. Raises what enqueueing raises, with nothing
    written.
    """
    try:
        return _decide(plan)
    except OperationalError as error:
        if code_of(error) != LOCKED:
            raise
        return False


def _decide(plan: Plan) -> bool:
    row, decision = plan.row, _decision(plan)
    with settle.atomic():
        if not _lock(row):
            return False
        decided_until = decision.last
        decision = decision.without(_known(row, decision))
        Tick.objects.bulk_create(
            Tick(schedule_id=row.pk, scheduled_for=moment, outcome=Tick.Outcome.SKIPPED, note=why)
            for moment, why in decision.skip.items()
        )
        run_count = sum(_enqueue(plan, moment, why) for moment, why in decision.run.items())
        _note(plan, run_count, decided_until)
    for moment, why in [*decision.skip.items()][:1]:
        logger.warning("Schedule %r skips %d, first %s: %s.", row.name, len(decision.skip), moment.isoformat(), why)
    return True


def _enqueue(plan: Plan, moment: datetime, why: str) -> bool:
    """Writes the tick and its job; returns whether there is one."""
    tick = Tick(schedule_id=plan.row.pk, scheduled_for=moment, outcome=Tick.Outcome.ENQUEUED, note=why)
    try:
        tick.job_id = plan.call.send(moment)
    except Overlaps as overlaps:
        tick.outcome, tick.note = Tick.Outcome.SKIPPED, str(overlaps)
    tick.save(force_insert=True)
    return tick.job_id is not None


def report(row: Row, error: str) -> None:
    """Notes on the schedule why it is broken, or with an empty text that it is not. A locked row has to wait."""
    state = ScheduleState.objects.filter(pk=row.pk)
    with settle.atomic():
        if state.select_for_update(skip_locked=True).values_list("pk", LET_GO_IN_TIME).first() is None:
            return
        state.update(error=error, error_at=Now() if error else None)
    if error:
        logger.error("Schedule %r is broken: %s", row.name, error)
    else:
        logger.info("Schedule %r is whole again.", row.name)


def _decision(plan: Plan) -> Decision:
    """What becomes of the ticks that have come."""
    row = plan.row
    passed = plan.timetable.passed(after=row.decided, until=row.now, most=_kept_count(row))
    moments = passed.last
    if not plan.is_over:
        decision = catch_up.decide(moments, now=row.now, wishes=row.wishes, one_off=row.one_off)
    else:
        if not moments and row.clocked_time is not None:
            moments = [row.clocked_time]
        decision = Decision({}, dict.fromkeys(moments, "the schedule was over before"))
    unseen_count = passed.count - len(passed.last)
    if unseen_count:
        notes = decision.skip if moments[0] in decision.skip else decision.run
        notes[moments[0]] = f"{notes[moments[0]]}; {unseen_count} before it were skipped".removeprefix("; ")
    return decision


def _lock(row: Row) -> bool:
    """Locks the schedule against other beats and edits, if it is still what was read, decided no further, and free."""
    found = ScheduleState.objects.select_for_update(skip_locked=True).filter(
        pk=row.pk, since_at=row.since_at, decided_until=row.decided_until, periodic_task__enabled=True
    )
    return found.values_list("pk", LET_GO_IN_TIME, _WAIT_FOR_NOBODY).first() is not None


def _known(row: Row, decision: Decision) -> set[datetime]:
    """Ticks that are decided already: only where somebody has set the state back by hand."""
    moments = [*decision.run, *decision.skip]
    return set(_ticks(row).filter(scheduled_for__in=moments).values_list("scheduled_for", flat=True))


def _note(plan: Plan, run_count: int, decided_until: datetime | None) -> None:
    """Notes on the schedule what was decided and how far, also on the package's own row; removes the oldest ticks."""
    row = plan.row
    if decided_until is not None:
        ScheduleState.objects.filter(pk=row.pk).update(decided_until=decided_until)
    if run_count:
        PeriodicTask.objects.filter(pk=row.pk).update(
            last_run_at=Now(), total_run_count=F("total_run_count") + run_count
        )
    if plan.is_over or (run_count and row.one_off):
        PeriodicTask.objects.filter(pk=row.pk).update(enabled=False)
    kept_count = _kept_count(row)
    newest_first = _ticks(row).order_by("-scheduled_for").values_list("scheduled_for", flat=True)
    beyond = newest_first[kept_count : kept_count + 1].first()
    if beyond is not None:
        _ticks(row).filter(scheduled_for__lte=beyond).delete()


def _kept_count(row: Row) -> int:
    return max(KEPT_COUNT, row.wishes.most_count)


def _ticks(row: Row) -> QuerySet[Tick]:
    return Tick.objects.filter(schedule=row.pk)
