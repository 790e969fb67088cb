"""Reports over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.storage import default_storage
from django.db import connections
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from accounts.models import User
from jobs.models import Job
from jobs.services import cancel_job
from reports.models import Report
from tests.reports.conftest import LAST, ask, asked, made, signed_in


@pytest.fixture
def client(user: User) -> Client:
    return signed_in(user)


def test_asking_for_a_report_is_answered_202_with_its_id_and_its_job(client: Client, user: User) -> None:
    answer = ask(client)
    assert answer.status_code == 202, answer.content
    report, job = Report.objects.get(), Job.objects.get()
    assert answer.json() == {"job": str(job.pk), "id": str(report.pk)}
    assert answer["Location"] == f"/api/jobs/{job.pk}"
    assert answer["Retry-After"] == "1"
    assert (report.owner, report.job_id, report.kind) == (user, job.pk, "activity")
    assert (job.queue, job.owner, job.max_attempts, job.dedup_key) == ("reports", user, 1, f"report-{user.pk}")
    assert job.kwargs == {"report_id": str(report.pk)}


def test_asking_again_for_the_report_that_is_being_made_names_the_same_report_and_job(client: Client) -> None:
    first, second = ask(client), ask(client)
    assert second.status_code == 202
    assert second.json() == first.json()
    assert Report.objects.count() == Job.objects.count() == 1


def test_asking_for_another_report_meanwhile_is_refused_and_names_the_one_in_the_making(client: Client) -> None:
    first = ask(client).json()
    refused = ask(client, to=(LAST + timedelta(days=1)).isoformat())
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert first["id"] in message
    assert first["job"] in message
    assert Report.objects.count() == Job.objects.count() == 1


def test_two_users_have_a_report_made_at_the_same_time(client: Client, other: User) -> None:
    assert ask(client).json()["job"] != ask(signed_in(other)).json()["job"]
    assert Report.objects.count() == Job.objects.count() == 2


def test_when_the_last_one_has_ended_the_next_is_a_new_one(client: Client, user: User) -> None:
    first = ask(client).json()
    cancel_job(job_id=first["job"], actor=user)
    second = ask(client).json()
    assert first["job"] != second["job"]
    assert first["id"] != second["id"]


@pytest.mark.django_db(transaction=True)
def test_however_many_ask_at_once_there_is_one_report_and_one_job() -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    clients = [signed_in(user) for _ in range(6)]

    def one(client: Client) -> Any:
        try:
            return ask(client)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(one, clients))
    assert {answer.status_code for answer in answers} == {202}
    assert len({(answer.json()["job"], answer.json()["id"]) for answer in answers}) == 1
    assert Report.objects.count() == Job.objects.count() == 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"kind": "money"}, {"kind": "Input should be 'activity'."}),
        ({"from": "2026-03-08"}, {"from": "Must not be after the last day."}),
        ({"from": "2025-03-06"}, {"from": "A report is on 366 days at the most."}),
        ({"from": "0001-01-01"}, {"from": "A report is on 366 days at the most."}),
        ({"to": "9999-12-31"}, {"to": "Must not be in the future"}),
        ({"to": (timezone.now() + timedelta(days=2)).date().isoformat()}, {"to": "Must not be in the future"}),
        ({"from": "2026-02-30"}, {"from": "Must be a date like 2026-01-31."}),
        ({"from": "yesterday", "to": ""}, {"from": "Must be a date", "to": "Must be a date"}),
        ({"from": 1772323200, "to": None}, {"from": "Must be a date", "to": "Must be a date"}),
        ({"from": "20260301"}, {"from": "Must be a date"}),
        ({"from": "2026-03-01T00:00:00Z"}, {"from": "Must be a date"}),
        ({"from": "2026-W10-1"}, {"from": "Must be a date"}),
        ({"from": "٢٠٢٦-٠٣-٠١"}, {"from": "Must be a date"}),
    ],
)
def test_what_is_wrong_is_told_per_field_and_nothing_is_written(
    client: Client, fields: dict[str, Any], wrong: dict[str, str]
) -> None:
    answer = ask(client, **fields)
    assert answer.status_code == 422
    told = answer.json()["error"]["fields"]
    assert told.keys() == wrong.keys()
    assert all(told[name].startswith(text) for name, text in wrong.items()), told
    assert not Report.objects.exists()
    assert not Job.objects.exists()


def test_a_missing_field_is_named(client: Client) -> None:
    answer = client.post("/api/reports", {"kind": "activity"}, content_type="application/json")
    assert answer.status_code == 422
    assert answer.json()["error"]["fields"] == {"from": "This field is required.", "to": "This field is required."}


def test_a_report_may_end_today_and_be_a_leap_year_long(client: Client) -> None:
    today = timezone.now().date()
    answer = ask(client, **{"from": (today - timedelta(days=365)).isoformat(), "to": today.isoformat()})
    assert answer.status_code == 202


def test_today_is_that_of_the_owners_clock(client: Client, user: User) -> None:
    now = timezone.now()
    User.objects.update(timezone="Pacific/Kiritimati" if now.hour >= 10 else "Pacific/Pago_Pago")
    user.refresh_from_db()
    theirs = now.astimezone(user.timezone).date()
    assert theirs != now.date()
    refused = ask(client, **{"from": theirs.isoformat(), "to": (theirs + timedelta(days=1)).isoformat()})
    assert refused.json()["error"]["fields"] == {"to": f"Must not be in the future: today is {theirs}."}
    assert ask(client, **{"from": theirs.isoformat(), "to": theirs.isoformat()}).status_code == 202


def test_a_report_is_pending_until_its_job_has_ended(client: Client) -> None:
    report_id = ask(client).json()["id"]
    pending = client.get(f"/api/reports/{report_id}")
    assert pending["Retry-After"] == "1"
    told = pending.json()
    assert (told["id"], told["from"], told["to"]) == (report_id, "2026-03-01", "2026-03-07")
    assert (told["state"], told["pages"], told["download"]) == ("pending", None, None)
    assert client.get(f"/api/reports/{report_id}/download").status_code == 409

    made(Report.objects.get())
    told = client.get(f"/api/reports/{report_id}").json()
    assert (told["state"], told["download"]) == ("pending", f"/api/reports/{report_id}/download")

    Job.objects.filter(queue="reports").update(state="completed", finished_at=Now())
    ready = client.get(f"/api/reports/{report_id}")
    assert "Retry-After" not in ready
    assert (ready.json()["state"], ready.json()["pages"], ready.json()["error"]) == ("ready", 1, None)
    file = client.get(ready.json()["download"])
    file.close()
    assert file.status_code == 200


def test_a_report_whose_job_is_cancelled_has_failed_and_says_why(client: Client, user: User) -> None:
    asked_for = ask(client).json()
    cancel_job(job_id=asked_for["job"], actor=user)
    told = client.get(f"/api/reports/{asked_for['id']}").json()
    assert told["state"] == "failed"
    assert told["error"]
    assert client.get(f"/api/reports/{asked_for['id']}/download").status_code == 409


def test_the_download_is_the_file_and_is_kept_by_nobody(client: Client, user: User) -> None:
    report = asked(user)
    made(report)
    answer: Any = client.get(f"/api/reports/{report.pk}/download")
    content = b"".join(answer.streaming_content)
    report.refresh_from_db()
    assert content.startswith(b"%PDF-")
    assert len(content) == report.size_bytes
    assert answer["Content-Type"] == "application/pdf"
    assert answer["Content-Disposition"] == 'attachment; filename="activity-2026-03-01-2026-03-07.pdf"'
    assert answer["Cache-Control"] == "private, no-store"
    assert answer["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["", "/download"])
def test_a_report_is_nobody_elses(user: User, other: User, path: str) -> None:
    report = asked(user)
    made(report)
    assert signed_in(other).get(f"/api/reports/{report.pk}{path}").status_code == 404
    assert Client().get(f"/api/reports/{report.pk}{path}").status_code == 401
    for unknown in (uuid4(), "x", "..%2f..", "1" * 400):
        assert signed_in(other).get(f"/api/reports/{unknown}{path}").status_code == 404


def test_strangers_cannot_ask(db: None) -> None:
    assert ask(Client()).status_code == 401


def test_the_file_is_served_by_no_other_address(client: Client, user: User) -> None:
    report = asked(user)
    made(report)
    report.refresh_from_db()
    for address in (f"/media/{report.file.name}", f"/{report.file.name}", f"/static/{report.file.name}"):
        assert client.get(address).status_code == 404


def test_a_file_that_is_gone_is_a_404(client: Client, user: User) -> None:
    report = asked(user)
    made(report)
    report.refresh_from_db()
    default_storage.delete(report.file.name or "")
    assert client.get(f"/api/reports/{report.pk}/download").status_code == 404


def test_the_description_for_machines_says_what_is_sent_and_answered() -> None:
    described = Client().get("/api/openapi.json").json()
    fields = described["components"]["schemas"]["ReportIn"]
    assert sorted(fields["required"]) == ["from", "kind", "to"]
    assert fields["properties"]["from"]["format"] == "date"
    assert list(described["paths"]["/api/reports"]["post"]["responses"]) == ["202"]
    download = described["paths"]["/api/reports/{report_id}/download"]["get"]
    assert list(download["responses"]["200"]["content"]) == ["application/pdf"]
