"""Videos by their content, with files made on the spot."""

import io
import os

import pytest
from PIL import Image
from pytest_django.fixtures import Settings

from media_jobs.errors import NotUsable
from media_jobs.videos import Facts, examine, read_container
from tests.media_jobs.samples import corners, saved, sound, video
from tests.media_jobs.test_pictures import assert_upright

KINDS = {
    "mp4": {"container": "mp4", "codec": "libx264"},
    "mp4 with its index first": {"container": "mp4", "codec": "libx264", "movflags": "faststart"},
    "mov": {"container": "mov", "codec": "mpeg4"},
    "webm": {"container": "webm", "codec": "libvpx-vp9"},
    "mkv": {"container": "matroska", "codec": "libx264"},
    "avi": {"container": "avi", "codec": "mpeg4"},
}


def facts(content: bytes) -> Facts:
    file = io.BytesIO(content)
    return examine(file, container_format=read_container(file), report=lambda *_: None)


def poster(found: Facts) -> Image.Image:
    return Image.open(io.BytesIO(found.poster)).convert("RGB")


@pytest.mark.parametrize("kind", KINDS)
def test_length_size_and_poster_are_found(kind: str) -> None:
    found = facts(video(**KINDS[kind]))  # type: ignore[arg-type]
    assert found.duration_seconds == pytest.approx(3, abs=0.2)
    assert (found.width_pixels, found.height_pixels) == (320, 180)
    made = poster(found)
    assert made.size == (320, 180)
    assert_upright(made.resize((256, 256)))


def test_the_poster_is_no_black_frame_of_a_fade_in() -> None:
    assert_upright(poster(facts(video(black_seconds=2, seconds=4))).resize((256, 256)))


def test_a_video_that_is_black_all_along_has_a_black_poster() -> None:
    made = poster(facts(video(black_seconds=9, seconds=2)))
    assert max(high for _, high in made.getextrema()) < 24  # type: ignore[misc]


def test_a_video_of_a_single_frame_has_a_poster() -> None:
    assert_upright(poster(facts(video(seconds=0.1))).resize((256, 256)))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_video_held_on_its_side_is_shown_upright(rotation: int) -> None:
    turned = corners(320, 180) if rotation == 180 else corners(180, 320)
    stored = turned.rotate(-rotation, expand=True)
    found = facts(video(size=(320, 180), rotation=rotation, picture=lambda _: stored))
    assert (found.width_pixels, found.height_pixels) == turned.size
    assert_upright(poster(found).resize((256, 256)))


def test_a_large_poster_is_made_smaller() -> None:
    found = facts(video(size=(1920, 1080), seconds=1.2))
    assert (found.width_pixels, found.height_pixels) == (1920, 1080)
    assert poster(found).size == (1280, 720)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_video_is_refused(kind: str) -> None:
    content = video(**KINDS[kind], seconds=6)  # type: ignore[arg-type]
    with pytest.raises(NotUsable, match="damaged or not complete"):
        facts(content[: len(content) * 6 // 10])


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI LIST"])
def test_noise_under_the_name_of_a_video_is_refused(start: bytes) -> None:
    with pytest.raises(NotUsable):
        facts(start + os.urandom(20_000))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        saved(corners(), "PNG"),
        saved(corners(), "AVIF"),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"RIFF\0\0\0\0WAVEfmt ",
    ],
    ids=["empty", "text", "png", "avif", "playlist", "list of files", "sound"],
)
def test_what_is_no_video_is_refused_by_its_first_bytes(content: bytes) -> None:
    with pytest.raises(NotUsable, match="not a video"):
        read_container(io.BytesIO(content))


def test_a_file_without_a_picture_in_it_is_refused() -> None:
    with pytest.raises(NotUsable, match="no video in this file"):
        facts(sound())


def test_the_limit_of_pixels_is_a_setting(settings: Settings) -> None:
    content = video(size=(320, 180), seconds=1)
    settings.VIDEO_MAX_PIXELS = 320 * 180
    assert facts(content).width_pixels == 320
    settings.VIDEO_MAX_PIXELS = 320 * 180 - 1
    with pytest.raises(NotUsable, match="too large"):
        facts(content)


def test_progress_goes_up_to_the_end() -> None:
    seen: list[float] = []
    content = video(seconds=5)
    examine(io.BytesIO(content), container_format="mov", report=lambda done, *_: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] > 50
