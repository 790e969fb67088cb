"""Uploads over HTTP: what is taken, and what is refused before a job exists."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django.fixtures import Settings

from accounts.models import User
from accounts.services import create_token
from jobs.enqueue import PayloadTooLarge
from jobs.models import Job
from jobs.options import InvalidOption
from media_jobs import services
from media_jobs.models import Picture, Video
from tests.media_jobs.samples import bomb, corners, saved, video

Stored = Callable[[], list[str]]
ClientOf = Callable[[User], Client]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def send(client: Client, path: str, content: bytes | None, name: str = "a.jpg", **fields: Any) -> Any:
    if content is not None:
        fields["file"] = SimpleUploadedFile(name, content)
    return client.post(path, data=fields)


def test_a_picture_is_taken_with_its_row_its_file_and_its_job(ann: User, client_of: ClientOf, stored: Stored) -> None:
    response = send(client_of(ann), "/api/images", saved(corners()), name="../../etc/passwd", purpose="avatar")
    assert response.status_code == 202
    picture, job = Picture.objects.get(), Job.objects.get()
    assert response.json() == {"job": str(job.pk), "id": picture.pk}
    assert (response["Location"], response["Retry-After"]) == (f"/api/jobs/{job.pk}", "1")
    assert (job.task, job.queue, job.kwargs) == (
        "media_jobs.tasks.make_renditions",
        "images",
        {"picture_id": picture.pk},
    )
    assert (job.owner_id, job.max_attempts, picture.job_id) == (ann.pk, 2, job.pk)
    assert (picture.owner, picture.purpose, picture.format) == (ann, "avatar", "JPEG")
    assert stored() == ["pictures/original"]
    assert picture.original.name == f"pictures/{picture.key}/original"
    with picture.original.open() as original:
        assert original.read() == saved(corners())


def test_a_video_is_taken_with_its_row_its_file_and_its_job(ann: User, client_of: ClientOf, stored: Stored) -> None:
    content = video()
    response = send(client_of(ann), "/api/videos", content, name="a.mp4")
    assert response.status_code == 202
    taken, job = Video.objects.get(), Job.objects.get()
    assert response.json() == {"job": str(job.pk), "id": taken.pk}
    assert (job.queue, job.owner_id, taken.owner, taken.byte_count) == ("video", ann.pk, ann, len(content))
    assert stored() == ["videos/original"]


def test_no_two_uploads_have_names_that_can_be_guessed_from_each_other(ann: User) -> None:
    content = saved(corners())
    keys = {services.add_picture(owner_id=ann.pk, file=ContentFile(content), purpose="picture").key for _ in range(10)}
    assert len(keys) == 10
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("/api/images", SVG, "not a picture"),
        ("/api/images", b"hello", "not a picture"),
        ("/api/images", b"", "empty"),
        ("/api/images", bomb(), "too many pixels"),
        ("/api/images", b"\0\0\0\x18ftypisom", "not a picture"),
        ("/api/videos", b"hello", "not a video"),
        ("/api/videos", b"", "empty"),
        ("/api/videos", saved(corners()), "not a video"),
        ("/api/videos", b"#EXTM3U\nfile:///etc/passwd", "not a video"),
    ],
)
def test_what_the_header_shows_to_be_wrong_is_422_and_leaves_nothing(
    ann: User, client_of: ClientOf, stored: Stored, path: str, content: bytes, words: str
) -> None:
    response = send(client_of(ann), path, content)
    assert response.status_code == 422
    assert words in response.json()["error"]["fields"]["file"]
    assert (stored(), Picture.objects.count(), Video.objects.count(), Job.objects.count()) == ([], 0, 0, 0)


def test_a_missing_file_and_an_unknown_purpose_are_named(ann: User, client_of: ClientOf) -> None:
    response = send(client_of(ann), "/api/images", None, purpose="poster")
    assert response.status_code == 422
    assert sorted(response.json()["error"]["fields"]) == ["file", "purpose"]
    assert response.json()["error"]["fields"]["file"] == "This field is required."
    response = client_of(ann).post("/api/images", data={"file": "not a file"})
    assert list(response.json()["error"]["fields"]) == ["file"]


@pytest.mark.parametrize(
    ("path", "setting"), [("/api/images", "PICTURE_MAX_BYTES"), ("/api/videos", "VIDEO_MAX_BYTES")]
)
def test_a_file_that_is_too_large_is_413(
    ann: User, client_of: ClientOf, stored: Stored, settings: Settings, path: str, setting: str
) -> None:
    setattr(settings, setting, 2 * 1024**2)
    response = send(client_of(ann), path, b"x" * (2 * 1024**2 + 1))
    assert (response.status_code, response.json()["error"]["message"]) == (413, "The file is too large: at most 2 MiB.")
    # Beyond what a form may add, the declared length alone decides: the body is not there to be read.
    response = client_of(ann).generic(
        "POST", path, b"", content_type="multipart/form-data; boundary=x", CONTENT_LENGTH=str(3 * 1024**2)
    )
    assert response.status_code == 413
    assert stored() == []


def test_each_address_takes_its_own_kind_of_body(ann: User, client_of: ClientOf) -> None:
    client = client_of(ann)
    assert client.post("/api/images", data={"file": "x"}, content_type="application/json").status_code == 415
    assert client.post("/api/tokens", data={"email": "x"}).status_code == 415
    broken = client.post("/api/images", data=b"no form", content_type="multipart/form-data")
    assert (broken.status_code, broken.json()["error"]["fields"]) == (400, {})


def test_a_stranger_is_401_and_a_page_of_another_site_403(ann: User, stored: Stored) -> None:
    content = saved(corners())
    assert send(Client(), "/api/images", content).status_code == 401
    careful = Client(enforce_csrf_checks=True)
    assert send(careful, "/api/images", content).status_code == 401
    careful.force_login(ann)
    assert send(careful, "/api/images", content).status_code == 403
    token = create_token(user=ann)
    bearer = Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {token}"})
    assert send(bearer, "/api/images", content).status_code == 202
    assert stored() == ["pictures/original"]


@pytest.mark.parametrize("kind", ["picture", "video"])
def test_an_upload_whose_transaction_is_rolled_back_leaves_no_file(
    ann: User, stored: Stored, settings: Settings, kind: str
) -> None:
    def add(owner_id: int) -> None:
        if kind == "picture":
            services.add_picture(owner_id=owner_id, file=ContentFile(saved(corners())), purpose="picture")
        else:
            services.add_video(owner_id=owner_id, file=ContentFile(video(seconds=1)))

    with pytest.raises(InvalidOption):
        add(ann.pk + 999)
    settings.JOBS_PAYLOAD_MAX_BYTES = 1
    with pytest.raises(PayloadTooLarge):
        add(ann.pk)
    assert (stored(), Picture.objects.count(), Video.objects.count(), Job.objects.count()) == ([], 0, 0, 0)


def test_an_upload_of_somebody_else_is_404(ann: User, bob: User, client_of: ClientOf) -> None:
    picture = send(client_of(ann), "/api/images", saved(corners())).json()["id"]
    taken = send(client_of(ann), "/api/videos", video(seconds=1)).json()["id"]
    for path in (f"/api/images/{picture}", f"/api/videos/{taken}"):
        assert client_of(ann).get(path).status_code == 200
        assert client_of(bob).get(path).status_code == 404
        assert Client().get(path).status_code == 401
    assert client_of(ann).get(f"/api/images/{10**30}").status_code == 404


def test_what_is_not_ready_lists_nothing(ann: User, client_of: ClientOf) -> None:
    client = client_of(ann)
    taken = send(client, "/api/images", saved(corners())).json()
    seen = client.get(f"/api/images/{taken['id']}").json()
    assert (seen["state"], seen["error"], seen["renditions"], seen["job"]) == ("processing", None, [], taken["job"])
    assert client.get(f"/api/images/{taken['id']}/renditions/64").status_code == 404
    taken = send(client, "/api/videos", video(seconds=1)).json()
    seen = client.get(f"/api/videos/{taken['id']}").json()
    assert (seen["state"], seen["duration_seconds"], seen["poster_url"]) == ("processing", None, None)
    assert client.get(f"/api/videos/{taken['id']}/poster").status_code == 404


def test_an_upload_whose_job_was_given_up_has_failed(ann: User, client_of: ClientOf) -> None:
    client = client_of(ann)
    taken = send(client, "/api/images", saved(corners())).json()
    Job.objects.update(state="cancelled", finished_at=Job.objects.get().created_at, error="Cancelled by Ann.")
    seen = client.get(f"/api/images/{taken['id']}").json()
    assert (seen["state"], seen["error"]) == ("failed", "Cancelled by Ann.")
    # The ledger does not keep its jobs for ever.
    Job.objects.all().delete()
    assert client.get(f"/api/images/{taken['id']}").json()["state"] == "failed"


def test_the_description_for_machines_shows_forms_and_pictures(client: Client) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    form = paths["/api/images"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "purpose"}
    answer = paths["/api/images/{image_id}/renditions/{size_pixels}"]["get"]["responses"]["200"]
    assert "image/webp" in answer["content"]
