"""Reads of media."""

from enum import StrEnum
from typing import Any, TypeVar

from django.db.models import OuterRef, QuerySet, Subquery

from jobs.models import LIVE, Job
from jobs.states import State
from media_jobs.models import Picture, Upload, Video

AnyUpload = TypeVar("AnyUpload", bound=Upload)


class Progress(StrEnum):
    """What has become of an upload."""

    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"


def pictures_of(*, owner_id: int) -> QuerySet[Picture]:
    """A user's pictures."""
    return with_job(Picture.objects.filter(owner=owner_id))


def videos_of(*, owner_id: int) -> QuerySet[Video]:
    """A user's videos."""
    return with_job(Video.objects.filter(owner=owner_id))


def with_job(uploads: "QuerySet[AnyUpload, AnyUpload]") -> "QuerySet[AnyUpload, AnyUpload]":
    """The uploads with what `progress_of` asks of their jobs; null where the ledger keeps the job no longer."""
    job = Job.objects.filter(pk=OuterRef("job_id"))
    found: Any = uploads.annotate(job_state=Subquery(job.values("state")), job_error=Subquery(job.values("error")))
    return found


def progress_of(upload: Any) -> tuple[Progress, str]:
    """What has become of an upload from `with_job`, and why in words where it failed.

    A job may also end without having got to the end of its body: out of time, its workers killed, cancelled. Then the
    ledger knows what the upload's own row does not.
    """
    if upload.ready_at is not None:
        return Progress.READY, ""
    # Completed, but not ready: it has become so between the two looks.
    if upload.job_state in LIVE or upload.job_state == State.COMPLETED:
        return Progress.PROCESSING, ""
    return Progress.FAILED, upload.error or upload.job_error or "Its job was given up."
