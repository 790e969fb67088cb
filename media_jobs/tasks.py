"""Jobs that make something of uploads. They decode what strangers send: bounded in time, in processes of their own."""

from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.db import OperationalError

from jobs.task import JobTask
from media_jobs import orphans, posters, renditions


@shared_task(
    bind=True,
    queue="images",
    autoretry_for=(OSError, OperationalError, SoftTimeLimitExceeded),
    retry_backoff=5,
    max_retries=1,
    # A picture takes about a second; what takes a minute is meant to.
    soft_time_limit=60,
    time_limit=75,
)
def make_renditions(self: JobTask, picture_id: int) -> dict[str, Any]:
    """Makes the square renditions of a picture."""
    return renditions.make(picture_id=picture_id, report=self.progress)


@shared_task(
    bind=True,
    queue="video",
    autoretry_for=(OSError, OperationalError, SoftTimeLimitExceeded),
    retry_backoff=30,
    max_retries=1,
    soft_time_limit=300,
    time_limit=330,
)
def make_poster(self: JobTask, video_id: int) -> dict[str, Any]:
    """Measures a video and makes its poster."""
    return posters.make(video_id=video_id, report=self.progress)


@shared_task(
    bind=True,
    queue="default",
    autoretry_for=(OSError, OperationalError, SoftTimeLimitExceeded),
    retry_backoff=60,
    max_retries=2,
    soft_time_limit=1800,
    time_limit=1860,
)
def remove_orphans(self: JobTask) -> None:
    """Removes files that belong to no upload. Planned once a day."""
    orphans.remove(report=self.progress)
