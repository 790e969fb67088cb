"""Uploads: the original is stored, and one transaction writes its row and the job that makes something of it."""

import logging
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import default_storage
from django.db import InterfaceError, OperationalError, transaction

from media_jobs.errors import NotUsable, TooLarge
from media_jobs.models import Picture, Upload, Video
from media_jobs.pictures import read_header
from media_jobs.tasks import make_poster, make_renditions
from media_jobs.videos import read_container

logger = logging.getLogger(__name__)

# OWASP Session Management Cheat Sheet asks for 64 bits at the least where something must not be guessed.
KEY_BYTES = 16

AnyUpload = TypeVar("AnyUpload", bound=Upload)


def add_picture(*, owner_id: int, file: "File[bytes]", purpose: str) -> Picture:
    """Takes a picture, and enqueues the job that makes its renditions (`job_id` of what is returned).

    Only the header is looked at here. Raises NotUsable for what its header shows to be no picture, or one with too many
    pixels; TooLarge for too many bytes. Called twice it makes two pictures. See `_stored` for what a crash leaves.
    """
    _check_size(file, max_bytes=settings.PICTURE_MAX_BYTES)
    header = read_header(file)

    def insert(original: dict[str, Any]) -> Picture:
        picture = Picture.objects.create(owner_id=owner_id, purpose=purpose, format=header.format, **original)
        job = make_renditions.apply_async(kwargs={"picture_id": picture.pk}, owner_id=owner_id)
        return _with_job(picture, job.id)

    return _stored(file, folder="pictures", insert=insert)


def add_video(*, owner_id: int, file: "File[bytes]") -> Video:
    """Takes a video, and enqueues the job that measures it and makes its poster (`job_id` of what is returned).

    Only the first bytes are looked at here. Raises NotUsable for what they show to be no video, and TooLarge. Called
    twice it makes two videos. See `_stored` for what a crash leaves.
    """
    _check_size(file, max_bytes=settings.VIDEO_MAX_BYTES)
    container_format = read_container(file)

    def insert(original: dict[str, Any]) -> Video:
        video = Video.objects.create(owner_id=owner_id, format=container_format, **original)
        return _with_job(video, make_poster.apply_async(kwargs={"video_id": video.pk}, owner_id=owner_id).id)

    return _stored(file, folder="videos", insert=insert)


def _stored(file: "File[bytes]", *, folder: str, insert: Callable[[dict[str, Any]], AnyUpload]) -> AnyUpload:
    """Stores the original under a name that nobody guesses, then inserts its row and job in one transaction.

    In this order, because a job must find its file, and because files have no transactions and may be slow. If the
    transaction is rolled back the file goes with it; if this process dies in between, `media_jobs.orphans` removes it.
    """
    key = secrets.token_hex(KEY_BYTES)
    name = default_storage.save(f"{folder}/{key}/original", file)
    try:
        # Durable: only so is it known here how the transaction ends.
        with transaction.atomic(durable=True):
            return insert({"key": key, "original": name, "byte_count": file.size})
    except (OperationalError, InterfaceError):
        # A connection that is lost during the commit does not tell whether the row is there: left to `orphans`.
        raise
    except BaseException:
        default_storage.delete(name)
        raise


def _with_job(upload: AnyUpload, job_id: str) -> AnyUpload:
    upload.job_id = job_id
    upload.save(update_fields=["job_id"])
    return upload


def _check_size(file: "File[bytes]", *, max_bytes: int) -> None:
    if not file.size:
        raise NotUsable("The file is empty.")
    if file.size > max_bytes:
        raise TooLarge(f"The file is too large: at most {max_bytes / 1024**2:.4g} MiB.")
