"""What the tables of queues and of statistics are made of."""

from urllib.parse import urlencode

from django import template
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs import rendering
from jobs.selectors import QueueStatus
from jobs.statistics import Histogram

register = template.Library()


@register.simple_tag
def count_link(queue: QueueStatus, state: str) -> SafeString:
    """How many jobs of the queue are in that state, linked to their list."""
    if not getattr(queue, state):
        return format_html('<span class="jobs-zero">{}</span>', 0)
    url = f"{reverse('admin:jobs_job_changelist')}?{urlencode({'queue': queue.name, 'state': state})}"
    link = format_html('<a id="{}-{}" href="{}">{}</a>', queue.name, state, url, queue.words(state, separator=","))
    age_seconds = queue.counted_seconds_ago.get(state)
    if age_seconds is None:
        return link
    return format_html('{} <small class="jobs-age">{} ago</small>', link, rendering.duration(age_seconds, units=1))


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in words."""
    return rendering.duration(seconds)


@register.filter
def percentile(lengths: Histogram, percent: int) -> float | None:
    """In seconds."""
    return lengths.percentile_seconds(percent)


@register.filter
def ticked(age_seconds: float | None) -> str:
    """When a duty ticked, in words."""
    return "never" if age_seconds is None else f"{rendering.duration(age_seconds)} ago"
