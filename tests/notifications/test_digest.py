from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from accounts.models import User
from jobs import folds
from jobs.models import Job
from jobs.testing import run_due_jobs
from notifications import selectors, services
from notifications.clients.smtp import TransientMailError
from notifications.digest import FAILURES_IN_A_ROW, Outcome, send_digests
from notifications.digest_sections import MOST_ITEMS
from notifications.models import EmailLog
from notifications.tasks import send_digest
from reports.models import Report
from tests.jobs.factories import make_events
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

TODAY = date(2026, 3, 2)


def someone(name: str, **fields: bool) -> User:
    return User.objects.create(email=f"{name}@example.com", name=name.title(), **fields)


def send(reports: list[tuple[int, int, str]] | None = None) -> Outcome:
    return send_digests(day=TODAY, job_id=None, report=lambda *report: (reports or []).append(report))


@pytest.mark.django_db
def test_each_active_user_who_wishes_it_gets_one_digest(smtp_server: SmtpServer) -> None:
    someone("ann")
    someone("bob")
    someone("carol", wants_digest=False)
    someone("dave", is_active=False)
    assert send_digest() == {"sent": 2, "total": 2}
    assert sorted(mail.recipients[0] for mail in smtp_server.mails) == ["ann@example.com", "bob@example.com"]


@pytest.mark.django_db
def test_the_second_run_of_a_day_sends_nothing_and_says_the_same(smtp_server: SmtpServer) -> None:
    someone("ann")
    assert send_digest() == send_digest() == {"sent": 1, "total": 1}
    assert len(smtp_server.mails) == 1


@pytest.mark.django_db
def test_another_day_is_another_digest(smtp_server: SmtpServer) -> None:
    someone("ann")
    for day in (TODAY, TODAY + timedelta(days=1)):
        send_digests(day=day, job_id=None, report=lambda *_: None)
    assert sorted(EmailLog.objects.values_list("period", flat=True)) == ["2026-03-02", "2026-03-03"]
    assert len(smtp_server.mails) == 2


@pytest.mark.django_db
def test_the_digest_counts_the_users_own_jobs_of_the_day_before(smtp_server: SmtpServer) -> None:
    ann, bob = someone("ann"), someone("bob")
    yesterday = datetime(2026, 3, 1, tzinfo=UTC)
    make_events(3, owner=ann, at=yesterday)
    make_events(owner=ann, kind="failed", at=yesterday + timedelta(hours=23, minutes=59))
    make_events(owner=ann, kind="failed", at=yesterday - timedelta(seconds=1))
    make_events(owner=ann, kind="failed", at=yesterday + timedelta(days=1))
    make_events(owner=bob, kind="cancelled", at=yesterday)
    make_events(at=yesterday)
    # Whatever is folded into the statistics meanwhile.
    while True:
        found = {one.user: [(line.label, line.count) for line in one.lines] for one in selectors.digests(day=TODAY)}
        assert found == {ann: [("Jobs done", 3), ("Jobs failed", 1)], bob: []}
        if not folds.fold_events(limit=3)[0]:
            break

    send()
    (to_ann,) = smtp_server.mails_to("ann@example.com")
    (to_bob,) = smtp_server.mails_to("bob@example.com")
    assert to_ann.subject == "Your digest for 1 March 2026"
    assert "Jobs done: 3" in str(to_ann.message)
    assert "Jobs failed: 1" in str(to_ann.message)
    assert "Nothing ran for you that day." in str(to_bob.message)


@pytest.mark.django_db
def test_the_digest_says_why_jobs_failed_and_where_reports_are(smtp_server: SmtpServer) -> None:
    ann, bob = someone("ann"), someone("bob")
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for number in range(MOST_ITEMS + 2):
        moment = at + timedelta(minutes=15 * number)
        make_events(task="x.tasks.odd_job", kind="failed", owner=ann, at=moment, error=f"Number {number} <b>broke</b>.")
    values = {"kind": "activity", "page_count": 1, "size_bytes": 1, "file": "x.pdf"}
    days = {"from_date": date(2026, 2, 1), "to_date": date(2026, 2, 28)}
    report = Report.objects.create(owner=ann, job_id=uuid4(), ready_at=at, **values, **days)
    too_late = Report.objects.create(owner=ann, job_id=uuid4(), ready_at=at + timedelta(days=1), **values, **days)
    somebody_elses = Report.objects.create(owner=bob, job_id=uuid4(), ready_at=at, **values, **days)
    Report.objects.create(owner=ann, kind="activity", job_id=uuid4(), **days)
    send()
    (to_ann,) = smtp_server.mails_to("ann@example.com")
    bodies = (to_ann.message.get_body([kind]).get_content() for kind in ("plain", "html"))
    text, html = (body.replace("\r\n", "\n") for body in bodies)
    assert "Jobs failed: 7\n    - Odd job: Number 2 <b>broke</b>." in text
    assert "    - Odd job: Number 6 <b>broke</b>.\n    - and 2 more\n" in text
    assert "Number 1" not in text
    assert "Number 6 &lt;b&gt;broke&lt;/b&gt;." in html
    assert "Reports ready: 1\n    - Activity, 2026-02-01 to 2026-02-28\n" in text
    for body in (text, html):
        assert f"/api/reports/{report.pk}/download" in body
        assert str(too_late.pk) not in body
        assert str(somebody_elses.pk) not in body


@pytest.mark.django_db
def test_every_recipient_is_walked_whatever_the_size_of_a_chunk(
    smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selectors, "CHUNK_COUNT", 2)
    names = ["ann", "bob", "carol", "dave", "eve"]
    for name in names:
        someone(name)
    reports: list[tuple[int, int, str]] = [(0, 5, "")]
    assert send(reports).sent == 5
    assert [mail.recipients[0] for mail in smtp_server.mails] == [f"{name}@example.com" for name in names]
    assert [done for done, _, _ in reports] == [0, 1, 2, 3, 4, 5]
    assert {total for _, total, _ in reports} == {5}


@pytest.mark.django_db
def test_the_number_of_queries_does_not_grow_with_recipients_who_have_their_digest(smtp_server: SmtpServer) -> None:
    for number in range(5):
        someone(f"user{number}")
    send()
    with connection.execute_wrapper(count := Counter()):
        send()
    # One count, then for the chunk: users, log, jobs, reports; and one that finds no further chunk.
    assert count.queries == 6


class Counter:
    queries = 0

    def __call__(self, execute: Callable[..., Any], *args: Any) -> Any:
        self.queries += 1
        return execute(*args)


@pytest.mark.django_db
def test_a_recipient_who_is_refused_for_good_does_not_stop_the_others(smtp_server: SmtpServer) -> None:
    for name in ("ann", "bob", "carol"):
        someone(name)
    smtp_server.refuse("bob@example.com", "550 5.1.1 No such user")
    assert send_digest() == {"sent": 2, "total": 3}
    failed = EmailLog.objects.get(state=EmailLog.State.FAILED)
    assert failed.recipient == "bob@example.com"
    assert "550 5.1.1 No such user" in failed.error

    smtp_server.refuse("bob@example.com", "250 OK")
    assert send_digest() == {"sent": 2, "total": 3}
    assert smtp_server.mails_to("bob@example.com") == []


@pytest.mark.django_db
def test_a_recipient_who_is_refused_for_now_is_the_only_one_of_the_next_run(smtp_server: SmtpServer) -> None:
    for name in ("ann", "bob", "carol"):
        someone(name)
    smtp_server.refuse("bob@example.com", "450 4.2.1 Greylisted")
    with pytest.raises(TransientMailError, match=r"1 of 3 digests could not be sent yet.*450 4\.2\.1 Greylisted"):
        send()
    assert len(smtp_server.mails) == 2

    smtp_server.refuse("bob@example.com", "250 OK")
    assert send().sent == 3
    assert [mail.recipients for mail in smtp_server.mails[2:]] == [["bob@example.com"]]


@pytest.mark.django_db
def test_an_error_of_one_digest_does_not_stop_the_others(
    smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = someone("ann")
    someone("bob")
    original = services.notify

    def notify(**options: object) -> EmailLog:
        if options["user"] == ann:
            raise KeyError("odd")
        return original(**options)  # type: ignore[arg-type]

    monkeypatch.setattr("notifications.digest.notify", notify)
    with pytest.raises(TransientMailError, match="KeyError: 'odd'"):
        send()
    assert len(smtp_server.mails_to("bob@example.com")) == 1


@pytest.mark.django_db
def test_a_server_that_is_down_is_not_tried_for_every_recipient() -> None:
    for number in range(FAILURES_IN_A_ROW + 3):
        someone(f"user{number}")
    with pytest.raises(TransientMailError, match="8 of 8 digests could not be sent yet"):
        send()
    assert EmailLog.objects.filter(state=EmailLog.State.CLAIMED).count() == FAILURES_IN_A_ROW


@pytest.mark.django_db
def test_the_day_is_the_one_on_which_the_job_was_made() -> None:
    made_at = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
    job = Job.objects.create(task="x", queue="default", state="waiting", created_at=made_at)
    assert selectors.day_of_job(job_id=job.pk) == date(2026, 3, 1)
    assert selectors.day_of_job(job_id=None) == timezone.now().date()


@pytest.mark.django_db(transaction=True)
def test_a_digest_that_is_caught_up_after_midnight_is_that_of_its_own_day(smtp_server: SmtpServer) -> None:
    someone("ann")
    send_digest.apply_async(headers={"scheduled_for": "2026-03-01T22:00:00+00:00"})
    (job,) = run_due_jobs()
    assert (job.state, job.created_at.date() > date(2026, 3, 1)) == ("completed", True)
    assert EmailLog.objects.get().period == "2026-03-01"


@pytest.mark.django_db
def test_the_migration_plans_the_digest_at_eight_utc() -> None:
    PeriodicTask.objects.all().delete()
    CrontabSchedule.objects.all().delete()
    import_module("notifications.migrations.0002_daily_digest").plan(apps, None)
    row = PeriodicTask.objects.get()
    assert row.task == send_digest.name
    assert row.enabled
    assert (row.crontab.hour, row.crontab.minute, str(row.crontab.timezone)) == ("8", "0", "UTC")
    assert (row.crontab.day_of_week, row.crontab.day_of_month, row.crontab.month_of_year) == ("*", "*", "*")


@pytest.mark.django_db
def test_the_migration_leaves_what_an_operator_has_edited() -> None:
    migration = import_module("notifications.migrations.0002_daily_digest")
    PeriodicTask.objects.all().delete()
    migration.plan(apps, None)
    nine = CrontabSchedule.objects.create(hour="9", minute="30", timezone="Europe/Paris")
    PeriodicTask.objects.update(name="Morning mail", crontab=nine, enabled=False)
    migration.plan(apps, None)
    row = PeriodicTask.objects.get()
    assert (row.name, row.crontab, row.enabled) == ("Morning mail", nine, False)


@pytest.mark.django_db
def test_the_migration_can_be_taken_back() -> None:
    migration = import_module("notifications.migrations.0002_daily_digest")
    migration.plan(apps, None)
    migration.unplan(apps, None)
    assert not PeriodicTask.objects.filter(task=send_digest.name).exists()


@pytest.mark.django_db(transaction=True)
def test_beat_has_the_digest_mailed_once_a_day_however_often_its_row_ticks(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    someone("ann")
    import_module("notifications.migrations.0002_daily_digest").plan(apps, None)
    every_second = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.filter(task=send_digest.name).update(crontab=None, interval=every_second)
    processes.worker("default", pool="threads")
    processes.start("celery", "-A", "config", "beat")
    wait_until(lambda: Job.objects.filter(state="completed").count() >= 3, timeout=60)
    assert len(smtp_server.mails_to("ann@example.com")) == 1
    ended = Job.objects.filter(state="completed")
    assert [job.result for job in ended] == [{"sent": 1, "total": 1}] * len(ended)
