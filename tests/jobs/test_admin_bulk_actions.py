"""Acting on all jobs that a list shows: the links, the dry run, the confirmation, and what is told afterwards."""

import re
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from accounts.models import User
from jobs import batches
from jobs.models import AuditEntry, BulkAction, Job, QueueControl
from tests import sample_tasks
from tests.jobs.factories import make_job, state_of

pytestmark = pytest.mark.django_db
JOBS, MANY = "/admin/jobs/job/", "/admin/jobs/job/many/"


def page(response: Any) -> str:
    assert response.status_code == 200
    return response.content.decode()


def links(client: Client, query: str) -> dict[str, dict[str, list[str]]]:
    """What the list offers to do to all that it shows: labels, and the parameters of the addresses."""
    found = re.findall(r'href="(/admin/jobs/job/many/[^"]+)">([^<]+) …</a>', page(client.get(f"{JOBS}?{query}")))
    return {label: parse_qs(urlsplit(unescape(url)).query) for url, label in found}


def test_the_list_offers_what_can_be_done_to_what_it_shows(admin_client: Client) -> None:
    assert links(admin_client, "state=failed&queue=email&task=notifications.tasks.send_welcome&q=no+route") == {
        label: {
            "kind": [kind],
            "state": ["failed"],
            "queues": ["email"],
            "task": ["notifications.tasks.send_welcome"],
            "error": ["no route"],
        }
        for label, kind in (("Run again", "run again"), ("Edit", "edit"))
    }
    assert list(links(admin_client, "state=delayed")) == ["Edit", "Run now", "Cancel"]
    assert list(links(admin_client, "state=active")) == ["Cancel"]
    assert list(links(admin_client, "")) == ["Run again", "Edit", "Run now", "Cancel"]
    day = "created_at__gte=2026-03-01+00%3A00%3A00%2B00%3A00&created_at__lt=2026-03-02+00%3A00%3A00%2B00%3A00"
    assert links(admin_client, day)["Cancel"] == {
        "kind": ["cancel"],
        "created_from": ["2026-03-01T00:00:00"],
        "created_until": ["2026-03-02T00:00:00"],
    }


def test_the_links_never_mean_more_than_the_list_shows(admin_client: Client) -> None:
    job = make_job()
    assert links(admin_client, f"q={job.pk}") == {}
    assert links(admin_client, "state=paused") == {}
    QueueControl.objects.create(name="email", paused_at=timezone.now())
    assert links(admin_client, "state=paused")["Cancel"]["queues"] == ["email"]
    assert links(admin_client, "state=paused&queue=crm") == {}
    assert "email" not in links(admin_client, "state=waiting")["Cancel"]["queues"]
    assert links(admin_client, "state=waiting&queue=email") == {}
    assert links(admin_client, f"state=waiting&flow_id={uuid4()}") == {}
    assert links(admin_client, "state=failed&o=1&p=2") == links(admin_client, "state=failed")


def test_the_dry_run_counts_shows_and_changes_nothing(admin_client: Client) -> None:
    jobs = [make_job(state="failed", error="SMTP: no route") for _ in range(12)]
    make_job(state="failed", error="another")
    text = page(admin_client.get(MANY, {"kind": "run again", "state": "failed", "error": "no route"}))
    assert "12 jobs match: failed, error holds &#x27;no route&#x27;." in text
    assert "Run 12 jobs again" in text
    assert text.count("SMTP: no route") == 10
    assert "2 more match" in text
    assert {state_of(job.pk) for job in jobs} == {"failed"}
    assert not BulkAction.objects.exists()


def test_confirmed_it_is_done_by_a_job_and_its_page_tells_how_far_it_is(admin_client: Client) -> None:
    before = timezone.now() - timedelta(minutes=1)
    jobs = [make_job(created_at=before, run_at=before, dedup_key=None) for _ in range(3)]
    answer = admin_client.post(MANY, {"kind": "cancel", "state": "waiting", "queues": ["default"]})
    action = BulkAction.objects.get()
    assert answer["Location"] == f"/admin/jobs/bulkaction/{action.pk}/change/"
    text = page(admin_client.get(answer["Location"]))
    assert "0 done, 0 refused, of 3 that matched" in text
    assert "No living worker consumes its queue default" in text
    batches.do_one(action.pk)
    text = page(admin_client.get(answer["Location"]))
    assert "3 done, 0 refused. Finished." in text
    (records,) = re.findall(r'href="(/admin/jobs/auditentry/[^"]+)"', text)
    text = page(admin_client.get(unescape(records)))
    assert all(str(job.pk) in text for job in jobs)
    entry = AuditEntry.objects.get(thing_id=str(jobs[0].pk))
    assert f"bulk action {action.pk}" in page(admin_client.get(f"/admin/jobs/auditentry/{entry.pk}/change/"))
    assert "Cancel: waiting, in queue default" in page(admin_client.get("/admin/jobs/bulkaction/"))


def test_an_edit_of_many_asks_which_arguments_and_hides_secrets(admin_client: Client) -> None:
    job = make_job(task=sample_tasks.echo.name, args=[1], state="failed", finished_at=timezone.now())
    wanted = {"kind": "edit", "state": "failed"}
    for given in ({}, {"changes": "{}"}, {"changes": "[1]"}):
        assert "Say which, as in" in page(admin_client.get(MANY, {**wanted, **given}))
    assert "null" not in page(admin_client.get(MANY, wanted)).partition('name="changes"')[2].partition("</textarea>")[0]
    assert "Enter a valid JSON" in page(admin_client.get(MANY, {**wanted, "changes": "{"}))
    wanted["changes"] = '{"value": {"token": "hidden-one"}}'
    assert "Edit 1 job" in page(admin_client.get(MANY, wanted))
    assert admin_client.post(MANY, wanted).status_code == 302
    action = BulkAction.objects.get()
    batches.do_one(action.pk)
    job.refresh_from_db()
    assert (job.state, job.args) == ("waiting", [{"token": "hidden-one"}])
    text = page(admin_client.get(f"/admin/jobs/bulkaction/{action.pk}/change/"))
    assert "Edit: failed; value = " in text
    assert "hidden-one" not in text


def test_all_jobs_are_meant_only_by_saying_so(admin_client: Client) -> None:
    job = make_job()
    assert "I mean all jobs" in page(admin_client.get(MANY, {"kind": "cancel"}))
    answer = admin_client.post(MANY, {"kind": "cancel"})
    assert ["say that you mean it" in str(message) for message in get_messages(answer.wsgi_request)] == [True]
    assert not BulkAction.objects.exists()
    assert admin_client.post(MANY, {"kind": "cancel", "all_jobs": "on"}).status_code == 302
    assert state_of(job.pk) == "waiting"


def test_what_is_wrong_in_the_form_is_said_and_nothing_is_done(admin_client: Client) -> None:
    make_job()
    for wrong in (
        {"kind": "delete"},
        {"kind": "cancel", "created_from": "yesterday"},
        {"kind": "cancel", "state": "x"},
    ):
        for text in (page(admin_client.get(MANY, wrong)), page(admin_client.post(MANY, wrong))):
            assert "jobs-hint" in text
            assert "Nothing has been done yet" not in text
    assert "jobs-hint" not in page(admin_client.get(MANY))
    assert "No job matches: failed." in page(admin_client.get(MANY, {"kind": "run again", "state": "failed"}))
    assert not Job.objects.filter(task="jobs.tasks.act_on_many").exists()


def test_only_operators_act_on_many(client: Client) -> None:
    staff = User.objects.create_user("staff@example.com", name="Staff", is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(codename="view_job"))
    client.force_login(staff)
    make_job()
    assert links(client, "") == {}
    assert client.get(MANY, {"kind": "cancel"}).status_code == 403
    assert client.post(MANY, {"kind": "cancel", "all_jobs": "on"}).status_code == 403
    assert not BulkAction.objects.exists()
