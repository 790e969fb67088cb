"""Flows whose end nobody has seen, because its writer died or was no run; members that nobody waits for any more; and
the progress of held jobs, which is that of the members."""

import logging
from collections.abc import Callable, Collection
from uuid import UUID

from django.db.models import Avg, Case, Count, Exists, F, FloatField, OuterRef, Q, QuerySet, When
from django.db.models.functions import Coalesce, Now

from jobs import audit, flows, settle
from jobs.dispatcher.set_aside import ACTOR, SetAside, all_of
from jobs.models import LIVE, Flow, Job

logger = logging.getLogger(__name__)

SECONDS = 1.0
PROGRESS_SECONDS = 2.0
_BATCH = 500


class Ends:
    """Closes flows that are over, and cancels the members of flows whose held jobs were cancelled."""

    def __init__(self) -> None:
        self._over, self._abandoned = SetAside("flows", _refuse), SetAside("flows", _let_go)

    def run_once(self) -> bool:
        """One look; returns whether there were some: there may be more of them."""
        return (
            all_of(
                lambda: _each(_over(), self._over, flows.close_if_ended),
                lambda: _each(_abandoned(), self._abandoned, _cancel_members),
            )
            > 0
        )


def run_once() -> bool:
    """One look that remembers nothing."""
    return Ends().run_once()


def _each(found: QuerySet[Flow, UUID], aside: SetAside, act: Callable[[UUID], object]) -> int:
    """Acts on each of these flows, whatever becomes of the others; returns how many it acted on."""
    return aside.each(aside.to_try(found, most=_BATCH), act)


def _refuse(flow_id: UUID, error: str) -> None:
    """Fails the jobs that wait for a flow that cannot be closed, and records that."""
    with settle.atomic():
        waiting = list(Job.objects.filter(awaited_flow_id=flow_id, is_held=True, state="delayed"))
        flows.refuse(flow_id, RuntimeError(error))
        for job in waiting:
            audit.record(actor=ACTOR, thing=job, what=f"Failed (was {job.state}): {error}"[:1000])


def _let_go(flow_id: UUID, error: str) -> None:
    """Closes a flow whose members cannot be cancelled: nobody waits for them."""
    logger.error("Flow %s is closed, though members of it are alive. %s", flow_id, error)
    Flow.objects.filter(pk=flow_id).update(closed_at=Now())


def _cancel_members(flow_id: UUID) -> None:
    members = Job.objects.filter(flow_id=flow_id, state__in=LIVE)
    reason = "The job that waited for it was cancelled."
    settle.stop(Job.objects.filter(pk__in=members.values("pk")[:_BATCH]), reason=reason)


class Progress:
    """Writes the average of the members' progress to the jobs that wait for them, where a member has changed.

    Which members have ended it is told; it looks for itself which run. What was not told because a leader died is made
    up for by its successor, whose first look is at all open flows.
    """

    def __init__(self) -> None:
        self._changed: set[UUID] | None = None

    def forget(self) -> None:
        """Another process leads, and takes what there is to be told: the next look is at all open flows again."""
        self._changed = None

    def members_ended(self, flow_ids: Collection[UUID]) -> None:
        """Members of these flows have ended."""
        if self._changed is not None:
            self._changed.update(flow_ids)

    def run_once(self) -> bool:
        """One look; nothing is left."""
        changed, self._changed = self._changed, set()
        if changed is not None and _open().exists():
            running = Job.objects.filter(state="active", flow_id__isnull=False).values_list("flow_id", flat=True)
            changed.update(flow_id for flow_id in running if flow_id is not None)
        try:
            report_progress(changed)
        except BaseException:
            self._changed = None
            raise
        return False


def report_progress(flow_ids: Collection[UUID] | None = None) -> None:
    """Writes the average of the members' progress to the jobs that wait for them; of these open flows, or of all."""
    if flow_ids is not None and not flow_ids:
        return
    opened = _open() if flow_ids is None else _open().filter(pk__in=flow_ids)
    ended = Q(state__in=["completed", "failed", "cancelled"])
    done = Case(When(ended, then=100.0), default=Coalesce(F("progress_percent"), 0.0, output_field=FloatField()))
    members = Job.objects.filter(Exists(opened.filter(pk=OuterRef("flow_id"))), flow_id__isnull=False)
    counts = {"percent": Avg(done), "ended_count": Count("pk", filter=ended), "count": Count("pk")}
    for flow_id, percent, ended_count, count in (
        members.values("flow_id").annotate(**counts).values_list("flow_id", *counts)
    ):
        whole = int(percent)
        held = Job.objects.filter(awaited_flow_id=flow_id, is_held=True, state="delayed")
        message = f"{ended_count} of {count} parts have ended"
        held.exclude(progress_percent=whole, progress_message=message).update(
            progress_percent=whole, progress_message=message
        )


def _open() -> QuerySet[Flow]:
    return Flow.objects.filter(closed_at__isnull=True)


def _over() -> QuerySet[Flow, UUID]:
    alive = Job.objects.filter(flow_id=OuterRef("pk"), state__in=LIVE)
    return _open().filter(~Exists(alive)).order_by("opened_at").values_list("pk", flat=True)


def _abandoned() -> QuerySet[Flow, UUID]:
    waiting = Job.objects.filter(awaited_flow_id=OuterRef("pk"), is_held=True, state="delayed")
    return _open().filter(~Exists(waiting)).order_by("opened_at").values_list("pk", flat=True)
