"""Jobs that make reports and tell of them."""

from typing import Any
from uuid import UUID

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from jobs.errors import Permanent
from jobs.task import JobTask
from notifications import services as notifications
from notifications.clients.smtp import TransientMailError
from reports import selectors
from reports.making import make_report
from reports.models import Report

_SOFT_LIMIT_SECONDS = 600


@shared_task(
    bind=True,
    queue="reports",
    # Expensive: what has failed once is run again on a person's wish alone.
    autoretry_for=(),
    retry_backoff=False,
    max_retries=0,
    soft_time_limit=_SOFT_LIMIT_SECONDS,
    time_limit=_SOFT_LIMIT_SECONDS + 60,
)
def render_report(self: JobTask, report_id: str) -> dict[str, Any]:
    """Makes the PDF of a report that a user has asked for."""
    try:
        report = make_report(report_id=UUID(report_id), progress=self.progress)
    except SoftTimeLimitExceeded:
        minutes = _SOFT_LIMIT_SECONDS // 60
        raise Permanent(f"The report took longer than {minutes} minutes. Ask for a shorter period.") from None
    return {"report": report_id, "pages": report.page_count, "size_bytes": report.size_bytes}


@shared_task(
    bind=True,
    queue="email",
    autoretry_for=(TransientMailError, SoftTimeLimitExceeded),
    retry_backoff=5,
    max_retries=4,
    soft_time_limit=30,
    time_limit=45,
)
def send_report_ready(self: JobTask, report_id: str) -> dict[str, Any]:
    """Tells the owner by e-mail that a report is ready. An owner who is gone or locked out is told nothing."""
    report = Report.objects.select_related("owner").filter(pk=report_id, ready_at__isnull=False).first()
    if report is None or not report.owner.is_active:
        return {"sent": False, "recipient": None}
    context = {
        "name": report.owner.name,
        "from_date": report.from_date,
        "to_date": report.to_date,
        "page_count": report.page_count,
        "download_url": selectors.download_url(report),
    }
    entry = notifications.notify(
        kind="report-ready",
        user=report.owner,
        period=str(report.pk),
        context=context,
        job_id=UUID(self.request.id) if self.request.id else None,
    )
    self.progress(1, 1, "Sent")
    return {"sent": True, "recipient": entry.recipient}
