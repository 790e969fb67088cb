"""The operators' pages, asked over HTTP as a browser does."""

import re
from collections.abc import Iterable
from datetime import timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from jobs.models import Attempt, AuditEntry, Duty, Job, QueueControl
from notifications.models import EmailLog
from tests import sample_tasks
from tests.jobs.factories import make_events, make_job, make_worker, state_of

JOBS = "/admin/jobs/job/"
QUEUES = "/admin/queues/"


@pytest.fixture
def staff(transactional_db: None) -> User:
    """A member of staff who may do nothing yet."""
    return User.objects.create_user("staff@example.com", name="Staff", is_staff=True)


@pytest.fixture
def staff_client(staff: User) -> Client:
    client = Client()
    client.force_login(staff)
    return client


def allow(user: User, *codenames: str) -> None:
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))


def page(response: Any) -> str:
    assert response.status_code == 200
    return response.content.decode()


def told(response: Any) -> list[str]:
    """The messages that the next page shows."""
    return [str(message) for message in get_messages(response.wsgi_request)]


def listed(client: Client, query: str) -> set[str]:
    """The ids in the job list."""
    response = client.get(f"{JOBS}?{query}")
    assert response.status_code == 200
    return {str(job.pk) for job in response.context["cl"].result_list}


def ids(*jobs: Job) -> set[str]:
    return {str(job.pk) for job in jobs}


# -- The list ------------------------------------------------------------------------------------------------------
def test_the_list_filters_by_state_queue_and_task(admin_client: Client) -> None:
    failed = make_job(queue="email", state="failed")
    waiting = make_job(queue="email")
    other = make_job(queue="images", task="tests.sample_tasks.other")
    assert listed(admin_client, "state=failed") == ids(failed)
    assert listed(admin_client, "queue=email") == ids(failed, waiting)
    assert listed(admin_client, "queue=email&state=waiting") == ids(waiting)
    assert listed(admin_client, "task=tests.sample_tasks.other") == ids(other)
    assert listed(admin_client, "") == ids(failed, waiting, other)


def test_the_list_finds_jobs_by_id_task_dedup_key_and_error(admin_client: Client) -> None:
    job = make_job(task="reports.tasks.render", dedup_key="report-9", state="failed", error="Disk full on web-2")
    make_job()
    for term in (job.pk, f" {job.pk} ", "reports.tasks", "report-9", "disk full"):
        assert listed(admin_client, f"q={term}") == ids(job)
    assert listed(admin_client, f"q={uuid4()}") == set()


def test_a_waiting_job_of_a_paused_queue_shows_as_paused(admin_client: Client) -> None:
    QueueControl.objects.create(name="email", paused_at=timezone.now())
    paused, waiting = make_job(queue="email"), make_job(queue="images")
    assert listed(admin_client, "state=paused") == ids(paused)
    assert listed(admin_client, "state=waiting") == ids(waiting)
    assert re.search(r">\s*paused\s*</span>", page(admin_client.get(f"{JOBS}{paused.pk}/change/")))


def test_the_list_never_counts_the_table_and_reads_no_payloads(admin_client: Client) -> None:
    for _ in range(60):
        make_job(kwargs={"body": "x"})
    with CaptureQueriesContext(connection) as queries:
        page(admin_client.get(JOBS))
    asked = [query["sql"] for query in queries if '"jobs_job"' in query["sql"]]
    assert len(asked) == 1
    assert "COUNT(" not in asked[0]
    assert '"kwargs"' not in asked[0]
    assert len(queries) < 10


# -- One job -------------------------------------------------------------------------------------------------------
def test_the_page_of_a_job_tells_everything_but_secrets(admin_client: Client) -> None:
    worker = make_worker(node="email@web-1")
    job = make_job(
        queue="email",
        state="failed",
        attempt=3,
        kwargs={"user_id": 4711, "api_token": "tok_very_secret", "nested": [{"Password": "hunter2"}]},
        result={"sent": False, "cookie": "session_secret"},
        error="The server said <b>no</b>.",
        traceback="Traceback (most recent call last): boom",
        worker_id=worker.pk,
        progress_percent=40,
        progress_message="Rendering",
        started_at=timezone.now() - timedelta(seconds=3),
    )
    Attempt.objects.create(job=job, number=1, outcome="retried", error="First time unlucky", traceback="Traceback: 1")
    text = page(admin_client.get(f"{JOBS}{job.pk}/change/"))
    for shown in (
        "4711",
        "3 of 3",
        "The server said &lt;b&gt;no&lt;/b&gt;.",
        "boom",
        "email@web-1",
        'value="40"',
        "Rendering",
        "First time unlucky",
        "Traceback: 1",
        "•••",
    ):
        assert shown in text
    for hidden in ("tok_very_secret", "hunter2", "session_secret", "<b>no</b>"):
        assert hidden not in text


def test_nobody_adds_edits_or_deletes_jobs_by_hand(admin_client: Client) -> None:
    job = make_job()
    assert admin_client.get(f"{JOBS}add/").status_code == 403
    assert admin_client.post(f"{JOBS}{job.pk}/change/", {"state": "completed"}).status_code == 403
    assert admin_client.post(f"{JOBS}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert state_of(job.pk) == "waiting"


def test_the_button_runs_a_failed_job_again_and_says_so(admin_client: Client) -> None:
    job = make_job(state="failed")
    text = page(admin_client.get(f"{JOBS}{job.pk}/change/"))
    assert "Run again" in text
    assert "Cancel this job" not in text
    answer = admin_client.post(f"{JOBS}{job.pk}/run-again/")
    assert answer["Location"] == f"{JOBS}{job.pk}/change/"
    assert told(answer) == [f"Job {job.pk} was run again."]
    assert state_of(job.pk) == "waiting"
    for url in (f"{JOBS}{job.pk}/history/", f"{JOBS}{job.pk}/change/"):
        assert "Run again (was failed)." in page(admin_client.get(url, follow=True))


def test_the_button_makes_a_delayed_job_due(admin_client: Client) -> None:
    job = make_job(state="delayed", run_at=timezone.now() + timedelta(days=1))
    assert "Run now" in page(admin_client.get(f"{JOBS}{job.pk}/change/"))
    assert told(admin_client.post(f"{JOBS}{job.pk}/promote/")) == [f"Job {job.pk} was made due now."]
    assert state_of(job.pk) == "waiting"
    assert "Run now" not in page(admin_client.get(f"{JOBS}{job.pk}/change/"))


def test_a_failed_job_is_edited_and_runs_again_with_its_hidden_values(admin_client: Client) -> None:
    job = make_job(task=sample_tasks.add.name, state="failed", args=[{"token": "hidden-one"}, 2])
    url = f"{JOBS}{job.pk}/edit/"
    text = page(admin_client.get(url))
    assert "•••" in text
    assert "hidden-one" not in text
    refused = page(admin_client.post(url, {"args": "[5]", "kwargs": "{}"}))
    assert "missing 1 required positional argument" in refused
    assert "Enter a valid JSON" in page(admin_client.post(url, {"args": "[1,", "kwargs": "{}"}))
    for typed in ("9" * 5000, "[" * 100_000):
        refused = page(admin_client.post(url, {"args": typed, "kwargs": "{}"}))
        assert "Not a value that can be read" in refused
        assert typed in refused
    assert state_of(job.pk) == "failed"
    answer = admin_client.post(url, {"args": '[{"token": "•••"}, 5]', "kwargs": ""})
    assert told(answer) == [f"Job {job.pk} was given these arguments."]
    job.refresh_from_db()
    assert (job.state, job.args, job.kwargs) == ("waiting", [{"token": "hidden-one"}, 5], {})
    entry = AuditEntry.objects.get()
    text = page(admin_client.get(f"/admin/jobs/auditentry/{entry.pk}/change/"))
    assert "Edited and run again (was failed)." in text
    assert "hidden-one" not in text


@pytest.mark.parametrize(
    "typed",
    [
        "[" * 600 + "]" * 600,
        "[" * 950 + "]" * 950,
        '["\\ud800"]',
        '["\\u0000"]',
        "[NaN]",
        "[1e400]",
        f"[1{'0' * 5000}]",
    ],
    ids=["deep", "deeper", "half a character", "NUL", "NaN", "infinite", "many digits"],
)
def test_arguments_that_cannot_be_kept_are_refused_in_words_and_stay_as_they_were_typed(
    admin_client: Client, typed: str
) -> None:
    job = make_job(task=sample_tasks.echo.name, state="delayed", args=[1])
    refused = page(admin_client.post(f"{JOBS}{job.pk}/edit/", {"args": typed, "kwargs": ""}))
    many = {"kind": "edit", "state": "delayed", "changes": f'{{"value": {typed}}}'}
    answers = [refused, page(admin_client.get(f"{JOBS}many/", many)), page(admin_client.post(f"{JOBS}many/", many))]
    for answer in answers:
        assert "Not a value that can be" in answer
        assert typed in unescape(answer)
    job.refresh_from_db()
    assert job.args == [1]


def test_a_running_job_offers_no_form_for_its_arguments(admin_client: Client) -> None:
    worker = make_worker()
    job = make_job(state="active", worker_id=worker.pk, claim_token="x")
    assert "Edit arguments" not in page(admin_client.get(f"{JOBS}{job.pk}/change/"))
    assert admin_client.get(f"{JOBS}{uuid4()}/edit/").status_code == 404


def test_a_refused_button_says_why(admin_client: Client) -> None:
    job = make_job(state="failed", dedup_key="only-one")
    holder = make_job(dedup_key="only-one")
    [sentence] = told(admin_client.post(f"{JOBS}{job.pk}/run-again/"))
    assert str(holder.pk) in sentence
    assert str(holder.pk) in page(admin_client.get(f"{JOBS}{job.pk}/change/"))
    gone = uuid4()
    assert told(admin_client.post(f"{JOBS}{gone}/cancel/")) == [f"There is no job {gone} any more."]


def test_looking_at_a_button_does_not_press_it(admin_client: Client) -> None:
    job = make_job(state="failed")
    assert admin_client.get(f"{JOBS}{job.pk}/run-again/").status_code == 405
    assert state_of(job.pk) == "failed"


def test_a_button_pressed_from_another_site_does_nothing(admin_user: User) -> None:
    job = make_job(state="failed")
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(f"{JOBS}{job.pk}/run-again/").status_code == 403
    assert client.post(f"{QUEUES}email/pause/").status_code == 403
    assert state_of(job.pk) == "failed"


def act(client: Client, action: str, jobs: Iterable[Job]) -> list[str]:
    selected = [str(job.pk) for job in jobs]
    return told(client.post(JOBS, {"action": action, "_selected_action": selected}))


def test_selected_jobs_run_again_and_the_refused_are_named(admin_client: Client) -> None:
    failed = [make_job(state="failed") for _ in range(3)]
    waiting = make_job()
    messages = act(admin_client, "run_again", [*failed, waiting])
    assert messages[0] == "3 jobs were run again."
    assert messages[1].startswith(f"Job {waiting.pk} is waiting")
    assert all(state_of(job.pk) == "waiting" for job in failed)


def test_selected_jobs_are_made_due(admin_client: Client) -> None:
    jobs = [make_job(state="delayed", run_at=timezone.now() + timedelta(days=1)) for _ in range(2)]
    assert act(admin_client, "promote", jobs) == ["2 jobs were made due now."]
    assert [state_of(job.pk) for job in jobs] == ["waiting", "waiting"]


def test_selected_jobs_are_cancelled(admin_client: Client) -> None:
    job, ended = make_job(state="delayed"), make_job(state="completed")
    messages = act(admin_client, "cancel", [job, ended])
    assert messages[0] == f"Job {job.pk} was cancelled."
    assert "is completed" in messages[1]
    assert state_of(job.pk) == "cancelled"


# -- Who may do what -----------------------------------------------------------------------------------------------
def test_staff_without_permissions_see_no_jobs_but_the_counts(staff_client: Client) -> None:
    job = make_job(queue="email")
    assert staff_client.get(JOBS).status_code == 403
    assert staff_client.get(f"{JOBS}{job.pk}/change/").status_code == 403
    assert "Pause queue" not in page(staff_client.get(QUEUES))


def test_viewers_look_and_operators_act(staff: User, staff_client: Client) -> None:
    job = make_job(state="failed")
    allow(staff, "view_job")
    assert "Run again" not in page(staff_client.get(f"{JOBS}{job.pk}/change/"))
    assert "Run again" not in page(staff_client.get(JOBS))
    for button in ("run-again", "promote", "cancel", "edit"):
        assert staff_client.post(f"{JOBS}{job.pk}/{button}/").status_code == 403
    act(staff_client, "run_again", [job])
    assert state_of(job.pk) == "failed"
    allow(staff, "view_job", "change_job")
    assert "Run again" in page(staff_client.get(f"{JOBS}{job.pk}/change/"))
    act(staff_client, "run_again", [job])
    assert state_of(job.pk) == "waiting"


def test_pausing_needs_a_permission(staff: User, staff_client: Client) -> None:
    assert staff_client.post(f"{QUEUES}email/pause/").status_code == 403
    allow(staff, "change_queuecontrol")
    assert staff_client.post(f"{QUEUES}email/pause/").status_code == 302
    assert QueueControl.objects.get(name="email").paused_at is not None


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path",
    [
        JOBS,
        QUEUES,
        "/admin/statistics/",
        "/admin/jobs/worker/",
        "/admin/jobs/auditentry/",
        "/admin/notifications/emaillog/",
    ],
)
def test_everybody_else_is_sent_to_the_login(client: Client, path: str) -> None:
    assert client.get(path)["Location"] == f"/admin/login/?next={path}"
    client.force_login(User.objects.create_user("user@example.com", name="User"))
    assert client.get(path).status_code == 302


# -- The other pages -----------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
def test_the_queues_page_counts_links_and_gives_hints(admin_client: Client) -> None:
    make_events(queue="email", kind="failed")
    make_job(queue="images")
    make_worker(queues=["email"])
    text = page(admin_client.get(QUEUES))
    assert 'href="/admin/jobs/job/?queue=email&amp;state=failed"' in text
    assert "celery -A config worker -Q images" in text
    assert "celery -A config worker -Q email<" not in text
    assert "The dispatcher has never ticked" in text


@pytest.mark.django_db(transaction=True)
def test_the_queues_page_refreshes_its_table_alone(admin_client: Client) -> None:
    Duty.objects.bulk_create([Duty(name=name, ticked_at=timezone.now()) for name in ("dispatcher", "beat")])
    text = page(admin_client.get(QUEUES, headers={"HX-Request": "true"}))
    assert "All queues are within their limits" in text
    assert "<html" not in text


@pytest.mark.django_db
def test_a_refresh_after_the_session_ended_gets_no_login_page(client: Client) -> None:
    assert client.get(QUEUES, headers={"HX-Request": "true"}).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_a_queue_is_paused_and_resumed_from_its_page(admin_client: Client) -> None:
    make_job(queue="email")
    answer = admin_client.post(reverse("queue-pause", args=["email"]))
    assert told(answer) == ["Queue email is paused: running jobs end, no new one starts."]
    assert "Resume queue email" in page(admin_client.get(QUEUES))
    [sentence] = told(admin_client.post(reverse("queue-pause", args=["email"])))
    assert sentence.endswith("somebody was faster.")
    admin_client.post(reverse("queue-resume", args=["email"]))
    assert "Pause queue email" in page(admin_client.get(QUEUES))
    assert admin_client.post(reverse("queue-pause", args=["nonsense"])).status_code == 404


@pytest.mark.django_db
def test_the_statistics_page_counts_what_ended_in_the_chosen_span(admin_client: Client) -> None:
    now = timezone.now()
    make_events(90, task="a.tasks.mail", queue="email", at=now, wait_seconds=0.3, run_seconds=1.5)
    make_events(2, task="a.tasks.mail", queue="email", at=now - timedelta(hours=5), kind="failed")
    make_events(task="a.tasks.old", at=now - timedelta(days=20))
    shown = {}
    for span in ("hour", "day", "month", "nonsense"):
        text = page(admin_client.get(f"/admin/statistics/?span={span}"))
        cells = re.findall(r'<td data-label="([^"]+)"[^>]*>([^<]*)</td>', text)
        shown[span] = (text.count("a.tasks."), dict(cells[:10]))
    assert shown["hour"] == shown["nonsense"]
    assert [count for count, _ in shown.values()] == [1, 1, 2, 1]
    hour = shown["hour"][1]
    assert (hour["Completed"], hour["Failed"]) == ("90", "0")
    # The minute in which the hour began is counted as a whole.
    assert 90 / 61 - 0.01 <= float(hour["Per minute"]) <= 90 / 60
    assert (hour["Waited: median"], hour["Ran: median"]) == ("350 ms", "1.5 s")
    assert hour["Ran: 95 %"] == "1.9 s"


def test_the_statistics_page_says_where_nothing_ended(admin_client: Client) -> None:
    assert "Nothing ended in the last day." in page(admin_client.get("/admin/statistics/?span=day"))


def test_limits_are_set_for_declared_queues_and_a_pause_stays(admin_client: Client) -> None:
    url = "/admin/jobs/queuecontrol/"
    admin_client.post(reverse("queue-pause", args=["email"]))
    form = {"waiting_threshold_count": "7", "failed_threshold_count": "", "keep_completed_count": "0"}
    assert admin_client.post(f"{url}email/change/", form).status_code == 302
    control = QueueControl.objects.get(name="email")
    assert (control.waiting_threshold_count, control.failed_threshold_count) == (7, None)
    assert (control.keep_completed_count, control.keep_failed_count) == (0, None)
    assert control.paused_at is not None
    history = page(admin_client.get(f"{url}email/history/", follow=True))
    assert ("Limits changed." in history, "Paused." in history) == (True, True)
    changes = AuditEntry.objects.get(what="Limits changed.").details
    assert (changes["before"]["waiting_threshold_count"], changes["after"]["waiting_threshold_count"]) == (None, 7)
    assert admin_client.post(f"{url}add/", {**form, "name": "video"}).status_code == 302
    assert "Select a valid choice" in page(admin_client.post(f"{url}add/", {**form, "name": "nonsense"}))
    shown = page(admin_client.get(url))
    assert all(f"{count} (declared)" in shown for count in (50, 500))
    assert admin_client.post(f"{url}email/delete/", {"post": "yes"}).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_an_operator_sets_limits_which_are_checked_recorded_and_shown(admin_client: Client) -> None:
    url = "/admin/jobs/queuecontrol/"
    form = {"rate_limit": "7", "concurrency_limit": "3", "quiet_hours": "22:00-07:00 Europe/Berlin"}
    assert admin_client.post(f"{url}add/", {**form, "name": "default"}).status_code == 302
    control = QueueControl.objects.get(name="default")
    assert (control.rate_limit, control.concurrency_limit, control.quiet_hours) == ("7/s", 3, form["quiet_hours"])
    assert "7/s, 3 at once, quiet 22:00-07:00 Europe/Berlin" in page(admin_client.get(url))
    assert "7/s, 3 at once, quiet 22:00-07:00 Europe/Berlin" in page(admin_client.get(reverse("queues")))
    for field, wrong, words in (("rate_limit", "fast", "is no rate"), ("quiet_hours", "22-7", "are no quiet hours")):
        assert words in page(admin_client.post(f"{url}default/change/", {**form, field: wrong}))
    # A job is told to wait while the form is open.
    QueueControl.objects.update(rate_limited_until=Now() + timedelta(minutes=5))
    assert admin_client.post(f"{url}default/change/", {**form, "rate_limit": "none"}).status_code == 302
    control.refresh_from_db()
    assert control.rate_limit == "none"
    assert control.rate_limited_until is not None
    entry = AuditEntry.objects.latest("pk")
    assert entry.details == {"before": {"rate_limit": "7/s"}, "after": {"rate_limit": "none"}}


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_was_told_to_wait_is_shown_and_resumed(admin_client: Client) -> None:
    QueueControl.objects.create(name="crm", rate_limited_until=Now() + timedelta(minutes=5))
    assert "told to wait until" in page(admin_client.get(reverse("queues")))
    [sentence] = told(admin_client.post(reverse("queue-resume", args=["crm"])))
    assert "runs again" in sentence
    assert QueueControl.objects.get(name="crm").rate_limited_until is None
    assert "told to wait" not in page(admin_client.get(reverse("queues")))


def test_workers_are_shown_with_the_state_of_their_lease(admin_client: Client) -> None:
    make_worker(node="a@host", queues=["email", "crm"])
    silent = make_worker(node="b@host", lease_expires_at=timezone.now() - timedelta(seconds=1))
    make_worker(node="c@host", dead_at=timezone.now())
    text = page(admin_client.get("/admin/jobs/worker/"))
    positions = [text.index(word) for word in ("a@host", "alive", "email, crm", "b@host", "silent", "c@host", "ended")]
    assert positions == sorted(positions)
    assert "silent" in page(admin_client.get(f"/admin/jobs/worker/{silent.pk}/change/"))


def test_the_email_log_is_read_only(admin_client: Client, admin_user: User) -> None:
    job = make_job()
    email = EmailLog.objects.create(
        user=admin_user,
        kind="welcome",
        recipient="a@example.com",
        message_id="<1@x>",
        state="failed",
        error="550 No such user",
        job_id=job.pk,
    )
    url = f"/admin/notifications/emaillog/{email.pk}/change/"
    assert "a@example.com" in page(admin_client.get("/admin/notifications/emaillog/"))
    assert "550 No such user" in page(admin_client.get(url))
    assert admin_client.post(url, {"state": "sent"}).status_code == 403


def test_periodic_tasks_are_edited_in_the_admin(admin_client: Client) -> None:
    for model in ("periodictask", "crontabschedule", "intervalschedule", "clockedschedule", "solarschedule"):
        page(admin_client.get(f"/admin/django_celery_beat/{model}/"))
        page(admin_client.get(f"/admin/django_celery_beat/{model}/add/"))


def test_the_empty_lists_of_django_celery_results_are_not_offered(admin_client: Client) -> None:
    assert admin_client.get("/admin/django_celery_results/taskresult/").status_code == 404
    assert "TaskResult" not in page(admin_client.get("/admin/"))


def test_a_user_made_in_the_admin_can_log_in(admin_client: Client, client: Client) -> None:
    form = {
        "email": "New.Person@Example.com",
        "name": "New",
        "password1": "a-long-pass-7",
        "password2": "a-long-pass-7",
    }
    answer = admin_client.post("/admin/accounts/user/add/", form)
    assert answer.status_code == 302
    user = User.objects.get(email="new.person@example.com")
    page(admin_client.get(f"/admin/accounts/user/{user.pk}/change/"))
    page(admin_client.get(f"/admin/accounts/user/{user.pk}/password/"))
    User.objects.filter(pk=user.pk).update(is_staff=True)
    login = {"username": "new.person@example.com", "password": "a-long-pass-7"}
    assert client.post("/admin/login/?next=/admin/", login)["Location"] == "/admin/"


def test_an_address_that_is_taken_is_refused_in_the_form(admin_client: Client, admin_user: User) -> None:
    form = {
        "email": admin_user.email.upper(),
        "name": "Twin",
        "password1": "a-long-pass-7",
        "password2": "a-long-pass-7",
    }
    assert "exists already" in page(admin_client.post("/admin/accounts/user/add/", form))


def test_a_user_is_deleted_with_the_mails_and_the_jobs_stay(admin_client: Client) -> None:
    user = User.objects.create_user("leaver@example.com", name="Leaver")
    job = make_job(owner=user)
    EmailLog.objects.create(user=user, kind="welcome", recipient=user.email, message_id="<1@x>", job_id=job.pk)
    answer = admin_client.post(f"/admin/accounts/user/{user.pk}/delete/", {"post": "yes"})
    assert answer.status_code == 302
    assert not User.objects.filter(pk=user.pk).exists()
    assert Job.objects.get(pk=job.pk).owner_id is None


def test_pages_are_sent_with_security_headers(admin_client: Client) -> None:
    answer = admin_client.get("/admin/")
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "no-store" in answer["Cache-Control"]


def test_a_job_that_waits_for_others_leads_to_them_and_they_to_it(admin_client: Client) -> None:
    flow_id = uuid4()
    waiting = make_job(state="delayed", awaited_flow_id=flow_id, is_held=True)
    member = make_job(flow_id=flow_id, flow_path=[0])
    make_job(state="completed", flow_id=flow_id, flow_path=[1])
    page = admin_client.get(f"/admin/jobs/job/{waiting.pk}/change/").content.decode()
    assert "1 of 2 have ended" in page
    listed = admin_client.get(f"/admin/jobs/job/?flow_id={flow_id}").content.decode()
    assert str(member.pk) in listed
    assert str(waiting.pk) not in listed
    assert str(waiting.pk) in admin_client.get(f"/admin/jobs/job/{member.pk}/change/").content.decode()
