"""Reads of reports."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings

from notifications.digest_sections import MOST_ITEMS, Item, Line
from reports.models import Report


def report_of(*, owner_id: int, report_id: UUID) -> Any:
    """A report with its `state` and `error` (see `ReportQuerySet.with_state`); raises Report.DoesNotExist, also for
    another user's."""
    return Report.objects.with_state().get(pk=report_id, owner=owner_id)


def digest_lines(user_ids: Sequence[int], start_at: datetime, end_at: datetime) -> dict[int, list[Line]]:
    """The daily digest's line on reports that became ready in a span of time, with their addresses. One query."""
    ready = Report.objects.filter(owner__in=user_ids, ready_at__gte=start_at, ready_at__lt=end_at)
    # One at a time per user, so that even a day of them is a short list.
    by_owner: dict[int, list[Report]] = {}
    for report in ready.order_by("ready_at"):
        by_owner.setdefault(report.owner_id, []).append(report)
    return {
        owner_id: [
            Line(
                label="Reports ready",
                count=len(reports),
                items=tuple(
                    Item(
                        text=f"{report.get_kind_display()}, {report.from_date} to {report.to_date}",
                        url=download_url(report),
                    )
                    for report in reports[-MOST_ITEMS:]
                ),
            )
        ]
        for owner_id, reports in by_owner.items()
    }


def download_url(report: Report) -> str:
    """The address of a report's file, as mails name it."""
    return f"{settings.SITE_URL}/api/reports/{report.pk}/download"
