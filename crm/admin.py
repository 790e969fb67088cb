"""Contacts at the CRM in the admin."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from crm import services
from crm.models import CrmContact
from crm.syncing import is_configured
from jobs import rendering
from jobs.admin.read_only import ReadOnlyAdmin

_COLOURS = {"synced": "success", "failed": "danger", "pending": "info"}


@admin.register(CrmContact)
class CrmContactAdmin(ReadOnlyAdmin):
    """Contacts at the CRM. Syncing again needs the permission to change contacts; nothing else can be changed."""

    list_display = ("user", "state_label", "remote_id", "error", "synced", "job")
    list_filter = ("state",)
    list_per_page = 50
    list_select_related = ("user",)
    ordering = ("-created_at",)
    search_fields = ("user__email", "remote_id", "error")
    show_full_result_count = False
    # Counting the rows that match costs more than showing a page of them.
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    actions = ("sync_again",)
    fields = readonly_fields = ("user", "state_label", "remote_id", "error", "job", "created_at", "synced_at")

    def has_sync_permission(self, request: HttpRequest) -> bool:
        """Whether the user may have contacts synced."""
        return request.user.has_perm("crm.change_crmcontact")

    @admin.action(description="Sync again", permissions=["sync"])
    def sync_again(self, request: HttpRequest, queryset: QuerySet[CrmContact]) -> None:
        """Brings the selected contacts to the CRM once more, as the users are now."""
        if not is_configured():
            self.message_user(request, "The CRM is not configured: set CRM_BASE_URL and CRM_TOKEN.", messages.WARNING)
            return
        for contact in queryset.select_related("user"):
            services.sync_user(user=contact.user)
        self.message_user(request, f"Contacts that are synced again: {len(queryset)}.", messages.SUCCESS)

    @display(description="state", ordering="state")
    def state_label(self, contact: CrmContact) -> SafeString:
        """Whether the CRM has what we have."""
        return rendering.badge(contact.state, _COLOURS)

    @display(description="synced", ordering="synced_at")
    def synced(self, contact: CrmContact) -> SafeString | str:
        """When the CRM took it over last."""
        return rendering.recent(contact.synced_at)

    @display(description="job")
    def job(self, contact: CrmContact) -> SafeString | str:
        """The job that syncs it."""
        if contact.job_id is None:
            return "–"
        url = reverse("admin:jobs_job_change", args=[contact.job_id])
        return format_html('<a class="jobs-link jobs-nowrap" href="{}">…{}</a>', url, str(contact.job_id)[-12:])
