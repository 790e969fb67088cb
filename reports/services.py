"""Writes of reports: asking for one. Making it is `reports.making`."""

from datetime import date, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from jobs.ids import new_id
from reports.models import Report
from reports.periods import LONGEST_DAYS
from reports.tasks import render_report


class AnotherReportIsMade(Exception):
    """The user has another report in the making: one at a time."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"Your report {report.pk} on {report.from_date} to {report.to_date} is being made (job {report.job_id})."
            " Ask again when it is ready."
        )
        self.report = report


def request_report(*, owner: Any, kind: str, from_date: date, to_date: date) -> Report:
    """A new report and its job, in one transaction.

    Raises ValidationError with a message per field. One at a time per user: called again while the same report is being
    made, or by any number of callers at once, it returns that one; AnotherReportIsMade where a different one is.
    """
    _check(owner=owner, from_date=from_date, to_date=to_date)
    report_id, job_id = new_id(), new_id()
    with transaction.atomic():
        job = render_report.apply_async(
            kwargs={"report_id": str(report_id)},
            task_id=str(job_id),
            dedup_key=f"report-{owner.pk}",
            owner_id=owner.pk,
        )
        if job.id == str(job_id):
            return Report.objects.create(
                id=report_id, owner=owner, kind=kind, from_date=from_date, to_date=to_date, job_id=job_id
            )
        # The job in the way is committed, and its report with it: the ledger waits for who inserts the same key.
        report = Report.objects.get(job_id=UUID(job.id))
    if (report.kind, report.from_date, report.to_date) != (kind, from_date, to_date):
        raise AnotherReportIsMade(report)
    return report


def _check(*, owner: Any, from_date: date, to_date: date) -> None:
    today = timezone.now().astimezone(owner.timezone).date()
    problems: dict[str, str] = {}
    if from_date > today:
        problems["from"] = f"Must not be in the future: today is {today}."
    if to_date > today:
        problems["to"] = f"Must not be in the future: today is {today}."
    if not problems and from_date > to_date:
        problems["from"] = "Must not be after the last day."
    elif not problems and to_date - from_date >= timedelta(days=LONGEST_DAYS):
        problems["from"] = f"A report is on {LONGEST_DAYS} days at the most."
    if problems:
        raise ValidationError(problems)
