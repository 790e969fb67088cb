from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.models import User
from jobs.models import Job


@pytest.fixture
def ann(db: None) -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create(email="bob@example.com", name="Bob")


def bearer(user: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {services.create_token(user=user)}"}


def make_job(owner: User | None, **fields: Any) -> Job:
    return Job.objects.create(**{"task": "x.y", "queue": "email", "state": "waiting", "owner": owner, **fields})


def test_a_job_that_has_not_ended_says_when_to_ask_again(client: Client, ann: User) -> None:
    job = make_job(
        ann, state="active", worker_id=uuid4(), claim_token="t", progress_percent=40, progress_message="Rendering"
    )
    response = client.get(f"/api/jobs/{job.pk}", headers=bearer(ann))
    assert response.status_code == 200
    assert response["Retry-After"] == "1"
    assert response.json() == {
        "id": str(job.pk),
        "task": "x.y",
        "queue": "email",
        "state": "active",
        "progress": {"percent": 40, "message": "Rendering"},
        "result": None,
        "error": None,
    }


def test_a_completed_job_shows_its_result(client: Client, ann: User) -> None:
    result = {"sent": True, "recipient": "ann@example.com"}
    job = make_job(ann, state="completed", finished_at=timezone.now(), result=result)
    response = client.get(f"/api/jobs/{job.pk}", headers=bearer(ann))
    assert "Retry-After" not in response
    assert response.json()["state"] == "completed"
    assert response.json()["result"] == result
    assert response.json()["progress"]["percent"] == 100


def test_a_failed_job_shows_why_in_words(client: Client, ann: User) -> None:
    job = make_job(ann, state="failed", finished_at=timezone.now(), error="550 No such user", traceback="Traceback …")
    response = client.get(f"/api/jobs/{job.pk}", headers=bearer(ann))
    assert "Retry-After" not in response
    assert response.json()["error"] == "550 No such user"
    assert "Traceback" not in response.content.decode()


def test_a_session_is_as_good_as_a_token(client: Client, ann: User) -> None:
    client.force_login(ann)
    assert client.get(f"/api/jobs/{make_job(ann).pk}").status_code == 200


def test_the_job_of_somebody_else_is_404_as_if_it_were_not_there(client: Client, ann: User, bob: User) -> None:
    answers = []
    for job_id in (make_job(bob).pk, make_job(None).pk, uuid4(), "no-uuid", "0" * 500):
        response = client.get(f"/api/jobs/{job_id}", headers=bearer(ann))
        answers.append((response.status_code, response.content))
    assert set(answers) == {(404, b'{"error": {"message": "There is no such thing here.", "fields": {}}}')}


def test_nobody_sees_other_peoples_jobs_not_even_staff(client: Client, ann: User) -> None:
    root = User.objects.create_superuser("root@example.com", "correct horse battery", name="Root")
    assert client.get(f"/api/jobs/{make_job(ann).pk}", headers=bearer(root)).status_code == 404


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer x", "Bearer \xe9", "Basic YTpi", "handoff_x"])
def test_without_credentials_it_is_401(client: Client, ann: User, header: str) -> None:
    response = client.get(f"/api/jobs/{make_job(ann).pk}", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.json()["error"]["message"] == "Sign in, or send a token."
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_what_celery_keeps_in_a_result_is_readable(client: Client, ann: User) -> None:
    moment = timezone.now()
    job = make_job(ann, state="completed", finished_at=moment, result={"at": moment, "id": uuid4(), "list": [1, None]})
    response = client.get(f"/api/jobs/{job.pk}", headers=bearer(ann))
    assert response.status_code == 200
    assert response.json()["result"]["list"] == [1, None]
