"""Makes the renditions of an uploaded picture."""

import io
from collections.abc import Callable
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction

from media_jobs.errors import NotUsable
from media_jobs.models import Picture, Rendition
from media_jobs.originals import read_original
from media_jobs.pictures import SIZES_PIXELS, Decoded
from media_jobs.signals import media_ready

Report = Callable[[float, float, str], None]
_STEP_COUNT = len(SIZES_PIXELS) + 2


def make(*, picture_id: int, report: Report) -> dict[str, Any]:
    """Makes the squares of a picture, stores them, and records them in one transaction that sends `media_ready`.

    `report` hears each step. A picture that is gone, or ready, is left as it is; so a second call changes nothing. When
    the process dies in the middle, the next call writes the same files once more under the same names, and nobody
    sees a picture with some of its renditions. Of two calls at once, one records.

    Raises NotUsable, and keeps its sentence with the picture, for a file of which nothing can be made; OSError where
    the storage is away.
    """
    picture = Picture.objects.filter(pk=picture_id).first()
    if picture is None:
        return {"renditions": []}
    if picture.ready_at is None:
        try:
            _make(picture, report)
        except NotUsable as error:
            picture.mark_refused(error=str(error))
            raise
    report(_STEP_COUNT, _STEP_COUNT, "Ready")
    sizes = list(picture.renditions.values_list("size_pixels", flat=True))
    picture.refresh_from_db()
    return {"renditions": sizes, "width_pixels": picture.width_pixels, "height_pixels": picture.height_pixels}


def _make(picture: Picture, report: Report) -> None:
    report(0, _STEP_COUNT, "Decoding the picture")
    decoded = Decoded(io.BytesIO(read_original(picture)))
    made = []
    for step, square in enumerate(decoded.squares(), start=1):
        size = square.size_pixels
        report(step, _STEP_COUNT, f"Storing {size} × {size}")
        name = default_storage.save(f"pictures/{picture.key}/{size}.webp", ContentFile(square.content))
        made.append(Rendition(picture=picture, size_pixels=size, file=name, byte_count=len(square.content)))
    report(_STEP_COUNT - 1, _STEP_COUNT, "Recording")
    with transaction.atomic():
        waiting = Picture.objects.select_for_update().filter(pk=picture.pk, ready_at=None).first()
        if waiting is None:
            # Another run was sooner, or the picture is gone.
            return
        Rendition.objects.bulk_create(made)
        waiting.mark_ready(width_pixels=decoded.width_pixels, height_pixels=decoded.height_pixels)
        media_ready.send(sender=Picture, media=waiting)
