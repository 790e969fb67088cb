"""What is kept of the past: the last jobs of each queue that ended. All counts are in the statistics."""

import logging
import random
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from uuid import UUID

from django.db import connections
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from jobs import settle
from jobs.models import ENDED, LIVE, DedupWindow, Flow, Job, Limit, QueueControl, RateStart, Worker
from jobs.patience import may_pass
from jobs.queues import QUEUES, Queue
from jobs.states import State

logger = logging.getLogger(__name__)

SECONDS = 10.0
LIMITS_SECONDS = 600.0
# Whoever waits for a result has so long to fetch it.
KEPT_AT_LEAST = timedelta(hours=1)
WORKERS_KEPT = timedelta(days=1)
# Longer than the longest period of a rate: what is forgotten then limits nothing any more.
LIMITS_KEPT = timedelta(days=1)
_BATCH = 500
# What cannot be removed is tried again after this.
_PROTECTED_SECONDS = 3600.0
_MOST_PROTECTED = 1000
_protected: dict[UUID, float] = {}
# A round ends with the batch in which it gets as long as this: the dispatcher's other duties wait for it.
_ROUND_SECONDS = 0.2


def run_once() -> bool:
    """Removes a batch of what need not be kept, of each kind; returns whether more may be left.

    Of each queue the last jobs stay, as many as `jobs.queues` or an operator says; cancelled ones as many as completed
    ones. Never removed: what ended within the last hour, what is alive, and what has children that did not run yet.
    Killed in the middle, each batch is removed or whole; two at once skip what the other has locked.
    """
    started = time.monotonic()
    counts = [_remove_expired_windows(), _remove_ended_workers(), _remove_closed_flows()]
    kept = list(_kept())
    # Where there is more than can be removed in time, no queue is always the last.
    random.shuffle(kept)
    for queue, state, keep_count in kept:
        if time.monotonic() - started > _ROUND_SECONDS:
            return True
        counts.append(_remove_jobs(queue, state, keep_count=keep_count))
    return _BATCH in counts


def _kept() -> Iterator[tuple[str, State, int]]:
    """How many jobs of each queue stay, by end state."""
    controls = QueueControl.objects.in_bulk()
    for name in _queues_with_ended_jobs():
        queue = controls.get(name, QueueControl()).over(QUEUES.get(name) or Queue(name=name, purpose=""))
        yield name, State.COMPLETED, queue.keep_completed_count
        yield name, State.CANCELLED, queue.keep_completed_count
        yield name, State.FAILED, queue.keep_failed_count


def _queues_with_ended_jobs() -> Iterator[str]:
    """Also those that are not declared any more. From one to the next by the index `job_ended`: a DISTINCT would read
    all of it."""
    ended = Job.objects.filter(state__in=ENDED).order_by("queue").values_list("queue", flat=True)
    name = ended.first()
    while name is not None:
        yield name
        name = ended.filter(queue__gt=name).first()


class TooManyProtected(RuntimeError):
    """So many ended jobs cannot be removed that retention is of no use: rows of the project point to them."""


def _remove_jobs(queue: str, state: State, *, keep_count: int) -> int:
    with settle.atomic():
        # Locked, so that an operator who runs one of them again comes before or after.
        found = removable(queue, state, keep_count=keep_count).exclude(pk__in=_left_alone())
        ids = list(found.select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True)[:_BATCH])
        _protected.update(dict.fromkeys(delete(ids), time.monotonic() + _PROTECTED_SECONDS))
    _refuse_too_many()
    return len(ids)


def _left_alone() -> list[UUID]:
    """Jobs that could not be removed a while ago."""
    now = time.monotonic()
    for job_id in [job_id for job_id, until in _protected.items() if until < now]:
        del _protected[job_id]
    _refuse_too_many()
    return list(_protected)


def _refuse_too_many() -> None:
    if len(_protected) >= _MOST_PROTECTED:
        raise TooManyProtected(f"{len(_protected):,} ended jobs cannot be removed: the log says why.")


def delete(job_ids: Collection[UUID]) -> dict[UUID, str]:
    """Removes jobs, with their attempts and log lines, in the current transaction.

    Those that cannot be removed stay, because a row of the project points to them for example; returns why, for each.
    """
    if not job_ids:
        return {}
    try:
        with settle.atomic():
            Job.objects.filter(pk__in=job_ids).only("pk").delete()
            # Else PostgreSQL would say so at the commit, and of all of them.
            connections[settle.ledger()].check_constraints()
    except Exception as error:  # whatever it is, it keeps no other job
        if may_pass(error):
            raise
        if len(job_ids) > 1:
            logger.info("Of %d jobs that are over, one cannot be removed: each is removed alone.", len(job_ids))
            return {job_id: words for one in job_ids for job_id, words in delete([one]).items()}
        logger.exception("id=%s cannot be removed.", *job_ids)
        return dict.fromkeys(job_ids, f"{type(error).__name__}: {error}")
    return {}


def removable(queue: str, state: State, *, keep_count: int) -> QuerySet[Job]:
    """The jobs of a queue in one end state that need not be kept, oldest first.

    The index `job_ended` serves it: the last `keep_count` are passed over in the index alone, whatever lies behind.
    """
    # The literal's value: the condition of the partial index is recognised by it.
    ended = Job.objects.filter(queue=queue, state=state.value)
    newest_first = ended.order_by("-finished_at", "-pk").values_list("finished_at", "pk")
    first_beyond = newest_first[keep_count : keep_count + 1].first()
    if first_beyond is None:
        return Job.objects.none()
    finished_at, pk = first_beyond
    beyond = ended.filter(finished_at__lte=finished_at, finished_at__lt=Now() - KEPT_AT_LEAST)
    return unneeded(beyond.exclude(finished_at=finished_at, pk__gt=pk)).order_by("finished_at")


def unneeded(ended: QuerySet[Job]) -> QuerySet[Job]:
    """Those of ended jobs that nothing which may still come needs: no child, and no job that waits for their result."""
    # A step of a chain that was cancelled with its job in mind still needs it: an operator may run the job again.
    to_come = Q(state__in=LIVE) | Q(state=State.CANCELLED.value, started_at__isnull=True)
    return ended.exclude(Exists(Job.objects.filter(to_come, parent_id=OuterRef("pk")))).exclude(
        Exists(Job.objects.filter(awaited_flow_id=OuterRef("flow_id"), is_held=True))
    )


def _remove_expired_windows() -> int:
    """A caller that is about to take a key holds its row until its commit: that one is not waited for."""
    expired = DedupWindow.objects.filter(until__lt=Now()).order_by("until").select_for_update(skip_locked=True)
    with settle.atomic():
        keys = list(expired.values_list("pk", flat=True)[:_BATCH])
        return DedupWindow.objects.filter(pk__in=keys).delete()[0]


def _remove_closed_flows() -> int:
    """Those that have neither members nor jobs that waited for them."""
    closed = Flow.objects.filter(closed_at__lt=Now() - KEPT_AT_LEAST).order_by("closed_at")
    empty = closed.exclude(Exists(Job.objects.filter(Q(flow_id=OuterRef("pk")) | Q(awaited_flow_id=OuterRef("pk")))))
    return Flow.objects.filter(pk__in=list(empty.values_list("pk", flat=True)[:_BATCH])).delete()[0]


def remove_idle_limits() -> bool:
    """Removes a batch of limits that limit nothing any more; returns whether more may be left.

    Reads all of them: an index of their ages would be written by every claim. A claim that comes to such a key just now
    makes its row again, or is waited for by nobody.
    """
    idle = Limit.objects.filter(used_at__lt=Now() - LIMITS_KEPT).exclude(rate_limited_until__gt=Now())
    with settle.atomic():
        locked = idle.order_by("used_at").select_for_update(skip_locked=True)
        keys = list(locked.values_list("pk", flat=True)[:_BATCH])
        RateStart.objects.filter(key__in=keys).delete()
        return Limit.objects.filter(pk__in=keys).delete()[0] == _BATCH


def _remove_ended_workers() -> int:
    """A worker that wakes up without its row is as dead as before: it cannot renew its lease, and claims nothing."""
    return Worker.objects.filter(dead_at__lt=Now() - WORKERS_KEPT, settled_at__isnull=False).delete()[0]
