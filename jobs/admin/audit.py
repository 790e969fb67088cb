"""The list of what operators did: to jobs, queues, and to all jobs that matched a filter."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from jobs import rendering
from jobs.admin.lists import ListAdmin
from jobs.admin.read_only import ReadOnlyAdmin
from jobs.ids import is_id
from jobs.models import AuditEntry
from jobs.queues import QUEUES


class AuditHistory(ListAdmin):
    """The history of a row is what operators did to it."""

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Its entries in the list of all."""
        query = urlencode({"q": object_id})
        return HttpResponseRedirect(f"{reverse('admin:jobs_auditentry_changelist')}?{query}")


@admin.register(AuditEntry)
class AuditAdmin(ReadOnlyAdmin):
    """Who, when, what, on which. Found by the id of a job, the name of a queue, or the name of a person."""

    list_display = ("what", "on", "who", "when")
    list_display_links = ("what",)
    list_filter = (("at", admin.DateFieldListFilter), "thing_type")
    # From the page of a bulk action to the record of each of its jobs.
    _LOOKUPS = ("bulk_action__id__exact",)
    list_filter_sheet = True
    list_per_page = 50
    ordering = ("-id",)
    search_fields = ("actor_name", "what")
    search_help_text = "Id of a job, name of a queue, or words"
    show_full_result_count = False
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    fields = readonly_fields = ("what", "on", "who", "moment", "part_of", "details_text")

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEntry]:
        """With the bulk actions that they are part of."""
        found: QuerySet[AuditEntry] = super().get_queryset(request).select_related("bulk_action")
        return found

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Also the entries of one bulk action."""
        return lookup in self._LOOKUPS or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEntry], search_term: str
    ) -> tuple[QuerySet[AuditEntry], bool]:
        """Ids and names of queues are looked up by an index, other words in what was done and by whom."""
        thing_id = search_term.strip()
        if thing_id in QUEUES or thing_id.isdecimal() or is_id(thing_id):
            return queryset.filter(thing_id=thing_id), False
        found: tuple[QuerySet[AuditEntry], bool] = super().get_search_results(request, queryset, search_term)
        return found

    @display(description="on")
    def on(self, entry: AuditEntry) -> SafeString | str:
        """The job or queue, linked while it is there."""
        try:
            url = reverse(f"admin:jobs_{entry.thing_type}_change", args=[entry.thing_id])
        except NoReverseMatch:
            return entry.thing
        return format_html('<a class="jobs-link" href="{}">{}</a>', url, entry.thing)

    @display(description="who", ordering="actor_name")
    def who(self, entry: AuditEntry) -> str:
        """A user of the site, or somebody at a terminal."""
        return entry.actor_name

    @display(description="when", ordering="id")
    def when(self, entry: AuditEntry) -> SafeString | str:
        """How long ago."""
        return rendering.recent(entry.at)

    @display(description="when")
    def moment(self, entry: AuditEntry) -> SafeString | str:
        """To the second."""
        return rendering.moment(entry.at)

    @display(description="part of")
    def part_of(self, entry: AuditEntry) -> SafeString | str:
        """The action on many jobs."""
        if entry.bulk_action is None:
            return "–"
        url = reverse("admin:jobs_bulkaction_change", args=[entry.bulk_action_id])
        return format_html('<a class="jobs-link" href="{}">{}</a>', url, entry.bulk_action)

    @display(description="before and after")
    def details_text(self, entry: Any) -> SafeString | str:
        """What was changed, secrets hidden."""
        return rendering.payload(entry.details) if entry.details else "–"
