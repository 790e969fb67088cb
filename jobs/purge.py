"""Ended jobs that an operator removes before retention does."""

from django.db.models import QuerySet

from jobs import audit, settle
from jobs.audit import Actor
from jobs.dispatcher.retention import unneeded
from jobs.job_filter import JobFilter
from jobs.models import ENDED, Job

_BATCH = 500


def purgeable(wanted: JobFilter) -> QuerySet[Job]:
    """The ended jobs that match, but for those whose children are still to come, or whose result is waited for."""
    return unneeded(wanted.matching().filter(state__in=ENDED))


def purge(*, wanted: JobFilter, actor: Actor) -> int:
    """Removes them, with their attempts and log lines; returns how many. Statistics stay.

    A batch at a time, each in one transaction with its record, which has the ids. Killed in the middle, what was
    removed is recorded. Jobs that others have locked, an operator's retry for example, are left.
    """
    removed = 0
    while True:
        with settle.atomic():
            locked = purgeable(wanted).select_for_update(skip_locked=True, of=("self",)).order_by("pk")
            ids = list(locked.values_list("pk", flat=True)[:_BATCH])
            if not ids:
                return removed
            Job.objects.filter(pk__in=ids).only("pk").delete()
            audit.record_removal(actor=actor, job_ids=ids, reason=wanted.in_words())
        removed += len(ids)
