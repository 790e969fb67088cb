"""Who hears of which domain event, and who fills which registry: siblings do not know one another, so that they are
connected here."""

from django.db.models.signals import post_delete

from accounts import receivers as account_receivers
from accounts.signals import user_created
from config import report_sections as media_sections
from crm import receivers as crm_receivers
from media_jobs import orphans as media_orphans
from media_jobs.models import Picture, Video
from media_jobs.signals import media_ready
from notifications import digest_sections
from notifications import receivers as notification_receivers
from notifications import selectors as notification_selectors
from reports import activity
from reports import receivers as report_receivers
from reports import sections as report_sections
from reports import selectors as report_selectors
from reports.models import Report
from reports.signals import report_ready
from webhooks import handlers as webhook_handlers
from webhooks import receivers as webhook_receivers


def connect() -> None:
    """Connects every receiver. Called once, when all apps are loaded; a second call changes nothing."""
    user_created.connect(notification_receivers.welcome, dispatch_uid="notifications.welcome")
    report_ready.connect(report_receivers.tell_owner, dispatch_uid="reports.tell_owner")
    for model in (Picture, Video):
        post_delete.connect(media_orphans.remove_files, sender=model, dispatch_uid="media_jobs.remove_files")
    post_delete.connect(report_receivers.remove_file, sender=Report, dispatch_uid="reports.remove_file")

    user_created.connect(crm_receivers.user_created, dispatch_uid="crm.user_created")
    user_created.connect(webhook_receivers.user_created, dispatch_uid="webhooks.user_created")
    media_ready.connect(webhook_receivers.media_ready, dispatch_uid="webhooks.media_ready")
    report_ready.connect(webhook_receivers.report_ready, dispatch_uid="webhooks.report_ready")
    webhook_handlers.register("contact.updated", account_receivers.contact_updated)

    digest_sections.register("jobs", notification_selectors.ended_jobs)
    digest_sections.register("reports", report_selectors.digest_lines)

    report_sections.register("jobs", activity.jobs)
    report_sections.register("pictures", media_sections.pictures)
    report_sections.register("videos", media_sections.videos)
    report_sections.register("mails", activity.mails)
