"""Who hears of which domain event, and who fills which registry: siblings do not know one another, so that they are
connected here."""

from django.db.models.signals import post_delete

from accounts.signals import user_created
from notifications import digest_sections
from notifications import receivers as notification_receivers
from notifications import selectors as notification_selectors
from reports import activity
from reports import receivers as report_receivers
from reports import sections as report_sections
from reports import selectors as report_selectors
from reports.models import Report
from reports.signals import report_ready


def connect() -> None:
    """Connects every receiver. Called once, when all apps are loaded; a second call changes nothing."""
    user_created.connect(notification_receivers.welcome, dispatch_uid="notifications.welcome")
    report_ready.connect(report_receivers.tell_owner, dispatch_uid="reports.tell_owner")
    post_delete.connect(report_receivers.remove_file, sender=Report, dispatch_uid="reports.remove_file")

    digest_sections.register("jobs", notification_selectors.ended_jobs)
    digest_sections.register("reports", report_selectors.digest_lines)

    report_sections.register("jobs", activity.jobs)
    report_sections.register("mails", activity.mails)
