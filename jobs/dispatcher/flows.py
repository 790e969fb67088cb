"""Flows whose end nobody has seen, because its writer died or was no run; members that nobody waits for any more; and
the progress of held jobs, which is that of the members."""

import logging
from collections.abc import Callable
from uuid import UUID

from django.db import connections
from django.db.models import Avg, Case, Count, Exists, F, FloatField, OuterRef, Q, QuerySet, When
from django.db.models.functions import Coalesce

from jobs import flows, settle
from jobs.models import LIVE, Flow, Job

logger = logging.getLogger(__name__)

SECONDS = 1.0
PROGRESS_SECONDS = 1.0
_BATCH = 500


def run_once() -> bool:
    """Closes flows that are over, and cancels the members of flows whose held jobs were cancelled. Returns whether
    there were some: there may be more of them."""
    return _each(_over(), flows.close_if_ended) + _each(_abandoned(), _cancel_members) > 0


def _each(found: QuerySet[Flow, UUID], act: Callable[[UUID], object]) -> int:
    """Acts on each of these flows, whatever becomes of the others; returns their number. Raises only where the
    connection is broken."""
    flow_ids = list(found[:_BATCH])
    for flow_id in flow_ids:
        try:
            act(flow_id)
        except Exception:  # whatever is wrong with one flow, the others must not go without
            logger.exception("Flow %s is left for the next look.", flow_id)
            if not connections[settle.ledger()].is_usable():
                raise
    return len(flow_ids)


def _cancel_members(flow_id: UUID) -> None:
    members = Job.objects.filter(flow_id=flow_id, state__in=LIVE)
    reason = "The job that waited for it was cancelled."
    settle.stop(Job.objects.filter(pk__in=members.values("pk")[:_BATCH]), reason=reason)


def report_progress() -> bool:
    """Writes the average of the members' progress to the jobs that wait for them; nothing is left."""
    ended = Q(state__in=["completed", "failed", "cancelled"])
    done = Case(When(ended, then=100.0), default=Coalesce(F("progress_percent"), 0.0, output_field=FloatField()))
    members = Job.objects.filter(Exists(_open().filter(pk=OuterRef("flow_id"))), flow_id__isnull=False)
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
    return False


def _open() -> QuerySet[Flow]:
    return Flow.objects.filter(closed_at__isnull=True)


def _over() -> QuerySet[Flow, UUID]:
    alive = Job.objects.filter(flow_id=OuterRef("pk"), state__in=LIVE)
    return _open().filter(~Exists(alive)).order_by("opened_at").values_list("pk", flat=True)


def _abandoned() -> QuerySet[Flow, UUID]:
    waiting = Job.objects.filter(awaited_flow_id=OuterRef("pk"), is_held=True, state="delayed")
    return _open().filter(~Exists(waiting)).order_by("opened_at").values_list("pk", flat=True)
