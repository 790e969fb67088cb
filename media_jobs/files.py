"""Answers with private files. Whoever calls this has checked who asks."""

from django.db.models.fields.files import FieldFile
from django.http import FileResponse, Http404

# What stands under a name never changes. Private: only in the browser of whoever may see it.
CACHE_CONTROL = "private, max-age=86400, immutable"


def whole_file(file: FieldFile) -> FileResponse:
    """A stored WebP picture; Http404 where the storage has lost it."""
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        raise Http404 from None
    return FileResponse(opened, content_type="image/webp", headers={"Cache-Control": CACHE_CONTROL})
