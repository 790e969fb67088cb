"""The page of figures: what ended in the last hour, day or month, how long it waited and ran, by queue and task."""

from datetime import timedelta

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from jobs import statistics
from jobs.admin.queues import for_staff

SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=30)}


@for_staff
@require_safe
def statistics_page(request: HttpRequest) -> HttpResponse:
    """`?span=` hour, day or month; an hour for any other."""
    span = request.GET.get("span", "")
    span = span if span in SPANS else "hour"
    now = timezone.now()
    start_at = statistics.counted_from(now - SPANS[span])
    minutes = (now - start_at) / timedelta(minutes=1)
    counts = statistics.counts(start_at=start_at)
    rows = [
        {"queue": queue, "task": task, "counts": counted, "per_minute": counted.finished / minutes}
        for (queue, task), counted in sorted(counts.items())
    ]
    page = {"title": "Statistics", "rows": rows, "spans": SPANS, "span": span, "start_at": start_at}
    return TemplateResponse(request, "jobs/admin/statistics.html", {**admin.site.each_context(request), **page})
