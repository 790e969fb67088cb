"""Originals as they are stored."""

from django.core.files.base import File

from media_jobs.errors import NotUsable
from media_jobs.models import Upload


def open_original(upload: Upload) -> "File[bytes]":
    """The original, to be read. Raises NotUsable where it is gone, OSError where the storage is away."""
    try:
        opened: File[bytes] = upload.original.storage.open(str(upload.original), "rb")
    except FileNotFoundError as error:
        raise NotUsable("The uploaded file is no longer there.") from error
    return opened


def read_original(upload: Upload) -> bytes:
    """The whole original: read first, so that an error of the storage is not taken for a damaged file."""
    with open_original(upload) as file:
        return file.read()
