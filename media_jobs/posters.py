"""Measures an uploaded video and makes its poster."""

from collections.abc import Callable
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction

from media_jobs.errors import NotUsable
from media_jobs.models import Video
from media_jobs.originals import open_original
from media_jobs.signals import media_ready
from media_jobs.videos import Facts, examine

Report = Callable[[float, float, str], None]


def make(*, video_id: int, report: Report) -> dict[str, Any]:
    """Measures a video, stores its poster, and records both in one transaction that sends `media_ready`.

    `report` hears how far it is. A video that is gone, or ready, is left as it is; so a second call changes nothing.
    When the process dies in the middle, the next call writes the same poster once more under the same name. Of two
    calls at once, one records.

    Raises NotUsable, and keeps its sentence with the video, for a file of which nothing can be made; OSError where the
    storage is away.
    """
    video = Video.objects.filter(pk=video_id).first()
    if video is None:
        return {"duration_seconds": None}
    if video.ready_at is None:
        try:
            with open_original(video) as file:
                facts = examine(file, container_format=video.format, report=report)
        except NotUsable as error:
            video.mark_refused(error=str(error))
            raise
        report(95, 100, "Storing the poster")
        _record(video, facts)
    report(100, 100, "Ready")
    video.refresh_from_db()
    return {
        "duration_seconds": video.duration_seconds,
        "width_pixels": video.width_pixels,
        "height_pixels": video.height_pixels,
        "byte_count": video.byte_count,
    }


def _record(video: Video, facts: Facts) -> None:
    name = default_storage.save(f"videos/{video.key}/poster.webp", ContentFile(facts.poster))
    with transaction.atomic():
        waiting = Video.objects.select_for_update().filter(pk=video.pk, ready_at=None).first()
        if waiting is None:
            # Another run was sooner, or the video is gone.
            return
        waiting.mark_ready(
            duration_seconds=facts.duration_seconds,
            width_pixels=facts.width_pixels,
            height_pixels=facts.height_pixels,
            poster=name,
        )
        media_ready.send(sender=Video, media=waiting)
