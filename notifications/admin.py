"""The log of e-mails in the admin: what was sent to whom."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from jobs import rendering
from jobs.admin.lists import ListAdmin
from notifications.models import EmailLog

_STATE_COLOURS = {"sent": "success", "failed": "danger", "claimed": "info"}


@admin.register(EmailLog)
class EmailLogAdmin(ListAdmin):
    """E-mails. The log is what keeps an e-mail from going out twice, so nobody edits it."""

    list_display = ("recipient", "kind", "period", "state_label", "created", "sent", "job")
    list_filter = ("state", "created_at")
    list_per_page = 50
    search_fields = ("recipient", "kind", "period", "message_id")
    ordering = ("-created_at",)
    show_full_result_count = False
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    fields = readonly_fields = (
        "user",
        "recipient",
        "kind",
        "period",
        "state_label",
        "error",
        "message_id",
        "job",
        "created_at",
        "claimed_at",
        "sent_at",
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    @display(description="state", ordering="state")
    def state_label(self, email: EmailLog) -> SafeString:
        """What became of it."""
        return rendering.badge(email.state, _STATE_COLOURS)

    @display(description="created", ordering="created_at")
    def created(self, email: EmailLog) -> SafeString | str:
        """When it was first claimed."""
        return rendering.recent(email.created_at)

    @display(description="sent", ordering="sent_at")
    def sent(self, email: EmailLog) -> SafeString | str:
        """When the server accepted it."""
        return rendering.recent(email.sent_at)

    @display(description="job")
    def job(self, email: EmailLog) -> SafeString | str:
        """The job that claimed it last."""
        if email.job_id is None:
            return "–"
        url = reverse("admin:jobs_job_change", args=[email.job_id])
        return format_html('<a class="jobs-link jobs-nowrap" href="{}">…{}</a>', url, str(email.job_id)[-12:])
