"""Pictures and videos in the admin, asked over HTTP as a browser does."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.files.base import ContentFile
from django.test import Client

from accounts.models import User
from media_jobs import posters, renditions, services
from media_jobs.models import Picture, Video
from tests.media_jobs.samples import corners, saved, video

ClientOf = Callable[[User], Client]


@pytest.fixture
def picture(ann: User) -> Picture:
    taken = services.add_picture(owner_id=ann.pk, file=ContentFile(saved(corners())), purpose="avatar")
    renditions.make(picture_id=taken.pk, report=lambda *_: None)
    return taken


@pytest.fixture
def clip(ann: User) -> Video:
    taken = services.add_video(owner_id=ann.pk, file=ContentFile(video()))
    posters.make(video_id=taken.pk, report=lambda *_: None)
    return taken


@pytest.fixture
def staff_client(client_of: ClientOf, bob: User) -> Client:
    """A member of staff who may see media."""
    User.objects.filter(pk=bob.pk).update(is_staff=True)
    bob.user_permissions.set(Permission.objects.filter(codename__in=["view_picture", "view_video"]))
    return client_of(bob)


def page(response: Any) -> str:
    assert response.status_code == 200
    return response.content.decode()


def is_webp(response: Any) -> bool:
    return b"".join(response.streaming_content)[8:12] == b"WEBP"


def test_pictures_are_listed_with_thumbnails(staff_client: Client, picture: Picture) -> None:
    seen = page(staff_client.get("/admin/media_jobs/picture/"))
    preview = f"/admin/media_jobs/picture/{picture.pk}/preview/64"
    assert f'src="{preview}"' in seen
    assert "ann@example.com" in seen
    assert "800 × 800" in seen
    assert f"/admin/jobs/job/{picture.job_id}/change/" in seen
    response = staff_client.get(preview)
    assert response["Content-Type"] == "image/webp"
    assert is_webp(response)


def test_the_page_of_a_picture_shows_all_renditions_and_no_form(staff_client: Client, picture: Picture) -> None:
    seen = page(staff_client.get(f"/admin/media_jobs/picture/{picture.pk}/change/"))
    for size in (64, 256, 512):
        assert f"/preview/{size}" in seen
    assert 'name="_save"' not in seen


def test_videos_are_listed_with_posters(staff_client: Client, clip: Video) -> None:
    preview = f"/admin/media_jobs/video/{clip.pk}/preview/poster"
    assert preview in page(staff_client.get("/admin/media_jobs/video/"))
    assert "320 × 180" in page(staff_client.get(f"/admin/media_jobs/video/{clip.pk}/change/"))
    assert is_webp(staff_client.get(preview))


def test_previews_are_for_staff_who_may_see_media(
    ann: User, bob: User, client_of: ClientOf, staff_client: Client, picture: Picture, clip: Video
) -> None:
    paths = [f"/admin/media_jobs/picture/{picture.pk}/preview/64", f"/admin/media_jobs/video/{clip.pk}/preview/poster"]
    bob.user_permissions.clear()
    for path in paths:
        assert Client().get(path).status_code == 302
        # The owner has the API for it.
        assert client_of(ann).get(path).status_code == 302
        assert staff_client.get(path).status_code == 403


@pytest.mark.parametrize("name", ["65", "poster", "original", "999999999999999999999", "-1"])
def test_there_is_no_other_preview_than_what_was_made(staff_client: Client, picture: Picture, name: str) -> None:
    assert staff_client.get(f"/admin/media_jobs/picture/{picture.pk}/preview/{name}").status_code == 404
    assert staff_client.get(f"/admin/media_jobs/picture/{picture.pk + 1}/preview/64").status_code == 404


def test_what_failed_says_why(staff_client: Client, ann: User) -> None:
    broken = services.add_picture(owner_id=ann.pk, file=ContentFile(saved(corners())[:-2000]), purpose="picture")
    Picture.objects.update(error="The picture is damaged or not complete.", job_id=None)
    assert "failed" in page(staff_client.get("/admin/media_jobs/picture/"))
    assert "damaged or not complete" in page(staff_client.get(f"/admin/media_jobs/picture/{broken.pk}/change/"))
