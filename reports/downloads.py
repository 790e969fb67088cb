"""The file of a report as an answer. Whether the asker may have it is decided by the caller."""

from django.http import FileResponse, Http404

from reports.models import Report


def file_of(report: Report) -> FileResponse:
    """A download that nothing on its way keeps, and no browser takes for a page. Http404 where the file is gone."""
    try:
        content = report.file.open("rb")
    except FileNotFoundError:
        raise Http404 from None
    answer = FileResponse(content, as_attachment=True, filename=report.file_name, content_type="application/pdf")
    answer["Cache-Control"] = "private, no-store"
    answer["X-Content-Type-Options"] = "nosniff"
    return answer
