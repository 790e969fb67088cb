"""What events cause here. Each runs inside the transaction of the event."""

from functools import partial
from typing import Any

from django.core.files.storage import default_storage
from django.db import router

from jobs import commits
from reports.models import Report
from reports.tasks import send_report_ready

# Somebody waits for it: ahead of digests, behind welcomes.
READY_MAIL_PRIORITY = 3


def tell_owner(sender: Any, *, report: Report, **_: Any) -> None:
    """Enqueues the e-mail that a report is ready. The dedup key makes it one job however often this runs."""
    send_report_ready.apply_async(
        kwargs={"report_id": str(report.pk)},
        priority=READY_MAIL_PRIORITY,
        dedup_key=f"report-ready-{report.pk}",
        owner_id=report.owner_id,
    )


def remove_file(sender: Any, *, instance: Report, **_: Any) -> None:
    """Removes the file of a report that is deleted, as when its owner is, once that is committed."""
    if instance.file.name:
        commits.then(partial(default_storage.delete, instance.file.name), using=router.db_for_write(sender))
