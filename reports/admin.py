"""Reports in the admin: what was asked for, what became of it, and the files."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import FileResponse, HttpRequest
from django.shortcuts import get_object_or_404
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from jobs import rendering
from jobs.admin.read_only import ReadOnlyAdmin
from reports.downloads import file_of
from reports.models import Report

_STATE_COLOURS = {"pending": "info", "ready": "success", "failed": "danger"}


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    """Reports. A failed one is made again by running its job again."""

    list_display = ("owner", "kind", "period", "state_label", "pages", "file_link", "created", "job")
    list_filter = ("kind", ("created_at", admin.DateFieldListFilter))
    list_per_page = 50
    list_select_related = ("owner",)
    search_fields = ("owner__email", "=id", "=job_id")
    search_help_text = "Owner's address, id of the report or of its job"
    ordering = ("-created_at",)
    show_full_result_count = False
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    fields = readonly_fields = (
        "id",
        "owner",
        "kind",
        "from_date",
        "to_date",
        "state_label",
        "error_text",
        "pages",
        "size",
        "file_link",
        "job",
        "created",
        "ready",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Report]:
        """Reports with their state."""
        return Report.objects.with_state()

    def get_urls(self) -> list[URLPattern]:
        """The pages, and the files."""
        own = [
            path("<uuid:report_id>/file/", self.admin_site.admin_view(self.download), name="reports_report_file"),
        ]
        return own + super().get_urls()

    def download(self, request: HttpRequest, report_id: UUID) -> FileResponse:
        """The file of anybody's report, for staff who may see reports."""
        report = get_object_or_404(Report, pk=report_id, ready_at__isnull=False)
        if not self.has_view_permission(request, report):
            raise PermissionDenied
        return file_of(report)

    @display(description="period", ordering="from_date")
    def period(self, report: Report) -> SafeString:
        """Its first and its last day."""
        return format_html(
            '<span class="jobs-nowrap">{} –</span> <span class="jobs-nowrap">{}</span>',
            report.from_date.isoformat(),
            report.to_date.isoformat(),
        )

    @display(description="state")
    def state_label(self, report: Any) -> SafeString:
        """What became of it."""
        return rendering.badge(report.state, _STATE_COLOURS)

    @display(description="why it failed")
    def error_text(self, report: Any) -> str:
        """The error of its job, in words."""
        return report.error or "–"

    @display(description="pages", ordering="page_count")
    def pages(self, report: Report) -> str:
        """How many pages the file has."""
        return "–" if report.page_count is None else str(report.page_count)

    @display(description="size")
    def size(self, report: Report) -> str:
        """How large the file is."""
        return "–" if report.size_bytes is None else filesizeformat(report.size_bytes)

    @display(description="created", ordering="created_at")
    def created(self, report: Report) -> SafeString | str:
        """When it was asked for."""
        return rendering.recent(report.created_at)

    @display(description="ready", ordering="ready_at")
    def ready(self, report: Report) -> SafeString | str:
        """When its file was there."""
        return rendering.recent(report.ready_at)

    @display(description="job")
    def job(self, report: Report) -> SafeString:
        """The job that makes it."""
        url = reverse("admin:jobs_job_change", args=[report.job_id])
        return format_html('<a class="jobs-link jobs-nowrap" href="{}">…{}</a>', url, str(report.job_id)[-12:])

    @display(description="file")
    def file_link(self, report: Report) -> SafeString | str:
        """The file."""
        if report.ready_at is None:
            return "–"
        url = reverse("admin:reports_report_file", args=[report.pk])
        return format_html('<a class="jobs-link jobs-nowrap" href="{}">Download</a>', url)
