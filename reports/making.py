"""Makes the file of a report: reads, typesets, stores, and says that it is ready."""

from collections.abc import Callable
from uuid import UUID

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.template.loader import render_to_string

from jobs import fenced
from jobs.errors import Permanent
from reports import sections
from reports.chart import Series, bar_chart, bar_unit
from reports.models import Report
from reports.pdf import pdf_of
from reports.periods import Period
from reports.signals import report_ready

Progress = Callable[[int, int, str], None]

# Reading and storing are quick; laying the pages out takes twice as long as drawing them.
_READ_PERCENT, _LAID_OUT_PERCENT, _DRAWN_PERCENT = 10, 70, 95


def make_report(*, report_id: UUID, progress: Progress) -> Report:
    """Makes the file of a report and marks the report as ready; returns it.

    `progress` is told (done, total, message); what it raises ends the work. Called again for a report that is ready, it
    changes nothing. A process that dies before the end leaves the report as it was, and the file, if at all, under its
    name and whole; the next call makes both again.

    Raises Permanent where the report is gone, and PdfUnavailable on a machine that cannot make PDFs.
    """
    report = Report.objects.select_related("owner").filter(pk=report_id).first()
    if report is None or not report.owner.is_active:
        raise Permanent("Nobody waits for this report any more: it or its owner is gone.")
    if report.file.name and default_storage.exists(report.file.name):
        return report
    html = _html(report, progress)

    def on_page(number: int) -> None:
        # How many there will be is known at the end only: half of what is left with every ten pages.
        part = 1 - 0.5 ** (number / 10)
        percent = _READ_PERCENT + (_LAID_OUT_PERCENT - _READ_PERCENT) * part
        progress(int(percent), 100, f"Laying out page {number}")

    def on_laid_out(count: int) -> None:
        progress(_LAID_OUT_PERCENT, 100, f"Drawing {_pages(count)}")

    content, page_count = pdf_of(html, on_page=on_page, on_laid_out=on_laid_out)
    progress(_DRAWN_PERCENT, 100, "Storing the file")
    name = default_storage.save(f"reports/{report.pk}.pdf", ContentFile(content))
    # A run that no longer owns its job learns it here, and nothing of it is kept.
    with fenced():
        if report.mark_ready(file=name, page_count=page_count, size_bytes=len(content)):
            report_ready.send(sender=Report, report=report)
    progress(100, 100, f"Ready: {_pages(page_count)}")
    return report


def period_of(report: Report) -> Period:
    """The days of a report, in the time zone of its owner."""
    return Period(from_date=report.from_date, to_date=report.to_date, zone=report.owner.timezone)


def _pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count} pages"


def _html(report: Report, progress: Progress) -> str:
    """The document: every text that comes from users or from outside is escaped by the template."""
    period, names = period_of(report), sections.names()
    found = []
    for number, name in enumerate(names):
        progress(_READ_PERCENT * number // len(names), 100, f"Reading {name}")
        found.append(sections.section(name, owner=report.owner, period=period))
    series = [Series(name=section.title, day_counts=section.day_counts) for section in found]
    return render_to_string(
        f"reports/{report.kind}.html",
        {
            "title": f"Activity report {report.from_date} to {report.to_date}",
            "owner_name": report.owner.name,
            "owner_email": report.owner.email,
            "period": period,
            "zone": str(report.owner.timezone),
            "made_at": report.created_at,
            "made_at_text": period.local(report.created_at),
            "sections": found,
            "chart": bar_chart(series, period=period) if any(section.row_count for section in found) else "",
            "chart_unit": bar_unit(period),
        },
    )
