"""Links between pages."""

from uuid import UUID

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString


def job_link(job_id: UUID | None) -> SafeString | str:
    """A link to a job, by the end of its id."""
    if job_id is None:
        return "–"
    url = reverse("admin:jobs_job_change", args=[job_id])
    return format_html('<a class="jobs-link jobs-nowrap" href="{}">…{}</a>', url, str(job_id)[-12:])
