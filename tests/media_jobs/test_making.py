"""What jobs make of uploads: once, whole, and told to others in the same transaction."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection

from accounts.models import User
from media_jobs import posters, renditions, services
from media_jobs.errors import NotUsable
from media_jobs.models import Picture, Rendition, Upload, Video
from media_jobs.signals import media_ready
from tests.media_jobs.samples import corners, saved, sound, video

Stored = Callable[[], list[str]]


def add_picture(owner: User, content: bytes | None = None) -> Picture:
    file = ContentFile(saved(corners()) if content is None else content)
    return services.add_picture(owner_id=owner.pk, file=file, purpose="picture")


def add_video(owner: User, content: bytes | None = None) -> Video:
    return services.add_video(owner_id=owner.pk, file=ContentFile(video() if content is None else content))


def make(taken: Upload) -> None:
    if isinstance(taken, Picture):
        renditions.make(picture_id=taken.pk, report=ignored)
    else:
        posters.make(video_id=taken.pk, report=ignored)


def ignored(done: float, total: float, message: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def heard() -> Iterator[list[tuple[str, int, bool, bool]]]:
    """What the event said: kind, owner, whether it came inside a transaction, whether everything was recorded."""
    events = []

    def hear(sender: Any, *, media: Upload, **_: Any) -> None:
        is_whole = media.renditions.count() == 3 if isinstance(media, Picture) else bool(media.poster)  # type: ignore[attr-defined]
        events.append((media.kind, media.owner_id, connection.in_atomic_block, is_whole))  # type: ignore[attr-defined]

    media_ready.connect(hear)
    yield events
    media_ready.disconnect(hear)


def test_a_picture_is_made_once_and_told_once(ann: User, stored: Stored, heard: list[Any]) -> None:
    picture = add_picture(ann)
    results = [renditions.make(picture_id=picture.pk, report=ignored) for _ in range(2)]
    assert results == [{"renditions": [64, 256, 512], "width_pixels": 800, "height_pixels": 800}] * 2
    assert stored() == ["pictures/256.webp", "pictures/512.webp", "pictures/64.webp", "pictures/original"]
    assert heard == [("picture", ann.pk, True, True)]
    for made in Rendition.objects.all():
        with made.file.open() as file:
            assert len(file.read()) == made.byte_count


def test_a_video_is_made_once_and_told_once(ann: User, stored: Stored, heard: list[Any]) -> None:
    content = video()
    taken = add_video(ann, content)
    results = [posters.make(video_id=taken.pk, report=ignored) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0] == {
        "duration_seconds": pytest.approx(3, abs=0.1),
        "width_pixels": 320,
        "height_pixels": 180,
        "byte_count": len(content),
    }
    assert stored() == ["videos/original", "videos/poster.webp"]
    assert heard == [("video", ann.pk, True, True)]


def test_a_receiver_that_raises_undoes_the_recording_and_the_next_run_does_it_all(
    ann: User, stored: Stored, heard: list[Any]
) -> None:
    def refuse(sender: Any, **_: Any) -> None:
        raise LookupError("not now")

    picture = add_picture(ann)
    media_ready.connect(refuse)
    try:
        with pytest.raises(LookupError):
            renditions.make(picture_id=picture.pk, report=ignored)
    finally:
        media_ready.disconnect(refuse)
    picture.refresh_from_db()
    assert (picture.ready_at, Rendition.objects.count()) == (None, 0)
    renditions.make(picture_id=picture.pk, report=ignored)
    assert Rendition.objects.count() == 3
    assert len(stored()) == 4


def test_a_picture_that_proves_broken_keeps_the_sentence(ann: User, stored: Stored, heard: list[Any]) -> None:
    picture = add_picture(ann, saved(corners())[:-2000])
    for _ in range(2):
        with pytest.raises(NotUsable, match="damaged or not complete"):
            renditions.make(picture_id=picture.pk, report=ignored)
    picture.refresh_from_db()
    assert picture.error == "The picture is damaged or not complete."
    assert (stored(), heard) == (["pictures/original"], [])


def test_a_video_that_proves_to_have_no_picture_keeps_the_sentence(ann: User, stored: Stored, heard: list[Any]) -> None:
    taken = add_video(ann, sound())
    with pytest.raises(NotUsable):
        posters.make(video_id=taken.pk, report=ignored)
    taken.refresh_from_db()
    assert taken.error == "There is no video in this file."
    assert (stored(), heard) == (["videos/original"], [])


@pytest.mark.parametrize("kind", ["picture", "video"])
def test_an_original_that_is_gone_is_said_to_be(ann: User, kind: str) -> None:
    taken: Upload = add_picture(ann) if kind == "picture" else add_video(ann)
    default_storage.delete(str(taken.original))
    with pytest.raises(NotUsable, match="no longer there"):
        make(taken)


def test_what_was_deleted_meanwhile_is_nothing_to_do(ann: User, heard: list[Any]) -> None:
    picture, taken = add_picture(ann), add_video(ann)
    ann.delete()
    assert renditions.make(picture_id=picture.pk, report=ignored) == {"renditions": []}
    assert posters.make(video_id=taken.pk, report=ignored) == {"duration_seconds": None}
    assert heard == []


def test_each_stage_is_told(ann: User) -> None:
    told: list[str] = []
    picture = add_picture(ann)
    renditions.make(picture_id=picture.pk, report=lambda done, total, message: told.append(f"{done}/{total} {message}"))
    assert told == [
        "0/5 Decoding the picture",
        "1/5 Storing 512 × 512",
        "2/5 Storing 256 × 256",
        "3/5 Storing 64 × 64",
        "4/5 Recording",
        "5/5 Ready",
    ]
