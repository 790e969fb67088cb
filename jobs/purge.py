"""Ended jobs that an operator removes before retention does."""

from django.db.models import QuerySet

from jobs import audit, settle
from jobs.audit import Actor
from jobs.dispatcher.retention import delete, unneeded
from jobs.job_filter import JobFilter
from jobs.models import ENDED, Job

_BATCH = 500


def purgeable(wanted: JobFilter) -> QuerySet[Job]:
    """The ended jobs that match, but for those whose children are still to come, or whose result is waited for."""
    return unneeded(wanted.matching().filter(state__in=ENDED))


def purge(*, wanted: JobFilter, actor: Actor) -> int:
    """Removes them, with their attempts and log lines; returns how many. Statistics stay.

    A batch at a time, each in one transaction with its record, which has the ids. Killed in the middle, what was
    removed is recorded. Jobs that others have locked, an operator's retry for example, are left, and so are those that
    cannot be removed, which the log names.
    """
    removed, last = 0, None
    while True:
        with settle.atomic():
            found = purgeable(wanted) if last is None else purgeable(wanted).filter(pk__gt=last)
            locked = found.select_for_update(skip_locked=True, of=("self",)).order_by("pk")
            ids = list(locked.values_list("pk", flat=True)[:_BATCH])
            if not ids:
                return removed
            kept = delete(ids)
            gone = [job_id for job_id in ids if job_id not in kept]
            audit.record_removal(actor=actor, job_ids=gone, reason=wanted.in_words())
        removed, last = removed + len(gone), ids[-1]
