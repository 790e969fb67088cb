"""Sections of a report that come from apps beside `reports`: the two do not know each other."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet

from media_jobs import selectors as media
from reports.activity import listed
from reports.periods import Period
from reports.sections import Figure, Row, Section


def pictures(owner: Any, period: Period) -> Section:
    """The pictures that the owner uploaded in the period."""
    return _uploads("Pictures", media.pictures_of(owner_id=owner.pk), period, lambda picture: str(picture.purpose))


def videos(owner: Any, period: Period) -> Section:
    """The videos that the owner uploaded in the period."""
    return _uploads("Videos", media.videos_of(owner_id=owner.pk), period, _length)


def _uploads(title: str, uploads: "QuerySet[Any]", period: Period, what: Callable[[Any], str]) -> Section:
    found = uploads.filter(created_at__gte=period.start_at, created_at__lt=period.end_at)
    rows, day_counts, count = listed(found, period=period, row=lambda upload: _row(upload, what(upload), period))
    ready_count = found.filter(ready_at__isnull=False).count()
    return Section(
        title=title,
        figures=(Figure(label=title, value=count), Figure(label=f"{title} ready", value=ready_count)),
        day_counts=day_counts,
        columns=("Time", title.removesuffix("s"), "Pixels", "State"),
        rows=rows,
        row_count=count,
    )


def _row(upload: Any, what: str, period: Period) -> Row:
    state, error = media.progress_of(upload)
    pixels = f"{upload.width_pixels} × {upload.height_pixels}" if upload.width_pixels else "–"
    return Row(
        cells=(period.local(upload.created_at), f"{upload.pk}, {what}, {upload.format}", pixels, str(state)),
        note=error,
        is_bad=bool(error),
    )


def _length(video: Any) -> str:
    return "length unknown" if video.duration_seconds is None else f"{video.duration_seconds:.1f} s"
