"""Pictures and videos over HTTP, for whoever uploaded them. Who may call is decided where the routers are mounted."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models.fields.files import FieldFile
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja import File, Form, Router, Schema, Status, UploadedFile
from ninja.errors import HttpError
from pydantic import Field

from jobs.api import AcceptedOut, accepted
from media_jobs import selectors, services
from media_jobs.errors import NotUsable, TooLarge
from media_jobs.files import whole_file
from media_jobs.models import Picture, Upload, Video
from media_jobs.selectors import Progress

images = Router(tags=["images"])
videos = Router(tags=["videos"])

_WEBP: dict[str, Any] = {
    "responses": {200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}}
}


class UploadAcceptedOut(AcceptedOut):
    """The job that works on the upload, and the upload."""

    id: int


class RenditionOut(Schema):
    """A square of the picture, in WebP."""

    size_pixels: int
    byte_count: int
    url: str


class UploadOut(Schema):
    """What pictures and videos have in common. Width and height are null until the upload is ready."""

    id: int
    state: Progress
    error: str | None = Field(description="Why nothing could be made of it, in words")
    job: UUID | None
    byte_count: int = Field(description="Size of the original")
    width_pixels: int | None
    height_pixels: int | None
    created_at: datetime


class PictureOut(UploadOut):
    """A picture. It has all of its renditions, or none yet."""

    purpose: Picture.Purpose
    renditions: list[RenditionOut]


class VideoOut(UploadOut):
    """A video."""

    duration_seconds: float | None
    poster_url: str | None


@images.post("", response={202: UploadAcceptedOut})
def add_image(
    request: HttpRequest,
    response: HttpResponse,
    file: File[UploadedFile],
    purpose: Form[Picture.Purpose] = Picture.Purpose.PICTURE,
) -> Status[dict[str, Any]]:
    """Takes a picture (JPEG, PNG, WebP, GIF or AVIF), and makes squares of 64, 256 and 512 pixels of its middle.

    422 where the header shows that it is none or that it has too many pixels; what shows only later fails the job.
    """
    owner_id = _user(request).pk
    return _added(
        response, lambda: services.add_picture(owner_id=owner_id, file=file, purpose=Picture.Purpose(purpose).value)
    )


@images.get("/{image_id}", response=PictureOut)
def image(request: HttpRequest, image_id: int) -> dict[str, Any]:
    """A picture of yours, with its renditions once it is ready."""
    picture = _picture(request, image_id)
    renditions = [
        {
            "size_pixels": rendition.size_pixels,
            "byte_count": rendition.byte_count,
            "url": f"/api/images/{picture.pk}/renditions/{rendition.size_pixels}",
        }
        for rendition in picture.renditions.all()
    ]
    return {**_facts(picture), "purpose": picture.purpose, "renditions": renditions}


@images.get("/{image_id}/renditions/{size_pixels}", openapi_extra=_WEBP)
def rendition(request: HttpRequest, image_id: int, size_pixels: int) -> HttpResponseBase:
    """One rendition of a picture of yours."""
    found = _picture(request, image_id).renditions.filter(size_pixels=size_pixels).first()
    return _file(found.file if found else None)


@videos.post("", response={202: UploadAcceptedOut})
def add_video(request: HttpRequest, response: HttpResponse, file: File[UploadedFile]) -> Status[dict[str, Any]]:
    """Takes a video (MP4, MOV, WebM, Matroska or AVI), measures it, and makes a poster of its first seconds.

    422 where the first bytes show that it is none; what shows only later fails the job.
    """
    owner_id = _user(request).pk
    return _added(response, lambda: services.add_video(owner_id=owner_id, file=file))


@videos.get("/{video_id}", response=VideoOut)
def video(request: HttpRequest, video_id: int) -> dict[str, Any]:
    """A video of yours."""
    found = _video(request, video_id)
    poster_url = f"/api/videos/{found.pk}/poster" if found.poster else None
    return {**_facts(found), "duration_seconds": found.duration_seconds, "poster_url": poster_url}


@videos.get("/{video_id}/poster", openapi_extra=_WEBP)
def poster(request: HttpRequest, video_id: int) -> HttpResponseBase:
    """The poster of a video of yours."""
    return _file(_video(request, video_id).poster)


def _added(response: HttpResponse, add: Callable[[], Upload]) -> Status[dict[str, Any]]:
    try:
        added = add()
    except TooLarge as error:
        raise HttpError(413, str(error)) from error
    except NotUsable as error:
        raise ValidationError({"file": [str(error)]}) from error
    assert added.job_id is not None  # noqa: S101  # every upload is made with its job
    accepted(response, added.job_id)
    return Status(202, {"job": added.job_id, "id": added.pk})


def _facts(upload: Upload) -> dict[str, Any]:
    state, error = selectors.progress_of(upload)
    return {
        "id": upload.pk,
        "state": state,
        "error": error or None,
        "job": upload.job_id,
        "byte_count": upload.byte_count,
        "width_pixels": upload.width_pixels,
        "height_pixels": upload.height_pixels,
        "created_at": upload.created_at,
    }


def _user(request: HttpRequest) -> Any:
    return request.auth  # type: ignore[attr-defined]  # set by ninja


def _picture(request: HttpRequest, image_id: int) -> Picture:
    found = selectors.pictures_of(owner_id=_user(request).pk).filter(pk=image_id).first()
    if found is None:
        raise Http404
    return found


def _video(request: HttpRequest, video_id: int) -> Video:
    found = selectors.videos_of(owner_id=_user(request).pk).filter(pk=video_id).first()
    if found is None:
        raise Http404
    return found


def _file(file: FieldFile | None) -> HttpResponseBase:
    if not file:
        raise Http404
    return whole_file(file)
