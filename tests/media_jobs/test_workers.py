"""Pictures and videos from upload to file, with real workers, which are killed in the middle."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from PIL import Image

from accounts.models import User
from jobs.models import Job
from media_jobs.models import Picture, Rendition, Upload, Video
from media_jobs.tasks import make_renditions
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.connections import somebody_waits_for_a_lock
from tests.media_jobs.samples import corners, saved, video, with_exif
from tests.media_jobs.test_pictures import assert_upright
from tests.processes import Processes
from tests.waiting import wait_until

Stored = Callable[[], list[str]]
ClientOf = Callable[[User], Client]
SQUARES = ["pictures/256.webp", "pictures/512.webp", "pictures/64.webp", "pictures/original"]


def upload(client: Client, path: str, content: bytes) -> dict[str, Any]:
    response = client.post(path, data={"file": SimpleUploadedFile("file", content)})
    assert response.status_code == 202, response.content
    return response.json()


def ended(client: Client, job_id: str) -> dict[str, Any]:
    """The job as its owner sees it, once it has ended."""

    def look() -> dict[str, Any] | None:
        job = client.get(f"/api/jobs/{job_id}").json()
        return job if job["state"] in ("completed", "failed", "cancelled") else None

    return wait_until(look, timeout=60)


def content(response: Any) -> bytes:
    assert response.status_code == 200
    return b"".join(response.streaming_content)


def test_a_picture_arrives_as_squares_for_its_owner_alone(
    processes: Processes, ann: User, bob: User, client_of: ClientOf
) -> None:
    processes.worker("images", "video")
    client = client_of(ann)
    turned = corners(1600, 1200).transpose(Image.Transpose.ROTATE_90)
    taken = upload(client, "/api/images", saved(turned, exif=with_exif(6)))
    job = ended(client, taken["job"])
    assert (job["state"], job["progress"]["percent"], job["error"]) == ("completed", 100, None)
    assert job["result"] == {"renditions": [64, 256, 512], "width_pixels": 1600, "height_pixels": 1200}

    seen = client.get(f"/api/images/{taken['id']}").json()
    assert (seen["state"], seen["width_pixels"], seen["height_pixels"]) == ("ready", 1600, 1200)
    assert [rendition["size_pixels"] for rendition in seen["renditions"]] == [64, 256, 512]
    for rendition in seen["renditions"]:
        response = client.get(rendition["url"])
        assert response["Content-Type"] == "image/webp"
        assert "private" in response["Cache-Control"]
        made = content(response)
        assert len(made) == rendition["byte_count"]
        assert_upright(Image.open(io.BytesIO(made)))
        assert client_of(bob).get(rendition["url"]).status_code == 404
        assert Client().get(rendition["url"]).status_code == 401
    assert client.get(f"/api/images/{taken['id']}/renditions/128").status_code == 404

    taken = upload(client, "/api/videos", video())
    assert ended(client, taken["job"])["state"] == "completed"
    seen = client.get(f"/api/videos/{taken['id']}").json()
    assert (seen["state"], seen["width_pixels"], seen["height_pixels"]) == ("ready", 320, 180)
    assert seen["duration_seconds"] == pytest.approx(3, abs=0.1)
    assert Image.open(io.BytesIO(content(client.get(seen["poster_url"])))).size == (320, 180)
    assert client_of(bob).get(seen["poster_url"]).status_code == 404
    assert_ledger_consistent()


def test_what_shows_to_be_broken_only_later_fails_at_once_with_a_sentence(
    processes: Processes, ann: User, client_of: ClientOf, stored: Stored
) -> None:
    processes.worker("images", "video")
    client = client_of(ann)
    cut_picture, cut_video = saved(corners())[:-2000], video(seconds=6, movflags="faststart")
    for path, body, words in (
        ("/api/images", cut_picture, "The picture is damaged or not complete."),
        ("/api/videos", cut_video[: len(cut_video) // 2], "The video is damaged or not complete."),
    ):
        taken = upload(client, path, body)
        job = ended(client, taken["job"])
        assert (job["state"], job["error"]) == ("failed", words)
        assert Job.objects.get(pk=taken["job"]).attempt == 1
        seen = client.get(f"{path}/{taken['id']}").json()
        assert (seen["state"], seen["error"]) == ("failed", words)
    assert stored() == ["pictures/original", "videos/original"]
    assert_ledger_consistent()


KINDS: dict[str, tuple[str, type[Upload], Callable[[], bytes], list[str]]] = {
    "images": ("/api/images", Picture, lambda: saved(corners()), SQUARES),
    "video": ("/api/videos", Video, video, ["videos/original", "videos/poster.webp"]),
}


@pytest.mark.parametrize("queue", KINDS)
def test_a_worker_killed_in_the_middle_leaves_nothing_half_and_the_next_makes_it_once(
    processes: Processes, ann: User, client_of: ClientOf, stored: Stored, queue: str
) -> None:
    path, model, make_content, files = KINDS[queue]
    client = client_of(ann)
    taken = upload(client, path, make_content())
    with transaction.atomic():
        # The worker stores the files, but cannot record them while this row is locked.
        model._default_manager.select_for_update().get()
        victim = processes.worker(queue)
        wait_until(somebody_waits_for_a_lock, timeout=30)
        assert stored() == files
        assert client.get(f"{path}/{taken['id']}").json()["state"] == "processing"
        victim.kill()
    wait_until(lambda: not somebody_waits_for_a_lock())
    assert Rendition.objects.count() == 0
    processes.worker(queue)
    assert ended(client, taken["job"])["state"] == "completed"
    assert client.get(f"{path}/{taken['id']}").json()["state"] == "ready"
    assert Job.objects.get().stalled_count == 1
    assert Rendition.objects.count() == (3 if model is Picture else 0)
    assert stored() == files
    assert_ledger_consistent()


def test_a_run_out_of_time_fails_the_upload(processes: Processes, ann: User, client_of: ClientOf) -> None:
    client = client_of(ann)
    taken = upload(client, "/api/images", saved(corners()))
    # As with a decoder that never comes back.
    Job.objects.all().delete()
    job_id = make_renditions.apply_async(
        kwargs={"picture_id": taken["id"]}, owner_id=ann.pk, soft_time_limit=1, time_limit=2, max_attempts=1
    ).id
    Picture.objects.update(job_id=job_id)
    with transaction.atomic():
        Picture.objects.select_for_update().get()
        processes.worker("images")
        job = ended(client, job_id)
    assert (job["state"], job["error"]) == ("failed", "It ran longer than its time limit, and was ended.")
    seen = client.get(f"/api/images/{taken['id']}").json()
    assert (seen["state"], seen["error"]) == ("failed", job["error"])
    assert_ledger_consistent()
