"""Files that belong to no upload are removed, and no others."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction

from accounts.models import User
from media_jobs import orphans, posters, renditions, services
from tests.media_jobs.samples import corners, saved, video

Stored = Callable[[], list[str]]


def ignored(done: float, total: float, message: str) -> None:
    """Progress that nobody looks at."""


def a_day_passes() -> None:
    for path in Path(settings.MEDIA_ROOT).rglob("*"):
        os.utime(path, (0, 0))


@pytest.fixture
def media(ann: User) -> None:
    picture = services.add_picture(owner_id=ann.pk, file=ContentFile(saved(corners())), purpose="picture")
    renditions.make(picture_id=picture.pk, report=ignored)
    taken = services.add_video(owner_id=ann.pk, file=ContentFile(video(seconds=1)))
    posters.make(video_id=taken.pk, report=ignored)


def test_files_of_uploads_are_kept_however_old(media: None, stored: Stored) -> None:
    before = stored()
    a_day_passes()
    assert orphans.remove(report=ignored) == 0
    assert stored() == before


def test_a_file_without_an_upload_is_removed_when_it_is_a_day_old(media: None, stored: Stored) -> None:
    before = stored()
    # What a process leaves that dies between the file and the row.
    default_storage.save("videos/orphan/original", ContentFile(b"x"))
    assert orphans.remove(report=ignored) == 0
    a_day_passes()
    assert orphans.remove(report=ignored) == 1
    assert orphans.remove(report=ignored) == 0
    assert stored() == before
    assert not (Path(settings.MEDIA_ROOT) / "videos" / "orphan").exists()


def test_the_files_of_a_deleted_user_go_when_that_is_committed(media: None, ann: User, stored: Stored) -> None:
    before = stored()
    with transaction.atomic():
        User.objects.get().delete()
        transaction.set_rollback(True)
    assert stored() == before
    ann.delete()
    assert stored() == []


def test_an_empty_store_has_no_orphans(db: None) -> None:
    assert orphans.remove(report=ignored) == 0
